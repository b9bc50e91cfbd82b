"""What a finished run leaves for its user: samples, and the final checkpoint with its card."""

from __future__ import annotations

import logging
from pathlib import Path
from shutil import copytree

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError, __version__
from inheritune.config import Recipe
from inheritune.data.loader import TrainingData
from inheritune.evaluation.samples import continuations, prompts_from
from inheritune.models.load import (
    load_config,
    read_tokenizer,
    same_tokens,
    save_tokenizer,
    tokenizer_in,
)
from inheritune.run_directory import Summary
from inheritune.runtime import files

logger = logging.getLogger(__name__)


def write_samples(
    path: Path, recipe: Recipe, data: TrainingData, reference: PreTrainedModel, small: PreTrainedModel
) -> None:
    """Let both models continue the same texts; without a tokenizer there are none, and a warning says so."""
    tokenizer = tokenizer_in(data.path)
    if tokenizer is None:
        logger.warning("no samples are written: %s has no tokenizer", data.path)
        return
    prompts = list(recipe.samples.prompts) or prompts_from(data.validation, tokenizer)
    bos = data.validation.bos
    front = [] if bos is None else [bos]
    texts = [
        continuations(model, tokenizer, prompts, recipe.samples.tokens, front=front)
        for model in (reference, small)
    ]
    rows = [
        {"prompt": prompt, "reference": of_reference, "target": of_small}
        for prompt, of_reference, of_small in zip(prompts, *texts, strict=True)
    ]
    files.write_json(path, rows)


def write_final(path: Path, recipe: Recipe, data: TrainingData, model: Path, summary: Summary) -> None:
    """Put the last round's model where users look for it, with its tokenizer and a model card."""
    config = load_config(recipe.reference.at(model))
    tokenizer = _final_tokenizer(recipe, data)
    with files.directory(path) as temporary:
        copytree(model, temporary, dirs_exist_ok=True)
        save_tokenizer(tokenizer, temporary)
        files.write_text(temporary / "README.md", card(recipe, summary, config.dtype))


def _final_tokenizer(recipe: Recipe, data: TrainingData) -> PreTrainedTokenizerBase | list[Path]:
    """The data's tokenizer with the reference's chat template; the reference's where the data has none."""
    own, source = tokenizer_in(data.path), recipe.reference
    if source.trained is None or (own is not None and own.chat_template is not None):
        return own or []
    try:
        found = read_tokenizer(source.trained)
    except UserError as error:  # the run is done: its result is worth more than this
        logger.warning("%s", error)
        return own or []
    if own is None:
        return found
    if not isinstance(found, list) and same_tokens(own, found):
        own.chat_template = found.chat_template
    return own


def card(recipe: Recipe, summary: Summary, dtype: torch.dtype) -> str:
    """Model card of the result, whose weights have this type."""
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
{summary.reference.windows} paired windows, measured on these weights, which are {str(dtype).removeprefix("torch.")}.
Made with inheritune {__version__}.
"""
