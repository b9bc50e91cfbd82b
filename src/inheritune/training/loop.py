"""The training loop.

1. `start_or_resume`: the model, from its first weights or the newest checkpoint, spread over the processes.
2. For each step `training_steps` reads its windows, and a `Stepper` computes gradients, clips and updates.
3. `due_after` says which steps end with a validation (`validate`) and which with a checkpoint (`Saver`).
4. `round_weights` to the type of the final model, the last validation on all windows, and `save_final`.

A signal saves a checkpoint and raises `Interrupted`; the same call then resumes at 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from transformers import PreTrainedModel

from inheritune.config import Training
from inheritune.data.loader import TrainingData, ahead, training_steps
from inheritune.data.order import Order
from inheritune.data.shards import Split
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.progress import ProgressBar
from inheritune.runtime.signals import Interrupted, signals
from inheritune.runtime.world import World
from inheritune.training.callbacks import NONE, Callbacks
from inheritune.training.checkpoint import Saver, TrainState
from inheritune.training.final_model import (
    CHECKPOINTS,
    MODEL,
    Outcome,
    read_outcome,
    round_weights,
    rounded,
    save_final,
)
from inheritune.training.float8 import without_float8
from inheritune.training.loss import NextTokenLoss
from inheritune.training.metrics import Metrics
from inheritune.training.micro_batch import windows_per_process
from inheritune.training.schedule import next_decay
from inheritune.training.start import start_or_resume
from inheritune.training.step import NonFiniteError
from inheritune.training.validation import WindowLosses, validate


class Measure(Protocol):
    """The losses of a model in training on a split."""

    def __call__(self, split: Split, *, final: bool = False) -> WindowLosses:
        """On the windows that a validation has; `final`: on all, with the weights that would be left behind.

        Where the learning rate has decayed, it is final in any case.
        """


Stop = Callable[[int, WindowLosses, Measure], bool]

VALIDATION_SHARE = 0.025
"""How much of the training's FLOPs validations may cost when the recipe leaves their number open."""


def train(
    initial: Callable[[], PreTrainedModel],
    data: TrainingData,
    training: Training,
    directory: Path,
    *,
    hardware: Hardware,
    run: Path | None = None,
    loss: Callable[[PreTrainedModel, World], NextTokenLoss] = NextTokenLoss,
    stop: Stop = lambda step, losses, measure: False,
    ends: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    begins: Callable[[WindowLosses], None] = lambda losses: None,
    callbacks: Callbacks = NONE,
    trust_remote_code: bool = False,
    title: str = "training",
) -> Outcome:
    """Train a model, or resume its training, or do nothing if it is trained already.

    Under torchrun every process calls this, and they train one model together.

    Args:
        initial: makes the model with its first weights; only called if there is no checkpoint.
        data: what to train on.
        training: how.
        directory: gets `metrics.jsonl` and `checkpoints/`, and in the end `validation.json` (the losses of `model/`
            on all validation windows), `training.json` and `model/`, which takes the place of `checkpoints/`.
        hardware: where, and with which other processes.
        run: directory of a run of several trainings, which keeps what fits its device; by default `directory`.
        loss: what is minimised; cross entropy of the next token, or distillation.
        stop: given each validation's step and losses, and what measures the model on another split; True ends the
            training there.
        ends: steps after which the learning rate has decayed, see `schedule`; `stop` may add some. The model is
            validated there on all windows, with the weights that would be left behind.
        dtype: of the weights in `model/`; checkpoints are float32.
        begins: is called with the losses of the first weights.
        callbacks: are told of steps and validations.
        trust_remote_code: for checkpoints of a model that needs it.
        title: of the progress bar.

    Returns:
        What it cost. The trained model is in the directory.

    Raises:
        NonFiniteError: loss or gradient became NaN or infinite; names the step, its windows and the last
            checkpoint.
        Interrupted: a signal asked to stop; the same call resumes from there.
        UserError: the checkpoints belong to another recipe, or the processes cannot share the windows of a step.
    """
    world = hardware.world
    if world.on_first((directory / MODEL).exists):
        return read_outcome(directory, world)
    share = windows_per_process(training, data.window, world.size)
    order = Order(data.windows, world.size * share, training.seed, data.order)
    started = start_or_resume(
        initial,
        loss,
        training,
        directory / CHECKPOINTS,
        run=run or directory,
        data=data,
        hardware=hardware,
        trust_remote_code=trust_remote_code,
    )
    model, stepper, state = started.model, started.stepper, started.state
    saver = Saver(directory / CHECKPOINTS, training.checkpoints.keep, world, state.step)
    flops = stepper.loss.flops_per_token(data.window) * training.tokens_per_step
    metrics = Metrics(directory, training, hardware, flops, state, callbacks)
    batches = training_steps(
        data,
        order,
        range(state.step, training.steps),
        started.micro_batch,
        hardware.device,
        rank=world.rank,
        processes=world.size,
    )
    bar = ProgressBar(title, training.steps, "steps", state.step, keeps=None)

    validation = Validation(model, stepper.loss, data, training, hardware, metrics, dtype, bar)

    with (
        bar,
        signals(partial(_ending, state, training)) as interrupted,
        closing(metrics),
        closing(ahead(batches)) as steps,
    ):
        try:
            if state.step == 0:
                begins(validation.measured(state, training.validation.windows))
            began = time.perf_counter()
            for micro_batches in steps:
                validates, saves = due_after(state.step + 1, training, data, ends)
                result = stepper(state.step, micro_batches, gradient_norms=validates, ends=ends)
                stopping = world.any(interrupted())
                if validates or saves or stopping or metrics.due(state.step + 1):
                    stepper.check_last()  # waits for the step, which is training time
                state.step += 1
                state.seconds += time.perf_counter() - began
                metrics.stepped(state, result)
                bar.update(state.step, metrics.note)

                if validates and state.step < training.steps and validation.ends(state, stop, ends):
                    break
                if saves or stopping:
                    saver.save(model, stepper.optimizer, state)
                if stopping:
                    saver.wait()
                _stop_if(stopping, f"step {state.step}")
                began = time.perf_counter()  # what came after the step is not training time
            saver.wait()
            round_weights(model, dtype, world)
            losses = validation.measured(state, "all")
            metrics.validated(state, losses, "final")
        except NonFiniteError as error:
            saver.wait()
            raise NonFiniteError(_explain(error, saver.last, data, order), error.step) from error

    outcome = Outcome(
        steps=state.step,
        tokens=state.step * training.tokens_per_step,
        flops=state.step * flops,
        seconds=state.seconds,
        layers=layer_count(model.config),
        parameters=parameter_count(model),
    )
    save_final(directory, model, dtype, losses, outcome, data.path, world)
    _stop_if(world.any(interrupted()), f"the end of {title}")
    return outcome


