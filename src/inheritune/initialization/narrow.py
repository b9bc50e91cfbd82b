"""The paper's other baseline: not fewer layers but narrower ones, cut out of the reference's weights.

Almost every tensor keeps the first entries of each dimension. Where several heads, or queries, keys and values,
share one dimension, the entries to keep lie apart; `LAYOUTS` says how, for every model type whose code in
transformers was read for it.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.models.architecture import parts_of, read_again
from inheritune.models.load import load_config, load_model
from inheritune.models.presets import from_config

Divide = Literal["heads", "head_size"]

Layout = tuple[tuple[str | int, ...], ...]
"""What follows each other in one dimension; each piece by its axes, outermost first."""

_QUERIES: Layout = (("heads", "head_size"),)
_KEYS: Layout = (("key_heads", "head_size"),)
_SEPARATE = {"q_proj": _QUERIES, "k_proj": _KEYS, "v_proj": _KEYS}
_ONE_AFTER_ANOTHER: Layout = (*_QUERIES, *_KEYS, *_KEYS)
_BY_HEAD: Layout = (("heads", 3, "head_size"),)

_PLAIN = "gemma gemma2 gemma3_text gpt_neo gptj llama mistral olmo2 opt phi qwen2 qwen3 smollm3 stablelm"

LAYOUTS: dict[str, dict[str, Layout]] = dict.fromkeys(_PLAIN.split(), _SEPARATE) | {
    "bloom": {"query_key_value": _BY_HEAD},
    "gpt2": {"c_attn": _ONE_AFTER_ANOTHER},
    "gpt_bigcode": {"c_attn": _ONE_AFTER_ANOTHER},  # with one key head; without, `_layout` has it by head
    "gpt_neox": {"query_key_value": _BY_HEAD},
    "mpt": {"Wqkv": _ONE_AFTER_ANOTHER},
    "phi3": {"qkv_proj": _ONE_AFTER_ANOTHER, "gate_up_proj": ((2, "intermediate_size"),)},
}
"""Model type -> name of a module -> the layout of its outputs."""

ATTENTION_OUTPUTS = ("c_proj", "dense", "o_proj", "out_proj")
"""Modules of an attention that read all heads: their inputs are laid out as queries."""

ALIBI = ("bloom", "mpt")
LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")

HEAD_FIELDS = {"num_attention_heads": "attention heads", "num_key_value_heads": "key/value heads"}
SIZE_FIELDS = {
    "hidden_size": "hidden size",
    "intermediate_size": "MLP size",
    "n_inner": "MLP size",
    "ffn_dim": "MLP size",
    "word_embed_proj_dim": "embedding size",
}
"""Configuration fields that scale with the width -> what they are called in messages."""


def half_width(
    reference: Pretrained | str | Path | PreTrainedModel, width: float = 0.5, *, divide: Divide = "heads"
) -> PreTrainedModel:
    """The reference at its full depth with `width` times its hidden size, each weight a slice of its own.

    Kept are the first dimensions of the residual stream, the first ones within each MLP, and the first heads
    whole (with their keys and values) or the first dimensions of every head. The vocabulary and the positions
    stay. Nothing is rescaled, so the model predicts far worse than the reference until it is trained.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        width: hidden size of the result over the reference's, between 0 and 1.
        divide: `heads` keeps whole heads; `head_size` keeps all heads, each cut to its first dimensions, for
            models without rotary positions (half of GPT-2 xlarge's 25 heads would cut one).

    Returns:
        A float32 model in evaluation mode, its biases frozen if the reference's are.

    Raises:
        UserError: not a model, or as `narrow_config`, before any weights are read.

    Source: Inheritune (arXiv 2404.08634), section 4, the half-width baseline.
    """
    config = reference.config if isinstance(reference, PreTrainedModel) else load_config(reference)
    model = from_config(narrow_config(config, width, divide), seed=0)
    if not isinstance(reference, PreTrainedModel):
        reference = load_model(reference, config=config, dtype="auto")
    weights, sources = reference.state_dict(), origins(model, reference)
    # One tensor at a time is copied into place, so that no part of the reference is held twice.
    for name, target in model.state_dict().items():
        source = weights[name]
        for dimension, taken in enumerate(sources[name]):
            source = source[(slice(None),) * dimension + (taken,)]
        assert source.shape == target.shape, name
        target.copy_(source)
    model.generation_config = copy.deepcopy(reference.generation_config)
    return model.eval()


def narrow_config(config: PretrainedConfig, width: float, divide: Divide = "heads") -> PretrainedConfig:
    """The same configuration with `width` times the hidden size; `config` itself is not changed.

    Args:
        config: of a model type in `LAYOUTS`.
        width: between 0 and 1; taken as the nearest fraction with a denominator up to 1000.
        divide: `heads` scales the number of heads and keeps their size (a single key/value head stays);
            `head_size` scales the size and keeps the number.

    Raises:
        UserError: a width that is out of range or cuts something in two, a model type whose layout is not
            known, or heads that cannot be divided this way.
    """
    ratio = Fraction(width).limit_denominator(1000) if 0 < width < 1 else Fraction(0)
    if not 0 < ratio < 1:
        raise UserError(f"the width must be between 0 and 1, such as 0.5, not {width}")
    _check_type(config.model_type, divide)
    names = {**HEAD_FIELDS, **SIZE_FIELDS} if divide == "heads" else SIZE_FIELDS
    scaled = {field: value for field in names if (value := getattr(config, field, None))}
    if scaled.get("num_key_value_heads") == 1:
        del scaled["num_key_value_heads"]  # one that all heads share stays
    _check_whole(config, scaled, ratio, divide)
    narrow = copy.deepcopy(config)
    for field, value in scaled.items():
        setattr(narrow, field, int(value * ratio))
    return read_again(config, narrow.to_dict())


def origins(narrow: PreTrainedModel, wide: PreTrainedModel) -> dict[str, tuple[slice | Tensor, ...]]:
    """For each tensor of the narrow model, which entries of the wide model's it takes, by dimension.

    A slice from the start where these are the first ones, else their numbers.

    Args:
        narrow: a model of a configuration from `narrow_config`; its weights are not looked at.
        wide: a model of the configuration that was made narrow.
    """
    parts, wide_shapes = parts_of(narrow), {name: value.shape for name, value in wide.state_dict().items()}
    few, many = _axes(narrow.config), _axes(wide.config)
    found: dict[str, tuple[slice | Tensor, ...]] = {}
    for name, value in narrow.state_dict().items():
        owner = name.rpartition(".")[0]
        module = owner.rpartition(".")[2]
        taken: list[slice | Tensor] = [slice(size) for size in value.shape]
        transposed = isinstance(narrow.get_submodule(owner), Conv1D)
        layout, dimension = _layout(narrow.config, module), value.dim() - 1 if transposed else 0
        if layout is None and module in ATTENTION_OUTPUTS and parts[name] == "attention" and value.dim() == 2:
            layout, dimension = _QUERIES, 0 if transposed else 1
        if layout is not None:
            chosen, total = _chosen(layout, few, many)
            assert (len(chosen), total) == (value.shape[dimension], wide_shapes[name][dimension]), name
            taken[dimension] = chosen
        found[name] = tuple(taken)
    return found


def _check_type(model_type: str, divide: Divide) -> None:
    if model_type not in LAYOUTS:
        raise UserError(
            f"cannot narrow a {model_type!r} model: how its weights are laid out is not known here; "
            f"known are {', '.join(sorted(LAYOUTS))}"
        )
    if divide not in get_args(Divide):
        raise UserError(f"`divide` is {divide!r}; choose one of {', '.join(get_args(Divide))}")
    if divide == "heads" and model_type in ALIBI:
        raise UserError(
            f"cannot leave out heads of a {model_type!r} model: how far each of them looks back (ALiBi) depends "
            "on how many there are; set `divide` to `head_size`"
        )
    if divide == "head_size" and model_type not in ALIBI + LEARNED_POSITIONS:
        raise UserError(
            f"cannot cut the heads of a {model_type!r} model: its rotary positions depend on the head size; "
            "set `divide` to `heads`"
        )


def _check_whole(config: PretrainedConfig, scaled: dict[str, int], ratio: Fraction, divide: Divide) -> None:
    """Refuse a width that cuts something in two, and say which would not."""
    figures = {} if divide == "heads" else {"head size": _axes(config)["head_size"]}
    figures |= {(HEAD_FIELDS | SIZE_FIELDS)[field]: value for field, value in scaled.items()}
    common = math.gcd(*figures.values())
    widths = f"multiples of 1/{common} would do" if common > 1 else "no width would do"
    if divide == "heads" and config.model_type in LEARNED_POSITIONS:
        widths += ", or set `divide` to `head_size`"
    for name, figure in figures.items():
        if (figure * ratio).denominator != 1:
            what = f"{figure} {name}" if name.endswith("heads") else f"the {name} {figure}"
            raise UserError(
                f"cannot make a model of {ratio} the width: {ratio} of {what} is not a whole number; {widths}"
            )


def _axes(config: PretrainedConfig) -> dict[str, int]:
    heads = config.num_attention_heads
    return {
        "heads": heads,
        "key_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "intermediate_size": getattr(config, "intermediate_size", None) or 0,
    }


def _layout(config: PretrainedConfig, module: str) -> Layout | None:
    if config.model_type == "gpt_bigcode" and module == "c_attn" and not config.multi_query:
        return _BY_HEAD
    return LAYOUTS[config.model_type].get(module)


def _chosen(layout: Layout, few: dict[str, int], many: dict[str, int]) -> tuple[Tensor, int]:
    """Numbers of the entries kept, in order, and how many entries there were."""
    kept, start = [], 0
    for piece in layout:
        wide = [axis if isinstance(axis, int) else many[axis] for axis in piece]
        narrow = [slice(axis if isinstance(axis, int) else few[axis]) for axis in piece]
        numbers = start + torch.arange(math.prod(wide)).view(wide)
        kept.append(numbers[tuple(narrow)].flatten())
        start += math.prod(wide)
    return torch.cat(kept), start
