"""What an evaluation found, and the file it is kept in.

`evaluation.json` holds one `Evaluation`. Its first model is the one that the others are compared with; lists of
figures by model are in the order of `models`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from inheritune.runtime import files
from inheritune.shown import Shown

FILE = "evaluation.json"

Outcome = Literal["better", "worse", "no difference seen"]


class Record(BaseModel):
    """Part of `evaluation.json`; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ModelFigures(Record):
    """A model that was evaluated."""

    name: str
    """Short, and different for every model."""
    source: str
    """Path or Hugging Face id."""
    revision: str | None = None
    model_type: str
    layers: int
    parameters: int
    dtype: str
    weights: str
    """SHA-256 over configuration and weights, so that a result says which model it belongs to."""


class Score(Record):
    """One metric of one model on one task."""

    value: float
    standard_error: float | None
    """Over items; None where the metric is not a mean over items."""


class Paired(Record):
    """A model against the first one, on the same items."""

    difference: float
    """Of the metric (accuracy, loss), or for a perplexity the ratio minus 1; negative is smaller."""
    interval: tuple[float, float]
    """95%."""
    p: float | None = None
    """Exact McNemar test, for metrics that are 0 or 1 on every item."""
    outcome: Outcome
    """Whether the interval leaves out 0, and on which side, and p is below 0.05 where there is one."""


class MetricResult(Record):
    """One metric on one task, for every model."""

    metric: str
    higher_is_better: bool
    scores: list[Score]
    paired: list[Paired | None]
    """None for the first model, and where the metric is not a mean over items."""
    chance: float | None = None
    """What guessing gives: for accuracies of multiple choice, the mean over items of 1 / choices."""


class TaskResult(Record):
    """One task."""

    task: str
    """The harness's name of it."""
    metric: str
    """The one to show where there is room for one."""
    items: int
    shots: int
    version: str
    """The harness's version of the task."""
    data: str
    """Where the items came from."""
    note: str | None = None
    """In what these items differ from those that the harness's task has by itself."""
    metrics: list[MetricResult]
    parts: list[str] = []
    """Tasks that a group's items were pooled from."""

    def of(self, metric: str) -> MetricResult:
        """The figures of one metric; KeyError if the task does not have it."""
        return {result.metric: result for result in self.metrics}[metric]


class Cell(Record):
    """What a table of a group shows in one column."""

    task: str
    metric: str


class GroupResult(Record):
    """Tasks that were asked for together, such as a table of the paper."""

    name: str
    columns: list[Cell]
    average: MetricResult | None = None
    """Mean over the columns, where all of them are there and are accuracies."""
    missing: list[str] = []
    """Tasks of the group that were skipped."""


class ValidationResult(Record):
    """Mean loss on the same windows of held-out text, nats per token."""

    data: str
    sha256: str | None = None
    split: str
    windows: int
    window: int
    scores: list[Score]
    paired: list[Paired | None]
    bytes_per_token: float | None = None
    """Of the whole split; None where that is not known."""


class Spread(Record):
    """Figures of one kind from several turns."""

    median: float
    lowest: float
    highest: float


class Rate(Record):
    """Tokens per second at one batch size."""

    batch: int
    prefill: Spread
    """Reading a prompt: prompt tokens per second, of all sequences together."""
    decode: Spread
    """Writing: new tokens per second, of all sequences together."""


class ModelSpeed(Record):
    """What one model costs to keep and to run."""

    checkpoint_bytes: int
    """Weight files on the disk."""
    memory_bytes: int
    """Parameters and buffers in memory."""
    cache_bytes_per_token: float
    """Keys and values of one token of one sequence, measured."""
    rates: list[Rate]


class SpeedResult(Record):
    """Models timed in turn, in one process."""

    prompt_tokens: int
    new_tokens: int
    turns: int
    models: list[ModelSpeed]


class Sample(Record):
    """What the models wrote after the same prompt, with the same seed."""

    prompt: str
    continuations: list[str]


class Evaluation(Record, Shown):
    """Everything that one `inheritune evaluate` found."""

    format: Literal[1] = 1
    models: list[ModelFigures]
    tasks: list[TaskResult] = []
    groups: list[GroupResult] = []
    skipped: dict[str, str] = {}
    """Task -> why there are no figures."""
    validation: ValidationResult | None = None
    speed: SpeedResult | None = None
    samples: list[Sample] = []
    settings: dict[str, Any] = {}
    environment: dict[str, Any] = {}

    def task(self, name: str) -> TaskResult:
        """The figures of one task; KeyError if there are none."""
        return {result.task: result for result in self.tasks}[name]

    def find(self, cell: Cell) -> tuple[TaskResult, MetricResult] | None:
        """The figures that a table shows in this column; None if there are none."""
        found = ((task, result) for task in self.tasks if task.task == cell.task for result in task.metrics)
        return next((pair for pair in found if pair[1].metric == cell.metric), None)

    def ungrouped(self) -> list[TaskResult]:
        """Tasks that are in the table of no group."""
        grouped = {cell.task for group in self.groups for cell in group.columns}
        return [task for task in self.tasks if task.task not in grouped]

    def shown(self) -> list[tuple[TaskResult, MetricResult]]:
        """Every figure of a task that is in a table, once, in the order of the tables."""
        cells = [cell for group in self.groups for cell in group.columns]
        cells += [Cell(task=task.task, metric=task.metric) for task in self.ungrouped()]
        return [found for cell in dict.fromkeys(cells) if (found := self.find(cell)) is not None]

    def none_worse(self) -> bool | None:
        """Whether no figure of a task that is shown, and no average, is worse than the first model's beyond chance.

        None if of those that could be compared none is, and there are others, or nothing was compared.
        """
        results = [result for _, result in self.shown()]
        results += [group.average for group in self.groups if group.average is not None]
        outcomes = [one.outcome for result in results for one in result.paired if one is not None]
        if "worse" in outcomes:
            return False
        return True if outcomes and not self.not_compared() else None

    def not_compared(self) -> list[str]:
        """Tasks that were skipped, or have a figure that is shown and could not be paired."""
        unpaired = [task.task for task, result in self.shown() if None in result.paired[1:]]
        return list(dict.fromkeys((*unpaired, *self.skipped)))


def judge(interval: tuple[float, float], higher_is_better: bool, p: float | None = None) -> Outcome:
    """What an interval of differences says; an exact p of 0.05 or more is stronger than it, as it is approximate."""
    low, high = interval
    if low <= 0 <= high or (p is not None and p >= 0.05):
        return "no difference seen"
    return "better" if (low > 0) == higher_is_better else "worse"


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json`, at once."""
    files.write_text(path, evaluation.model_dump_json(indent=1) + "\n")


def load_evaluation(path: Path) -> Evaluation:
    """Read what `save_evaluation` wrote.

    Raises:
        UserError: it is something else, or damaged.
    """
    return files.read_record(path, Evaluation, "an evaluation of format 1")
