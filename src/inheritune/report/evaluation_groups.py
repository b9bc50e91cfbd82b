"""The tables of tasks: every group's figures, its paired differences, the paper's figures; and tasks of no group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from inheritune.evaluation.result import Cell, Evaluation, GroupResult, MetricResult, Paired, TaskResult
from inheritune.report.evaluation_sheet import Column, Line, Part, Sheet
from inheritune.report.evaluation_words import (
    NONE,
    difference,
    find,
    interval,
    is_accuracy,
    is_perplexity,
    number,
    p_value,
    score,
    ungrouped,
)
from inheritune.report.paper_tables import HEADING, PaperTable, paper_tables

AVERAGE = "average"
PAIRED_COLUMNS = (
    Column("Model", number=False),
    Column("Task", number=False),
    Column("Difference"),
    Column("95% interval"),
    Column("p", "McNemar"),
    Column("Outcome", number=False),
)


class _Shown(NamedTuple):
    """A column of a group: its heading and its figures, None where the task is missing."""

    column: Column
    result: MetricResult | None


def task_parts(evaluation: Evaluation) -> list[Part]:
    """Every group, and the tasks that are in none of them."""
    parts = [_group(evaluation, group, number) for number, group in enumerate(evaluation.groups, 1)]
    other = _other_tasks(evaluation)
    return parts if other is None else [*parts, other]


def task_name(task: TaskResult) -> str:
    """The task, and how many worked examples come before each item, if any."""
    return f"{task.task}, {task.shots}-shot" if task.shots else task.task


def _group(evaluation: Evaluation, group: GroupResult, place: int) -> Part:
    shown = [_shown(evaluation, cell) for cell in group.columns]
    if group.average is not None:
        shown.append(_Shown(Column(AVERAGE), group.average))
    sheets = [_scores(evaluation, group, shown)]
    if len(evaluation.models) > 1 and any(one.result is not None for one in shown):
        sheets.append(_paired(evaluation, group, shown))
    paper = paper_tables().get(group.name)
    if paper is not None:
        sheets.append(_paper(paper, [cell.task for cell in group.columns]))
    return Part(group.name, f"group-{place}", tuple(sheets))


def _shown(evaluation: Evaluation, cell: Cell) -> _Shown:
    found = find(evaluation, cell)
    if found is None:
        return _Shown(Column(cell.task, cell.metric), None)
    task, result = found
    shots = f", {task.shots}-shot" if task.shots else ""
    return _Shown(Column(cell.task, f"{cell.metric}{shots}{_arrow(result)}"), result)


def _arrow(result: MetricResult) -> str:
    return "" if result.higher_is_better else " ↓"


def _scores(evaluation: Evaluation, group: GroupResult, shown: Sequence[_Shown]) -> Sheet:
    lines = [
        Line(
            "" if i else "first",
            (
                model.name,
                *(
                    NONE if one.result is None else score(one.result.metric, one.result.scores[i])
                    for one in shown
                ),
            ),
        )
        for i, model in enumerate(evaluation.models)
    ]
    results = [one.result for one in shown if one.result is not None]
    if any(result.chance is not None for result in results):
        lines.append(Line("chance", ("chance", *(_chance(one.result) for one in shown))))
    named = {cell.task for cell in group.columns}
    tasks = [task for task in evaluation.tasks if task.task in named]
    notes = [*_legend(results), *_missing(evaluation, group.missing), *_task_notes(tasks)]
    columns = (Column("Model", number=False), *(one.column for one in shown))
    return Sheet("scores", f"{group.name}: figures", columns, tuple(lines) if shown else (), tuple(notes))


def _chance(result: MetricResult | None) -> str:
    return NONE if result is None or result.chance is None else number(result.metric, result.chance)


def _legend(results: Sequence[MetricResult]) -> Iterator[str]:
    if any(is_accuracy(result.metric) for result in results):
        yield "Accuracies are in percent."
    if any(score.standard_error is not None for result in results for score in result.scores):
        yield "After ± stands the standard error over items."
    if any(not result.higher_is_better for result in results):
        yield "↓: smaller is better."
    if any(result.chance is not None for result in results):
        yield "Chance is what guessing gives."


def _missing(evaluation: Evaluation, tasks: Sequence[str]) -> Iterator[str]:
    for task in tasks:
        yield f"{task} has no figures: {evaluation.skipped.get(task, 'it was skipped')}"


def _task_notes(tasks: Sequence[TaskResult]) -> Iterator[str]:
    for task in tasks:
        if task.note is not None:
            yield f"{task.task}: {task.note}"


def _paired(evaluation: Evaluation, group: GroupResult, shown: Sequence[_Shown]) -> Sheet:
    times = Counter(one.column.heading for one in shown)
    lines = []
    for i, model in enumerate(evaluation.models[1:], 1):
        for one in shown:
            if one.result is None:
                continue
            name = one.column.heading
            # The metric only where a task is there twice: the table above tells it of all.
            if times[name] > 1:
                name = f"{name}, {one.result.metric}"
            cells = paired_cells(one.result.metric, one.result.paired[i])
            lines.append(Line(outcome(one.result.paired[i]), (model.name, name, *cells)))
    first = evaluation.models[0].name
    notes = _paired_legend([one.result for one in shown if one.result is not None])
    title = f"{group.name}: differences to {first} on the same items"
    return Sheet("paired", title, PAIRED_COLUMNS, tuple(lines), tuple(notes))


def outcome(paired: Paired | None) -> str:
    """The kind of a line that shows this difference."""
    return paired.outcome if paired is not None and paired.outcome != "no difference seen" else ""


def paired_cells(metric: str, paired: Paired | None) -> tuple[str, str, str, str]:
    """Difference, interval, p-value and outcome."""
    if paired is None:
        return NONE, NONE, NONE, "not paired"
    return difference(metric, paired), interval(metric, paired), p_value(paired.p), paired.outcome


def _paired_legend(results: Sequence[MetricResult]) -> Iterator[str]:
    if any(is_accuracy(result.metric) for result in results):
        yield "Differences of accuracies are in percentage points."
    if any(is_perplexity(result.metric) for result in results):
        yield "Differences of perplexities are their ratio minus 1, in percent."
    yield (
        "Better and worse mean that the 95% interval leaves out 0, and p is below 0.05 where there is one; no "
        "difference seen does not mean that there is none. Of twenty tasks in which two models are equally good, "
        "about one shows a difference by chance."
    )


def _paper(table: PaperTable, ours: Sequence[str]) -> Sheet:
    """The paper's rows, its columns in the order of ours."""
    order = sorted(
        range(len(table.columns)),
        key=lambda i: ours.index(table.columns[i].task) if table.columns[i].task in ours else len(ours),
    )
    average = any(row.average is not None for row in table.rows)
    columns = [
        Column("Model", number=False),
        Column("Layers"),
        Column("Recipe", number=False),
        *(_paper_column(table, i) for i in order),
        *([Column(AVERAGE)] if average else []),
    ]
    lines = [
        Line(
            "",
            (
                row.model,
                NONE if row.layers is None else str(row.layers),
                row.recipe,
                *(str(row.figures[i]) for i in order),
                *([NONE if row.average is None else str(row.average)] if average else []),
            ),
        )
        for row in table.rows
    ]
    return Sheet(
        "paper",
        HEADING,
        tuple(columns),
        tuple(lines),
        (f"From {table.source}: {table.about}.", *table.notes),
    )


