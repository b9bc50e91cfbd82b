"""A model made of another one's blocks, checked to compute what they do."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.models.architecture import (
    block_pattern,
    blocks,
    cannot_be_described,
    choose_layers,
    layer_count,
    named,
)
from inheritune.models.exactness import check_exact
from inheritune.models.layer_fields import MISFITS
from inheritune.models.load import load_model
from inheritune.models.presets import freeze_biases


def read_blocks(
    source: Pretrained, config: PretrainedConfig, layers: Sequence[int], dtype: torch.dtype | str
) -> PreTrainedModel:
    """As `assemble`, of a model on disk, of which only the tensors that are needed are read.

    Args:
        source: the model.
        config: what `load_config` says of it.
        layers: numbers of the blocks, from 0; a block may be taken more than once.
        dtype: of the weights when read; "auto" keeps the checkpoint's.

    Raises:
        UserError: as `load_model` and `assemble`.
    """
    choose_layers(config, layers)  # what cannot be is refused before anything is read
    return assemble(load_model(source, config=config, layers=layers, dtype=dtype), layers, share=True)


def assemble(
    reference: PreTrainedModel,
    layers: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    share: bool = False,
) -> PreTrainedModel:
    """These blocks of a model, in this order, with everything around them.

    Args:
        reference: a model; blocks that are not chosen may be empty (`load_model`).
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
    except MISFITS as error:
        raise cannot_be_described(config, layers, error) from error
    copied = not share or len(set(layers)) < len(layers)  # a tensor cannot be in two places
    weights = {
        name: value.to(model.dtype if dtype and value.is_floating_point() else value.dtype, copy=copied)
        for name, value in _weights(model, reference, layers).items()
    }
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    round_buffers(model, reference, layers, dtype)
    if reference.generation_config is not None:
        model.generation_config = copy.deepcopy(reference.generation_config)
    freeze_biases(model)
    model = model.to(reference.device).eval()
    mend(model, layers)
    check_exact(model, reference, layers)
    return model


def origin(name: str, pattern: re.Pattern[str], layers: Sequence[int]) -> tuple[str, int | None]:
    """What a tensor is called in the reference, and the place of its block; None for what is around the blocks."""
    block = pattern.match(name)
    if block is None:
        return name, None
    place = int(block[1])
    return f"{name[: block.start(1)]}{layers[place]}{name[block.end(1) :]}", place


def _weights(model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """The reference's tensor for each name in the model's state.

    Raises:
        UserError: a block is of another kind than its place, or something around the blocks depends on them.
    """
    pattern, theirs, depth = block_pattern(model), reference.state_dict(), layer_count(reference.config)
    refusal = f"cannot make a model of {named(layers)} of this {model.config.model_type!r} model"
    found, used = {}, set()
    for name, value in model.state_dict().items():
        source, place = origin(name, pattern, layers)
        tensor = theirs.get(source)
        if tensor is not None and tensor.shape != value.shape and place is None:
            tensor = _of_layers(tensor, value, layers, depth)
        if tensor is None or tensor.shape != value.shape:
            what = "what is around the blocks" if place is None else f"layer {layers[place]}"
            why = "depends on the depth" if place is None else f"does not fit its new place {place}"
            raise UserError(f"{refusal}: {what} {why} ({name}); choose other layers")
        found[name] = tensor
        used.add(source)
    for source in sorted(theirs.keys() - used):
        if (block := pattern.match(source)) and int(block[1]) in layers:
            raise UserError(
                f"{refusal}: at its new place layer {block[1]} has no room for {source}; choose other layers"
            )
    return found


def _of_layers(source: Tensor, value: Tensor, layers: Sequence[int], depth: int) -> Tensor | None:
    """Of a tensor with something for every layer (Gemma's embeddings for each) what these layers have."""
    for dimension, size in enumerate(source.shape):
        if size % depth == 0:
            taken = source.unflatten(dimension, (depth, -1))
            taken = taken.index_select(dimension, torch.tensor(layers, device=source.device))
            taken = taken.flatten(dimension, dimension + 1)
            if taken.shape == value.shape:
                return taken
    return None


def round_buffers(
    model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int], dtype: torch.dtype | None
) -> None:
    """Give what is computed and not saved, such as rotary frequencies, the reference's precision.

    They are rounded in a model that was cast to bfloat16 in memory, but not in one that was read in bfloat16.
    """
    pattern, theirs, saved = block_pattern(model), dict(reference.named_buffers()), model.state_dict()
    for name, buffer in list(model.named_buffers()):
        source = theirs.get(origin(name, pattern, layers)[0])
        if name not in saved and source is not None and buffer.is_floating_point():
            owner, _, last = name.rpartition(".")
            rounded = buffer.to(source.dtype)
            setattr(model.get_submodule(owner), last, rounded if dtype is None else rounded.to(dtype))


@torch.no_grad()
def mend(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Fold into the weights what `MENDS` knows to depend on a place; tensors shared with other models stay."""
    fold = MENDS.get(model.config.model_type)
    for place, (block, layer) in enumerate(zip(blocks(model), layers, strict=True)):
        if fold is not None and place != layer:
            fold(block, place, layer)


def _gpt2(block: Any, place: int, layer: int) -> None:
    """Attention logits are divided by the number of the layer, from 1: the queries are scaled, weights and biases."""
    attention = block.attn
    if not attention.scale_attn_by_inverse_layer_idx:
        return
    queries = torch.ones(attention.c_attn.nf)
    queries[: attention.split_size] = (place + 1) / (layer + 1)
    for tensor in (attention.c_attn.weight, attention.c_attn.bias):
        tensor.data = tensor * queries.to(tensor)


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
"""Model type -> what makes one of its blocks compute at another place, from 0, what it did at its layer's."""
