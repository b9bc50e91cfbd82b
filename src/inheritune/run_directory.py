"""The directory of a run: what stands where, and whether it may be gone on with.

    recipe.yaml            the recipe, every default filled in
    environment.json       versions, hardware, command
    state.json             what is going on: phase, round, verdict
    summary.json           the reference and the rounds so far, in figures
    reference/             validation.json; and if it was trained here, what a round has
    round-1-12-layers/     metrics.jsonl; checkpoints/, until it is trained; then validation.json, model/
    final/                 the result, a Hugging Face checkpoint
    reference/analysis.json, final/analysis.json    attention of both models, if it was analyzed
    samples.json           continuations by both models
    report.html

Every file appears at once, so what is there is finished; going on means doing what is not there yet.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from inheritune import UserError, atomic
from inheritune.recipe_file import AnyRecipe, differences, load_recipe, to_yaml

Verdict = Literal["parity", "no parity"]
Phase = Literal["reference", "round", "finished"]


class Record(BaseModel):
    """Part of a file in a run directory; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ReferenceFigures(Record):
    """The large model: validation loss in nats per token; training FLOPs and steps are None where unknown."""

    layers: int
    parameters: int
    loss: float | None = None
    windows: int | None = None
    training_flops: float | None = None
    steps: int | None = None


class RoundFigures(Record):
    """One finished round: `difference` is target minus reference, nats per token, over paired windows."""

    round: int
    layers: int
    parameters: int
    loss: float
    difference: float
    standard_error: float
    interval: tuple[float, float]
    parity: bool
    training_flops: float
    total_training_flops: float
    cost_to_parity: float | None = None
    steps: int
    seconds: float
    directory: str


class Summary(Record):
    """`summary.json`: the reference and the rounds finished so far, and the verdict once there is one."""

    name: str = ""
    verdict: Verdict | None = None
    margin: float = 0.0
    reference: ReferenceFigures | None = None
    rounds: list[RoundFigures] = []

    @model_validator(mode="after")
    def _rounds_are_compared(self) -> Summary:
        if self.rounds and (self.reference is None or self.reference.loss is None):
            raise UserError("it has rounds but no loss of the reference they were compared with")
        if self.verdict is not None and not self.rounds:
            raise UserError("it has a verdict but no rounds")
        return self

    def cost(self, entry: RoundFigures) -> float | None:
        """Training FLOPs of all rounds up to this one / of the reference; None where the latter is unknown."""
        if entry.cost_to_parity is not None:
            return entry.cost_to_parity
        if self.reference is None or not self.reference.training_flops:
            return None
        return entry.total_training_flops / self.reference.training_flops


class State(Record):
    """`state.json`: where a run stands."""

    phase: Phase
    round: int = 0
    verdict: Verdict | None = None


class RunDirectory:
    """Names and contents of a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reference = path / "reference"
        self.final = path / "final"
        self.samples = path / "samples.json"
        self._held: int | None = None

    def round(self, number: int, layers: int) -> Path:
        """Directory of a round."""
        return self.path / f"round-{number}-{layers}-layers"

    @property
    def finished(self) -> bool:
        """Whether Algorithm 1 has ended; an evaluation may be left to do."""
        path = self.path / "state.json"
        return path.exists() and State.model_validate_json(path.read_bytes()).phase == "finished"

    def open(self, recipe: AnyRecipe, environment: dict[str, Any]) -> None:
        """Make the directory, or make sure that it is this recipe's; hold it until `close`.

        Raises:
            UserError: it belongs to another recipe (the differences are told), is something else, or another start
                is at work in it.
        """
        path = self.path / "recipe.yaml"
        if path.exists():
            self._hold()
            changed = differences(load_recipe(path, type(recipe)), recipe)
            if changed and self._has_work():
                raise UserError(
                    f"{self.path} holds a run of another recipe ({'; '.join(changed)}); "
                    "give another directory, or the recipe it was started with"
                )
            atomic.remove_leftovers(self.path)
            if not changed:
                return
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and not a run; give another directory")
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        atomic.write_json(self.path / "environment.json", environment)
        atomic.write_text(path, to_yaml(recipe))

    def close(self) -> None:
        """Let others in; so does the end of this program, whatever ends it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _hold(self) -> None:
        if self._held is not None:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"another start is at work in {self.path}: wait until it ends, or end it"
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
        self._held = descriptor

    def _has_work(self) -> bool:
        """Whether something was computed that another recipe would spoil; a mistake found at once leaves nothing."""
        kept = ("checkpoints/step-*", "validation.json", "model")
        return any(next(self.path.glob(place + name), None) for place in ("", "*/") for name in kept)

    def record(self, phase: Phase, number: int, summary: Summary) -> None:
        """Say how far the run is."""
        atomic.write_json(self.path / "summary.json", summary.model_dump(mode="json"))
        state = State(phase=phase, round=number, verdict=summary.verdict)
        atomic.write_json(self.path / "state.json", state.model_dump(mode="json"))

    def read_summary(self) -> Summary:
        """The figures that `record` wrote last."""
        return Summary.model_validate_json((self.path / "summary.json").read_bytes())
