"""Gradient norms of query and key weights, layer by layer (the paper's appendix).

Many architectures keep queries, keys and values in one matrix, and not in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks
from inheritune.training.parallel import whole

Layout = Callable[[PretrainedConfig], tuple[int, int, int]]
"""How the rows of a fused projection are ordered: in so many groups, each of so many heads of queries and of keys."""


def _head_by_head(config: PretrainedConfig) -> tuple[int, int, int]:
    return config.num_attention_heads, 1, 1


def _in_thirds(config: PretrainedConfig) -> tuple[int, int, int]:
    return 1, 1, 1


def _bigcode(config: PretrainedConfig) -> tuple[int, int, int]:
    return (1, config.num_attention_heads, 1) if config.multi_query else _head_by_head(config)


def _falcon(config: PretrainedConfig) -> tuple[int, int, int]:
    if not config.new_decoder_architecture and not config.multi_query:
        return _head_by_head(config)
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    return groups, config.num_attention_heads // groups, 1


FUSED: dict[tuple[str, str], Layout] = {
    ("bloom", "query_key_value"): _head_by_head,
    ("codegen", "qkv_proj"): lambda config: (4, 1, 1),  # for four cores
    ("falcon", "query_key_value"): _falcon,
    ("gpt2", "c_attn"): _in_thirds,
    ("gpt_bigcode", "c_attn"): _bigcode,
    ("gpt_neox", "query_key_value"): _head_by_head,
    ("mpt", "Wqkv"): _in_thirds,
    ("persimmon", "query_key_value"): _head_by_head,
    ("phi3", "qkv_proj"): lambda config: (1, config.num_attention_heads, config.num_key_value_heads),
}
"""Model type and name of the fused projection -> the order of its rows, [group: queries | keys | values]."""

TRANSPOSED, VALUES_BEFORE_KEYS = ("gpt2",), ("codegen",)
"""Model types that keep the matrix transposed (Conv1D), and those with another order in a group."""


class QueryKeyGradients:
    """Knows where each layer's query and key weights are, and gives the norms of their gradients.

    Raises:
        UserError: a layer has no query and key weights of a known name and order.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.layers = [_find(block, config) for block in blocks(model)]

    def norms(self) -> dict[str, float]:
        """`query_1`, `key_1`, `query_2`, ...: the Frobenius norm of each weight's gradient; 0 where it has none.

        Between the backward pass and the clipping they are those of the loss.
        """
        gradients = [gradient for layer in self.layers for gradient in layer.gradients()]
        # One synchronisation with the device for all.
        values = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients]).tolist()
        names = [f"{what}_{i}" for i in range(1, len(self.layers) + 1) for what in ("query", "key")]
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True)
class Layer:
    """A layer's query and key weights: two parameters, or one of which they are parts."""

    query: nn.Parameter
    key: nn.Parameter
    config: PretrainedConfig
    layout: Layout | None = None

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The whole gradients of both, also where processes hold shares."""
        query, key = (
            torch.zeros(1, device=p.device) if p.grad is None else whole(p.grad)
            for p in (self.query, self.key)
        )
        return (query, key) if self.layout is None or self.query.grad is None else self._split(query)

    def _split(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        assert self.layout is not None
        groups, queries, keys = self.layout(self.config)
        rows = fused.T if self.config.model_type in TRANSPOSED else fused
        parts = rows.unflatten(0, (groups, queries + 2 * keys, -1))
        start = queries + keys * (self.config.model_type in VALUES_BEFORE_KEYS)
        return parts[:, :queries], parts[:, start : start + keys]


def _find(block: nn.Module, config: PretrainedConfig) -> Layer:
    weights = {name.split(".")[-2]: p for name, p in block.named_parameters() if name.endswith(".weight")}
    if "q_proj" in weights and "k_proj" in weights:
        return Layer(weights["q_proj"], weights["k_proj"], config)
    for name, p in weights.items():
        if layout := FUSED.get((config.model_type, name)):
            return Layer(p, p, config, layout)
    raise UserError(
        f"`gradient_norms` does not know where a {config.model_type!r} model keeps its query and key weights"
    )
