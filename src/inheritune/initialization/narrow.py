"""Not fewer layers but narrower ones, cut out of the reference's weights.

The width of a model is that of its hidden state, the heads of its attention and the channels of its MLP. `narrow`
takes any of them (`Taken`), such as `analysis.width` chooses; `half_width`, the paper's other baseline, the first
ones. Where several heads, or queries, keys and values, share one dimension, the entries to keep lie apart; `LAYOUTS`
says how, for every model type whose code in transformers was read for it.
"""

from __future__ import annotations

import copy
import math
import re
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.initialization.assemble import round_buffers
from inheritune.models.architecture import block_pattern, blocks, layer_count, parts_of, read_again
from inheritune.models.blockwise import TOLERANCE, given_hidden, random_tokens, replaced
from inheritune.models.layer_fields import MISFITS, lines_of
from inheritune.models.load import load_config, load_model
from inheritune.models.presets import freeze_biases, from_config

Divide = Literal["heads", "head_size"]

Layout = tuple[tuple[str | int, ...], ...]
"""What follows each other in one dimension; each piece by its axes, outermost first."""

_QUERIES: Layout = (("heads", "head_size"),)
_KEYS: Layout = (("key_heads", "head_size"),)
_SEPARATE = {"q_proj": _QUERIES, "k_proj": _KEYS, "v_proj": _KEYS}
_ONE_AFTER_ANOTHER: Layout = (*_QUERIES, *_KEYS, *_KEYS)
_BY_HEAD: Layout = (("heads", 3, "head_size"),)
_CHANNELS: Layout = (("mlp",),)

_PLAIN = "gemma gemma2 gemma3_text gpt_neo gptj llama mistral olmo2 opt phi qwen2 qwen3 smollm3 stablelm"

LAYOUTS: dict[str, dict[str, Layout]] = dict.fromkeys(_PLAIN.split(), _SEPARATE) | {
    "bloom": {"query_key_value": _BY_HEAD},
    "gpt2": {"c_attn": _ONE_AFTER_ANOTHER},
    "gpt_bigcode": {"c_attn": _ONE_AFTER_ANOTHER},  # with one key head; without, `_layout` has it by head
    "gpt_neox": {"query_key_value": _BY_HEAD},
    "mpt": {"Wqkv": _ONE_AFTER_ANOTHER},
    "olmo2": {**_SEPARATE, "q_norm": _QUERIES, "k_norm": _KEYS},  # norms over all heads
    "phi3": {"qkv_proj": _ONE_AFTER_ANOTHER, "gate_up_proj": ((2, "mlp"),)},
}
"""Model type -> name of a module -> the layout of its outputs."""

ATTENTION_OUTPUTS = ("c_proj", "dense", "o_proj", "out_proj")
"""Modules of an attention that read all heads: their inputs are laid out as queries."""

MLP_OUTPUTS = ("c_proj", "dense_4h_to_h", "down_proj", "fc2", "fc_out")
"""Modules of an MLP that read all its channels; every other one gives them."""

HEAD_NORM = re.compile(r"\.([qk])_layernorm\.norms\.(\d+)\.")
"""In names of weights: the number of the head that has a norm of its own for its queries or keys (StableLM)."""

