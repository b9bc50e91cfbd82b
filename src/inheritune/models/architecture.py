"""Where the parts of a Hugging Face causal language model are: its blocks, and what is in and around them.

They are found by structure: the blocks are the one list that is as long as the configuration says the model is deep;
other parts show in where a module is, what it is called, and what its class is called. What structure does not tell
is in the table `BLOCKS`.
"""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.config import Part
from inheritune.models.layer_fields import MISFITS, fields_of, lines_of

PARTS: tuple[Part, ...] = get_args(Part)

BLOCKS = {"gemma3n_text": "model.layers"}
"""Model type -> name of its transformer blocks, where structure alone may find several lists."""


def blocks_name(model: PreTrainedModel) -> str:
    """The dotted name of the model's transformer blocks, such as `model.layers`.

    Raises:
        UserError: the model's structure is not understood.
    """
    model_type, layers = model.config.model_type, layer_count(model.config)
    if model_type in BLOCKS:
        return BLOCKS[model_type]
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = [
        name
        for name, modules in lists.items()
        if len(modules) == layers
        and next(modules.parameters(), None) is not None
        and not any(name.startswith(f"{outer}.") for outer in lists)
    ]
    decoder = set(model.get_decoder().modules())  # the text part, if there are several parts
    found = [name for name in found if lists[name] in decoder] or found
    if len(found) != 1:
        raise UserError(
            f"cannot tell where the blocks of a {model_type!r} model are: it has {len(found)} module lists of "
            f"{layers} entries, and exactly one is needed"
        )
    return found[0]


def block_pattern(model: PreTrainedModel) -> re.Pattern[str]:
    """Finds the number of the block that a weight belongs to, by its name with or without the base model's prefix."""
    whole = blocks_name(model)
    short = whole.removeprefix(f"{model.base_model_prefix}.")
    return re.compile(rf"^(?:{re.escape(whole)}|{re.escape(short)})\.(\d+)\.")


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks, in order."""
    module = model.get_submodule(blocks_name(model))
    assert isinstance(module, nn.ModuleList), type(module)
    return module


def layer_count(config: PretrainedConfig) -> int:
    """How many transformer blocks the configuration describes.

    Raises:
        UserError: the configuration does not say.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise UserError(f"the configuration of a {config.model_type!r} model does not say how deep it is")
    return layers


def context_length(config: PretrainedConfig) -> int | None:
    """The longest sequence the model has positions for, in tokens; None where nothing limits it."""
    text = config.get_text_config()
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, field, None)
        if isinstance(value, int):
            return value
    return None


