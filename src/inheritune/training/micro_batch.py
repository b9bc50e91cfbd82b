"""How many windows a process computes at once; the rest of its share of a step follows, and gradients add up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PretrainedConfig

from inheritune import UserError
from inheritune.config import Distillation, Training
from inheritune.training.device import Hardware
from inheritune.training.distillation import DistillationLoss
from inheritune.training.memory import memory_per_process
from inheritune.training.parallel import Placed, Strategy, device_memory
from inheritune.training.traced_step import Step

logger = logging.getLogger(__name__)

TOKENS = {"cpu": 8_192, "cuda": 24_576}
"""In one forward pass, at most, when the recipe leaves it open. On an H100 16,384 were 3% slower."""

UNTRACED_TOKENS = 8_192
"""The same for a model on a GPU whose memory cannot be told before it runs."""

FILLED = 0.875
"""Of a GPU's memory, what the tensors of a step may take; the rest is for the program and for what kernels need."""


def windows_per_process(training: Training, window: int, processes: int = 1) -> int:
    """Each process's share of the windows of a step.

    Raises:
        UserError: the step is not a whole number of windows, shares or micro-batches.
    """
    windows, rest = divmod(training.tokens_per_step, window)
    if rest or not windows:
        raise UserError(
            f"tokens_per_step ({training.tokens_per_step}) must be a multiple of the window ({window} tokens)"
        )
    if windows % processes:
        raise UserError(
            f"a step of {windows} windows cannot be shared evenly by {processes} processes: make tokens_per_step "
            f"({training.tokens_per_step}) a multiple of {window * processes}"
        )
    share = windows // processes
    if training.micro_batch != "auto" and share % training.micro_batch:
        whose = "of a step" if processes == 1 else "that each process has of a step"
        raise UserError(f"micro_batch ({training.micro_batch}) must divide the {share} windows {whose}")
    return share


def micro_batch(
    training: Training,
    window: int,
    limit: int,
    processes: int = 1,
    fits: Callable[[int], bool] = lambda size: True,
) -> int:
    """Windows in one forward pass: what the recipe says, or the largest divisor of the share that fits.

    Args:
        training: whose `tokens_per_step` and `micro_batch` count.
        window: tokens.
        limit: of tokens in one forward pass, if the recipe leaves it open.
        processes: that share a step.
        fits: whether there is memory for so many windows.

    Raises:
        UserError: as `windows_per_process`.
    """
    share = windows_per_process(training, window, processes)
    if training.micro_batch != "auto":
        return training.micro_batch
    most = min(share, max(1, limit // window))
    sizes = [size for size in range(most, 0, -1) if share % size == 0]
    return next((size for size in sizes if fits(size)), 1)


def smaller(size: int, share: int) -> int | None:
    """The windows of a forward pass after memory ran out with `size` of them; None if there are no fewer.

    At most half as many, and a divisor of the windows that a process has of a step.
    """
    return next((fewer for fewer in range(size // 2, 0, -1) if share % fewer == 0), None)


def step_of(
    training: Training,
    config: PretrainedConfig,
    window: int,
    device: torch.device,
    bf16: bool,
    teacher: PretrainedConfig | None = None,
    distillation: Distillation | None = None,
) -> Step:
    """A step on one window, as it is traced to tell its memory."""
    return Step(
        config=config,
        window=window,
        micro_batch=1,
        bf16=bf16,
        gpu=device.type == "cuda",
        compiled=device.type == "cuda" if training.compile == "auto" else training.compile,
        checkpointing=training.activation_checkpointing,
        optimizer=training.optimizer.name,
        teacher=teacher,
        distillation=distillation,
    )


def fitting_step(
    step: Step, training: Training, strategy: Strategy, processes: int = 1, room: int | None = None
) -> Step:
    """A step on as many windows as `training.micro_batch` says, or as fit a GPU.

    Args:
        step: on any number of windows.
        training: whose step it is.
        strategy: how it is spread over processes.
        processes: so many.
        room: bytes of the GPU's memory; if they are not known, or on a CPU, everything fits.
    """

    def of(size: int) -> Step:
        accumulates = training.tokens_per_step > size * step.window * processes
        return replace(step, micro_batch=size, accumulates=accumulates)

    def fits(size: int) -> bool:
        return memory_per_process(of(size), strategy, processes) <= FILLED * (room or 0)

    limit = TOKENS["cuda" if step.gpu else "cpu"]
    if room is None or not step.gpu:
        return of(micro_batch(training, step.window, limit, processes))
    windows_per_process(training, step.window, processes)
    try:
        return of(micro_batch(training, step.window, limit, processes, fits))
    except Exception as error:  # a step of any architecture is traced, with tensors that hold nothing
        reason = str(error).strip().partition("\n")[0]
        logger.warning(
            "the memory of a step cannot be told (%s: %s), so it is of %d tokens at most: `micro_batch` sets another",
            *(type(error).__name__, reason, UNTRACED_TOKENS),
        )
        return of(micro_batch(training, step.window, UNTRACED_TOKENS, processes))


def choose_micro_batch(placed: Placed, training: Training, hardware: Hardware, window: int) -> int:
    """Windows in one forward pass of each process, for a loss where it computes.

    Raises:
        UserError: as `windows_per_process`.
    """
    loss, world = placed.loss, hardware.world
    taught = (
        (loss.teacher.model.config, loss.settings) if isinstance(loss, DistillationLoss) else (None, None)
    )
    step = step_of(training, loss.model.config, window, hardware.device, hardware.bf16, *taught)
    room = min(world.gather(device_memory(hardware)))
    return world.on_first(lambda: fitting_step(step, training, placed.strategy, world.size, room).micro_batch)
