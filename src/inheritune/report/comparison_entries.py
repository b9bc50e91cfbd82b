"""The models that a comparison is about, read from the directories of `inheritune train` and `inheritune run`.

Files are read as plain JSON and YAML, not as recipes, so that results of an older version stay readable; only
`recipe.yaml` must be there. A training without `validation.json` is unfinished: it has a curve, but no losses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from inheritune import UserError
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.models.pretrained import load_config
from inheritune.models.size import on_meta
from inheritune.report.metrics import FloatArray, read_metrics
from inheritune.report.run_directory import ROUND_DIRECTORY
from inheritune.training import metrics
from inheritune.training.validation import WindowLosses


@dataclass(frozen=True, eq=False)
class Curve:
    """Validation losses during a training, in nats per token.

    `flops` are training FLOPs, those of earlier rounds included; NaN where they were not recorded.
    """

    steps: FloatArray
    flops: FloatArray
    losses: FloatArray


@dataclass(frozen=True, eq=False)
class Entry:
    """One trained model; what is not known of it is None.

    Args:
        label: name of its row; several entries with the same label are seeds of one row.
        path: where its files are.
        run: the directory that the user named; a run of Algorithm 1 has several entries.
        kind: what `inheritune train` made, or the reference or a round of `inheritune run`.
        seed: N of the nearest parent directory `seed-N`, else of the recipe.
        flops: of its own training.
        total_flops: those of the rounds before it included.
        losses: final ones, per window; None if it is unfinished.
        notes: sentences about what could not be read.
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
    losses: WindowLosses | None
    curve: Curve
    notes: tuple[str, ...] = ()


def read_entries(runs: Sequence[tuple[str | None, Path]]) -> list[Entry]:
    """Every model of these directories, in their order; a label of None becomes the directory's name.

    Unnamed directories of the same name are told apart by their parents. A run of Algorithm 1 gives
    `NAME/reference` and `NAME/round-...`.

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
    labels = _labels(runs)
    entries = [
        entry
        for label, (_, path) in zip(labels, runs, strict=True)
        for entry in _read_run(label, path, _recipe(path))
    ]
    if not entries:
        raise UserError(f"no training has begun in {', '.join(str(path) for _, path in runs)}")
    return entries


def _labels(runs: Sequence[tuple[str | None, Path]]) -> list[str]:
    """The user's labels; else as much of the end of each path as no other run shares."""
    given = [(None if label is None else _printable(label), path.resolve()) for label, path in runs]
    for index, (one, (_, path)) in enumerate(zip(given, runs, strict=True)):
        if one in given[:index]:
            raise UserError(f"{path} is given twice; a run can be compared once under one name")
    taken = {label for label, _ in given if label is not None}
    unnamed = [path.parts for label, path in given if label is None]
    labels = []
    for label, path in given:
        depth, name = 1, label
        while name is None:
            end = path.parts[-depth:]
            alone = sum(parts[-depth:] == end for parts in unnamed) == 1
            if (alone and _printable("/".join(end)) not in taken) or depth > len(path.parts):
                name = _printable("/".join(end))
            depth += 1
        labels.append(name)
    return labels


def _printable(name: str) -> str:
    """Names of directories may hold what no page can show, such as line breaks and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _read_run(label: str, path: Path, recipe: Mapping[str, Any]) -> Iterator[Entry]:
    """The model of `inheritune train`, or the reference and the rounds of `inheritune run`."""
    if "model" in recipe or not ("reference" in recipe or (path / "summary.json").is_file()):
        yield _read_training(label, path, path, "model", _seed(path, recipe), {})
        return
    summary = _read_object(path / "summary.json")
    seed = _seed(path, recipe)
    reference = path / "reference"
    if _has_begun(reference):
        known = summary.get("reference") or {}
        own = _seed(path, recipe.get("reference"))
        yield _read_training(
            f"{label}/reference", reference, path, "reference", seed if own is None else own, known
        )
    known_rounds = {known.get("directory"): known for known in summary.get("rounds") or []}
    found = sorted(
        (int(m[1]), m[0]) for m in (ROUND_DIRECTORY.fullmatch(p.name) for p in path.iterdir()) if m
    )
    before: float | None = 0.0
    for _, name in found:
        if not _has_begun(path / name):
            continue
        known = known_rounds.get(name, {})
        entry = _read_training(f"{label}/{name}", path / name, path, "round", seed, known, before)
        yield entry
        before = entry.total_flops


def _has_begun(path: Path) -> bool:
    return any((path / name).is_file() for name in ("validation.json", metrics.FILE))


def _read_training(
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
    rows = read_metrics(path, notes)
    outcome = {**known, **_read_object(path / "training.json")}
    last = _last_row(path / metrics.FILE)
    flops = _number(outcome.get("flops", known.get("training_flops", last.get("flops"))))
    total = _number(known.get("total_training_flops"))
    if total is None and flops is not None and before is not None:
        total = before + flops
    start = np.nan if total is None or flops is None else total - flops
    layers, parameters = _size(path, outcome)
    validation = rows.validation if rows else {name: np.empty(0) for name in ("step", "flops", "loss")}
    return Entry(
        label=label,
        path=path,
        run=run,
        kind=kind,
        seed=seed,
        layers=layers,
        parameters=parameters,
        steps=_whole(outcome.get("steps", last.get("step"))),
        tokens=_whole(outcome.get("tokens", last.get("tokens"))),
        flops=flops,
        total_flops=total,
        losses=_losses(path / "validation.json"),
        curve=Curve(validation["step"], start + validation["flops"], validation["loss"]),
        notes=tuple(notes),
    )


def _last_row(path: Path) -> Mapping[str, Any]:
    """The row of `metrics.jsonl` with the most steps that says how many tokens and FLOPs they were."""
    rows = [row for row in (metrics.read(path) if path.is_file() else []) if isinstance(row, dict)]
    whole = [row for row in rows if _whole(row.get("step")) is not None and row.get("kind") != "gradients"]
    return max(whole, key=lambda row: row["step"], default={})


def _size(path: Path, outcome: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Layers and parameters as they were recorded, else of the model that was saved."""
    layers, parameters = _whole(outcome.get("layers")), _whole(outcome.get("parameters"))
    if (layers is None or parameters is None) and (path / "model" / "config.json").is_file():
        try:
            config = load_config(path / "model")
            return layer_count(config), parameter_count(on_meta(config))
        except UserError:  # of a type that needs code of its own, or too new for this transformers
            pass
    name = ROUND_DIRECTORY.fullmatch(path.name)
    return (int(name[2]) if layers is None and name else layers), parameters


def _losses(path: Path) -> WindowLosses | None:
    if not path.is_file():
        return None
    try:
        losses = WindowLosses.load(path)
        if losses.losses.ndim == 1 and len(losses.losses) and np.isfinite(losses.losses).all():
            return losses
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is damaged: it must hold `losses`, one number a window, and `window_tokens`")


def _recipe(path: Path) -> Mapping[str, Any]:
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


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it must hold one JSON object")
    return value


def _number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None