def cut_config(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same configuration with the first `layers` layers only; `config` itself is not changed.

    Raises:
        UserError: as `first_layers` and `choose_layers`.
    """
    return choose_layers(config, first_layers(config, layers))


def first_layers(config: PretrainedConfig, layers: int) -> range:
    """Numbers of a model's first layers.

    Raises:
        UserError: `layers` is not between 1 and the model's depth.
    """
    depth = layer_count(config)
    if not 1 <= layers <= depth:
        raise UserError(f"cannot keep {layers} layers of a model with {depth}: choose 1 to {depth}")
    return range(layers)


def choose_layers(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """The same configuration with these layers (0-based) only, in this order; `config` itself is not changed.

    It is made from what would be written to disk, so that reading it again changes nothing.

    Raises:
        UserError: no layers, one that the model does not have, or a configuration that cannot say it.
    """
    depth = layer_count(config)
    missing = [layer for layer in layers if not 0 <= layer < depth]
    if missing or not layers:
        wrong = f"layer {missing[0]}" if missing else "an empty list of layers"
        raise UserError(f"cannot take {wrong} of a model with {depth}: its layers are 0 to {depth - 1}")
    text = config.get_text_config()
    values = fields_of(text, layers, depth)
    try:
        chosen = read_again(text, values)
    except MISFITS as error:
        raise cannot_be_described(config, layers, error) from error
    part = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    if chosen.num_hidden_layers != len(layers) or (part is None and text is not config):
        raise UserError(
            f"cannot make a model of {named(layers)} of this {config.model_type!r} model: what its configuration "
            "says of the depth is not understood"
        )
    if part is None:
        return chosen
    whole = copy.deepcopy(config)
    setattr(whole, part, chosen)
    return whole


def read_again(config: PretrainedConfig, values: dict[str, Any]) -> PretrainedConfig:
    """A configuration with these values, as it will be when it was written to disk and read; `config` stays."""
    again = type(config).from_dict(values)
    # What is not written to disk, such as the implementation of attention that was asked for.
    vars(again).update({k: v for k, v in vars(config).items() if k.startswith("_") and isinstance(v, str)})
    return again


def cannot_be_described(config: PretrainedConfig, layers: Sequence[int], error: Exception) -> UserError:
    """What to raise where transformers makes no model of these layers."""
    reason = textwrap.shorten(lines_of(error)[-1].rstrip("."), 160)
    return UserError(
        f"cannot make a model of {named(layers)} of this {config.model_type!r} model: its configuration does not "
        f"allow it ({reason}); choose other layers"
    )


def named(layers: Sequence[int]) -> str:
    """Numbers of layers in words: `layer 3`, `layers 0 to 3`, `layers 0, 2, 4`."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def parts_of(model: PreTrainedModel) -> dict[str, Part]:
    """Part of each entry of `model.state_dict()`, parameters and persistent buffers alike.

    In a block, `attention` has the norms inside it (of queries and keys), `layernorm` the block's own norms,
    and `mlp` everything else, such as experts and their router. Around the blocks, `embeddings` has token and
    position embeddings with the norms and projections right at them, `final_norm` the norm after the blocks,
    and `head` what leads to the logits. A tied tensor has an entry, and a part, under each of its names.

    Raises:
        UserError: the model's structure is not understood.
    """
    prefix = blocks_name(model)
    return {
        name: _inside(model, prefix, name) if name.startswith(f"{prefix}.") else _outside(model, name)
        for name in model.state_dict()
    }


def check_parts(parts: Sequence[str]) -> None:
    """Raise UserError if there are no parts, or one that is none of `PARTS`."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        wrong = f"unknown part {unknown[0]!r}" if unknown else "no parts are named"
        raise UserError(f"{wrong}; choose one or more of {', '.join(PARTS)}")


def _inside(model: PreTrainedModel, prefix: str, name: str) -> Part:
    number, *path = name.removeprefix(f"{prefix}.").split(".")[:-1]
    module = model.get_submodule(f"{prefix}.{number}")
    for child in path:
        module = module.get_submodule(child)
        # OPT's `self_attn_layer_norm` is a norm, and DBRX's `norm_attn_norm` has two beside its attention.
        if not _is_norm(module):
            described = f"{child} {type(module).__name__}".lower()
            return "attention" if "attn" in described or "attention" in described else "mlp"
    return "layernorm" if path else "mlp"


def _outside(model: PreTrainedModel, name: str) -> Part:
    owner = name.rpartition(".")[0]
    module, head = model.get_submodule(owner), model.get_output_embeddings()
    base = model.base_model_prefix
    beside_base = model.base_model is not model and not name.startswith(f"{base}.")
    # OPT projects out of the blocks within its base model.
    if module is head or beside_base or owner.endswith("project_out"):
        return "head"
    return "final_norm" if _is_norm(module) and "emb" not in owner else "embeddings"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def head_is_linear(model: PreTrainedModel) -> bool:
    """Whether logits are just `head(last hidden state)`: no soft-capping, scaling or projection around it.

    Tried on the model itself with a few tokens, so it holds for architectures nobody listed. The head's output
    is made large for the trial, because soft-capping leaves the small logits of an untrained model alone.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    seen: dict[str, Tensor] = {}

    def enlarge(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["hidden"], seen["logits"] = inputs[0], 1000 * output
        return seen["logits"]

    training = model.training
    model.eval()
    hook = head.register_forward_hook(enlarge)
    try:
        few = min(4, context_length(model.config) or 4)
        tokens = torch.arange(few, device=model.device)[None] % head.out_features
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            # What is called the base of Llama 4 is the whole model.
            hidden = getattr(model.base_model(input_ids=tokens, use_cache=False), "last_hidden_state", None)
    finally:
        hook.remove()
        model.train(training)
    # Experts may be summed in another order from call to call: equal to rounding is enough.
    same = hidden is not None and torch.allclose(hidden, seen["hidden"], rtol=1e-3, atol=1e-4)
    return same and torch.equal(logits, seen["logits"])


def parameter_count(model: PreTrainedModel) -> int:
    """Parameters of the model, tied ones once; frozen ones (the zero biases of `presets`) are not counted.

    A model all of whose parameters are frozen is counted whole.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained or sum(p.numel() for p in model.parameters())
