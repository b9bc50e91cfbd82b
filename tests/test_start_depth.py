"""`start_layers: auto`: the smallest depth that short trainings say will be as good as the reference."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handmade_attention import handmade_model
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.analysis.analyze import analyze
from inheritune.analysis.forecast import SHRINKS, Forecast, Probe, load_forecast
from inheritune.analysis.kept import Kept, load_kept, save
from inheritune.analysis.result import save_analyses
from inheritune.config import Training
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.signals import Interrupted
from inheritune.start_depth import conclude, predict, probe_trainings
from inheritune.training.step import Stepper
from inheritune.training.validation import WindowLosses
from tiny_data import write_shards
from tiny_models import tiny_model
from tiny_recipes import recipe, training

NEVER = {"margin": -1e9}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def a_forecast(cuts: dict[int, float], steps: int = 400, target: float = 0.0) -> Forecast:
    curve = [Kept(keep="list", layers=list(range(n)), of_layers=30, loss=loss) for n, loss in cuts.items()]
    return Forecast(curve=curve, steps=steps, target=target)


def four(steps: int, shallow: int, deep: int) -> list[Probe]:
    return [
        Probe(layers=n, steps=times * steps, loss=0, flops=1.0, directory=f"probe-{n}-{times}")
        for n in (shallow, deep)
        for times in (1, 2)
    ]


def test_a_power_law_in_tokens_and_a_line_in_the_loss_at_the_cut_are_predicted_exactly() -> None:
    cuts = {15: 5.6, 18: 5.0, 22: 4.2, 29: 3.4}
    noise = np.random.Generator(np.random.PCG64(0)).normal(size=50)

    def truth(layers: int, steps: int) -> np.ndarray:
        return 2.8 + 0.2 * cuts[layers] + (0.5 + 0.3 * cuts[layers]) * steps ** np.log2(SHRINKS) + noise

    probes = four(20, 15, 22)
    found = predict(a_forecast(cuts), probes, [truth(p.layers, p.steps) for p in probes])
    for one in found:
        assert one.loss == pytest.approx(truth(one.layers, 400).mean())
        assert one.low < one.loss - 0.25 and one.high > one.loss + 0.25, "the windows alone leave this open"


def test_what_was_measured_on_a_real_model_is_on_a_line() -> None:
    """SmolLM2-135M, losses at the cut and after the same training; probes as long as the training itself."""
    after = {15: 3.392, 20: 3.166, 24: 3.007}
    probes = four(180, 15, 20)
    losses = [np.full(4, after[probe.layers]) for probe in probes]
    found = predict(a_forecast({15: 5.615, 20: 4.62, 24: 3.916}, steps=360), probes, losses)
    assert [one.loss for one in found] == pytest.approx(list(after.values()), abs=0.005)


def test_cuts_that_are_alike_are_predicted_alike() -> None:
    probes = four(20, 2, 3)
    found = predict(a_forecast({2: 4.0, 3: 4.0}), probes, [np.full(4, loss) for loss in (4.0, 3.9, 4.0, 3.9)])
    assert found[0].loss == found[1].loss < 3.9


@pytest.mark.parametrize(
    ("target", "start", "warned"), [(3.1, 15, False), (2.9, 20, False), (2.8, 24, False), (2.7, 24, True)]
)
def test_the_smallest_depth_that_should_be_good_enough(
    tmp_path: Path, caplog: Any, target: float, start: int, warned: bool
) -> None:
    forecast = a_forecast({15: 5.0, 20: 4.0, 24: 3.5}, target=target)
    probes = four(20, 15, 20)
    for probe, loss in zip(probes, (3.4, 3.3, 3.2, 3.1), strict=True):
        WindowLosses(np.full(4, loss), 32).save(tmp_path / probe.directory / "validation.json")
    (tmp_path / "reference").mkdir()
    path = tmp_path / "reference" / "forecast.json"
    # Twice the tokens gain 0.1, ten times as many 0.22 more.
    assert conclude(path, forecast, probes).start == start
    assert load_forecast(path).start == start
    assert ("no depth is expected to reach a loss of" in caplog.text) == warned


def test_probes_are_the_training_in_short() -> None:
    settings = parse_recipe(
        {"steps": 1000, "schedule": {"warmup_steps": 200}, "checkpoints": {"every": 100}}, Training
    )
    found = probe_trainings(30, settings)
    assert [(layers, short.steps, short.schedule.warmup_steps) for layers, short in found] == [
        *[(15, 50, 10), (15, 100, 20)],
        *[(22, 50, 10), (22, 100, 20)],
    ]
    assert {layers for layers, _ in probe_trainings(3, settings)} == {1, 2}
    assert probe_trainings(2, settings) == []
    shortest = parse_recipe({"steps": 1, "schedule": {"warmup_steps": 0}}, Training)
    assert [short.steps for _, short in probe_trainings(4, shortest)] == [1, 2, 1, 2]


def test_a_run_starts_where_its_probes_say(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    settings = recipe(
        data,
        reference={"pretrained": str(tmp_path / "large"), "training_tokens": 10_000},
        start_layers="auto",
        grow={"layers": 1},
        parity=NEVER,
        training=training(steps=40),
    )
    directory = tmp_path / "run"
    summary = run(settings, directory)
    forecast = load_forecast(directory / "reference/forecast.json")
    assert [len(kept.layers) for kept in forecast.curve] == [2, 3]
    assert [(p.layers, p.steps) for p in forecast.probes] == [(2, 2), (2, 4), (3, 2), (3, 4)]
    assert forecast.start == summary.rounds[0].layers == 3, (
        "nothing reaches such a loss: the deepest is tried"
    )
    only = summary.rounds[0]
    probes = [json.loads((directory / p.directory / "training.json").read_text()) for p in forecast.probes]
    assert only.total_training_flops == only.training_flops + sum(probe["flops"] for probe in probes)
    assert only.predicted == forecast.depths[1].loss
    assert f"off by {only.predicted - only.loss:+.3f}" in capsys.readouterr().err
    assert load_kept(directory / only.directory / "choice.json") == forecast.curve[1]
    assert not list(directory.glob("probe-*/model")), "only their losses are wanted"

    (directory / "state.json").write_text('{"phase": "round", "round": 1}')
    monkeypatch.setattr("inheritune.start_depth.kept_at", lambda *_: pytest.fail("it is recorded"))
    assert run(settings, directory) == summary


def test_a_run_that_ends_in_a_probe_resumes_there(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    pretrained = {"pretrained": str(tmp_path / "large")}
    settings = recipe(data, reference=pretrained, start_layers="auto", training=training(steps=40))
    whole = run(settings, tmp_path / "whole")
    number, step = 0, Stepper.__call__

    def call(self: Stepper, *rest: Any, **options: Any) -> Any:
        nonlocal number
        number += 1
        if number == 5:  # the third of the four steps of the second probe
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *rest, **options)

    monkeypatch.setattr(Stepper, "__call__", call)
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "stopped")
    assert (tmp_path / "stopped/probe-2-layers-4-steps/checkpoints/step-0000003").is_dir()
    assert load_forecast(tmp_path / "stopped/reference/forecast.json").start is None
    monkeypatch.setattr("inheritune.start_depth.kept_at", lambda *_: pytest.fail("the curve is recorded"))
    again = run(settings, tmp_path / "stopped")
    assert again.predicted == whole.predicted and again.rounds[0].loss == whole.rounds[0].loss
    ours, theirs = (
        (tmp_path / name / "final/model.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert ours == theirs


def test_growth_between_trained_layers_is_not_what_was_predicted(data: Path, tmp_path: Path) -> None:
    settings = recipe(
        data, start_layers="auto", grow={"layers": 1, "mode": "append"}, parity={"margin": -0.01}
    )
    directory = tmp_path / "run"
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("inheritune.start_depth.predict", low_for_all)
        patch.setattr("inheritune.algorithm.verdict", two_rounds)
        summary = run(settings, directory)
    assert [(entry.layers, entry.predicted) for entry in summary.rounds] == [(2, -1.0), (3, None)]


def low_for_all(forecast: Forecast, *_: Any) -> list[Any]:
    from inheritune.analysis.forecast import Prediction

    return [Prediction(layers=len(k.layers), loss=-1, low=-1, high=-1) for k in forecast.curve]


def two_rounds(figures: Any, *_: Any) -> str | None:
    return "no parity" if figures.round == 2 else None


def test_a_reference_of_two_layers_has_one_cut(data: Path, tmp_path: Path) -> None:
    architecture = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}
    summary = run(
        recipe(data, reference={"architecture": architecture}, start_layers="auto"), tmp_path / "run"
    )
    assert summary.rounds[0].layers == 1 and summary.rounds[0].predicted is None
    assert not list((tmp_path / "run").glob("probe-*"))


def test_an_unfinished_run_that_went_by_lazy_layers_keeps_what_it_has(data: Path, tmp_path: Path) -> None:
    model = handmade_model([(), (), (), range(4)])
    model.save_pretrained(tmp_path / "large")
    found = analyze(model, data, window=32, sequences=2)
    assert found.cut.suggested == 3
    directory = tmp_path / "run"
    (directory / "reference").mkdir(parents=True)
    settings = recipe(data, reference={"pretrained": str(tmp_path / "large")}, start_layers="auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inheritune.algorithm.first_depth", lambda *_: 1 / 0)
        directory.joinpath("reference").rmdir()
        directory.rmdir()
        with pytest.raises(ZeroDivisionError):
            run(settings, directory)
    save_analyses(directory / "reference/analysis.json", [found])
    assert run(settings, directory).rounds[0].layers == 3
    assert not (directory / "reference/forecast.json").exists()


def test_a_reference_whose_cuts_cannot_be_measured_is_refused_before_it_is_trained(
    data: Path, tmp_path: Path
) -> None:
    architecture = {
        "model_type": "rwkv",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "attention_hidden_size": 32,
        "rescale_every": 2,
    }
    settings = recipe(data, start_layers="auto", reference={"architecture": architecture})
    with pytest.raises(UserError, match="'rwkv' model: its blocks cannot be run apart"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run/reference").exists()


def test_a_damaged_forecast_is_named(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    path.write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"forecast\.json is not a forecast of format 1"):
        load_forecast(path)
    save(path, a_forecast({2: 4.0}))
    assert load_forecast(path) == a_forecast({2: 4.0})


def test_a_plan_has_the_probes(data: Path) -> None:
    planned = plan(recipe(data, start_layers="auto", training=training(steps=40)))
    assert [stage.name for stage in planned.stages][1:5] == [
        "probe, 2 layers, 2 steps",
        "probe, 2 layers, 4 steps",
        "probe, 3 layers, 2 steps",
        "probe, 3 layers, 4 steps",
    ]
    rounds = {stage.layers: stage.flops for stage in planned.stages if stage.name.startswith("round")}
    assert planned.stages[2].flops == pytest.approx(rounds[2] / 10)
