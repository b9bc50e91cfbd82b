"""Blocks whose function depends on their place, made to compute at their new place what they did at the old one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune.models.architecture import blocks


def mend(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Fold into the weights what `MENDS` knows to depend on a block's place.

    Args:
        model: float32, of the chosen blocks; tensors that it shares with another model are not written to.
        layers: where each of its blocks stood before, from 0.
    """
    fold = MENDS.get(model.config.model_type)
    moved = [(place, layer) for place, layer in enumerate(layers) if place != layer]
    if fold is not None:
        with torch.no_grad():
            for place, layer in moved:
                fold(blocks(model)[place], place, layer)


def _gpt2(block: Any, place: int, layer: int) -> None:
    """Attention logits are divided by the number of the layer, from 1: the queries are scaled, weights and biases."""
    attention = block.attn
    if not attention.scale_attn_by_inverse_layer_idx:
        return
    queries = torch.ones(attention.c_attn.nf)
    queries[: attention.split_size] = (place + 1) / (layer + 1)
    attention.c_attn.weight.data = attention.c_attn.weight * queries.to(attention.c_attn.weight)
    attention.c_attn.bias.data = attention.c_attn.bias * queries.to(attention.c_attn.bias)


def _diffllama(block: Any, place: int, layer: int) -> None:
    """Attention is (1 - i) * norm(A1 - (exp(q1 k1) - exp(q2 k2) + i) A2), with an i that grows with the number.

    The difference in i goes into q1, and into the projection after the norm. Where `exp(q1 k1)` would have to be
    negative there is no such q1, and the block stays inexact.
    """
    attention = block.self_attn
    old, new = (0.8 - 0.6 * math.exp(-0.3 * number) for number in (layer, place))
    product = (attention.lambda_q1 * attention.lambda_k1).sum().item()
    wanted = math.exp(product) + old - new
    if wanted <= 0 or product == 0:
        return
    attention.lambda_q1.data = attention.lambda_q1 * (math.log(wanted) / product)
    attention.o_proj.weight.data = attention.o_proj.weight * ((1 - old) / (1 - new))


MENDS: dict[str, Callable[[Any, int, int], None]] = {"gpt2": _gpt2, "diffllama": _diffllama}
"""Model type -> what moves one of its blocks from a layer to a place, both from 0."""
