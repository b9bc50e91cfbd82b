"""`learning_rate: auto`: what short trainings say of the learning rate of the rounds."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune import UserError, running, start_depth
from inheritune.algorithm import run
from inheritune.analysis.forecast import FORECAST, load_forecast
from inheritune.analysis.kept import CHOICE, load_kept
from inheritune.config import Recipe, TrainRecipe
from inheritune.learning_rate import GROWS, MOST, best_rate, next_rate, usual_rate
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.report.run_report import write_report
from inheritune.run_directory import RATES_FILE, RateTrial, load_rates
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.training import metrics
from inheritune.training.step import NonFiniteError, Stepper
from inheritune.training.validation import WindowLosses
from tiny_data import write_shards
from tiny_models import tiny_model
from tiny_recipes import recipe, training

AUTO = {"learning_rate": "auto"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def search(loss_of: Any, first: float) -> list[RateTrial]:
    trials = list[RateTrial]()
    while (rate := next_rate(trials, first)) is not None:
        assert all(rate != trial.learning_rate for trial in trials)
        trials.append(RateTrial(learning_rate=rate, loss=loss_of(rate), flops=1.0, directory=""))
    return trials


@given(st.floats(-2.4, 2.4), st.floats(0.01, 2), st.integers(-12, -6))
def test_the_lowest_point_of_a_parabola_is_found(off: float, steep: float, power: int) -> None:
    first = float(f"{2.0**power:.1e}")
    best = first * 2**off
    trials = search(lambda rate: 3 + steep * math.log2(rate / best) ** 2, first)
    assert len(trials) <= MOST - 1
    assert best_rate(trials) == pytest.approx(GROWS * best, rel=0.05), "to two digits"


def test_what_was_measured_on_two_models() -> None:
    """A tenth of the steps, and the best of all steps (`results/healing/sweeps.csv`)."""
    real = {6e-4: 3.952, 1.2e-3: 3.842, 2.4e-3: 3.824, 4.8e-3: 4.016}
    trials = search(lambda rate: real[round(rate, 5)], usual_rate(134_515_008, 131_072) / GROWS)
    assert [trial.learning_rate for trial in trials] == [1.2e-3, 2.4e-3, 4.8e-3]
    assert 2.4e-3 <= best_rate(trials) <= 4.8e-3
    # The parabola through 4.3013, 4.2851 and 4.2971 at 1.5e-3, 3e-3 and 6e-3.
    trials = search(
        lambda rate: 4.285 + 0.0141 * math.log2(rate / 3.16e-3) ** 2, usual_rate(185_120, 1_024) / GROWS
    )
    assert len(trials) == MOST and trials[0].learning_rate == 1.1e-4, "far off, as a step has few tokens"
    assert 6e-3 <= best_rate(trials) <= 1.2e-2


@given(st.floats(-3, 3), st.floats(0.01, 2), st.floats(-1, 3))
def test_no_rate_is_taken_at_which_a_loss_was_not_finite(off: float, steep: float, over: float) -> None:
    best, limit = 1e-3 * 2**off, 1e-3 * 2 ** (off + over)
    trials = search(lambda rate: None if rate > limit else 3 + steep * math.log2(rate / best) ** 2, 1e-3)
    diverged = [trial.learning_rate for trial in trials if trial.loss is None]
    assert len(trials) <= MOST and best_rate(trials) < min(diverged, default=math.inf)


def test_rates_whose_loss_is_not_finite_are_too_high() -> None:
    trials = search(lambda rate: 3.0 + rate if rate < 2e-3 else None, 8e-3)
    assert [trial.learning_rate for trial in trials][:4] == [8e-3, 4e-3, 2e-3, 5e-4] and len(trials) <= MOST
    with pytest.raises(UserError, match="at any learning rate that was tried, down to"):
        best_rate(search(lambda rate: None, 8e-3))


def test_a_smaller_step_has_a_smaller_rate() -> None:
    assert usual_rate(10**8, 131_072) == usual_rate(10**8, 10**6) == 2 * usual_rate(10**8, 131_072 // 4)
    assert usual_rate(10**9, 10**6) > usual_rate(10**10, 10**6)


def settings(data: Path, large: Path, **changes: Any) -> Recipe:
    own = {"steps": 50, "optimizer": AUTO, "schedule": {"warmup_steps": 10}, "validation": {"every": 50}}
    return recipe(
        data,
        reference={"pretrained": str(large)},
        grow={"max_rounds": 1},
        training=training(**own),
        **{"start_layers": 2, **changes},
    )


def test_a_run_finds_its_learning_rate(data: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    asked = settings(data, tmp_path / "large")
    directory = tmp_path / "run"
    summary = run(asked, directory)
    tried = load_rates(directory / RATES_FILE)
    assert (tried.layers, tried.steps) == (2, 5)
    assert summary.learning_rate == tried.learning_rate == best_rate(tried.trials)
    assert f"learning rate: {tried.learning_rate:.1e}, by " in capsys.readouterr().err
    highest = max(tried.trials, key=lambda trial: trial.learning_rate)
    best = min(tried.trials, key=lambda trial: trial.loss or math.inf)
    assert ("a still higher one may be better" in caplog.text) == (highest == best)
    only = summary.rounds[0]
    assert only.total_training_flops == pytest.approx(only.training_flops * (1 + len(tried.trials) / 10)), (
        "trials are paid"
    )
    assert summary.probe_flops == pytest.approx(sum(trial.flops for trial in tried.trials))
    rows = metrics.read(directory / only.directory / metrics.FILE)
    assert max(row["learning_rate"] for row in rows if row["kind"] == "train") == tried.learning_rate
    assert not list(directory.glob("rate-*/model")), "only their losses are wanted"
    kept = load_kept(directory / CHOICE)
    assert load_kept(directory / only.directory / CHOICE) == kept, (
        "the round begins with the cut that was tried"
    )

    # Each trial is the training that a recipe of so few steps at this rate describes.
    trial = tried.trials[0]
    alone = parse_recipe(
        {
            "data": {"path": str(data), "window": 32},
            "model": {"pretrained": str(tmp_path / "large")},
            "initialization": {"layers": kept.layers},
            "training": training(
                steps=5,
                optimizer={"learning_rate": trial.learning_rate},
                schedule={"warmup_steps": 1, "final_learning_rate": min(1e-5, trial.learning_rate / 10)},
            ),
        },
        TrainRecipe,
    )
    assert train_model(alone, tmp_path / "alone").mean == trial.loss
    page = write_report(directory).read_text("utf-8")
    assert "At each of these learning rates 2 layers were trained for 5 steps." in page
    assert f"{trial.learning_rate:.1e}" in page and f"{trial.loss:.3f}" in page

    (directory / "state.json").write_text('{"phase": "round", "round": 1}')
    assert run(asked, directory) == summary


@pytest.mark.parametrize(
    "changes",
    [{}, {"start_layers": "auto"}, {"distillation": {"draws": 20}}, {"search": "frugal"}],
    ids=["alone", "start", "draws", "frugal"],
)
def test_a_run_that_ends_while_it_tries_rates_resumes_there(
    data: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: Any
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    asked = settings(data, tmp_path / "large", **changes)
    number, step = 0, Stepper.__call__

    def call(self: Stepper, *rest: Any, **options: Any) -> Any:
        nonlocal number
        number += 1
        if number == 9:  # the fourth step of the second trial
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *rest, **options)

    with monkeypatch.context() as stopped, pytest.raises(Interrupted):
        stopped.setattr(Stepper, "__call__", call)
        run(asked, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / RATES_FILE).exists()
    again, whole = run(asked, tmp_path / "stopped"), run(asked, tmp_path / "whole")
    assert load_rates(tmp_path / "stopped" / RATES_FILE) == load_rates(tmp_path / "whole" / RATES_FILE)
    assert again.probe_flops == whole.probe_flops and again.rounds[0].loss == whole.rounds[0].loss
    total = again.first_flops + again.rounds[0].training_flops
    assert again.rounds[0].total_training_flops == pytest.approx(total)
    ours, theirs = (
        (tmp_path / name / "final/model.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert ours == theirs


def test_layers_are_chosen_once_where_start_and_rate_are_open(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    searches = []

    def counted(*arguments: Any) -> Any:
        searches.append(arguments)
        return search(*arguments)

    search = start_depth.kept_at
    monkeypatch.setattr(start_depth, "kept_at", counted)
    monkeypatch.setattr(running, "choose_kept", None)
    run(settings(data, tmp_path / "large", keep="measured", start_layers="auto"), tmp_path / "run")
    assert len(searches) == 1
    curve = load_forecast(tmp_path / "run/reference" / FORECAST).curve
    assert load_kept(tmp_path / "run" / CHOICE) == curve[0]


def test_a_rate_at_which_the_loss_is_not_finite(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    monkeypatch.setattr("inheritune.learning_rate.usual_rate", lambda *_: 2e-3)
    check = Stepper._check

    def fails(self: Stepper, result: Any) -> None:
        if result.learning_rate > 1.5e-3:
            raise NonFiniteError(f"the loss of step {result.step} is not finite", result.step)
        check(self, result)

    monkeypatch.setattr(Stepper, "_check", fails)
    summary = run(settings(data, tmp_path / "large"), tmp_path / "run")
    found = load_rates(tmp_path / "run" / RATES_FILE)
    losses = {trial.learning_rate: trial.loss for trial in found.trials}
    assert losses[2e-3] is None and losses[1e-3] is not None and found.learning_rate < 2e-3
    assert summary.rounds[0].steps == 50, "no round is trained at a rate that was seen to fail"
    paid = {trial.learning_rate: trial.flops for trial in found.trials}
    assert 0 < paid[2e-3] < paid[1e-3], "up to the step that failed"
    assert not list((tmp_path / "run").glob("rate-*/checkpoints"))


def test_a_rate_at_which_only_the_last_losses_are_not_finite(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    monkeypatch.setattr("inheritune.learning_rate.usual_rate", lambda *_: 2e-3)
    save = WindowLosses.save

    def fails(self: WindowLosses, path: Path) -> None:
        bad = (
            np.full_like(self.losses, np.nan) if path.parent.name.startswith("rate-2.0e-03") else self.losses
        )
        save(replace(self, losses=bad), path)

    monkeypatch.setattr(WindowLosses, "save", fails)
    run(settings(data, tmp_path / "large"), tmp_path / "run")
    found = {trial.learning_rate: trial for trial in load_rates(tmp_path / "run" / RATES_FILE).trials}
    assert found[2e-3].loss is None and found[2e-3].flops == found[1e-3].flops, "all steps were done"
    assert not list((tmp_path / "run").glob("rate-*/*/"))


def test_what_cannot_be_found_is_refused(data: Path, tmp_path: Path) -> None:
    few = training(optimizer=AUTO, schedule={"warmup_steps": 2})
    pretrained = {"pretrained": str(tmp_path / "large")}
    with pytest.raises(UserError, match=r"12 are too few for that: give a number, or 50 steps"):
        recipe(data, reference=pretrained, training=few)
    with pytest.raises(UserError, match=r"`reference\.training\.optimizer`"):
        recipe(data, training={**few, "steps": 50})
    reference = recipe(data).reference.model_dump(mode="json", exclude_none=True)
    own = {**reference, "training": {"optimizer": {"learning_rate": 1e-3}}}
    found = recipe(data, reference=own, training={**few, "steps": 50})
    assert found.training.optimizer.learning_rate == "auto"
    assert found.reference.training is not None and found.reference.training.optimizer.peak == 1e-3
    single = {"data": {"path": str(data)}, "model": pretrained, "training": few}
    with pytest.raises(UserError, match=r"learning_rate: auto` is for `inheritune run`"):
        parse_recipe(single, TrainRecipe)


def test_a_plan_has_the_trials(data: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    stages = plan(settings(data, tmp_path / "large")).stages
    (trials,) = (stage for stage in stages if stage.name == f"learning rate, up to {MOST} times 5 steps")
    assert trials.flops == pytest.approx(MOST * 0.1 * stages[-1].flops), (
        "the total is of the most there can be"
    )
    assert trials.epochs == pytest.approx(0.1 * stages[-1].epochs), "all read the same"
