"""What a configuration says of single layers, for a choice of them.

A configuration speaks of its layers in lists with an entry for each, in lists of their numbers, in rules ("every
second", "all but the first three"), and in factors that depend on the depth. Lists with an entry per layer are found
by their length; everything else is in the tables here. What is in none of them shows in the check that every cut goes
through (`exactness`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from inheritune import UserError

MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers and torch raise, somewhere inside, over values of a configuration that mean nothing to them."""

Values = dict[str, Any]
"""A configuration as it is written to disk."""

NOT_PER_LAYER = ("architectures", "_token_id", "_token_ids", "_section", "_multipliers")
"""Ends of the names of lists that are not about layers, whatever their length."""

PATTERNS = ("block_types",)
"""Fields that are repeated until there are enough layers."""

NUMBERS = {
    "attn_layer_indices": 0,
    "cross_attention_layers": 0,
    "full_attn_idxs": 0,
    "hybrid_layer_ids": 0,
    "moe_layers": 0,
    "ple_layer_ids": 1,
}
"""Field that lists the numbers of some layers -> what the first layer is numbered."""

FIRST = ("first_k_dense_replace", "num_dense_layers")
"""Fields that say how many layers from the first on have no experts."""

LAST = ("num_kv_shared_layers",)
"""Fields that say how many of the last layers take their keys and values from earlier ones (Gemma 3n and 4)."""

PERIODIC = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
"""Pairs of fields: layers whose number leaves this remainder."""


def per_layer_fields(config: PretrainedConfig, depth: int) -> list[str]:
    """Names of the lists in a configuration that have an entry for each of its `depth` layers."""
    values, usual = config.to_dict(), _usual(type(config))
    usual_depth = next((usual[name] for name in _depth_fields(config) if name in usual), None)

    def by_accident(value: Any) -> bool:
        """Whether what is usual is a list whose length is not the depth."""
        return isinstance(value, (list, tuple)) and bool(value) and usual_depth not in (None, len(value))

    return [
        name
        for name, value in values.items()
        if isinstance(value, (list, tuple))
        and len(value) == depth
        and not name.endswith(NOT_PER_LAYER)
        and name not in (*NUMBERS, *PATTERNS)
        and not by_accident(usual.get(name))
    ]


def fields_of(config: PretrainedConfig, layers: Sequence[int], depth: int) -> Values:
    """The configuration, as a dictionary, of a model that has these of the `depth` layers in this order.

    Args:
        config: of a language model; in a model of several parts, of its text part.
        layers: numbers of layers, from 0.
        depth: how many layers the configuration has.

    Raises:
        UserError: a rule of the configuration cannot be made to fit the choice.
    """
    values = config.to_dict()
    for name in per_layer_fields(config, depth):
        values[name] = [values[name][layer] for layer in layers]
    for name in PATTERNS:
        if name in values:
            values[name] = [values[name][layer % len(values[name])] for layer in layers]
    for name, first in NUMBERS.items():
        if values.get(name):
            values[name] = [place + first for place, n in enumerate(layers) if n + first in values[name]]
    if "per_layer_config" in values:  # of transformers from 5.20 on: layer -> what differs from the rest
        own = {int(layer): changes for layer, changes in values["per_layer_config"].items()}
        values["per_layer_config"] = {place: own[n] for place, n in enumerate(layers) if n in own}
    for rule in RULES:
        rule(values, layers, depth)
    values |= {name: len(layers) for name in _depth_fields(config) if values.get(name) == depth}
    return values


def _depth_fields(config: PretrainedConfig) -> set[str]:
    """Names under which a configuration may say how many layers there are."""
    names = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "num_blocks")
    return {config.attribute_map.get(name, name) for name in names}


def lines_of(error: BaseException) -> list[str]:
    """What another library's error says, at least its name: the first line is what, the last one often where."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def _usual(kind: type[PretrainedConfig]) -> Values:
    """What the configuration is if nothing is said."""
    try:
        return kind().to_dict()
    except MISFITS:  # some need to be given more
        return {}


def _counted(values: Values, layers: Sequence[int], depth: int) -> None:
    """How many layers there are of a kind that is at the beginning or at the end."""
    for name in FIRST:
        if isinstance(values.get(name), int):
            values[name] = sum(layer < values[name] for layer in layers)
    for name in LAST:
        if isinstance(values.get(name), int):
            values[name] = sum(layer >= depth - values[name] for layer in layers)


def _dense_between(values: Values, layers: Sequence[int], depth: int) -> None:
    """Experts in every n-th layer, and in none of those listed (Qwen): all that have none are listed."""
    dense, step = values.get("mlp_only_layers"), values.get("decoder_sparse_step")
    if dense is not None and step:
        values["mlp_only_layers"] = [p for p, n in enumerate(layers) if n in dense or (n + 1) % step]
        values["decoder_sparse_step"] = 1


def _periodic(values: Values, layers: Sequence[int], depth: int) -> None:
    for period_name, offset_name in PERIODIC:
        # With the layers' kinds written out (Zamba) the rule is not looked at any more.
        if period_name not in values or "layers_block_type" in values:
            continue
        period, offset = values[period_name], values[offset_name]
        wanted = [layer % period == offset for layer in layers]
        fitting = (
            (p, o)
            for p, o in [(period, offset), *((p, o) for p in range(1, len(layers) + 2) for o in range(p))]
            if [place % p == o for place in range(len(layers))] == wanted
        )
        values[period_name], values[offset_name] = _first(fitting, f"`{period_name}`", layers)


def _experts_between(values: Values, layers: Sequence[int], depth: int) -> None:
    """Experts in every n-th layer from one to another (Ernie)."""
    names = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    if not all(isinstance(values.get(name), int) for name in names):
        return
    every, start, end = (values[name] for name in names)
    end = end if end >= 0 else depth - 1

    def with_experts(count: Sequence[int], every: int, start: int, end: int) -> list[bool]:
        return [(n + 1) % every == 0 and start <= n <= end for n in count]

    wanted, places = with_experts(layers, every, start, end), range(len(layers))
    sparse = [place for place in places if wanted[place]]
    first, last = (sparse[0], sparse[-1]) if sparse else (len(layers), len(layers))
    fitting = (
        n for n in [every, *range(1, len(layers) + 1)] if with_experts(places, n, first, last) == wanted
    )
    values.update(zip(names, (_first(fitting, "`moe_layer_interval`", layers), first, last), strict=True))


def _rewritten(values: Values, layers: Sequence[int], depth: int) -> None:
    """MiniCPM divides what a block adds by the root of the depth. GPT-Neo writes its layers as repeated groups: one
    group of one repetition, of those already taken."""
    if isinstance(values.get("scale_depth"), (int, float)):
        values["scale_depth"] *= math.sqrt(len(layers) / depth)
    if "attention_types" in values and "attention_layers" in values:
        values["attention_types"] = [[values["attention_layers"], 1]]


Rule = Callable[[Values, Sequence[int], int], None]
RULES: tuple[Rule, ...] = (_counted, _dense_between, _periodic, _experts_between, _rewritten)


def _first(fitting: Any, what: str, layers: Sequence[int]) -> Any:
    found = next(fitting, None)
    if found is None:
        raise UserError(
            f"cannot make a model of layers {list(layers)}: no {what} of the configuration puts the kinds of "
            "these layers in this order; choose other layers"
        )
    return found
