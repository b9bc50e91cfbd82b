"""The training loop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from inheritune import atomic
from inheritune.config import Training
from inheritune.data.loader import TrainingData, batches
from inheritune.data.order import Order
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.models.pretrained import load_model, save_model
from inheritune.progress import ProgressBar
from inheritune.training import checkpoint
from inheritune.training.checkpoint import TrainState
from inheritune.training.checks import warn_if_untrained
from inheritune.training.device import Hardware, micro_batch
from inheritune.training.loss import NextTokenLoss
from inheritune.training.metrics import Metrics
from inheritune.training.optimizer import make_optimizer
from inheritune.training.step import NonFiniteError, Stepper, StepResult

if TYPE_CHECKING:
    from inheritune.evaluation.validation import WindowLosses

VALIDATION_SHARE = 0.025
"""How much of the training's FLOPs validations may cost when the recipe leaves their number open."""


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """SIGINT or SIGTERM arrived; the step was finished and a checkpoint written."""


class Validate(Protocol):
    """Measures a model's loss on held-out windows."""

    def __call__(self, model: PreTrainedModel, windows: int | Literal["all"]) -> WindowLosses:
        """Losses on all windows of the validation split, or on so many of them."""


@dataclass(frozen=True)
class Outcome:
    """What a training cost: steps done, tokens and FLOPs spent on them, seconds of training; and on what model.

    The model's figures are None in records of the first versions.
    """

    steps: int
    tokens: int
    flops: float
    seconds: float
    layers: int | None = None
    parameters: int | None = None


