"""What the models write: continuations of a few prompts."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune.data.shards import Split

PROMPT_TOKENS = 24


def prompts_from(split: Split, tokenizer: PreTrainedTokenizerBase, count: int = 3) -> list[str]:
    """The beginnings of documents of a split, spread over it; as many as there are, at most `count`."""
    tokens = split.read(0, min(split.tokens, 1_000_000))
    starts = [0]
    if split.end_of_text is not None:
        starts += (np.flatnonzero(tokens == split.end_of_text) + 1).tolist()
    starts = [start for start in starts if start + PROMPT_TOKENS <= len(tokens)]
    chosen = [starts[i * len(starts) // count] for i in range(count)] if len(starts) >= count else starts
    return [tokenizer.decode(tokens[start : start + PROMPT_TOKENS].tolist()) for start in chosen]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    tokens: int,
    seed: int = 0,
) -> list[str]:
    """A continuation of each prompt by up to `tokens` tokens, sampled among the 50 likeliest with this seed."""
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids.to(model.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=True,
                top_k=50,
                temperature=0.8,
                pad_token_id=tokenizer.eos_token_id,
            )
        texts.append(tokenizer.decode(output[0, ids.shape[1] :].tolist()))
    return texts
