"""What run directories hold, read for a report or a comparison, whatever state they are in.

A run may be finished, running or killed: every file but `recipe.yaml` may be absent, and the last line of a
`metrics.jsonl` may be cut off. What is there is read; what could not be read is named in notes.

`read_run` gives all of one run of Algorithm 1, for its page. `read_entries` gives the models of any runs, to be
compared; it reads plain JSON and YAML, not recipes, so that results of an older version stay readable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from inheritune import UserError
from inheritune.evaluation.result import FILE as EVALUATION_FILE
from inheritune.evaluation.result import Evaluation, Sample, load_evaluation
from inheritune.run_directory import FIRST_FLOPS, Decision, Record, State, Summary, is_cooled, read_starts
from inheritune.runtime import files

if TYPE_CHECKING:  # the page of a run is written without torch
    from inheritune.training.validation import WindowLosses

FloatArray = NDArray[np.float64]
T = TypeVar("T")

COLUMNS = {
    "train": (
        *("step", "flops", "loss", "learning_rate", "gradient_norm"),
        *("tokens_per_second", "flops_per_second", "memory_bytes"),
    ),
    "validation": ("step", "flops", "loss"),
    "gradients": ("step",),
}
"""What every kind of row is expected to hold."""
METRICS = "metrics.jsonl"
ROUND_DIRECTORY = re.compile(r"round-(\d+)-(\d+)-layers")


@dataclass(frozen=True, eq=False)
class MetricColumns:
    """A `metrics.jsonl`: the rows of each kind as columns, in the order of steps; a value that is missing is NaN.

    `last` is the row of the last step of training or validation; empty if there is none yet.
    """

    train: Mapping[str, FloatArray]
    validation: Mapping[str, FloatArray]
    gradients: Mapping[str, FloatArray]
    last: Mapping[str, Any]


class ReferenceValidation(Record):
    """The head of a `validation.json`, without the losses of the single windows."""

    loss: float
    windows: int
    window_tokens: int


class _RunSample(Record):
    """Part of a run's `samples.json`."""

    prompt: str
    reference: str
    target: str


@dataclass(frozen=True, eq=False)
class Run:
    """A run of Algorithm 1 as far as it can be read.

    `trainings` are the reference, if this run trained it, and the rounds in their order, as far as they have metrics;
    `samples` those of the reference and the target.
    """

    path: Path
    recipe: str
    summary: Summary
    state: State | None
    environment: Mapping[str, Any]
    trainings: Sequence[Entry]
    reference_validation: ReferenceValidation | None
    samples: Sequence[Sample]
    evaluation: Evaluation | None
    notes: Sequence[str]

    @property
    def name(self) -> str:
        """The recipe's name, else the directory's."""
        return self.summary.name or self.path.resolve().name

    @property
    def reference_loss(self) -> float | None:
        """The reference's final validation loss, nats per token."""
        if self.summary.reference is not None and self.summary.reference.loss is not None:
            return self.summary.reference.loss
        return None if self.reference_validation is None else self.reference_validation.loss

    def finished(self, training: Entry) -> bool:
        """Whether one of the trainings has ended."""
        if training.round:
            return training.path.name in {entry.directory for entry in self.summary.rounds}
        return self.summary.reference is not None if self.state is None else self.state.phase != "reference"


@dataclass(frozen=True, eq=False)
class Entry:
    """One trained model; what is not known of it is None.

    Args:
        label: name of its row in a comparison; several entries with the same label are seeds of one row.
        path: where its files are.
        run: the directory that the user named; a run of Algorithm 1 has several entries.
        kind: what `inheritune train` made, or the reference or a round of `inheritune run`.
        seed: N of the nearest parent directory `seed-N`, else of the recipe.
        flops: of its own training.
        total_flops: those of the rounds before it included.
        metrics: recorded during its own training, whose FLOPs count from 0.
        losses: final ones, per window; None if it is unfinished, or only its run's page is made.
        notes: sentences about what could not be read.
        cooled: False of a frugal round that grew before its learning rate had decayed, so that its losses are high.
    """

    label: str
    path: Path
    run: Path
    kind: Literal["model", "reference", "round"]
    seed: int | None
    layers: int | None
    parameters: int | None
    steps: int | None
    tokens: int | None
    flops: float | None
    total_flops: float | None
    metrics: MetricColumns
    losses: WindowLosses | None = None
    notes: tuple[str, ...] = ()
    cooled: bool = True

    @property
    def round(self) -> int:
        """Its number, 0 of what is none."""
        name = ROUND_DIRECTORY.fullmatch(self.path.name) if self.kind == "round" else None
        return int(name[1]) if name else 0

    @property
    def name(self) -> str:
        """Within its run, such as "round 2, 6 layers"."""
        name = f"round {self.round}" if self.round else "reference"
        return name if self.layers is None else f"{name}, {self.layers} layers"

    @property
    def before(self) -> float:
        """Training FLOPs of the rounds before it; NaN where they are not known."""
        return math.nan if self.total_flops is None or self.flops is None else self.total_flops - self.flops


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
    summary = _read(Summary, path / "summary.json") or Summary()
    samples = _read(list[_RunSample], path / "samples.json") or []
    entries = list(_entries_of("", path, {"reference": {}}))
    evaluation, starts = path / "evaluation" / EVALUATION_FILE, read_starts(path)
    return Run(
        path=path,
        recipe=(path / "recipe.yaml").read_text("utf-8", errors="replace"),
        summary=summary,
        state=_read(State, path / "state.json"),
        environment={key: value for key, value in starts[-1].items() if key != "data"} if starts else {},
        trainings=[entry for entry in entries if entry.metrics.last],
        reference_validation=_read(ReferenceValidation, path / "reference" / "validation.json"),
        samples=[Sample(prompt=one.prompt, continuations=[one.reference, one.target]) for one in samples],
        evaluation=load_evaluation(evaluation) if evaluation.is_file() else None,
        notes=tuple(note for entry in entries for note in entry.notes),
    )