def train(
    initial: Callable[[], PreTrainedModel],
    data: TrainingData,
    training: Training,
    directory: Path,
    *,
    hardware: Hardware,
    validate: Validate,
    loss: Callable[[PreTrainedModel], NextTokenLoss] = NextTokenLoss,
    stop: Callable[[WindowLosses], bool] = lambda losses: False,
    inherited: bool = False,
    trust_remote_code: bool = False,
    title: str = "training",
) -> tuple[PreTrainedModel, Outcome]:
    """Train a model, or go on training it, or just read it if it is trained already.

    Args:
        initial: makes the model with its first weights; only called if there is no checkpoint.
        data: what to train on.
        training: how.
        directory: gets `metrics.jsonl` and `checkpoints/`, and in the end `validation.json` (the losses on all
            validation windows), `training.json` and `model/`.
        hardware: where.
        validate: called before the first step and every `validation.every` steps.
        loss: what is minimised; cross entropy of the next token, or distillation.
        stop: told each validation's losses; True ends the training there.
        inherited: whether the first weights should already know something; if they do not, a warning says so.
        trust_remote_code: for checkpoints of a model that needs it.
        title: of the progress bar.

    Returns:
        The trained model, in evaluation mode on the hardware's device, and what it cost.

    Raises:
        NonFiniteError: loss or gradient became NaN or infinite; names the step, its windows and the last
            checkpoint.
        Interrupted: a signal asked to stop; the same call goes on from there.
        ValueError: the checkpoints belong to another recipe.
    """
    if (directory / "model").exists():
        model = load_model(directory / "model", trust_remote_code=trust_remote_code)
        return model.to(hardware.device), _read_outcome(directory)

    directory.mkdir(parents=True, exist_ok=True)
    model, optimizer, state = _start_or_resume(initial, training, directory, hardware, trust_remote_code)
    stepper = Stepper(loss(model), optimizer, training, hardware)
    size = micro_batch(training, data.window, hardware.device)
    order = Order(data.windows, training.tokens_per_step // data.window, training.seed, data.order)
    count = order.per_step // size
    flops = stepper.loss.flops_per_token(data.window) * training.tokens_per_step
    every = validation_interval(training, data)
    metrics = Metrics(directory, training, state.step)
    meter = Meter(metrics, training, hardware, flops, state.seconds)

    with ProgressBar(title, training.steps, "steps", state.step) as bar, signals() as interrupted:
        try:
            if state.step == 0:
                losses = validate(model, training.validation.windows)
                meter.validated(0, losses)
                if inherited:
                    warn_if_untrained(losses.mean, model.config)
            while state.step < training.steps:
                started = time.perf_counter()
                windows = data.training_windows(order.step(state.step))
                micro_batches = batches(data.train, windows, data.window, size, hardware.device)
                validates = (state.step + 1) % every == 0 or state.step + 1 == training.steps
                result = stepper(state.step, micro_batches, count, gradient_norms=validates)
                state.step += 1
                state.seconds += time.perf_counter() - started

                meter.stepped(state, result)
                bar.update(state.step, f"loss {result.loss:.3f}")
                if state.step % every == 0 and state.step < training.steps:
                    losses = validate(model, training.validation.windows)
                    meter.validated(state.step, losses)
                    if stop(losses):
                        break
                if state.step % checkpoint_interval(training) == 0 or interrupted():
                    checkpoint.save(
                        directory / "checkpoints", model, optimizer, state, training.checkpoints.keep
                    )
                if interrupted():
                    raise Interrupted(f"stopped after step {state.step}; the same command goes on from there")
            losses = validate(model, "all")
            meter.validated(state.step, losses.thinned(training.validation.windows))  # as the ones before it
            losses.save(directory / "validation.json")
        except NonFiniteError as error:
            raise NonFiniteError(_explain(error, directory, windows)) from error
        finally:
            metrics.close()

    outcome = Outcome(
        steps=state.step,
        tokens=state.step * training.tokens_per_step,
        flops=state.step * flops,
        seconds=state.seconds,
        layers=layer_count(model.config),
        parameters=parameter_count(model),
    )
    atomic.write_json(directory / "training.json", asdict(outcome))
    save_model(model, directory / "model")
    return model.eval(), outcome


def validation_interval(training: Training, data: TrainingData) -> int:
    """Steps between validations."""
    if training.validation.every != "auto":
        return training.validation.every
    available = data.validation_windows
    chosen = training.validation.windows
    tokens = data.window * (available if chosen == "all" else min(chosen, available))
    # A forward pass costs a third of a training step on the same tokens.
    affordable = tokens / 3 / (VALIDATION_SHARE * training.tokens_per_step)
    return max(1, -(-training.steps // 20), round(affordable + 0.5))


def checkpoint_interval(training: Training) -> int:
    """Steps between checkpoints."""
    every = training.checkpoints.every
    return max(1, -(-training.steps // 20)) if every == "auto" else every


class Meter:
    """Turns steps into lines of `metrics.jsonl`: losses averaged over the steps since the last line.

    `flops` are those of one step, `seconds` what training has taken up to this start of the program.
    """

    def __init__(
        self, metrics: Metrics, training: Training, hardware: Hardware, flops: float, seconds: float
    ) -> None:
        self.metrics, self.training, self.hardware, self.flops = metrics, training, hardware, flops
        self.results: list[StepResult] = []
        self.seconds = seconds

    def stepped(self, state: TrainState, result: StepResult) -> None:
        """Take note of a step; write a line if one is due."""
        self.results.append(result)
        if result.gradient_norms:
            self.metrics.log("gradients", state.step, **result.gradient_norms)
        if state.step % self.training.log_every and state.step != self.training.steps:
            return
        steps = len(self.results)
        elapsed = state.seconds - self.seconds
        self.metrics.log(
            "train",
            state.step,
            tokens=state.step * self.training.tokens_per_step,
            flops=state.step * self.flops,
            loss=sum(r.loss for r in self.results) / steps,
            learning_rate=result.learning_rate,
            gradient_norm=max(r.gradient_norm for r in self.results),
            tokens_per_second=steps * self.training.tokens_per_step / elapsed,
            flops_per_second=steps * self.flops / elapsed,
            memory_bytes=self.hardware.memory_bytes(),
            seconds=state.seconds,
        )
        self.results, self.seconds = [], state.seconds

    def validated(self, step: int, losses: WindowLosses) -> None:
        """Write a line about a validation."""
        self.metrics.log(
            "validation",
            step,
            tokens=step * self.training.tokens_per_step,
            flops=step * self.flops,
            loss=losses.mean,
            standard_error=losses.standard_error,
        )


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only set a flag, which the function that is given tells.

    A second signal acts at once, as it would outside.
    """
    arrived: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: object) -> None:
        arrived.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it handles signals
        pass
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start_or_resume(
    initial: Callable[[], PreTrainedModel],
    training: Training,
    directory: Path,
    hardware: Hardware,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, torch.optim.Optimizer, TrainState]:
    recipe = checkpoint.fingerprint(training)
    found = checkpoint.newest(directory / "checkpoints", recipe)
    if found is None:
        torch.manual_seed(training.seed)
        model = initial().to(torch.float32).to(hardware.device)
        return model, make_optimizer(model, training.optimizer), TrainState(recipe=recipe)
    path, state = found
    model = load_model(path, trust_remote_code=trust_remote_code).to(hardware.device)
    optimizer = make_optimizer(model, training.optimizer)
    checkpoint.restore_optimizer(path, model, optimizer)
    return model, optimizer, state


def _read_outcome(directory: Path) -> Outcome:
    return Outcome(**json.loads((directory / "training.json").read_text(encoding="utf-8")))


def _explain(error: NonFiniteError, directory: Path, windows: Any) -> str:
    saved = sorted((directory / "checkpoints").glob("step-*"))
    last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    shown = ", ".join(str(n) for n in windows[:8]) + (" ..." if len(windows) > 8 else "")
    return (
        f"{error} (windows {shown}); the weights were not touched by it, and {last}; "
        "try a lower learning rate in another directory"
    )
