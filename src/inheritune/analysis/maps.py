"""Attention maps of single heads (paper, figure 2). Layers are counted from 1, heads from 0: L4H3."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.analysis.probe import probe_attention
from inheritune.analysis.result import AttentionAnalysis
from inheritune.models.architecture import layer_count

DEPTHS = (4 / 24, 7 / 24, 20 / 24, 22 / 24)
"""Where in a model the heads are that figure 2 shows: layers 4, 7, 20 and 22 of 24."""


class Head(NamedTuple):
    """A head by its layer, from 1, and its number there, from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


Maps = Mapping[Head, Tensor]
"""Attention [T, T] of single heads on one sequence, float32 on the CPU."""


def parse_heads(text: str) -> list[Head]:
    """`L4H3,L7H0` as heads.

    Raises:
        UserError: it is not such a list.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"L(\d+)H(\d+)", part.strip(), re.IGNORECASE)
        if match is None:
            raise UserError(
                f"{part.strip()!r} is not a head: write heads as L4H3,L7H0 (layers are counted from 1, heads from 0)"
            )
        found.append(Head(int(match[1]), int(match[2])))
    return found


def check_heads(heads: Iterable[Head], configs: Sequence[PretrainedConfig]) -> None:
    """Each head exists in at least one of the models.

    Raises:
        UserError: one does not; says which there are.
    """
    shapes = [(layer_count(config), _head_count(config)) for config in configs]
    for head in heads:
        if not any(1 <= head.layer <= layers and head.head < count for layers, count in shapes):
            layers, count = max(shapes)
            raise UserError(
                f"there is no head {head}: the model has layers 1 to {layers} with heads 0 to {count - 1} each"
            )


def telling_heads(analysis: AttentionAnalysis) -> list[Head]:
    """The head of the highest mean rank in four layers, as deep as those of figure 2.

    Where even that one attends to a single column, the whole layer does.
    """
    layers = sorted({max(1, round(depth * analysis.depth)) for depth in DEPTHS})
    return [
        Head(layer, max(range(len(ranks)), key=lambda h: sum(ranks[h])))
        for layer, ranks in ((layer, analysis.ranks[layer - 1]) for layer in layers)
    ]


def attention_maps(model: PreTrainedModel, inputs_1t: Tensor, heads: Collection[Head]) -> Maps:
    """The attention of these heads on one sequence [1, T]; heads that the model does not have are left out."""
    maps: dict[Head, Tensor] = {}
    if not heads:
        return maps

    def keep(layer: int, attention_bhtt: Tensor) -> None:
        for head in heads:
            if head.layer == layer + 1 and head.head < attention_bhtt.shape[1]:
                maps[head] = attention_bhtt[0, head.head].float().cpu().clone()

    probe_attention(model, inputs_1t.to(model.device), keep)
    return {head: maps[head] for head in heads if head in maps}


def _head_count(config: PretrainedConfig) -> int:
    heads = config.get_text_config().num_attention_heads
    return max(heads) if isinstance(heads, list) else int(heads)
