"""The metrics of one trained model: the rows of its `metrics.jsonl` as columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

TRAIN_COLUMNS = (
    "step",
    "flops",
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "flops_per_second",
    "memory_bytes",
)
VALIDATION_COLUMNS = ("step", "flops", "loss")


@dataclass(frozen=True)
class Training:
    """The metrics of one model that this run trained: the reference (round 0), or the target of a round.

    `train` and `validation` map a column of `metrics.jsonl` to one value per row, in the order of steps; a
    value that a row does not have is NaN. `flops` counts from 0 in every round. `before` is the training
    FLOPs of the rounds before this one.
    """

    round: int
    layers: int | None
    train: Mapping[str, FloatArray]
    validation: Mapping[str, FloatArray]
    before: float
    finished: bool

    @property
    def name(self) -> str:
        """The name in figures and tables, such as "round 2, 6 layers"."""
        name = "reference" if self.round == 0 else f"round {self.round}"
        return name if self.layers is None else f"{name}, {self.layers} layers"

    @property
    def last_step(self) -> int:
        """The last step with a metric; every `Training` has one."""
        return int(max(rows["step"][-1] for rows in (self.train, self.validation) if len(rows["step"])))

    @property
    def flops(self) -> float:
        """Training FLOPs up to the last row, 0 if they were not recorded."""
        flops = np.concatenate([self.train["flops"], self.validation["flops"]])
        return float(np.max(flops, initial=0.0, where=np.isfinite(flops)))


class Metrics(NamedTuple):
    """Train and validation rows, each as columns of equal length, in the order of steps."""

    train: Mapping[str, FloatArray]
    validation: Mapping[str, FloatArray]


def read_metrics(directory: Path, notes: list[str]) -> Metrics | None:
    """The rows of `metrics.jsonl` in this directory, or None if there are none yet.

    A line that cannot be read, such as one cut off in the middle, is left out and counted in `notes`. A run that
    was killed and started again writes the steps after its checkpoint once more: the later row counts.
    """
    file = directory / "metrics.jsonl"
    if not file.is_file():
        return None
    rows: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "validation": {}}
    unreadable = 0
    for line in file.read_text("utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if row["kind"] != "gradients":  # read by `attention`
                rows[row["kind"]][int(row["step"])] = row
        except (ValueError, KeyError, TypeError, OverflowError):
            unreadable += 1
    if unreadable:
        lines = "1 line" if unreadable == 1 else f"{unreadable} lines"
        notes.append(f"Left out of {directory.name}/metrics.jsonl: {lines} that could not be read.")
    if not (rows["train"] or rows["validation"]):
        return None
    return Metrics(
        _columns(rows["train"], TRAIN_COLUMNS),
        _columns(rows["validation"], VALIDATION_COLUMNS),
    )


def _columns(rows: Mapping[int, Mapping[str, Any]], names: Iterable[str]) -> dict[str, FloatArray]:
    ordered = [rows[step] for step in sorted(rows)]
    return {name: np.array([_number(row.get(name)) for row in ordered], dtype=np.float64) for name in names}


def _number(value: Any) -> float:
    """The value if it is a finite number, else NaN."""
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return float("nan")
    return number if np.isfinite(number) else float("nan")
