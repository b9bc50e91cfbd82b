"""An evaluation in one long table for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from inheritune.evaluation.result import Evaluation, MetricResult, Paired, Score
from inheritune.report.evaluation_sheet import printable
from inheritune.report.evaluation_words import LOSS

CSV_COLUMNS = (
    "kind",
    "task",
    "metric",
    "model",
    "value",
    "standard_error",
    "difference",
    "low",
    "high",
    "p",
    "outcome",
    "items",
    "shots",
    "chance",
    "data",
    "note",
)


def to_csv(evaluation: Evaluation) -> str:
    """One line for each model of each metric of each task, numbers in full; what is not known is empty.

    Averages of groups, validation loss, sizes and median speeds follow in the same columns; `kind` tells them apart.
    """
    evaluation = printable(evaluation)
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in _rows(evaluation):
        writer.writerow(row)
    return text.getvalue()


def _rows(evaluation: Evaluation) -> Iterator[dict[str, object]]:
    for task in evaluation.tasks:
        about = {"items": task.items, "shots": task.shots, "data": task.data, "note": task.note}
        for result in task.metrics:
            yield from _metric_rows(evaluation, "task", task.task, result, about)
    for group in evaluation.groups:
        if group.average is not None:
            yield from _metric_rows(evaluation, "average", group.name, group.average, {})
    validation = evaluation.validation
    if validation is not None:
        about = {"items": validation.windows, "data": f"{validation.data}, {validation.split}"}
        for i, model in enumerate(evaluation.models):
            figures = _figures(validation.scores[i], validation.paired[i])
            yield {"kind": "validation", "metric": LOSS, "model": model.name} | figures | about
    yield from _cost_rows(evaluation)


def _metric_rows(
    evaluation: Evaluation, kind: str, name: str, result: MetricResult, about: dict[str, object]
) -> Iterator[dict[str, object]]:
    for i, model in enumerate(evaluation.models):
        head = {"kind": kind, "task": name, "metric": result.metric, "model": model.name}
        yield head | _figures(result.scores[i], result.paired[i]) | {"chance": result.chance} | about


def _figures(score: Score, paired: Paired | None) -> dict[str, object]:
    figures: dict[str, object] = {"value": score.value, "standard_error": score.standard_error}
    if paired is not None:
        figures |= {
            "difference": paired.difference,
            "low": paired.interval[0],
            "high": paired.interval[1],
            "p": paired.p,
            "outcome": paired.outcome,
        }
    return figures


def _cost_rows(evaluation: Evaluation) -> Iterator[dict[str, object]]:
    for i, model in enumerate(evaluation.models):
        figures: dict[str, float] = {"layers": model.layers, "parameters": model.parameters}
        if evaluation.speed is not None:
            speed = evaluation.speed.models[i]
            figures |= {
                "checkpoint_bytes": speed.checkpoint_bytes,
                "memory_bytes": speed.memory_bytes,
                "cache_bytes_per_token": speed.cache_bytes_per_token,
            }
            for rate in speed.rates:
                figures[f"prefill_tokens_per_second_batch_{rate.batch}"] = rate.prefill.median
                figures[f"decode_tokens_per_second_batch_{rate.batch}"] = rate.decode.median
        for metric, value in figures.items():
            yield {"kind": "cost", "metric": metric, "model": model.name, "value": value}