def _paper_column(table: PaperTable, i: int) -> Column:
    column = table.columns[i]
    details = [column.printed, column.metric or "", f"{column.shots}-shot" if column.shots else ""]
    return Column(column.task, ", ".join(detail for detail in details if detail))


def _other_tasks(evaluation: Evaluation) -> Part | None:
    """Tasks of no group; and those without figures that no group tells of."""
    told = {task for group in evaluation.groups for task in group.missing}
    missing = [task for task in evaluation.skipped if task not in told]
    tasks = ungrouped(evaluation)
    if not tasks and not missing:
        return None
    lines = [line for task in tasks for line in _task_lines(evaluation, task)]
    results = [task.of(task.metric) for task in tasks]
    pairs = len(evaluation.models) > 1 and bool(tasks)
    columns = [
        *(Column(name, number=False) for name in ("Task", "Metric")),
        *(Column(name) for name in ("Items", "Shots", "Chance")),
        Column("Model", number=False),
        Column("Value"),
        *(PAIRED_COLUMNS[2:] if pairs else ()),
    ]
    notes = [
        *_legend(results),
        *(_paired_legend(results) if pairs else ()),
        *_missing(evaluation, missing),
        *_task_notes(tasks),
    ]
    title = "Single tasks"
    if pairs:
        title += f", with differences to {evaluation.models[0].name} on the same items"
    return Part(
        "Other tasks", "other-tasks", (Sheet("tasks", title, tuple(columns), tuple(lines), tuple(notes)),)
    )


def _task_lines(evaluation: Evaluation, task: TaskResult) -> Iterator[Line]:
    """A line a model; what holds for all models stands in the first one."""
    result = task.of(task.metric)
    head = (task.task, f"{task.metric}{_arrow(result)}", f"{task.items:,}", str(task.shots), _chance(result))
    for i, model in enumerate(evaluation.models):
        cells = [*(head if i == 0 else [""] * len(head)), model.name, score(task.metric, result.scores[i])]
        if len(evaluation.models) > 1:
            cells += paired_cells(task.metric, result.paired[i]) if i else [""] * 4
        yield Line(outcome(result.paired[i]) if i else "first", tuple(cells))
