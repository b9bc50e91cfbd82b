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

QueryAndKey = tuple[Tensor, Tensor]
Split = Callable[[Tensor, PretrainedConfig], QueryAndKey]


class QueryKeyGradients:
    """Knows where each layer's query and key weights are, and tells the norms of their gradients.

    Raises:
        UserError: a layer has no query and key weights of a known name and order.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config.get_text_config()
        self.layers = [_find(block, self.config) for block in blocks(model)]

    def norms(self) -> dict[str, float]:
        """`query_1`, `key_1`, `query_2`, ...: the Frobenius norm of each weight's gradient; 0 where it has none.

        Between the backward pass and the clipping they are those of the loss.
        """
        pairs = [pair for layer in self.layers for pair in layer.gradients(self.config)]
        # One synchronisation with the device for all.
        values = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in pairs]).tolist()
        names = [f"{what}_{i}" for i in range(1, len(self.layers) + 1) for what in ("query", "key")]
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True)
class _Layer:
    """A layer's query and key weights: two parameters, or one and how it is split."""

    query: nn.Parameter
    key: nn.Parameter
    split: Split | None

    def gradients(self, config: PretrainedConfig) -> QueryAndKey:
        query, key = (_gradient(p) for p in (self.query, self.key))
        return (query, key) if self.split is None or self.query.grad is None else self.split(query, config)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The whole gradient, also of a parameter of which processes hold shares."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros(1, device=parameter.device)
    return whole(gradient)


def _find(block: nn.Module, config: PretrainedConfig) -> _Layer:
    parameters = {name: p for name, p in block.named_parameters() if name.endswith(".weight")}
    by_module = {name.split(".")[-2]: p for name, p in parameters.items()}
    if "q_proj" in by_module and "k_proj" in by_module:
        return _Layer(by_module["q_proj"], by_module["k_proj"], None)
    for name, p in by_module.items():
        split = FUSED.get((config.model_type, name))
        if split is not None:
            return _Layer(p, p, split)
    raise UserError(
        f"`gradient_norms` does not know where a {config.model_type!r} model keeps its query and key weights"
    )


def _columns_in_thirds(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[in, query | key | value]: GPT-2's Conv1D keeps its matrix transposed."""
    query, key, _ = weight.chunk(3, dim=1)
    return query, key


def _rows_in_thirds(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[query | key | value, in]."""
    query, key, _ = weight.chunk(3, dim=0)
    return query, key


def _heads_of_three(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[(head: query | key | value), in]."""
    parts = weight.unflatten(0, (config.num_attention_heads, 3, -1))
    return parts[:, 0], parts[:, 1]


def _grouped(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[query heads | key heads | value heads, in], with fewer key than query heads."""
    rows = weight.shape[0] // (config.num_attention_heads + 2 * config.num_key_value_heads)
    query, key, _ = weight.split(
        [
            rows * n
            for n in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        ]
    )
    return query, key


def _bigcode(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[all queries | one key | one value, in] with multi-query attention, else head by head."""
    if not config.multi_query:
        return _heads_of_three(weight, config)
    parts = weight.unflatten(0, (config.num_attention_heads + 2, -1))
    return parts[:-2], parts[-2]


def _falcon(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[(group: queries | key | value), in]; multi-query attention is a single group."""
    if not config.new_decoder_architecture and not config.multi_query:
        return _heads_of_three(weight, config)
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    parts = weight.unflatten(0, (groups, config.num_attention_heads // groups + 2, -1))
    return parts[:, :-2], parts[:, -2]


def _codegen(weight: Tensor, config: PretrainedConfig) -> QueryAndKey:
    """[(one of four cores: query | value | key), in]."""
    parts = weight.unflatten(0, (4, 3, -1))
    return parts[:, 0], parts[:, 2]


FUSED: dict[tuple[str, str], Split] = {
    ("bloom", "query_key_value"): _heads_of_three,
    ("codegen", "qkv_proj"): _codegen,
    ("falcon", "query_key_value"): _falcon,
    ("gpt2", "c_attn"): _columns_in_thirds,
    ("gpt_bigcode", "c_attn"): _bigcode,
    ("gpt_neox", "query_key_value"): _heads_of_three,
    ("mpt", "Wqkv"): _rows_in_thirds,
    ("persimmon", "query_key_value"): _heads_of_three,
    ("phi3", "qkv_proj"): _grouped,
}
"""Model type and name of the fused projection -> how to get the query and key part of it."""
