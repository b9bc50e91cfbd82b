"""What a run directory holds, read for a report, whatever state it is in.

A run may be finished, running or killed: every file but `recipe.yaml` may be absent, and the last line of a
`metrics.jsonl` may be cut off. What is there is read; what could not be read is named in `Run.notes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from inheritune import UserError
from inheritune.evaluation.result import FILE as EVALUATION_FILE
from inheritune.evaluation.result import Evaluation, load_evaluation
from inheritune.report.metrics import Training, read_metrics
from inheritune.run_directory import Record, State, Summary, read_starts

ROUND_DIRECTORY = re.compile(r"round-(\d+)-(\d+)-layers")


R = TypeVar("R", bound=Record)


class Validation(Record):
    """The head of a `validation.json`, without the losses of the single windows."""

    loss: float
    windows: int
    window_tokens: int


class Sample(Record):
    """What the reference and the target wrote after the same prompt."""

    prompt: str
    reference: str
    target: str


@dataclass(frozen=True)
class Run:
    """A run directory as far as it can be read."""

    path: Path
    recipe: str
    summary: Summary
    state: State | None
    environment: Mapping[str, Any]
    reference: Training | None
    rounds: tuple[Training, ...]
    reference_validation: Validation | None
    samples: tuple[Sample, ...]
    evaluation: Evaluation | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The recipe's name, else the directory's."""
        return self.summary.name or self.path.resolve().name

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The reference, if this run trained it, and the rounds in their order."""
        return self.rounds if self.reference is None else (self.reference, *self.rounds)

    @property
    def reference_loss(self) -> float | None:
        """The reference's final validation loss, nats per token."""
        if self.summary.reference is not None and self.summary.reference.loss is not None:
            return self.summary.reference.loss
        return None if self.reference_validation is None else self.reference_validation.loss


def parse_summary(summary: Summary | Mapping[str, Any], source: str = "the summary") -> Summary:
    """Check the content of a `summary.json`.

    Raises UserError naming `source` and the first thing that is wrong.
    """
    return _parse(Summary, summary, source)


def read_run(path: Path) -> Run:
    """Read a run directory, whatever state it is in.

    Raises UserError if it is not a run directory, or if a file that is always written whole is damaged.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give the directory that `inheritune run` wrote")
    if not (path / "recipe.yaml").is_file():
        raise UserError(
            f"{path} is not a run directory: it has no recipe.yaml; give the directory that `inheritune run` wrote"
        )
    notes: list[str] = []
    raw_summary = _read_json(path / "summary.json")
    summary = Summary() if raw_summary is None else parse_summary(raw_summary, str(path / "summary.json"))
    raw_state = _read_json(path / "state.json")
    state = None if raw_state is None else _parse(State, raw_state, str(path / "state.json"))
    raw_validation = _read_json(path / "reference" / "validation.json")
    evaluation = path / "evaluation" / EVALUATION_FILE
    starts = read_starts(path)
    return Run(
        path=path,
        recipe=(path / "recipe.yaml").read_text("utf-8", errors="replace"),
        summary=summary,
        state=state,
        environment={key: value for key, value in starts[-1].items() if key != "data"} if starts else {},
        reference=_read_reference(path, summary, state, notes),
        rounds=tuple(_read_rounds(path, summary, notes)),
        reference_validation=None
        if raw_validation is None
        else _parse(Validation, raw_validation, str(path / "reference" / "validation.json")),
        samples=_read_samples(path / "samples.json"),
        evaluation=load_evaluation(evaluation) if evaluation.is_file() else None,
        notes=tuple(notes),
    )


def _read_reference(path: Path, summary: Summary, state: State | None, notes: list[str]) -> Training | None:
    metrics = read_metrics(path / "reference", notes)
    if metrics is None:
        return None
    layers = None if summary.reference is None else summary.reference.layers
    finished = summary.reference is not None if state is None else state.phase != "reference"
    return Training(0, layers, metrics.train, metrics.validation, before=0.0, finished=finished)


def _read_rounds(path: Path, summary: Summary, notes: list[str]) -> Iterator[Training]:
    """Every round with metrics, in order; a round goes on counting FLOPs where the ones before stopped."""
    finished = {entry.directory for entry in summary.rounds}
    names = (ROUND_DIRECTORY.fullmatch(entry.name) for entry in path.iterdir())
    measured = 0.0
    for number, layers, name in sorted((int(name[1]), int(name[2]), name[0]) for name in names if name):
        metrics = read_metrics(path / name, notes)
        if metrics is None:
            continue
        # The summary also knows the rounds whose metrics are gone.
        paid = (entry.total_training_flops for entry in summary.rounds if entry.round < number)
        training = Training(
            number, layers, *metrics, before=max(measured, *paid, 0.0), finished=name in finished
        )
        measured = training.before + training.flops
        yield training


def _read_samples(path: Path) -> tuple[Sample, ...]:
    raw = _read_json(path)
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise UserError(f"{path} must hold a JSON list of samples")
    return tuple(_parse(Sample, sample, str(path)) for sample in raw)


def _read_json(path: Path) -> Any:
    """The file's value, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged, it is not valid JSON: {error}") from None


def _parse(model: type[R], value: Any, source: str) -> R:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{source} is not as `inheritune run` writes it: {where + ': ' if where else ''}{what}"
        ) from None