@dataclass(frozen=True)
class Validation:
    """The validations of a training: what is measured, with what, and where it is written down."""

    model: PreTrainedModel
    loss: NextTokenLoss
    data: TrainingData
    training: Training
    hardware: Hardware
    metrics: Metrics
    dtype: torch.dtype
    """Of the weights that will be left behind."""
    bar: ProgressBar
    """Of the training, which says where a validation is."""

    def on(self, split: Split, windows: int | Literal["all"]) -> WindowLosses:
        """Losses on a split."""

        def tell(done: int, total: int) -> None:
            self.bar.update(self.bar.done, f"validating, {done} of {total} windows")

        with without_float8(self.model) if self.training.float8 else nullcontext():
            return validate(self.loss, split, self.data.window, self.hardware, windows, tell)

    def measured(self, state: TrainState, windows: int | Literal["all"]) -> WindowLosses:
        """Losses on the validation split; every line of a curve is of the same windows."""
        losses = self.on(self.data.validation, windows)
        self.metrics.validated(state, losses.thinned(self.training.validation.windows))
        return losses

    def ends(self, state: TrainState, stop: Stop, ends: Sequence[int]) -> bool:
        """Whether the training ends here."""
        cooled = state.step in ends

        def measure(split: Split, *, final: bool = False) -> WindowLosses:
            if not (cooled or final):
                return self.on(split, self.training.validation.windows)
            with rounded(self.model, self.dtype, self.hardware.world):
                return self.on(split, "all")

        losses = measure(self.data.validation)
        self.metrics.validated(state, losses.thinned(self.training.validation.windows))
        return stop(state.step, losses, measure)


def due_after(
    step: int, training: Training, data: TrainingData, ends: Sequence[int] = ()
) -> tuple[bool, bool]:
    """Whether a validation, and whether a checkpoint, is due after so many steps.

    The end is validated anyway, and with several decays of the learning rate, the beginning and the end of each.
    """
    validation, twentieth = training.validation, max(1, -(-training.steps // 20))
    saves = twentieth if training.checkpoints.every == "auto" else training.checkpoints.every
    if validation.every == "auto":
        available = data.validation_windows
        windows = available if validation.windows == "all" else min(validation.windows, available)
        # A forward pass costs a third of a training step on the same tokens.
        affordable = data.window * windows / 3 / (VALIDATION_SHARE * training.tokens_per_step)
        validates = max(twentieth, round(affordable + 0.5))
    else:
        validates = validation.every
    turns = (*ends, next_decay(step, training, ends)[0]) if ends else ()
    return step % validates == 0 or step in (*turns, training.steps), step % saves == 0


def _ending(state: TrainState, training: Training) -> str:
    """What is done yet before a training stops."""
    if state.step < training.steps:
        return f"finishing step {state.step + 1}, then saving"
    return "finishing the last validation, then saving the model"


def _stop_if(stopping: bool, after: str) -> None:
    if stopping:
        raise Interrupted(f"stopped after {after}; the same command resumes from there")


def _explain(error: NonFiniteError, saved: Path | None, data: TrainingData, order: Order) -> str:
    last = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
    windows = data.training_windows(order.step(error.step))
    shown = ", ".join(str(n) for n in windows[:8]) + (" ..." if len(windows) > 8 else "")
    return (
        f"{error} (windows {shown}); the weights were not touched by it, and {last}; "
        "try a lower learning rate in another directory"
    )
