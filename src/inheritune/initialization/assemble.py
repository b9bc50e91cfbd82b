"""A model made of another one's blocks, checked to compute what they do."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from inheritune import UserError
from inheritune.models.architecture import (
    DESCRIPTION_ERRORS,
    blocks_name,
    cannot_be_described,
    choose_layers,
    layer_count,
)
from inheritune.models.exactness import check_exact
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
        name: value.to(model.dtype if value.is_floating_point() and dtype else value.dtype, copy=copied or not share)
        for name, value in _weights(model, reference, layers).items()
    }
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    if reference.generation_config is not None:
        model.generation_config = copy.deepcopy(reference.generation_config)
    freeze_biases(model)
    model = model.to(reference.device).eval()
    mend(model, layers)
    check_exact(model, reference, layers)
    return model


def _weights(model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """The reference's tensor for each name in the model's state.

    Raises:
        UserError: a block is of another kind than its place, or something around the blocks depends on them.
    """
    prefix, sources = blocks_name(model), reference.state_dict()
    block = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    found, depth = {}, layer_count(reference.config)
    places = {layer: place for place, layer in enumerate(layers)}
    for name, value in model.state_dict().items():
        place = block.match(name)
        if place is None:
            source = sources.get(name)
            if source is not None and source.shape != value.shape:
                source = _of_layers(source, value, layers, depth)
        else:
            source = sources.get(block.sub(f"{prefix}.{layers[int(place[1])]}.", name))
        if source is None or source.shape != value.shape:
            where = f"layer {layers[int(place[1])]} is of another kind than its new place {place[1]}" if place else "parts outside of its blocks depend on the depth"
            raise UserError(f"cannot make a {model.config.model_type!r} model of the layers {list(layers)}: {where} ({name}); choose other layers")
        found[name] = source
    for name in sources:
        layer = block.match(name)
        if layer and int(layer[1]) in places and block.sub(f"{prefix}.{places[int(layer[1])]}.", name) not in found:
            raise UserError(f"cannot make a {model.config.model_type!r} model of the layers {list(layers)}: there is no room for {name} at the new place of layer {layer[1]}; choose other layers")
    return found


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