ALIBI = ("bloom", "mpt")
LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")
HIDDEN_IS_HEADS = ("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "opt", "stablelm")
"""Types whose hidden size is always the number of heads times their size."""

HEAD_FIELDS = {"num_attention_heads": "attention heads", "num_key_value_heads": "key/value heads"}
SIZE_FIELDS = {
    "hidden_size": "hidden size",
    "intermediate_size": "MLP size",
    "n_inner": "MLP size",
    "ffn_dim": "MLP size",
    "word_embed_proj_dim": "embedding size",
}
"""Configuration fields that scale with the width -> what they are called in messages."""

MLP_FIELDS = ("intermediate_size", "n_inner", "ffn_dim")
"""Where a configuration may say how many channels an MLP has; else they are four times the hidden size."""

Entries = tuple[slice | Tensor, ...]
"""What is taken of a tensor, by dimension: a slice from the start, or the numbers of the entries."""


@dataclass(frozen=True)
class Width:
    """Hidden size, attention (query) heads of each block, channels of each block's MLP."""

    hidden: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Taken:
    """Which parts of the width are taken, by their numbers from 0, in order.

    Args:
        hidden: of the hidden state, the same in the whole model: int64 [hidden].
        heads: in each of L blocks, int64 [L, heads]. Heads that share a key/value head are taken together and count
            as one, unless all of them share it.
        mlp: channels of the MLP in each block, int64 [L, channels].
    """

    hidden: Tensor
    heads: Tensor
    mlp: Tensor


def width_of(config: PretrainedConfig) -> Width:
    """How wide a model is.

    Raises:
        UserError: its type's width cannot be chosen.
    """
    _check_known(config.model_type)
    if config.model_type in ALIBI:
        raise UserError(
            f"cannot choose the width of a {config.model_type!r} model: how far each head looks back (ALiBi) depends "
            "on how many there are, and the size of its MLP on its hidden size"
        )
    axes = _axes(config)
    return Width(axes["hidden"], axes["heads"], axes["mlp"])


def head_group(config: PretrainedConfig) -> int:
    """How many heads are taken together: those that share a key/value head, or one where all of them do."""
    axes = _axes(config)
    return 1 if axes["key_heads"] == 1 else axes["heads"] // axes["key_heads"]


def narrower(
    config: PretrainedConfig, hidden: int | None = None, heads: int | None = None, mlp: int | None = None
) -> Width:
    """The width of a model with some sizes smaller; None leaves one as it is, or heads to follow the hidden size.

    Raises:
        UserError: as `width_of`; a size that the model does not have, or that cuts something in two.
    """
    have, kind = width_of(config), f"this {config.model_type!r} model"
    size, group = _axes(config)["head_size"], head_group(config)
    for name, wanted, most in zip(
        ("hidden", "heads", "mlp"), (hidden, heads, mlp), astuple(have), strict=True
    ):
        if wanted is not None and not 1 <= wanted <= most:
            raise UserError(f"`{name}` is {wanted}, but {kind} has {most}: give 1 to {most}")
    if hidden is not None and _hidden_is_heads(config):
        if hidden % size:
            raise UserError(
                f"`hidden` is {hidden}, but the heads of {kind} have {size} each: give a multiple of it"
            )
        heads = hidden // size if heads is None else heads
    width = Width(hidden or have.hidden, heads or have.heads, mlp or have.mlp)
    if _hidden_is_heads(config) and width.hidden != width.heads * size:
        raise UserError(
            f"the hidden size of {kind} is its heads times {size}: with {width.heads} heads set `hidden` to "
            f"{width.heads * size}"
        )
    if width.heads % group:
        raise UserError(
            f"`heads` is {width.heads}, but in {kind} {group} share a key/value head: give a multiple of {group}"
        )
    if width.hidden != have.hidden and getattr(config, "word_embed_proj_dim", None) == width.hidden:
        raise UserError(
            f"`hidden` cannot be that of the embedding of {kind}, {width.hidden}: choose another size"
        )
    return width


def width_config(config: PretrainedConfig, width: Width) -> PretrainedConfig:
    """The same configuration with a width from `narrower`; `config` itself is not changed.

    Raises:
        UserError: it cannot say so.
    """
    have, axes = width_of(config), _axes(config)
    if width == have:
        return config
    narrow = copy.deepcopy(config)
    narrow.hidden_size, narrow.num_attention_heads = width.hidden, width.heads
    if axes["key_heads"] > 1 and getattr(config, "num_key_value_heads", None):
        narrow.num_key_value_heads = width.heads // head_group(config)
    field = next(field for field in MLP_FIELDS if hasattr(config, field))
    if getattr(config, field) is not None or width.mlp != 4 * width.hidden:
        setattr(narrow, field, width.mlp)
    if not _hidden_is_heads(config):
        narrow.head_dim = axes["head_size"]
    if getattr(config, "word_embed_proj_dim", None) == have.hidden:
        narrow.word_embed_proj_dim = width.hidden
    try:
        return read_again(config, narrow.to_dict())
    except MISFITS as error:
        raise UserError(
            f"the configuration of a {config.model_type!r} model does not allow a hidden size of {width.hidden} with "
            f"{width.heads} heads ({lines_of(error)[-1].rstrip('.')}): choose other sizes"
        ) from error


def first_taken(config: PretrainedConfig, width: Width) -> Taken:
    """The first of everything."""
    depth, units = layer_count(config), width.heads // head_group(config)
    heads, channels = (torch.arange(size).expand(depth, size) for size in (units, width.mlp))
    return Taken(torch.arange(width.hidden), heads, channels)


def narrow(wide: PreTrainedModel, taken: Taken) -> PreTrainedModel:
    """These parts of a model's width, at its full depth. Nothing is rescaled but by what `_scale_embeddings` says.

    Args:
        wide: of a type in `LAYOUTS`; copied, not changed.
        taken: what to take.

    Returns:
        A model in evaluation mode with the other's type of weights, on its device, its biases frozen if its are. On
        a few tokens it computes what the wide one does where all that was left out is zero.

    Raises:
        UserError: as `width_of`; it would compute something else.
    """
    width = Width(len(taken.hidden), taken.heads.shape[1] * head_group(wide.config), taken.mlp.shape[1])
    config = width_config(wide.config, width)
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = type(wide)._from_config(copy.deepcopy(config), dtype=wide.dtype)
    model.tie_weights()
    round_buffers(model, wide, range(layer_count(config)), None)
    freeze_biases(model)
    model = model.to(wide.device).eval()
    _fill(model, wide, taken)
    _check_narrow(model, wide, taken)
    return model


def half_width(
    reference: Pretrained | str | Path | PreTrainedModel, width: float = 0.5, *, divide: Divide = "heads"
) -> PreTrainedModel:
    """The reference at its full depth with `width` times its hidden size, each weight a slice of its own.

    Kept are the first dimensions of the residual stream, the first ones within each MLP, and the first heads
    whole (with their keys and values) or the first dimensions of every head. The vocabulary and the positions
    stay. Nothing is rescaled but by what `_scale_embeddings` says, so the model predicts far worse than the reference
    until it is trained.

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
    _fill(model, reference)
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


def origins(
    narrow: PreTrainedModel, wide: PreTrainedModel, taken: Taken | None = None
) -> dict[str, tuple[str, Entries]]:
    """For each tensor of the narrow model, which of the wide model's it is a part of, and which entries it takes.

    Args:
        narrow: a model of a configuration from `narrow_config` or `width_config`; its weights are not looked at.
        wide: a model of the configuration that was made narrow.
        taken: which parts of the width; by default the first ones.
    """
    parts, shapes = parts_of(narrow), {name: value.shape for name, value in wide.state_dict().items()}
    few, many, pattern = _axes(narrow.config), _axes(wide.config), block_pattern(narrow)
    found: dict[str, tuple[str, Entries]] = {}
    for name, value in narrow.state_dict().items():
        block = pattern.match(name)
        picks = {axis: torch.arange(size) for axis, size in few.items()}
        if taken is not None:
            picks |= _picks(taken, int(block[1]) if block else None, wide.config)
        source = _source_name(name, picks)
        owner = name.rpartition(".")[0]
        transposed = isinstance(narrow.get_submodule(owner), Conv1D)
        outputs, inputs = _layouts(narrow.config, owner.rpartition(".")[2], parts[name])
        entries: list[slice | Tensor] = []
        for dimension, (size, total) in enumerate(zip(value.shape, shapes[source], strict=True)):
            reads = value.dim() == 2 and dimension == (0 if transposed else 1)
            layout = inputs if reads else outputs
            if size == total or (layout is None and taken is None):
                entries.append(slice(size))
            else:
                chosen, of = _chosen(layout or (("hidden",),), picks, many)
                assert (len(chosen), of) == (size, total), name
                entries.append(chosen)
        found[name] = source, tuple(entries)
    return found


def reading_modules(model: PreTrainedModel) -> list[tuple[nn.Module, nn.Module]]:
    """In each block the module that reads all heads, and the one that reads all channels of the MLP."""
    found: dict[str, list[nn.Module]] = {"attention": [], "mlp": []}
    pattern, names = block_pattern(model), {"attention": ATTENTION_OUTPUTS, "mlp": MLP_OUTPUTS}
    for name, part in parts_of(model).items():
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and pattern.match(name) and owner.rpartition(".")[2] in names.get(part, ()):
            found[part].append(model.get_submodule(owner))
    return list(zip(found["attention"], found["mlp"], strict=True))


def _fill(model: PreTrainedModel, wide: PreTrainedModel, taken: Taken | None = None) -> None:
    """Give a narrow model its weights: one tensor at a time, so that no part of the wide one is held twice."""
    weights, sources = wide.state_dict(), origins(model, wide, taken)
    for name, target in model.state_dict().items():
        origin, entries = sources[name]
        source = weights[origin]
        for dimension, chosen in enumerate(entries):
            source = source[(slice(None),) * dimension + (chosen,)]
        assert source.shape == target.shape, name
        target.copy_(source)
    _scale_embeddings(model, wide)
    model.generation_config = copy.deepcopy(wide.generation_config)


@torch.no_grad()
def _scale_embeddings(model: PreTrainedModel, wide: PreTrainedModel) -> None:
    """Gemma multiplies embeddings by the root of the hidden size: what the narrow model's lacks goes into them.

    Where they are the head as well, the final norm, which multiplies by 1 + its weight, takes it out again.
    """
    embedding = model.get_input_embeddings()
    if not hasattr(embedding, "embed_scale") or model.config.hidden_size == wide.config.hidden_size:
        return
    lacks = float(wide.get_input_embeddings().embed_scale) / float(embedding.embed_scale)
    embedding.weight.mul_(lacks)
    if model.get_output_embeddings().weight is embedding.weight:
        norm = model.base_model.norm.weight
        norm.copy_((1 + norm.float()) / lacks - 1)


@torch.no_grad()
def _check_narrow(narrow: PreTrainedModel, wide: PreTrainedModel, taken: Taken) -> None:
    """Refuse a narrow model that does not compute what the wide one does where all that was left out is zero.

    What enters the wide model's first block is its own, without what was left out, so embeddings are compared, too. A
    norm over fewer entries has another mean, so there the wide model's norms are over these. In float32, as sums
    without zeros are rounded otherwise, and as `_fill` rounds what it scales.

    Raises:
        UserError: their logits differ.
    """
    if wide.dtype != torch.float32:
        narrow, wide = copy.deepcopy(narrow).float(), copy.deepcopy(wide).float()
        _fill(narrow, wide, taken)
    entries, tokens = origins(narrow, wide, taken), random_tokens(wide)
    modules = dict(wide.named_modules())

    def spread(values: Tensor, chosen: Tensor, size: int) -> Tensor:
        whole = values.new_zeros(*values.shape[:-1], size)
        whole[..., chosen] = values
        return whole

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        own = given_hidden(args, kwargs)
        hidden = spread(own[..., taken.hidden], taken.hidden, own.shape[-1])
        return replaced(args, hidden), replaced(kwargs, hidden)

    def masked(chosen: Tensor) -> Any:
        return lambda module, args: spread(args[0][..., chosen], chosen, args[0].shape[-1])

    def by(norm: nn.Module, chosen: Tensor) -> Any:
        return lambda module, args, output: spread(norm(args[0][..., chosen]), chosen, output.shape[-1])

    def of_few(norm: nn.Module, own: nn.Module, chosen: Tensor) -> nn.Module:
        few = copy.deepcopy(norm)
        few.load_state_dict({name: value[chosen] for name, value in own.state_dict().items()})
        return few

    with ExitStack() as hooks:
        logits = narrow(input_ids=tokens, use_cache=False).logits
        hooks.callback(blocks(wide)[0].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name, module in narrow.named_modules():
            _, of_weight = entries.get(f"{name}.weight", ("", ()))
            if isinstance(module, (nn.Linear, Conv1D)):
                read = of_weight[0 if isinstance(module, Conv1D) else 1]
                if isinstance(read, Tensor):
                    hooks.callback(modules[name].register_forward_pre_hook(masked(read)).remove)
            elif len(of_weight) == 1 and isinstance(of_weight[0], Tensor):
                few = of_few(module, modules[name], of_weight[0])
                hooks.callback(modules[name].register_forward_hook(by(few, of_weight[0])).remove)
        expected = wide(input_ids=tokens, use_cache=False).logits
    off = ((logits - expected).abs().max() / expected.abs().max()).item()
    if not off <= TOLERANCE:  # not a number is no rounding either
        raise UserError(
            f"cannot make this {wide.config.model_type!r} model narrower: its logits would be off by {off:.2g} of "
            "the largest, as something in the architecture depends on the width in a way that is not known here"
        )


def _check_known(model_type: str) -> None:
    if model_type not in LAYOUTS:
        raise UserError(
            f"cannot narrow a {model_type!r} model: how its weights are laid out is not known here; "
            f"known are {', '.join(sorted(LAYOUTS))}"
        )


def _check_type(model_type: str, divide: Divide) -> None:
    _check_known(model_type)
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
    channels = next((value for field in MLP_FIELDS if (value := getattr(config, field, None))), None)
    return {
        "hidden": config.hidden_size,
        "heads": heads,
        # GPT-BigCode's are those of its default size until it was written and read.
        "key_heads": min(getattr(config, "num_key_value_heads", None) or heads, heads),
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "mlp": channels or 4 * config.hidden_size,
    }


def _hidden_is_heads(config: PretrainedConfig) -> bool:
    """Phi's norms of queries and keys go by it."""
    return config.model_type in HIDDEN_IS_HEADS or getattr(config, "qk_layernorm", False)


def _picks(taken: Taken, block: int | None, wide: PretrainedConfig) -> dict[str, Tensor]:
    """Numbers of what is taken along each axis in a block, or outside of all."""
    if block is None:
        return {"hidden": taken.hidden}
    units, group = taken.heads[block], head_group(wide)
    heads = (units[:, None] * group + torch.arange(group)).flatten()
    shared = {} if _axes(wide)["key_heads"] == 1 else {"key_heads": units}
    return {"hidden": taken.hidden, "heads": heads, "mlp": taken.mlp[block], **shared}


def _source_name(name: str, picks: dict[str, Tensor]) -> str:
    """What a tensor is called in the wide model: other than in the narrow one only if each head has its own."""
    head = HEAD_NORM.search(name)
    if head is None:
        return name
    number = int(picks["heads" if head[1] == "q" else "key_heads"][int(head[2])])
    return f"{name[: head.start(2)]}{number}{name[head.end(2) :]}"


def _layouts(config: PretrainedConfig, module: str, part: str) -> tuple[Layout | None, Layout | None]:
    """Of a module's outputs and inputs; None where they are those of the hidden state, or not of the width."""
    known = LAYOUTS[config.model_type].get(module)
    if part == "attention":
        if config.model_type == "gpt_bigcode" and module == "c_attn" and not config.multi_query:
            known = _BY_HEAD
        return known, _QUERIES if module in ATTENTION_OUTPUTS else None
    if part == "mlp":
        return (None, _CHANNELS) if module in MLP_OUTPUTS else (known or _CHANNELS, None)
    return None, None


def _chosen(layout: Layout, picks: dict[str, Tensor], many: dict[str, int]) -> tuple[Tensor, int]:
    """Numbers of the entries kept, in order, and how many entries there were."""
    kept, start = [], 0
    for piece in layout:
        wide = [axis if isinstance(axis, int) else many[axis] for axis in piece]
        axes = [torch.arange(axis) if isinstance(axis, int) else picks[axis] for axis in piece]
        numbers = start + torch.arange(math.prod(wide)).view(wide)
        kept.append(numbers[torch.meshgrid(*axes, indexing="ij")].flatten())
        start += math.prod(wide)
    return torch.cat(kept), start
