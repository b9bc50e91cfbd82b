"""The final model of a training: the type of its weights, and its files.

A training computes with float32 weights, and its checkpoints hold them. The final model, for others to use, has the
type of the model that it came from, so it is rounded to it before its last validation: the losses that are written
beside it are its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.config import Training
from inheritune.models.load import tokenizer_in
from inheritune.runtime import files
from inheritune.runtime.world import World
from inheritune.training.checkpoint import weights_on_host
from inheritune.training.validation import WindowLosses

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL, CHECKPOINTS = "model", "checkpoints"
"""Where a training's result and its checkpoints are, in its directory."""


@dataclass(frozen=True)
class Outcome:
    """What a training cost: steps done, tokens and FLOPs spent on them, seconds of training; and on what model."""

    steps: int
    tokens: int
    flops: float
    seconds: float
    layers: int
    parameters: int


def saved_dtype(training: Training, origin: PretrainedConfig | None) -> torch.dtype:
    """Type of the weights in the files of the final model.

    Args:
        training: whose `dtype` counts.
        origin: configuration of the pretrained model that the first weights come from, as it was read; None of a
            model that was made from random weights.
    """
    if training.dtype != "auto":
        return TYPES[training.dtype]
    found = None if origin is None else origin.dtype
    return found if isinstance(found, torch.dtype) and found in TYPES.values() else torch.float32


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype, world: World) -> None:
    """Round parameters, whole or in shares, to what a type can hold; they stay float32. Buffers are left alone.

    Raises:
        UserError: a weight is too large for the type.
    """
    if dtype == torch.float32:
        return
    overflows = torch.zeros((), dtype=torch.bool)
    # FSDP gives the shares back when it is asked for the state.
    for parameter in _parameters(model).values():
        share: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        share.copy_(share.to(dtype))
        overflows |= share.isinf().any().cpu()
    if world.any(bool(overflows)):
        raise UserError(
            f"a weight of the trained model is too large for {str(dtype).removeprefix('torch.')}: set "
            "`training.dtype: bfloat16` and start again, which continues from the last checkpoint"
        )


@contextmanager
def rounded(model: PreTrainedModel, dtype: torch.dtype, world: World) -> Iterator[None]:
    """For the time of the block, the weights that would be left behind."""
    parameters = _parameters(model).values()
    kept = [] if dtype == torch.float32 else [parameter.detach().clone() for parameter in parameters]
    try:
        round_weights(model, dtype, world)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=False):
                parameter.copy_(before)


def save_final(
    directory: Path,
    model: PreTrainedModel,
    dtype: torch.dtype,
    losses: WindowLosses,
    outcome: Outcome,
    shards: Path,
    world: World,
) -> None:
    """Write the final model and its figures, on rank 0, and delete the checkpoints.

    Args:
        directory: of the training.
        model: what was trained, rounded to `dtype`; whole or in shares.
        dtype: of the parameters in the files.
        losses: of the rounded model, on all validation windows.
        outcome: what it cost.
        shards: folder of the data, whose tokenizer comes with the model.
        world: the processes that hold the model.
    """
    weights, parameters = weights_on_host(model, world), _parameters(model)

    def write() -> None:
        losses.save(directory / "validation.json")
        files.write_json(directory / "training.json", asdict(outcome))
        saved = {id(tensor): tensor.to(dtype) for name, tensor in weights.items() if name in parameters}
        left = {
            name: saved.get(id(tensor), tensor) for name, tensor in weights.items()
        }  # tied ones still one
        tokenizer = tokenizer_in(shards)
        with files.directory(directory / MODEL) as folder:  # last: where it is, the rest is too
            model.save_pretrained(folder, state_dict=left)
            # It was written as of the model that was trained, which is float32.
            model.config.dtype = dtype
            model.config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        _remove_checkpoints(directory)

    world.on_first(write)


def read_outcome(directory: Path, world: World) -> Outcome:
    """What a finished training cost. It may have ended before its checkpoints were deleted."""
    world.on_first(_remove_checkpoints, directory)
    return Outcome(**json.loads((directory / "training.json").read_text(encoding="utf-8")))


def _remove_checkpoints(directory: Path) -> None:
    """Delete what a finished training needs no more: optimizers, each larger than the model."""
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def _parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters by their names in the model's state; a tied one has several."""
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, nn.Parameter)}
