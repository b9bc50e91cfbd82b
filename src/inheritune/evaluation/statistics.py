"""What models answered to the items of tasks, and the figures that follow: each one's, and pairs of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.data.shards import Split
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
from inheritune.runtime import files
from inheritune.training.validation import WindowLosses, compare, interval_of

Kind = Literal["mean", "perplexity", "weighted_perplexity", "bits_per_byte", "other"]
"""How the harness makes one figure of the items: the mean; exp(-mean); exp(-sum / sum of weights);
-sum / sum of weights / ln 2; or in a way of which nothing is known but its result."""


class MetricItems(BaseModel):
    """One metric on every item of a task."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    higher_is_better: bool
    value: float
    """The harness's figure over all items."""
    items: list[float] | list[tuple[float, float]] | None
    """A number for every item, or (log-likelihood, weight); None where the kind is `other`."""

    @property
    def _is_ratio(self) -> bool:
        """Whether two of them are compared by their ratio: what adds up over items is the logarithm."""
        return self.kind in ("perplexity", "weighted_perplexity")

    def score(self) -> Score:
        """The figure with its standard error over items."""
        if self.items is None or len(self.items) < 2:
            return Score(value=self.value, standard_error=None)
        error = _ratio_error(*self.terms())
        # The error of exp(x) is exp(x) times that of x.
        return Score(value=self.value, standard_error=self.value * error if self._is_ratio else error)

    def paired(self, reference: MetricItems) -> Paired | None:
        """This model minus the reference, item by item; None where the items do not add up to the figure."""
        if self.items is None or reference.items is None or len(self.items) < 2:
            return None
        (values, weights), (others, _) = self.terms(), reference.terms()
        difference, error = (
            float((values - others).sum() / weights.sum()),
            _ratio_error(values - others, weights),
        )
        low, high = interval_of(difference, error, len(values))
        if self._is_ratio:
            difference, low, high = math.expm1(difference), math.expm1(low), math.expm1(high)
        p = _mcnemar(values, others) if self.kind == "mean" else None
        outcome = judge((low, high), self.higher_is_better, p)
        return Paired(difference=difference, interval=(low, high), p=p, outcome=outcome)

    def terms(self) -> tuple[np.ndarray, np.ndarray]:
        """Figure, or its logarithm, as a ratio of sums over items: numerators and weights, float64 [items] each."""
        items = np.asarray(self.items, dtype=np.float64)
        if self.kind in ("mean", "perplexity"):
            return (items if self.kind == "mean" else -items), np.ones(len(items))
        log_likelihoods, weights = items.T
        return -log_likelihoods / (math.log(2) if self.kind == "bits_per_byte" else 1), weights


class TaskItems(BaseModel):
    """The answers of one model to one task; kept as a file, so that nothing is asked twice."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: dict[str, Any]
    """Everything that the answers depend on."""
    task: str
    version: str
    shots: int
    parts: list[str]
    metrics: dict[str, MetricItems]
    """The harness's metrics in its order; with a filter's name after a comma where a task has several."""
    chance: float | None
    """Mean over items of 1 / choices, where exactly one is right."""
    truncated: int
    """Requests longer than the model's context, cut from the left."""
    requests: int
    hashes: list[str]
    """Of every item's prompt and answers, to pair only what is the same."""
    responses: list[Any]
    """Of every item: (log-likelihood, whether it is the greedy continuation) of each choice; or what was written."""

    def save(self, path: Path) -> None:
        """Write as JSON, at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, self.model_dump_json() + "\n")

    @classmethod
    def load(cls, path: Path, key: dict[str, Any]) -> TaskItems | None:
        """What `save` wrote, if it answers the same questions and is whole."""
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if found.key == json.loads(json.dumps(key)) else None


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
    wanted = [metric for group in GROUPS.values() for task, metric in group.columns if task == unit.name]
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
    whole = group.average and not missing
    average = _average([tasks[c.task].of(c.metric) for c in columns]) if whole else None
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
        comparison, pair = compare(one, losses[0]), None
        if len(one.losses) > 1:  # one window has no spread, so no interval
            outcome = judge(comparison.interval, higher_is_better=False)
            pair = Paired(difference=comparison.difference, interval=comparison.interval, outcome=outcome)
        pairs.append(pair)
    return ValidationResult(
        data=str(text.directory),
        sha256=text.identity.sha256,
        split=text.name,
        windows=len(losses[0].losses),
        window=window,
        scores=[
            Score(value=one.mean, standard_error=one.standard_error if len(one.losses) > 1 else None)
            for one in losses
        ],
        paired=pairs,
        bytes_per_token=text.identity.bytes_per_token,
    )


def average_pairs(pairs: Sequence[Paired]) -> Paired:
    """The mean of differences of accuracies; their errors are independent, as the items are different ones."""
    difference = sum(pair.difference for pair in pairs) / len(pairs)
    errors = [(pair.interval[1] - pair.interval[0]) / 2 for pair in pairs]
    half = math.sqrt(sum(error**2 for error in errors)) / len(pairs)
    interval = (difference - half, difference + half)
    return Paired(difference=difference, interval=interval, outcome=judge(interval, higher_is_better=True))


def average_scores(scores: Sequence[Score]) -> Score:
    """The mean of figures of several tasks."""
    known = [score.standard_error for score in scores if score.standard_error is not None]
    error = math.sqrt(sum(e**2 for e in known)) / len(scores) if len(known) == len(scores) else None
    return Score(value=sum(score.value for score in scores) / len(scores), standard_error=error)


def _ratio_error(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of sum(values) / sum(weights) over items, linearised (Cochran, Sampling Techniques, 6.3)."""
    count = len(values)
    residuals = values - values.sum() / weights.sum() * weights
    return float(np.sqrt((residuals**2).sum() * count / (count - 1)) / weights.sum())


def _mcnemar(model: np.ndarray, reference: np.ndarray) -> float | None:
    """Exact test of whether as many items were won as lost; None if items can be half right."""
    if not np.isin(np.concatenate([model, reference]), (0.0, 1.0)).all():
        return None
    from scipy.stats import binomtest  # comes with the harness

    won, lost = int((model > reference).sum()), int((model < reference).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
