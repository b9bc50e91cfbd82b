"""What a finished run leaves for its user: samples, and the final checkpoint with its card."""

from __future__ import annotations

import logging
from pathlib import Path
from shutil import copytree

from transformers import PreTrainedModel

from inheritune import __version__, atomic
from inheritune.config import Recipe
from inheritune.data.loader import TrainingData
from inheritune.evaluation.samples import continuations, prompts_from
from inheritune.run_directory import Summary
from inheritune.training.checks import tokenizer_of

logger = logging.getLogger(__name__)


def write_samples(
    path: Path, recipe: Recipe, data: TrainingData, reference: PreTrainedModel, small: PreTrainedModel
) -> None:
    """Let both models continue the same texts; without a tokenizer there are none, and a warning says so."""
    tokenizer = tokenizer_of(data.path)
    if tokenizer is None:
        logger.warning("no samples are written: %s has no tokenizer", data.path)
        return
    prompts = list(recipe.samples.prompts) or prompts_from(data.validation, tokenizer)
    texts = [continuations(model, tokenizer, prompts, recipe.samples.tokens) for model in (reference, small)]
    rows = [
        {"prompt": prompt, "reference": of_reference, "target": of_small}
        for prompt, of_reference, of_small in zip(prompts, *texts, strict=True)
    ]
    atomic.write_json(path, rows)


def write_final(path: Path, recipe: Recipe, data: TrainingData, model: Path, summary: Summary) -> None:
    """Put the last round's model where users look for it, with its tokenizer and a model card."""
    tokenizer = tokenizer_of(data.path)
    with atomic.directory(path) as temporary:
        copytree(model, temporary, dirs_exist_ok=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        atomic.write_text(temporary / "README.md", card(recipe, summary))


def card(recipe: Recipe, summary: Summary) -> str:
    """Model card of the result."""
    assert summary.reference is not None
    last = summary.rounds[-1]
    low, high = last.interval
    origin = recipe.reference.pretrained or "a reference trained by the same recipe"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [inheritune]
---
# {summary.name}

The first {last.layers} of {summary.reference.layers} layers of {origin}, trained further by the recipe of
*Inheritune: Training Smaller Yet More Attentive Language Models* (arXiv 2404.08634).

| | reference | this model |
|---|---|---|
| layers | {summary.reference.layers} | {last.layers} |
| parameters | {summary.reference.parameters:,} | {last.parameters:,} |
| validation loss (nats per token) | {summary.reference.loss:.4f} | {last.loss:.4f} |

Verdict: {summary.verdict}. Difference {last.difference:+.4f}, 95% interval [{low:+.4f}, {high:+.4f}], over
{summary.reference.windows} paired windows. Made with inheritune {__version__}.
"""
