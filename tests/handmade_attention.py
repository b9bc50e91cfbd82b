"""GPT-2 models whose attention is known: each head attends to the first token only, or to all tokens alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tiny_models import tiny_model

HEADS, WIDTH = 4, 8


def handmade_model(sinks: Sequence[Sequence[int]], **changes: int) -> PreTrainedModel:
    """A layer for each entry of `sinks`, which lists the heads that attend to the first token only.

    Nothing but the position enters the residual stream and the blocks add nothing to it. The first position
    differs from the others in sign, and so do the keys; a query is a constant, or zero.
    """
    model = tiny_model("gpt2", n_layer=len(sinks), n_head=HEADS, **changes)
    body = model.transformer
    width = HEADS * WIDTH
    direction = torch.ones(width)
    direction[::2] = -1
    with torch.no_grad():
        body.wte.weight.zero_()
        body.wpe.weight.copy_(-direction.expand_as(body.wpe.weight))
        body.wpe.weight[0] = direction
        for block, heads in zip(body.h, sinks, strict=True):
            for projection in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
            block.attn.c_attn.weight[:, width : 2 * width] = direction[:, None]  # keys
            for head in heads:
                block.attn.c_attn.bias[head * WIDTH : (head + 1) * WIDTH] = 10.0  # queries
    return model


def first_token_only(length: int) -> torch.Tensor:
    """What a sink attends to: [T, T]."""
    attention_tt = torch.zeros(length, length)
    attention_tt[:, 0] = 1
    return attention_tt


def all_alike(length: int) -> torch.Tensor:
    """What every other head attends to: [T, T]."""
    ones = torch.ones(length, length).tril()
    return ones / ones.sum(1, keepdim=True)
