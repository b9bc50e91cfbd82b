"""What the models write: continuations of a few prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.data.shards import Split
from inheritune.evaluation.result import Sample
from inheritune.models.architecture import context_length

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
    """The beginnings of documents of a split, spread over it; as many as there are, at most `count`."""
    tokens = split.read(0, min(split.tokens, 1_000_000))
    starts = [0]
    if split.end_of_text is not None:
        starts += (np.flatnonzero(tokens == split.end_of_text) + 1).tolist()
    starts = [start for start in starts if start + PROMPT_TOKENS <= len(tokens)]
    chosen = [starts[i * len(starts) // count] for i in range(count)] if len(starts) >= count else starts
    return [tokenizer.decode(tokens[start : start + PROMPT_TOKENS].tolist()) for start in chosen]


def side_by_side(
    models: Sequence[PreTrainedModel],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 64,
    seed: int = 0,
) -> list[Sample]:
    """What every model, with its own tokenizer, writes after every prompt, as `continuations`, which see.

    Each continuation is drawn with the same seed, so a text depends on its model, prompt and seed alone.
    """
    by_model = [
        continuations(model, tokenizer, prompts, tokens, seed)
        for model, tokenizer in zip(models, tokenizers, strict=True)
    ]
    return [
        Sample(prompt=prompt, continuations=[texts[i] for texts in by_model])
        for i, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int,
    seed: int = 0,
) -> list[str]:
    """A continuation of each prompt by up to `tokens` tokens, sampled among the 50 likeliest with this seed.

    Prompt and continuation keep to the model's context: at most half of it is written, and of a prompt that is
    too long the last tokens are read. An empty prompt is begun with the token that begins or ends a text. The
    model's mode and the state of the random numbers are left as they were.

    Raises:
        UserError: an empty prompt, and a tokenizer without such a token.
    """
    training = model.training
    model.eval()
    try:
        return [_continue(model, tokenizer, prompt, tokens, seed) for prompt in prompts]
    finally:
        model.train(training)


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int, seed: int
) -> str:
    read = tokenizer(prompt, add_special_tokens=False).input_ids or [_first_token(tokenizer)]
    context = context_length(model.config)
    if context is not None:
        tokens = min(tokens, context // 2)
        read = read[-(context - tokens) :]
    ids = torch.tensor([read], device=model.device)
    with _seeded(seed, model.device):
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=True,
            top_k=50,
            temperature=0.8,
            # A checkpoint may come with habits of its own; models that are compared write by the same rules.
            top_p=1.0,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(output[0, len(read) :].tolist())


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError(
        "an empty prompt cannot be continued: the tokenizer has no token that begins or ends a text to start from"
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of this seed on the CPU and on `device`; those of before go on after it.

    Other GPUs are not touched: `torch.manual_seed` would seed them too, and asking for their state would start them.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
