"""`metrics.jsonl`: the record of a training, one JSON object a line; TensorBoard and others get copies."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from inheritune import UserError
from inheritune.config import Training
from inheritune.runtime import files
from inheritune.runtime.hardware import Hardware
from inheritune.training.callbacks import NONE, Callbacks
from inheritune.training.checkpoint import TrainState
from inheritune.training.step import StepResult
from inheritune.training.validation import WindowLosses

FILE = "metrics.jsonl"
LEAST_LAST = 3
"""How few validations say how fast the loss still falls."""
MOST_TIMES = 10
"""How many times as long as the training was, a straight line through its end may be drawn on."""
RUN_ID = "{}-run"
"""The file with the id of a training's run of Weights & Biases, or of trackio."""


class Metrics:
    """Appends to `metrics.jsonl`, and to what copies from it where asked to; the state it is shown it only reads.

    Args:
        directory: of the training.
        training: how often to write, and what to copy to.
        hardware: whose memory is recorded; rank 0 of its world writes.
        flops: of one step.
        state: of the training as it starts. Lines of steps after its own are removed: they will be done again.
        callbacks: are told of every line.
    """

    def __init__(
        self,
        directory: Path,
        training: Training,
        hardware: Hardware,
        flops: float,
        state: TrainState,
        callbacks: Callbacks = NONE,
    ) -> None:
        self.name, self.callbacks = directory.name, callbacks
        self.training, self.hardware, self.flops = training, hardware, flops
        self.results: list[StepResult] = []
        self.seconds = state.seconds
        self.note = ""
        """The newest loss that is known without waiting for the device."""
        self.file: TextIO | None = None
        self.writers: list[Any] = []
        if not hardware.world.first:
            return
        path, step = directory / FILE, state.step
        kept = [row for row in read(path) if row["step"] <= step] if path.exists() and step else []
        files.write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))
        self.file = path.open("a", encoding="utf-8")
        if training.tracking.tensorboard:
            self.writers.append(_TensorBoard(directory / "tensorboard", step))
        for library in ("wandb", "trackio"):
            if getattr(training.tracking, library):
                self.writers.append(_tracker(library, training, directory))

    def due(self, step: int) -> bool:
        """Whether a line is written after so many steps; it waits for their numbers."""
        return step % self.training.log_every == 0 or step == self.training.steps

    def stepped(self, state: TrainState, result: StepResult) -> None:
        """Note a step that was done and counted; write a line, about those since the last one, if it is due."""
        self.results.append(result)
        if latest := next((one for one in reversed(self.results) if one.ready), None):
            self.note = f"loss {latest.loss:.3f}"
        if result.gradient_norms:
            self._log("gradients", state, **result.gradient_norms)
        if not self.due(state.step):
            return
        losses = [r.loss for r in self.results]
        rate = len(losses) / (state.seconds - self.seconds)
        self._log(
            "train",
            state,
            **self._spent(state),
            loss=sum(losses) / len(losses),
            learning_rate=result.learning_rate,
            micro_batch=result.micro_batch,
            gradient_norm=max(r.gradient_norm for r in self.results),
            tokens_per_second=rate * self.training.tokens_per_step,
            flops_per_second=rate * self.flops,
            memory_bytes=self.hardware.memory_bytes(),
            seconds=state.seconds,
        )
        self.results, self.seconds = [], state.seconds

    def validated(
        self, state: TrainState, losses: WindowLosses, kind: Literal["validation", "final"] = "validation"
    ) -> None:
        """Write a line about a validation; `final` is that of what will be left behind, on all windows."""
        figures = {"loss": losses.mean, "standard_error": losses.standard_error}
        self._log(kind, state, **self._spent(state), **figures, windows=len(losses.losses))

    def close(self) -> None:
        """Flush everything."""
        if self.file is not None:
            self.file.close()
        for writer in self.writers:
            writer.finish()

    def _spent(self, state: TrainState) -> dict[str, float]:
        return {"tokens": state.step * self.training.tokens_per_step, "flops": state.step * self.flops}

    def _log(self, kind: str, state: TrainState, **values: float) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps({"kind": kind, "step": state.step, **values}) + "\n")
        self.file.flush()
        for writer in self.writers:
            writer.log({f"{kind}/{name}": value for name, value in values.items()}, state.step)
        self.callbacks.tell(kind, state.step, {"training": self.name, **values})


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a killed program left unfinished is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def steps_worth(rows: Sequence[Mapping[str, Any]], difference: float) -> int | None:
    """How many steps of its own training the difference between a model and another is worth.

    A model that is behind would close it in so many more, at the slope of the last quarter of its validation curve
    (least squares; of its last half if there are few validations). One that is ahead passed the other's loss so many
    steps before its end.

    Args:
        rows: of the model's `metrics.jsonl`.
        difference: its final loss minus the other's, nats per token.

    Returns:
        None where the curve does not say: it has too few validations there, or does not fall beyond their scatter
        (two standard errors); the difference is worth more than ten such trainings; or it was ahead all along.
    """
    curve = {row["step"]: row["loss"] for row in rows if row["kind"] == "validation"}
    steps, losses = np.array(sorted(curve), float), np.array([curve[step] for step in sorted(curve)], float)
    if not len(steps) or difference == 0:
        return None
    if difference < 0:
        level = losses[-1] - difference
        above = np.flatnonzero(losses > level)
        if not len(above):
            return None
        i = above[-1]
        share = (losses[i] - level) / (losses[i] - losses[i + 1])
        return max(1, round(steps[-1] - steps[i] - share * (steps[i + 1] - steps[i])))
    count = max(LEAST_LAST, int((steps >= 0.75 * steps[-1]).sum()))
    if len(steps) < count or steps[-count] < steps[-1] / 2:
        return None
    x, y = steps[-count:] - steps[-count:].mean(), losses[-count:] - losses[-count:].mean()
    slope = (x @ y) / (x @ x)
    error = np.sqrt(((y - slope * x) ** 2).sum() / (len(x) - 2) / (x @ x))
    if slope + 2 * error >= 0 or difference > -slope * MOST_TIMES * steps[-1]:
        return None
    return max(1, round(-difference / slope))


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


def _tracker(library: Literal["wandb", "trackio"], training: Training, directory: Path) -> Any:
    """A run of Weights & Biases or trackio; a training that is resumed is the same run there."""
    try:
        module = import_module(library)
    except ImportError as error:
        raise UserError(
            f"the recipe asks for `{library}`, which is not installed: pip install 'inheritune[{library}]'"
        ) from error
    path = directory / RUN_ID.format(library)
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex[:12])
    run = path.read_text(encoding="utf-8").strip()
    settings = {
        "project": getattr(training.tracking, library),
        "name": directory.name,
        "group": directory.parent.name,
        "config": training.model_dump(mode="json"),
        "resume": "allow",
    }
    if library == "wandb":
        return module.init(**settings, id=run, dir=directory)
    return module.init(**settings | {"name": f"{directory.name}-{run}"})  # runs are known by their names
