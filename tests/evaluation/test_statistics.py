"""Figures, their errors and paired differences from the answers to items."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_data
from inheritune.data.shards import open_split
from inheritune.evaluation.result import Paired, Score, judge
from inheritune.evaluation.statistics import (
    Kind,
    MetricItems,
    TaskItems,
    average_pairs,
    average_scores,
    validation_result,
)
from inheritune.training.validation import WindowLosses, t95

KINDS = ("mean", "perplexity", "weighted_perplexity", "bits_per_byte")
WEIGHTED = KINDS[2:]


def test_on_one_window_nothing_is_paired(tmp_path: Path) -> None:
    text = open_split(tiny_data.write_shards(tmp_path), "validation")
    one, other = (WindowLosses(np.array([loss]), 1024, text.identity) for loss in (3.0, 3.1))
    found = validation_result(text, 1024, [one, other])
    assert found.paired == [None, None]
    assert [score.standard_error for score in found.scores] == [None, None]


def figure(kind: str, items: np.ndarray) -> float:
    """The figure as the harness defines it; rows of (log-likelihood, weight) where it has weights."""
    if kind == "mean":
        return float(np.mean(items))
    if kind == "perplexity":
        return float(np.exp(-np.mean(items)))
    mean = -items[:, 0].sum() / items[:, 1].sum()
    return float(np.exp(mean) if kind == "weighted_perplexity" else mean / np.log(2))


def metric(kind: Kind, items: np.ndarray, higher_is_better: bool | None = None) -> MetricItems:
    better = kind == "mean" if higher_is_better is None else higher_is_better
    listed: Any = [tuple(row) for row in items.tolist()] if items.ndim == 2 else items.tolist()
    return MetricItems(kind=kind, higher_is_better=better, value=figure(kind, items), items=listed)


def two_models(kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Items of two models that find the same items hard."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 1, count)
    if kind == "mean":
        return tuple((hard + rng.normal(0.2 * i, 0.5, count) > 0).astype(float) for i in (1, 0))  # type: ignore[return-value]
    if kind == "perplexity":
        return tuple(-np.exp(0.6 * hard + rng.normal(0.1 * i, 0.2, count)) for i in (0, 1))  # type: ignore[return-value]
    weights = rng.integers(5, 200, count).astype(float)
    rates = [np.exp(0.3 * hard + rng.normal(0.05 * i, 0.1, count)) for i in (0, 1)]
    return tuple(np.stack([-rate * weights, weights], axis=1) for rate in rates)  # type: ignore[return-value]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=60))
def test_a_mean_has_its_usual_standard_error(values: list[float]) -> None:
    score = metric("mean", np.array(values)).score()
    assert score.value == pytest.approx(np.mean(values))
    assert score.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_error_is_the_spread_over_other_samples_of_items(kind: Kind) -> None:
    items, _ = two_models(kind, 400)
    rng = np.random.default_rng(5)
    again = [figure(kind, items[rng.integers(0, 400, 400)]) for _ in range(2000)]
    score = metric(kind, items).score()
    assert score.value == figure(kind, items)
    assert score.standard_error == pytest.approx(np.std(again, ddof=1), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_of_a_difference_is_that_of_other_samples_of_items(kind: Kind) -> None:
    model, reference = two_models(kind, 500)
    pair = metric(kind, model).paired(metric(kind, reference))
    assert pair is not None
    rng = np.random.default_rng(6)
    again = []
    for _ in range(3000):
        rows = rng.integers(0, 500, 500)
        one, other = figure(kind, model[rows]), figure(kind, reference[rows])
        again.append(one / other - 1 if kind.endswith("perplexity") else one - other)
    low, high = np.quantile(again, (0.025, 0.975))
    width = high - low
    assert pair.interval == pytest.approx((low, high), abs=0.1 * width)
    assert pair.outcome == "better", "the first model of the two is"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_more_certain_than_two_models_on_different_items(kind: Kind) -> None:
    model, reference = two_models(kind, 500)
    scores = [metric(kind, items).score() for items in (model, reference)]
    pair = metric(kind, model).paired(metric(kind, reference))
    assert pair is not None
    alone = math.hypot(*(score.standard_error or math.nan for score in scores))
    scale = scores[1].value if kind.endswith("perplexity") else 1.0
    assert (pair.interval[1] - pair.interval[0]) / 2 * scale < 0.8 * 1.96 * alone


answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=80)


@given(answers)
def test_differences_of_accuracies(pairs: list[tuple[bool, bool]]) -> None:
    model, reference = np.array(pairs, dtype=float).T
    pair = metric("mean", model).paired(metric("mean", reference))
    assert pair is not None
    differences = model - reference
    half = t95(len(pairs) - 1) * differences.std(ddof=1) / math.sqrt(len(pairs))
    assert pair.difference == pytest.approx(differences.mean())
    assert pair.interval == pytest.approx((differences.mean() - half, differences.mean() + half), abs=1e-6)


@given(answers)
def test_the_exact_test_of_as_many_won_as_lost(pairs: list[tuple[bool, bool]]) -> None:
    model, reference = np.array(pairs, dtype=float).T
    pair = metric("mean", model).paired(metric("mean", reference))
    swapped = metric("mean", reference).paired(metric("mean", model))
    assert pair is not None
    assert swapped is not None
    won, lost = int((model > reference).sum()), int((model < reference).sum())
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert pair.p == pytest.approx(min(1.0, 2 * tail))
    assert swapped.p == pair.p
    assert swapped.difference == -pair.difference


def test_eight_items_won_and_two_lost() -> None:
    model, reference = (
        np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 5),
        np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 5),
    )
    pair = metric("mean", model).paired(metric("mean", reference))
    assert pair is not None
    assert pair.p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert pair.difference == pytest.approx(6 / 15)


def test_items_that_are_half_right_have_no_exact_test() -> None:
    pair = metric("mean", np.array([0.5, 1.0, 0.0])).paired(metric("mean", np.array([0.0, 1.0, 0.0])))
    assert pair is not None
    assert pair.p is None
    assert pair.difference == pytest.approx(1 / 6)


@pytest.mark.parametrize("kind", ["perplexity", "weighted_perplexity"])
def test_perplexities_are_compared_by_their_ratio(kind: Kind) -> None:
    model, reference = two_models(kind, 50)
    pair = metric(kind, model).paired(metric(kind, reference))
    assert pair is not None
    assert pair.difference == pytest.approx(figure(kind, model) / figure(kind, reference) - 1)
    assert pair.p is None
    low, high = np.log1p(pair.interval)
    middle = math.log1p(pair.difference)
    assert middle - low == pytest.approx(high - middle), "symmetric in the logarithm"
    assert math.expm1(low) > -1


def test_bits_per_byte_are_compared_by_their_difference() -> None:
    model, reference = two_models("bits_per_byte", 50)
    pair = metric("bits_per_byte", model).paired(metric("bits_per_byte", reference))
    assert pair is not None
    expected = figure("bits_per_byte", model) - figure("bits_per_byte", reference)
    assert pair.difference == pytest.approx(expected)


def test_a_factor_in_every_items_perplexity_is_certain() -> None:
    _, reference = two_models("weighted_perplexity", 30)
    model = reference.copy()
    model[:, 0] -= 0.1 * model[:, 1]  # nats per word
    pair = metric("weighted_perplexity", model).paired(metric("weighted_perplexity", reference))
    assert pair is not None
    assert pair.difference == pytest.approx(math.expm1(0.1))
    assert pair.interval == pytest.approx((pair.difference, pair.difference))
    assert pair.outcome == "worse"


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "outcome"),
    [(0.3, True, "better"), (0.3, False, "worse"), (-0.3, True, "worse"), (-0.3, False, "better")],
)
def test_what_is_better_depends_on_the_metric(shift: float, higher_is_better: bool, outcome: str) -> None:
    reference = np.random.default_rng(0).normal(0, 1, 40)
    model = reference + shift + np.random.default_rng(1).normal(0, 0.1, 40)
    pair = metric("mean", model, higher_is_better).paired(metric("mean", reference, higher_is_better))
    assert pair is not None
    assert pair.outcome == outcome


@given(st.floats(-1, 1), st.floats(0, 1), st.booleans())
def test_an_interval_with_0_in_it_shows_no_difference(low: float, width: float, higher: bool) -> None:
    outcome = judge((low, low + width), higher)
    assert (outcome == "no difference seen") == (low <= 0 <= low + width)
    if outcome != "no difference seen":
        assert (outcome == "better") == ((low > 0) == higher)


def test_an_exact_test_that_sees_nothing_is_believed() -> None:
    assert judge((0.0002, 0.0281), True, p=0.049) == "better"
    assert judge((0.0002, 0.0281), True, p=0.056) == "no difference seen"
    assert judge((-0.01, 0.02), True, p=0.01) == "no difference seen"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_itself(kind: Kind) -> None:
    items, _ = two_models(kind, 20)
    pair = metric(kind, items).paired(metric(kind, items))
    assert pair is not None
    assert (pair.difference, pair.interval, pair.outcome) == (0, (0, 0), "no difference seen")
    assert pair.p == (1.0 if kind == "mean" else None)


def test_one_item_has_no_error_and_no_pair() -> None:
    one = metric("mean", np.array([1.0]))
    assert one.score() == Score(value=1.0, standard_error=None)
    assert one.paired(one) is None


def test_a_figure_of_which_only_the_result_is_known_has_no_error_and_no_pair() -> None:
    f1 = MetricItems(kind="other", higher_is_better=True, value=0.7, items=None)
    assert f1.score() == Score(value=0.7, standard_error=None)
    assert f1.paired(f1) is None


def test_the_average_of_differences_on_several_tasks() -> None:
    """Against the differences of averages of many made-up evaluations."""
    rng = np.random.default_rng(3)
    sizes, shifts = (300, 800, 500), (0.05, 0.1, 0.0)
    found, errors = [], []
    for _ in range(400):
        pairs = []
        for size, shift in zip(sizes, shifts, strict=True):
            reference = rng.normal(0, 1, size)
            model = reference + rng.normal(shift, 0.5, size)
            pair = metric("mean", model).paired(metric("mean", reference))
            assert pair is not None
            pairs.append(pair)
        average = average_pairs(pairs)
        assert average.difference == pytest.approx(sum(pair.difference for pair in pairs) / 3)
        found.append(average.difference)
        errors.append((average.interval[1] - average.interval[0]) / 2 / 1.96)
    assert np.mean(found) == pytest.approx(0.05, abs=0.005)
    assert np.mean(errors) == pytest.approx(np.std(found, ddof=1), rel=0.1)


def test_the_average_is_judged_by_its_own_interval() -> None:
    def pair(low: float, high: float) -> Paired:
        return Paired(difference=(low + high) / 2, interval=(low, high), outcome=judge((low, high), True))

    uncertain = [pair(-0.01, 0.05)] * 4
    assert {one.outcome for one in uncertain} == {"no difference seen"}
    average = average_pairs(uncertain)
    assert average.interval == pytest.approx((0.02 - 0.015, 0.02 + 0.015))
    assert average.outcome == "better"


def test_the_average_of_figures() -> None:
    scores = [Score(value=0.4, standard_error=0.03), Score(value=0.6, standard_error=0.04)]
    average = average_scores(scores)
    assert (average.value, average.standard_error) == pytest.approx((0.5, 0.025))
    unknown = average_scores([*scores, Score(value=0.8, standard_error=None)])
    assert unknown.value == pytest.approx(0.6)
    assert unknown.standard_error is None


def test_answers_survive_the_disk_exactly(tmp_path: Path) -> None:
    metrics = {kind: metric(kind, two_models(kind, 9)[0]) for kind in KINDS}
    answers = TaskItems(
        key={"task": "x", "limit": None},
        task="x",
        version="1.0",
        shots=5,
        parts=["x_a", "x_b"],
        metrics=metrics,
        chance=1 / 3,
        truncated=2,
        requests=27,
        hashes=["0a", "0b"],
        responses=[[[-1.25, True], [-0.1, False]], [[-7.5, False]]],
    )
    answers.save(tmp_path / "deep" / "x.json")
    assert TaskItems.model_validate_json((tmp_path / "deep" / "x.json").read_bytes()) == answers
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]
