"""From every model's answers to figures side by side: tasks, the paper's tables, validation losses."""

from __future__ import annotations

from collections.abc import Sequence

from inheritune import UserError
from inheritune.data.shards import Split
from inheritune.evaluation.items import TaskItems, average_pairs, average_scores
from inheritune.evaluation.result import (
    Cell,
    GroupResult,
    MetricResult,
    Paired,
    Score,
    TaskResult,
    ValidationResult,
    judge,
)
from inheritune.evaluation.tasks import GROUPS, Unit
from inheritune.training.validation import WindowLosses, compare


def task_result(unit: Unit, names: Sequence[str], answers: Sequence[TaskItems]) -> TaskResult:
    """One task's figures for every model, and each against the first."""
    first = answers[0]
    for other in answers[1:]:
        if other.hashes != first.hashes:
            raise UserError(f"the models were not asked the same items of {unit.name}")
    cut = [
        f"{name}: {one.truncated:,} of {one.requests:,} requests were longer than its context, and lost "
        "their beginnings"
        for name, one in zip(names, answers, strict=True)
        if one.truncated
    ]
    wanted = [m for name in GROUPS for task, m in GROUPS[name].columns if task == unit.name]
    return TaskResult(
        task=unit.name,
        metric=next((m for m in wanted if m in first.metrics), next(iter(first.metrics))),
        items=len(first.hashes),
        shots=first.shots,
        version=first.version,
        data=unit.data,
        note="; ".join([*([unit.note] if unit.note else []), *cut]) or None,
        metrics=[_metric_result(name, answers) for name in first.metrics],
        parts=first.parts,
    )


def _metric_result(name: str, answers: Sequence[TaskItems]) -> MetricResult:
    found = [one.metrics[name] for one in answers]
    return MetricResult(
        metric=name,
        higher_is_better=found[0].higher_is_better,
        scores=[one.score() for one in found],
        paired=[None, *(one.paired(found[0]) for one in found[1:])],
        chance=answers[0].chance if name == "acc" else None,  # others normalise what guessing would not
    )


def group_result(name: str, results: Sequence[TaskResult]) -> GroupResult:
    """A table: the columns that there are, and their mean where the paper has one and none is missing."""
    group, tasks = GROUPS[name], {result.task: result for result in results}
    columns = [Cell(task=task, metric=metric) for task, metric in group.columns if task in tasks]
    missing = list(dict.fromkeys(task for task, _ in group.columns if task not in tasks))
    average = (
        None if missing or not group.average else _average([tasks[c.task].of(c.metric) for c in columns])
    )
    return GroupResult(name=name, columns=columns, average=average, missing=missing)


def _average(columns: Sequence[MetricResult]) -> MetricResult:
    models = len(columns[0].scores)
    scores = [average_scores([column.scores[i] for column in columns]) for i in range(models)]
    pairs: list[Paired | None] = [None]
    for i in range(1, models):
        found = [pair for column in columns if (pair := column.paired[i]) is not None]
        pairs.append(average_pairs(found) if len(found) == len(columns) else None)
    return MetricResult(metric="acc", higher_is_better=True, scores=scores, paired=pairs)


def validation_result(text: Split, window: int, losses: Sequence[WindowLosses]) -> ValidationResult:
    """Every model's mean loss, and each against the first, window by window."""
    pairs: list[Paired | None] = [None]
    for one in losses[1:]:
        comparison = compare(one, losses[0])
        outcome = judge(comparison.interval, higher_is_better=False)
        pairs.append(Paired(difference=comparison.difference, interval=comparison.interval, outcome=outcome))
    return ValidationResult(
        data=str(text.directory),
        sha256=text.identity.sha256,
        split=text.name,
        windows=len(losses[0].losses),
        window=window,
        scores=[Score(value=one.mean, standard_error=one.standard_error) for one in losses],
        paired=pairs,
    )
