"""The figure of an evaluation: paired differences of accuracies to the first model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from inheritune.evaluation.result import Evaluation, MetricResult
from inheritune.report import drawing
from inheritune.report.drawing import Interval, look
from inheritune.report.evaluation_words import difference, interval, is_accuracy, shown
from inheritune.report.svg import to_svg

LETTER = 6.6  # units of width, about
LONGEST_NAME = 34  # letters


def difference_figure(evaluation: Evaluation, *, standalone: bool = False) -> str | None:
    """Every accuracy's paired difference to the first model with its 95% interval, around 0; None without any.

    A filled mark is better or worse. Averages of groups come last.
    """
    lines = [line for name, result in _accuracies(evaluation) for line in _lines(evaluation, name, result)]
    if not lines:
        return None
    left = 24 + LETTER * max(len(line.name) for line in lines)
    first = evaluation.models[0].name
    with drawing.style():
        figure, axes = drawing.frame(
            760, 74 + 22 * len(lines), left=max(left, 100), right=170, top=26, bottom=48
        )
        drawing.intervals(axes, lines, ("← worse", "better →"))
        axes.set_xlabel(f"accuracy minus that of {_short(first)}, percentage points")
        label = f"Difference of accuracy to {first} in percentage points, with 95% interval: " + "; ".join(
            f"{line.name} {line.text}" for line in lines
        )
        return to_svg(figure, "evaluation-differences", label, standalone=standalone)


def _accuracies(evaluation: Evaluation) -> Iterator[tuple[str, MetricResult]]:
    tasks = [(task.task, result) for task, result in shown(evaluation) if is_accuracy(result.metric)]
    times = Counter(name for name, _ in tasks)
    for name, result in tasks:
        yield f"{name}, {result.metric}" if times[name] > 1 else name, result
    for group in evaluation.groups:
        if group.average is not None and is_accuracy(group.average.metric):
            yield f"average, {group.name}", group.average


def _lines(evaluation: Evaluation, name: str, result: MetricResult) -> Iterator[Interval]:
    for i, paired in enumerate(result.paired):
        if paired is None:
            continue
        text = f"{difference(result.metric, paired)} {interval(result.metric, paired)}"
        low, high = paired.interval
        yield Interval(
            _short(name if len(evaluation.models) == 2 else f"{name}: {evaluation.models[i].name}"),
            100 * paired.difference,
            (100 * low, 100 * high),
            text,
            look(i),
            paired.outcome != "no difference seen",
        )


def _short(name: str) -> str:
    """The name, its middle left out if it is too long: both ends tell names apart."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[: LONGEST_NAME - 1 - half]}…{name[-half:]}"