def read_metrics(directory: Path, notes: list[str]) -> MetricColumns:
    """The rows of `metrics.jsonl` in this directory.

    A line that cannot be read, such as one cut off in the middle, is left out and counted in `notes`. A run that
    was killed and started again writes the steps after its checkpoint once more: the later row counts.
    """
    file = directory / METRICS
    text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
    # The final loss is read from `validation.json`, which has it by window.
    rows: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in (*COLUMNS, "final")}
    unreadable = 0
    for line in filter(str.strip, text.splitlines()):
        try:
            row = json.loads(line)
            rows[row["kind"]][int(row["step"])] = row
        except (ValueError, KeyError, TypeError, OverflowError):
            unreadable += 1
    if unreadable:
        lines = "1 line" if unreadable == 1 else f"{unreadable} lines"
        notes.append(f"Left out of {directory.name}/{METRICS}: {lines} that could not be read.")
    steps = rows["validation"] | rows["train"]
    columns = {kind: _columns(rows[kind], expected) for kind, expected in COLUMNS.items()}
    return MetricColumns(**columns, last=steps[max(steps)] if steps else {})


def read_entries(runs: Sequence[tuple[str | None, Path]]) -> list[Entry]:
    """Every model of these directories, in their order; a label of None becomes the directory's name.

    Unnamed directories of the same name are distinguished by their parents. A run of Algorithm 1 gives
    `NAME/reference` and `NAME/round-...`. A training without `validation.json` is unfinished: it has a curve, but
    no losses.

    Raises:
        UserError: a directory is missing, not a run or given twice, a file in it is damaged, or no training
            has begun in any.
    """
    if not runs:
        raise UserError("there is nothing to compare: give the directories of at least one run")
    for _, path in runs:
        if not path.is_dir():
            state = "is not a directory" if path.exists() else "does not exist"
            raise UserError(
                f"{path} {state}; give directories that `inheritune train` or `inheritune run` wrote"
            )
    entries = [
        replace(entry, losses=_read_losses(entry.path / "validation.json"))
        for label, (_, path) in zip(_labels(runs), runs, strict=True)
        for entry in _entries_of(label, path, _read_recipe(path))
    ]
    if not entries:
        raise UserError(f"no training has begun in {', '.join(str(path) for _, path in runs)}")
    return entries


def round_directories(path: Path) -> list[tuple[int, int, str]]:
    """Number, layers and name of every round, in their order."""
    names = (ROUND_DIRECTORY.fullmatch(entry.name) for entry in path.iterdir())
    return sorted((int(name[1]), int(name[2]), name[0]) for name in names if name)


def _columns(rows: Mapping[int, Mapping[str, Any]], expected: Sequence[str]) -> dict[str, FloatArray]:
    names = dict.fromkeys([*expected, *(name for row in rows.values() for name in row)])
    ordered = [rows[step] for step in sorted(rows)]
    # None becomes NaN.
    return {name: np.array([_number(row.get(name)) for row in ordered], dtype=np.float64) for name in names}


def _labels(runs: Sequence[tuple[str | None, Path]]) -> list[str]:
    """The user's labels; else as much of the end of each path as no other run shares."""
    given = [(None if label is None else _one_line(label), path.resolve()) for label, path in runs]
    for index, (one, (_, path)) in enumerate(zip(given, runs, strict=True)):
        if one in given[:index]:
            raise UserError(f"{path} is given twice; a run can be compared once under one name")
    unnamed = [path.parts for label, path in given if label is None]
    taken = {label for label, _ in given}

    def shortest(parts: tuple[str, ...]) -> str:
        for depth in range(1, len(parts)):
            end = _one_line("/".join(parts[-depth:]))
            if end not in taken and sum(other[-depth:] == parts[-depth:] for other in unnamed) == 1:
                return end
        return _one_line("/".join(parts))

    return [label or shortest(path.parts) for label, path in given]


