"""Synthetic evaluations: a reference, a small model, and figures that a reader can recompute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inheritune.evaluation.result import (
    Cell,
    Evaluation,
    GroupResult,
    MetricResult,
    ModelFigures,
    ModelSpeed,
    Outcome,
    Paired,
    Rate,
    Sample,
    Score,
    SpeedResult,
    Spread,
    TaskResult,
    ValidationResult,
)

ZERO_SHOT = {
    # task: (metric, chance, reference, small)
    "arc_easy": ("acc", 0.25, 0.5105, 0.5126),
    "piqa": ("acc", 0.5, 0.6181, 0.6181),
    "sciq": ("acc", 0.25, 0.748, 0.718),
    "hellaswag": ("acc_norm", 0.25, 0.3079, 0.3055),
    "lambada_openai": ("acc", None, 0.2028, 0.23),
}


def model(name: str = "reference", layers: int = 24, parameters: int = 355_000_000) -> ModelFigures:
    return ModelFigures(
        name=name,
        source=f"runs/{name}/model",
        model_type="gpt2",
        layers=layers,
        parameters=parameters,
        dtype="float32",
        weights="0123456789abcdef" * 4,
    )


def paired(difference: float, half: float, p: float | None = None) -> Paired:
    """A difference whose outcome is that of a metric of which more is better."""
    low, high = difference - half, difference + half
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    return Paired(difference=difference, interval=(low, high), p=p, outcome=outcome)


def metric(
    name: str,
    values: Sequence[float],
    half: float = 0.02,
    chance: float | None = None,
    p: float | None = 0.04,
) -> MetricResult:
    """An accuracy, or with a name of another metric one of which less is better."""
    higher = name.startswith(("acc", "exact_match"))
    pairs: list[Paired | None] = [None]
    for value in values[1:]:
        pair = paired(value - values[0] if higher else value / values[0] - 1, half, p)
        words: dict[Outcome, Outcome] = {"better": "worse", "worse": "better"}
        outcome = pair.outcome if higher else words.get(pair.outcome, pair.outcome)
        pairs.append(pair.model_copy(update={"outcome": outcome}))
    return MetricResult(
        metric=name,
        higher_is_better=higher,
        scores=[Score(value=value, standard_error=0.0101) for value in values],
        paired=pairs,
        chance=chance,
    )


def task(name: str, *metrics: MetricResult, **changes: Any) -> TaskResult:
    values: dict[str, Any] = {
        "task": name,
        "metric": metrics[0].metric,
        "items": 500,
        "shots": 0,
        "version": "1.0",
        "data": f"{name}/test",
        "metrics": list(metrics),
    }
    return TaskResult(**(values | changes))


def spread(median: float) -> Spread:
    return Spread(median=median, lowest=0.95 * median, highest=1.05 * median)


def speed(*factors: float) -> SpeedResult:
    """Models that are so many times as fast as 1,200 tokens read and 80 written per second."""
    return SpeedResult(
        prompt_tokens=128,
        new_tokens=32,
        turns=5,
        models=[
            ModelSpeed(
                checkpoint_bytes=int(1.42e9 / factor),
                memory_bytes=int(1.42e9 / factor),
                cache_bytes_per_token=196_608 / factor,
                rates=[
                    Rate(
                        batch=batch, prefill=spread(1200 * batch * factor), decode=spread(80 * batch * factor)
                    )
                    for batch in (1, 8)
                ],
            )
            for factor in factors
        ],
    )


def evaluation(**changes: Any) -> Evaluation:
    """Two models, the paper's three groups (of low-data one task), a task of no group, and all the rest."""
    tasks = {
        name: task(name, metric(m, (a, b), chance=chance)) for name, (m, chance, a, b) in ZERO_SHOT.items()
    }
    tasks["lambada_openai"] = task(
        "lambada_openai",
        metric("perplexity", (36.5, 34.2), 0.01, p=None),
        metric("acc", (0.2028, 0.23)),
        note="the 500 first items",
    )
    tasks["wikitext"] = task("wikitext", metric("word_perplexity", (31.93, 32.04), 0.01, p=None))
    tasks["mmlu"] = task(
        "mmlu",
        metric("acc", (0.2721, 0.2567), chance=0.25),
        shots=5,
        parts=["mmlu_a", "mmlu_b"],
        items=14_042,
    )
    tasks["rte"] = task("rte", metric("acc", (0.54, 0.50), chance=0.5), metric("f1", (0.1, 0.2), p=None))
    average = metric("acc", (0.47746, 0.47384), 0.008, chance=0.31, p=None)
    values: dict[str, Any] = {
        "models": [model(), model("small", 16, 255_000_000)],
        "tasks": list(tasks.values()),
        "groups": [
            GroupResult(
                name="zero-shot",
                columns=[Cell(task=name, metric=m) for name, (m, *_) in ZERO_SHOT.items()],
                average=average,
            ),
            GroupResult(
                name="perplexity",
                columns=[
                    Cell(task="wikitext", metric="word_perplexity"),
                    Cell(task="lambada_openai", metric="perplexity"),
                    Cell(task="lambada_openai", metric="acc"),
                ],
            ),
            GroupResult(name="low-data", columns=[Cell(task="mmlu", metric="acc")], missing=["wsc"]),
        ],
        "skipped": {"wsc": "there is no file wsc/validation.jsonl"},
        "validation": ValidationResult(
            data="data/fineweb",
            split="validation",
            windows=512,
            window=1024,
            scores=[Score(value=3.1519, standard_error=0.012), Score(value=3.1675, standard_error=0.012)],
            paired=[None, Paired(difference=0.0156, interval=(0.0101, 0.0211), outcome="worse")],
        ),
        "speed": speed(1.0, 1.5),
        "samples": [
            Sample(prompt="Once upon a time", continuations=[" there was a fox.", " a cat sat\non a mat."])
        ],
        "settings": {"seed": 0, "tasks": ["zero-shot", "perplexity"]},
        "environment": {"torch": "2.13.0", "device": "cpu"},
    }
    return Evaluation(**(values | changes))
