"""What the models write: continuations of a few prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.config import Recipe
from inheritune.data.loader import TrainingData
from inheritune.data.shards import Split
from inheritune.data.tokenizer import tokens_in_front
from inheritune.evaluation.result import Sample
from inheritune.models.architecture import context_length
from inheritune.models.load import tokenizer_in
from inheritune.runtime import files
from inheritune.training.checks import check_ids

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 24

PROMPTS = (
    "The lighthouse had been dark for thirty years when, one evening in October, a light appeared in its",
    "The longest river in Africa is the",
    '"Did you remember to lock the door?" she asked.\n"I thought you had the key," he said.\n"',
    "To bake a simple loaf of bread, start by",
    "Water expands when it freezes because its molecules",
)
"""What models continue where no other prompts are given."""


def prompts_from(split: Split, tokenizer: PreTrainedTokenizerBase, count: int = 3) -> list[str]:
    """The beginnings of documents of a split, spread over it; as many as there are, at most `count`.

    A document that is shorter than a prompt is one as a whole, without the end-of-text after it.
    """
    tokens = split.read(0, min(split.tokens, 1_000_000))
    ends = [] if split.end_of_text is None else np.flatnonzero(tokens == split.end_of_text).tolist()
    begins = [0, *(end + 1 for end in ends)]
    pairs = zip(begins, [*ends, len(tokens)], strict=True)
    prompts = [
        (begin, min(begin + PROMPT_TOKENS, end))
        for begin, end in pairs
        if begin < end and begin + PROMPT_TOKENS <= len(tokens)
    ]
    if len(prompts) >= count:
        prompts = [prompts[i * len(prompts) // count] for i in range(count)]
    return [tokenizer.decode(tokens[begin:end].tolist()) for begin, end in prompts]


def side_by_side(
    models: Sequence[PreTrainedModel],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 64,
    seed: int = 0,
    front: Sequence[int] | None = None,
    tell: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """What every model, with its own tokenizer, writes after every prompt, as `continuations`, which see.

    Each continuation is drawn with the same seed, so a text depends on its model, prompt and seed alone. `tell` is
    called after each.
    """
    by_model = [
        continuations(model, tokenizer, prompts, tokens, seed, front, tell)
        for model, tokenizer in zip(models, tokenizers, strict=True)
    ]
    return [
        Sample(prompt=prompt, continuations=[texts[i] for texts in by_model])
        for i, prompt in enumerate(prompts)
    ]


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
    found = side_by_side(
        [reference, small], [tokenizer, tokenizer], prompts, recipe.samples.tokens, front=front
    )
    rows = [(one.prompt, *one.continuations) for one in found]
    files.write_json(path, [dict(zip(("prompt", "reference", "target"), row, strict=True)) for row in rows])


def check_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], config: PretrainedConfig, name: str
) -> None:
    """A model can continue prompts.

    Raises:
        UserError: as `continuations`, or for a token that the model does not have.
    """
    front = tokens_in_front(tokenizer)
    for prompt in prompts:
        read = front + _tokens(tokenizer, prompt, front)
        check_ids(max(read), config, f"the prompt {prompt[:40]!r}", name)


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int,
    seed: int = 0,
    front: Sequence[int] | None = None,
    tell: Callable[[], None] = lambda: None,
) -> list[str]:
    """A continuation of each prompt by up to `tokens` tokens, sampled among the 50 likeliest with this seed.

    The model reads the tokens `front` before every prompt that does not begin with them: by default what the
    tokenizer puts in front of a text by itself. Prompt and continuation keep to the model's context: at most half of
    it is written, and of a prompt that is too long the last tokens are read. An empty prompt with nothing in front is
    begun with the token that begins or ends a text. The model's mode and the state of the random numbers are left as
    they were.

    Raises:
        UserError: an empty prompt, and a tokenizer without such a token.
    """
    front = list(tokens_in_front(tokenizer) if front is None else front)
    training = model.training
    model.eval()
    try:
        written = []
        for prompt in prompts:
            written.append(_continue(model, tokenizer, prompt, tokens, seed, front))
            tell()
        return written
    finally:
        model.train(training)


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    tokens: int,
    seed: int,
    front: list[int],
) -> str:
    read = _tokens(tokenizer, prompt, front)
    context = context_length(model.config)
    if context is not None:
        tokens = min(tokens, context // 2)
        read = read[max(0, len(front) + len(read) - (context - tokens)) :]
    read = front + read
    ids = torch.tensor([read], device=model.device)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        # A checkpoint may come with habits of its own; models that are compared write by the same rules.
        own = model.generation_config
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id
        )
        try:
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=True,
                top_k=50,
                temperature=0.8,
                pad_token_id=tokenizer.eos_token_id,
            )
        finally:
            model.generation_config = own
    return tokenizer.decode(output[0, len(read) :].tolist())


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, front: list[int]) -> list[int]:
    """What is read of a prompt behind the tokens in front."""
    read = list(tokenizer(prompt, add_special_tokens=False).input_ids)
    if read[: len(front)] == front:  # written out in the prompt
        read = read[len(front) :]
    if front or read:
        return read
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise UserError(
        "an empty prompt cannot be continued: the tokenizer has no token that begins or ends a text to start from"
    )