def _one_line(name: str) -> str:
    """Names of directories may hold what no table can show, such as line breaks and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _entries_of(label: str, path: Path, recipe: Mapping[str, Any]) -> Iterator[Entry]:
    """The model of `inheritune train`; or of `inheritune run` the reference and the rounds that have begun."""
    seed = _seed(path, recipe)
    if "model" in recipe or not ("reference" in recipe or (path / "summary.json").is_file()):
        yield _read_entry(label, path, path, "model", seed, {})
        return
    summary = _read_object(path / "summary.json")
    reference, rounds = path / "reference", summary.get("rounds") or []
    if _has_begun(reference):
        own, known = _seed(path, recipe.get("reference")), summary.get("reference") or {}
        own = seed if own is None else own
        yield _read_entry(f"{label}/reference", reference, path, "reference", own, known)
    spent = [_number(summary.get(key, 0.0)) for key in FIRST_FLOPS]
    before = None if None in spent else sum(flops or 0.0 for flops in spent)
    for number, _, name in round_directories(path):
        if _has_begun(path / name):
            # The summary also knows the rounds whose metrics are gone.
            paid = [
                _number(known.get("total_training_flops"))
                for known in rounds
                if known.get("round", number) < number
            ]
            before = before if before is None else max([before, *(flops or 0.0 for flops in paid)])
            known = next((known for known in rounds if known.get("directory") == name), {})
            entry = _read_entry(f"{label}/{name}", path / name, path, "round", seed, known, before)
            yield entry
            before = entry.total_flops


def _has_begun(path: Path) -> bool:
    return any((path / name).is_file() for name in ("validation.json", METRICS))


def _read_entry(
    label: str,
    path: Path,
    run: Path,
    kind: Literal["model", "reference", "round"],
    seed: int | None,
    known: Mapping[str, Any],
    before: float | None = 0.0,
) -> Entry:
    """One training; `known` is what the run's summary says of it, `before` the FLOPs of earlier rounds."""
    notes: list[str] = []
    metrics = read_metrics(path, notes)
    known = {key: value for key, value in known.items() if value is not None}
    outcome, last = known | _read_object(path / "training.json"), metrics.last
    flops = _number(outcome.get("flops", known.get("training_flops", last.get("flops"))))
    total = _number(known.get("total_training_flops"))
    if total is None and flops is not None and before is not None:
        total = before + flops
    steps = _whole(outcome.get("steps", last.get("step")))
    tokens = _whole(outcome.get("tokens", last.get("tokens")))
    layers, parameters = _size(path, outcome)
    sizes = layers, parameters, steps, tokens
    cooled = is_cooled(_decisions(known))
    return Entry(
        label, path, run, kind, seed, *sizes, flops, total, metrics, notes=tuple(notes), cooled=cooled
    )


def _decisions(known: Mapping[str, Any]) -> list[Decision]:
    """Of a round; none where they cannot be read."""
    try:
        return TypeAdapter(list[Decision]).validate_python(known.get("decisions", []))
    except ValidationError:
        return []


def _size(path: Path, outcome: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Layers and parameters as they were recorded, else of the model that was saved."""
    layers, parameters = _whole(outcome.get("layers")), _whole(outcome.get("parameters"))
    if (layers is None or parameters is None) and (path / "model" / "config.json").is_file():
        from inheritune.models.architecture import layer_count, parameter_count
        from inheritune.models.load import load_config
        from inheritune.models.size import on_meta

        try:
            config = load_config(path / "model")
            return layer_count(config), parameter_count(on_meta(config))
        except UserError:  # of a type that needs code of its own, or too new for this transformers
            pass
    name = ROUND_DIRECTORY.fullmatch(path.name)
    return (int(name[2]) if layers is None and name else layers), parameters


def _read_losses(path: Path) -> WindowLosses | None:
    from inheritune.training.validation import WindowLosses

    if not path.is_file():
        return None
    try:
        losses = WindowLosses.load(path)
        if losses.losses.ndim == 1 and len(losses.losses) and np.isfinite(losses.losses).all():
            return losses
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is damaged: it must hold `losses`, one number a window, and `window_tokens`")


def _read_recipe(path: Path) -> Mapping[str, Any]:
    file = path / "recipe.yaml"
    if not file.is_file():
        raise UserError(
            f"{path} is not the directory of a run: it has no recipe.yaml; give one that `inheritune train` or "
            "`inheritune run` wrote"
        )
    try:
        recipe = yaml.safe_load(file.read_text("utf-8", errors="replace"))
    except yaml.YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        raise UserError(f"{file} is damaged: it must hold a mapping, as YAML")
    return recipe


def _seed(path: Path, recipe: Any) -> int | None:
    """N of the nearest `seed-N` in the path, else of the part's own `training`."""
    for part in reversed(path.resolve().parts):
        number = part.removeprefix("seed-")
        if number != part and number.isdecimal():
            return int(number)
    training = recipe.get("training") if isinstance(recipe, dict) else None
    return _whole(training.get("seed")) if isinstance(training, dict) else None


def _read(kind: type[T], path: Path) -> T | None:
    """The value of a file that `inheritune run` wrote, or None if there is no such file."""
    return files.read_record(path, kind, "as `inheritune run` writes it") if path.is_file() else None


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty if there is no such file."""
    return files.read_record(path, dict[str, Any], "a JSON object") if path.is_file() else {}


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None
