"""Where a training starts: with first weights, or with its newest checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.config import Pretrained, Training
from inheritune.data.loader import TrainingData
from inheritune.models.load import load_model
from inheritune.recipe_file import deciding_settings
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.world import World
from inheritune.training import checkpoint
from inheritune.training.checkpoint import TrainState
from inheritune.training.loss import NextTokenLoss
from inheritune.training.micro_batch import choose_micro_batch, remember
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import built_on_rank_0, place, rebuild_buckets
from inheritune.training.step import Stepper

ALIGNMENT = 64


@dataclass(frozen=True)
class Started:
    """A model that is ready to be trained, where it computes, spread over the processes of its world.

    `stepper` has its loss and its optimizer; `micro_batch` are the windows that each process computes at once.
    """

    model: PreTrainedModel
    stepper: Stepper
    state: TrainState
    micro_batch: int


def start_or_resume(
    initial: Callable[[], PreTrainedModel],
    loss: Callable[[PreTrainedModel, World], NextTokenLoss],
    training: Training,
    checkpoints: Path,
    *,
    run: Path,
    data: TrainingData,
    hardware: Hardware,
    trust_remote_code: bool = False,
) -> Started:
    """Everything that a training needs before its next step; arguments as of `loop.train`.

    Raises:
        UserError: the checkpoints are of other settings or other data.
    """
    window, world = data.window, hardware.world
    world.on_first(checkpoints.mkdir, parents=True, exist_ok=True)
    fresh = TrainState(settings=deciding_settings(training), data=data.identities[0])
    found = world.on_first(checkpoint.newest, checkpoints, fresh)
    path, state = found or (None, fresh)

    def first_weights() -> PreTrainedModel:
        if path is not None:
            return load_model(Pretrained(path, trust_remote_code=trust_remote_code))
        torch.manual_seed(training.seed)
        return initial().to(torch.float32)

    model = built_on_rank_0(first_weights, world)
    align(model)
    placed = place(loss(model, world), training, hardware, window)
    optimizer = make_optimizer(model, training.optimizer)
    if path is not None:
        checkpoint.restore_optimizer(path, model, optimizer, world)
    step = choose_micro_batch(placed, training, hardware, window, run)
    placed = replace(placed, keeps=step.keeps)
    rebuild_buckets(placed, hardware, (step.micro_batch, window))
    stepper = Stepper(placed, optimizer, training, hardware, fitted=partial(remember, run, hardware, step))
    return Started(model, stepper, state, step.micro_batch)


@torch.no_grad()
def align(model: PreTrainedModel) -> None:
    """Put every tensor where torch puts new ones, at a multiple of 64 bytes.

    Read from a file it lies anywhere, and where a tensor lies may show in the last bit of what is computed from it. A
    training that is resumed would then differ from one that was never stopped.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
