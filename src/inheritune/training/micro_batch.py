"""How many windows a process computes at once; the rest of its share of a step follows, and gradients add up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Training
from inheritune.initialization import choose
from inheritune.runtime import files
from inheritune.runtime.hardware import Hardware
from inheritune.training.distillation import AnswersLoss, DistillationLoss
from inheritune.training.memory import How, Step, memory_per_process, shape_of
from inheritune.training.parallel import Placed, Strategy, device_memory

TOKENS = {"cpu": 8_192, "cuda": 24_576}
"""In one forward pass, at most, when the recipe leaves it open. On an H100 16,384 were 3% slower."""

FILLED, FILLED_TOGETHER = 0.875, 0.75
"""Of a GPU's memory, what a step may take by the formula. A process alone takes fewer windows when memory runs out;
of several none can, as the others would be waiting for it."""

FILE = "micro-batch.json"
"""Where a run keeps what fitted after memory had run out; without it the formula alone decides again."""


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
            f"the windows of a step ({windows}) cannot be shared evenly by {processes} processes: make "
            f"tokens_per_step ({training.tokens_per_step}) a multiple of {window * processes}"
        )
    share = windows // processes
    if training.micro_batch != "auto" and share % training.micro_batch:
        whose = "of a step" if processes == 1 else "that each process has of a step"
        raise UserError(f"micro_batch ({training.micro_batch}) must divide the {share} windows {whose}")
    return share


def sizes(training: Training, window: int, limit: int, processes: int = 1) -> list[int]:
    """Windows that one forward pass may have, the most first: the recipe's, or divisors of the share.

    Of the latter those within so many tokens (`limit`); one window always is.

    Raises:
        UserError: as `windows_per_process`.
    """
    share = windows_per_process(training, window, processes)
    if training.micro_batch != "auto":
        return [training.micro_batch]
    most = min(share, max(1, limit // window))
    return [size for size in range(most, 0, -1) if share % size == 0]


def smaller(size: int, share: int) -> int | None:
    """The windows of a forward pass after memory ran out with `size` of them; None if there are no fewer.

    At most half as many, and a divisor of the windows that a process has of a step.
    """
    return next((fewer for fewer in range(size // 2, 0, -1) if share % fewer == 0), None)


def step_of(
    model: PreTrainedModel,
    training: Training,
    window: int,
    device: torch.device,
    bf16: bool,
    teacher: PreTrainedModel | None = None,
    answers: bool = False,
) -> Step:
    """A step on one window, of models that may be without their weights; `answers`: learning from a teacher's."""
    on_gpu = device.type == "cuda"
    compiled = on_gpu if training.compile == "auto" else training.compile
    how = How(window, bf16, bool(training.float8), on_gpu, compiled)
    shape = shape_of(model, how)
    chosen = training.activation_checkpointing
    named = () if chosen == "none" else choose(None if chosen == "all" else chosen, shape.layers)
    return Step(
        how=how,
        model=shape,
        micro_batch=1,
        checkpointed=len(named),
        optimizer=training.optimizer.name,
        teacher=None if teacher is None else shape_of(teacher, how),
        answers=answers,
    )


def fitting_step(
    step: Step,
    training: Training,
    strategy: Strategy,
    processes: int = 1,
    room: int | None = None,
    fitted: int | None = None,
) -> Step:
    """A step on as many windows as `training.micro_batch` says, or as fit.

    Args:
        step: on any number of windows.
        training: whose step it is.
        strategy: how it is spread over processes.
        processes: so many.
        room: bytes of each process's device; if they are not known, everything fits. On a CPU any micro-batch does.
        fitted: bytes, by the formula, of the largest step that fitted after memory had run out (`remembered`).
    """
    most = math.inf if fitted is None else fitted
    if room is not None and step.how.gpu:
        most = min(most, room * (FILLED if processes == 1 else FILLED_TOGETHER))
    window = step.how.window
    limit = TOKENS["cuda" if step.how.gpu else "cpu"]
    for size in sizes(training, window, limit, processes):
        accumulates = training.tokens_per_step > size * window * processes
        step = replace(step, micro_batch=size, accumulates=accumulates)
        if memory_per_process(step, strategy, processes) <= most:
            break
    return replace(step, keeps=strategy == "fsdp" and keeps_gathered(step, processes, room))


def keeps_gathered(step: Step, processes: int, room: int | None) -> bool:
    """Whether FSDP leaves a step's weights gathered, and its gradients whole, until its last backward pass.

    It does where that fits by the formula into what a step may take of a device of so many bytes (`room`): a GPU, or
    a process's share of the machine's memory. Then a step gathers once and averages once, whatever its micro-batches.
    """
    taken = memory_per_process(replace(step, keeps=True), "fsdp", processes)
    return room is None or taken <= FILLED_TOGETHER * room


def choose_micro_batch(
    placed: Placed, training: Training, hardware: Hardware, window: int, run: Path | None = None
) -> Step:
    """The step of each process for a loss where it computes; `run` is the directory that `remember` writes to.

    Raises:
        UserError: as `windows_per_process`.
    """
    loss, world = placed.loss, hardware.world
    teacher = loss.teacher.model if isinstance(loss, DistillationLoss) else None
    answers = isinstance(loss, AnswersLoss)
    step = step_of(loss.model, training, window, hardware.device, hardware.bf16, teacher, answers)
    room = min(world.gather(device_memory(hardware)))

    def choose_step() -> Step:
        fitted = None if run is None else remembered(run, hardware)
        return fitting_step(step, training, placed.strategy, world.size, room, fitted)

    return world.on_first(choose_step)


def remember(run: Path, hardware: Hardware, step: Step, size: int) -> None:
    """Keep what fitted after memory had run out: this step with so many windows.

    It is kept as what such a step takes by the formula, so that it says something about other models and windows too.
    """
    taken = memory_per_process(replace(step, micro_batch=size, accumulates=True), "single")
    files.write_json(run / FILE, {"device": _name(hardware), "bytes": taken})


def remembered(run: Path, hardware: Hardware) -> int | None:
    """What `remember` kept of such a device; None if memory never ran out there."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
        return int(found["bytes"]) if found["device"] == _name(hardware) else None
    except (OSError, ValueError, LookupError, TypeError):  # none, or not ours
        return None


def _name(hardware: Hardware) -> str:
    device = hardware.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
