"""An evaluation's figures as text, and what they say of each model in a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from inheritune.evaluation.result import (
    Cell,
    Evaluation,
    MetricResult,
    Paired,
    Rate,
    Score,
    SpeedResult,
    TaskResult,
)
from inheritune.report.evaluation_sheet import printable

NONE = "–"
LOSS = "loss"


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a share of items, which is shown in percent."""
    return metric.startswith("acc") or metric in ("exact_match", "em")


def is_perplexity(metric: str) -> bool:
    """Whether a metric is a perplexity, of which two are compared by their ratio."""
    return metric.endswith("perplexity")


def number(metric: str, value: float) -> str:
    """A value of a metric: accuracies in percent and perplexities with two decimals, all others with four."""
    if is_accuracy(metric):
        return f"{100 * value:.2f}"
    return f"{value:,.2f}" if is_perplexity(metric) else f"{value:.4f}"


def score(metric: str, figure: Score) -> str:
    """A value with its standard error, if it has one: 74.97 ± 1.01."""
    value = number(metric, figure.value)
    return value if figure.standard_error is None else f"{value} ± {number(metric, figure.standard_error)}"


def difference(metric: str, paired: Paired) -> str:
    """A paired difference: percentage points of an accuracy, percent of a perplexity, else of the metric."""
    return _signed(metric, paired.difference)


def interval(metric: str, paired: Paired) -> str:
    """The 95% interval of a paired difference, in the same unit: [-1.42, +0.22]."""
    low, high = (_signed(metric, end) for end in paired.interval)
    return f"[{low}, {high}]"


def p_value(p: float | None) -> str:
    """A p-value with three decimals."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def find(evaluation: Evaluation, cell: Cell) -> tuple[TaskResult, MetricResult] | None:
    """The figures that a table shows in this column; None if there are none."""
    for task in evaluation.tasks:
        if task.task == cell.task:
            for result in task.metrics:
                if result.metric == cell.metric:
                    return task, result
    return None


def ungrouped(evaluation: Evaluation) -> list[TaskResult]:
    """Tasks that are in the table of no group."""
    grouped = {cell.task for group in evaluation.groups for cell in group.columns}
    return [task for task in evaluation.tasks if task.task not in grouped]


def shown(evaluation: Evaluation) -> list[tuple[TaskResult, MetricResult]]:
    """Every figure that is in a table, once, in the order of the tables."""
    cells = [cell for group in evaluation.groups for cell in group.columns]
    cells += [Cell(task=task.task, metric=task.metric) for task in ungrouped(evaluation)]
    unique = {(cell.task, cell.metric): cell for cell in cells}
    return [found for cell in unique.values() if (found := find(evaluation, cell)) is not None]


def verdict_words(evaluation: Evaluation) -> list[str]:
    """What was found of every model but the first, and what it saves, a line for each.

    The words are those of the 95% intervals: a difference that was not seen is not said to be none.
    """
    evaluation = printable(evaluation)
    return [_verdict(evaluation, i) for i in range(1, len(evaluation.models))]


def rate_at(speed: SpeedResult, model: int, batch: int) -> Rate | None:
    """How fast a model was at one batch size; None where it was not timed."""
    return next((rate for rate in speed.models[model].rates if rate.batch == batch), None)


def _verdict(evaluation: Evaluation, i: int) -> str:
    accuracies = ", ".join([*_accuracies(evaluation, i), *_averages(evaluation, i)])
    name = evaluation.models[i].name
    quality = (
        "; ".join(filter(None, [accuracies, *_others(evaluation, i)]))
        or "nothing was measured of how good it is"
    )
    return f"{name}: {quality}. It has {_savings(evaluation, i)}."


def _accuracies(evaluation: Evaluation, i: int) -> Iterator[str]:
    first = evaluation.models[0].name
    results = [(task, result) for task, result in shown(evaluation) if is_accuracy(result.metric)]
    pairs = [(task.task, paired) for task, result in results if (paired := result.paired[i]) is not None]
    if pairs:
        told = {
            outcome: [task for task, paired in pairs if paired.outcome == outcome]
            for outcome in ("better", "worse")
        }
        none_seen = len(pairs) - sum(map(len, told.values()))
        of = f"of {len(pairs)} accuracies" if len(pairs) > 1 else "of 1 accuracy"
        if none_seen == len(pairs):
            yield f"{of} none differs from {first} beyond chance variation"
        else:
            sides = [
                f"{len(tasks)} {'is' if len(tasks) == 1 else 'are'} {outcome} ({', '.join(tasks)})"
                for outcome, tasks in told.items()
                if tasks
            ]
            rest = f", in {none_seen} no difference is seen" if none_seen else ""
            yield f"{of} {' and '.join(sides)} than {first} beyond chance variation{rest}"
    if len(results) > len(pairs):
        yield f"{len(results) - len(pairs)} of the accuracies could not be paired with {first}"


def _averages(evaluation: Evaluation, i: int) -> Iterator[str]:
    averages = [(group.name, group.average) for group in evaluation.groups if group.average is not None]
    for name, average in averages:
        heading = "average" if len(averages) == 1 else f"average of {name}"
        yield f"{heading} {_against(average.metric, average.scores, average.paired, i, outcome=False)}"


def _others(evaluation: Evaluation, i: int) -> Iterator[str]:
    """Metrics that are not accuracies: how much they differ matters more than how many do."""
    for task, result in shown(evaluation):
        if not is_accuracy(result.metric):
            figures = _against(result.metric, result.scores, result.paired, i)
            yield f"{task.task} {result.metric} {figures}"
    if evaluation.validation is not None:
        figures = _against(LOSS, evaluation.validation.scores, evaluation.validation.paired, i)
        yield f"validation loss {figures}"


def _against(
    metric: str, scores: list[Score], paired: list[Paired | None], i: int, *, outcome: bool = True
) -> str:
    values = f"{number(metric, scores[i].value)} against {number(metric, scores[0].value)}"
    pair = paired[i]
    if pair is None:
        return values
    words = f", {pair.outcome}" if outcome else ""
    return f"{values} (difference {difference(metric, pair)}, 95% interval {interval(metric, pair)}{words})"


def _savings(evaluation: Evaluation, i: int) -> str:
    first, model = evaluation.models[0], evaluation.models[i]
    parts = [f"{model.parameters / first.parameters:.2f} times the parameters of {first.name}"]
    speed = evaluation.speed
    if speed is not None:
        cache = speed.models[i].cache_bytes_per_token, speed.models[0].cache_bytes_per_token
        if cache[1]:
            parts.append(f"{cache[0] / cache[1]:.2f} times its cache per token")
        for rate in speed.models[i].rates[:1]:
            against = rate_at(speed, 0, rate.batch)
            if against is not None:
                reads = rate.prefill.median / against.prefill.median
                writes = rate.decode.median / against.decode.median
                parts.append(
                    f"reads {reads:.2f} times and writes {writes:.2f} times as many tokens per second "
                    f"at batch {rate.batch}"
                )
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _signed(metric: str, value: float) -> str:
    if is_accuracy(metric):
        return f"{100 * value:+.2f}"
    return f"{100 * value:+.2f}%" if is_perplexity(metric) else f"{value:+.4f}"
