"""A model made of another one's blocks, checked to compute what they do."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.models.architecture import (
    blocks_name,
    cannot_be_described,
    choose_layers,
    layer_count,
    named,
)
from inheritune.models.exactness import check_exact
from inheritune.models.layer_fields import DESCRIPTION_ERRORS
from inheritune.models.load import load_model
from inheritune.models.mends import mend
from inheritune.models.presets import freeze_biases


def assemble(
    reference: PreTrainedModel,
    layers: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    share: bool = False,
) -> PreTrainedModel:
    """These blocks of a model, in this order, with everything that stands around them.

    Args:
        reference: a model; blocks that are not chosen may stand empty (`load_model`).
        layers: numbers of the blocks, from 0; a block may be taken more than once.
        dtype: of the result; None for the reference's.
        share: use the reference's own tensors, for one that is not needed afterwards.

    Returns:
        A model in evaluation mode, on the reference's device, its biases frozen if the reference's are.

    Raises:
        UserError: as `choose_layers`; blocks that do not fit their places; a model that would not compute what
            the reference's same blocks do, one after the other, between its embeddings and its final norm.
    """
    config = choose_layers(reference.config, layers)
    try:
        with torch.random.fork_rng(devices=[]), no_init_weights():
            model = type(reference)._from_config(config, dtype=dtype or reference.dtype)
    except DESCRIPTION_ERRORS as error:
        raise cannot_be_described(config, layers, error) from error
    copied = len(set(layers)) < len(layers)  # a tensor cannot stand in two places
    weights = {
        name: value.to(
            model.dtype if value.is_floating_point() and dtype else value.dtype, copy=copied or not share
        )
        for name, value in _weights(model, reference, layers).items()
    }
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    _round_buffers(model, reference, layers, dtype)
    if reference.generation_config is not None:
        model.generation_config = copy.deepcopy(reference.generation_config)
    freeze_biases(model)
    model = model.to(reference.device).eval()
    mend(model, layers)
    check_exact(model, reference, layers)
    return model


def read_blocks(
    source: Pretrained, config: PretrainedConfig, layers: Sequence[int], dtype: torch.dtype | str
) -> PreTrainedModel:
    """As `assemble`, of a model of which only the tensors that are needed are read.

    Args:
        source: the model.
        config: of it, as `load_config` has read it.
        layers: numbers of the blocks, from 0; a block may be taken more than once.
        dtype: of the weights when read; "auto" keeps the checkpoint's.

    Raises:
        UserError: as `load_model` and `assemble`.
    """
    choose_layers(config, layers)  # what cannot be is refused before anything is read
    return assemble(load_model(source, config=config, layers=layers, dtype=dtype), layers, share=True)


class _Origins:
    """Where the entries of a model's state come from, by their names."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self._prefix = blocks_name(model)
        self._block = re.compile(rf"{re.escape(self._prefix)}\.(\d+)\.")
        self._layers = layers

    def number(self, name: str) -> int | None:
        """The number of the block that it is in; None for what stands around the blocks."""
        match = self._block.match(name)
        return int(match[1]) if match else None

    def source(self, name: str) -> str:
        """The name that it has in the reference."""
        place = self.number(name)
        return name if place is None else self._block.sub(f"{self._prefix}.{self._layers[place]}.", name)


def _weights(model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """The reference's tensor for each name in the model's state.

    Raises:
        UserError: a block is of another kind than its place, or something around the blocks depends on them.
    """
    origins, theirs, depth = _Origins(model, layers), reference.state_dict(), layer_count(reference.config)
    refusal = f"cannot make a model of {named(layers)} of this {model.config.model_type!r} model"
    found, used = {}, set()
    for name, value in model.state_dict().items():
        place, source = origins.number(name), origins.source(name)
        tensor = theirs.get(source)
        if tensor is not None and tensor.shape != value.shape and place is None:
            tensor = _of_layers(tensor, value, layers, depth)
        if tensor is None or tensor.shape != value.shape:
            what = "what stands around the blocks" if place is None else f"layer {layers[place]}"
            why = "depends on the depth" if place is None else f"does not fit its new place {place}"
            raise UserError(f"{refusal}: {what} {why} ({name}); choose other layers")
        found[name] = tensor
        used.add(source)
    for source in sorted(theirs.keys() - used):
        if (layer := origins.number(source)) is not None and layer in layers:
            raise UserError(
                f"{refusal}: at its new place layer {layer} has no room for {source}; choose other layers"
            )
    return found


def _round_buffers(
    model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int], dtype: torch.dtype | None
) -> None:
    """Give what is computed and not saved, such as rotary frequencies, the reference's precision.

    They are rounded in a model that was cast to bfloat16 in memory, but not in one that was read in bfloat16.
    """
    origins, theirs, saved = _Origins(model, layers), dict(reference.named_buffers()), model.state_dict()
    for name, buffer in list(model.named_buffers()):
        source = theirs.get(origins.source(name))
        if name not in saved and source is not None and buffer.is_floating_point():
            owner, _, last = name.rpartition(".")
            rounded = buffer.to(source.dtype)
            setattr(model.get_submodule(owner), last, rounded if dtype is None else rounded.to(dtype))


def _of_layers(source: Tensor, value: Tensor, layers: Sequence[int], depth: int) -> Tensor | None:
    """Of a tensor with something for every layer (Gemma's embeddings for each) what these layers have."""
    for dimension, size in enumerate(source.shape):
        taken = source.unflatten(dimension, (depth, -1)) if size % depth == 0 else None
        if taken is not None:
            taken = taken.index_select(dimension, torch.tensor(layers, device=source.device))
            taken = taken.flatten(dimension, dimension + 1)
            if taken.shape == value.shape:
                return taken
    return None
