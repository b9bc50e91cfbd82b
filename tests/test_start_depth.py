"""`start_layers: auto`: the smallest depth that short trainings say will be as good as the reference."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import RwkvConfig, RwkvForCausalLM

from handmade_attention import handmade_model
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.analysis.analyze import analyze
from inheritune.analysis.forecast import EASES, Forecast, Prediction, Probe, gain, load_forecast
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


def five(steps: int, shallow: int, deep: int) -> list[Probe]:
    return [
        Probe(layers=n, steps=times * steps, loss=0, flops=1.0, directory=f"probe-{n}-{times}")
        for n, times in ((shallow, 1), (shallow, 2), (shallow, 4), (deep, 1), (deep, 2))
    ]


def predicted(cuts: dict[int, float], losses: tuple[float, ...], steps: int = 360) -> dict[int, Prediction]:
    probes = five(steps // 20, min(cuts), max(cuts) if len(cuts) == 2 else 22)
    found = predict(a_forecast(cuts, steps), probes, [np.full(4, loss) for loss in losses])
    return {one.layers: one for one in found}


def test_gains_that_change_as_they_did_and_a_line_in_the_loss_at_the_cut_are_predicted_exactly() -> None:
    cuts = {15: 5.6, 18: 5.0, 22: 4.2, 29: 3.4}
    noise = np.random.Generator(np.random.PCG64(0)).normal(size=50)

    def truth(layers: int, doublings: float) -> np.ndarray:
        """The second doubling gains 0.7 times as much as the first, each later one 1.17 x 0.7 times the last."""
        gained = 0.7 * gain(2 ** (doublings - 1), EASES[1] * 0.7) / (EASES[1] * 0.7) if doublings > 1 else 0
        return 2.8 + 0.2 * cuts[layers] + 0.1 * cuts[layers] * (2 - min(doublings, 1) - gained) + noise

    probes = five(20, 15, 22)
    losses = [truth(probe.layers, np.log2(probe.steps / 20)) for probe in probes]
    for one in predict(a_forecast(cuts), probes, losses):
        assert one.loss == pytest.approx(truth(one.layers, np.log2(400 / 20)).mean())
        assert one.low < one.loss - 0.25 and one.high > one.loss + 0.25, "the windows alone leave this open"


def test_what_was_measured_on_a_real_model_is_on_a_line() -> None:
    """SmolLM2-135M, losses at the cut and after the same training; probes as long as the training itself."""
    after = {15: 3.392, 20: 3.166, 24: 3.007}
    probes = five(90, 15, 20)
    losses = [np.full(4, after[probe.layers]) for probe in probes]
    found = predict(a_forecast({15: 5.615, 20: 4.62, 24: 3.916}, steps=360), probes, losses)
    assert [one.loss for one in found] == pytest.approx(list(after.values()), abs=0.005)


def test_probes_of_a_real_model_predict_what_was_found() -> None:
    """SmolLM2-135M in 360 steps at a rate of 2.4e-3: cuts and probes, and whole trainings to 15, 17 and 20 layers."""
    cuts = {15: 5.621, 16: 5.407, 17: 5.331, 20: 4.724, 22: 4.407, 29: 3.574}
    found = predicted(cuts, (4.2014, 3.8260, 3.5937, 3.5946, 3.3709))
    for layers, loss in ((15, 3.2531), (15, 3.2630), (17, 3.1888), (20, 3.0960)):
        assert found[layers].loss == pytest.approx(loss, abs=0.03)
        assert found[layers].low < loss < found[layers].high
    assert found[15].loss > 3.2364 > found[16].loss, "the reference's loss, which 15 layers miss"


@pytest.mark.parametrize(
    ("losses", "after"),
    [
        ((4.3578, 4.3013, 4.2487), 4.0976),  # rates of 1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2
        ((4.3379, 4.2851, 4.2302), 4.0506),
        ((4.3536, 4.2971, 4.2348), 4.0219),
        ((4.4177, 4.3446, 4.2642), 4.0235),
        ((4.5204, 4.4447, 4.3606), 4.0857),
    ],
)
def test_gains_that_grow_at_first_predict_what_was_found(losses: tuple[float, ...], after: float) -> None:
    """A GPT-2 of 185K parameters, cut from 12 layers to 6; 350, 700, 1,400 and 7,000 steps."""
    found = predicted({6: 5.0, 9: 4.5}, (*losses, *losses[:2]), steps=7000)
    assert found[6].loss == pytest.approx(after, abs=0.05)
    assert found[6].low < after < found[6].high
    assert found[9].loss == pytest.approx(found[6].loss, abs=0.01), "its third probe was foretold"


@pytest.mark.parametrize(
    ("losses", "after"),
    [
        ((4.0, 4.0, 4.0), 4.0),  # no gain at all
        ((4.0, 4.1, 4.2), 4.2),  # more steps are worse: no training should be
        ((4.0, 3.9, 3.95), 3.95),
        ((9.0, 4.0, 3.9), 3.8),  # a ratio of 0.02: as 0.5
        ((4.01, 4.0, 3.9), 3.45),  # a ratio of 10: as 1.25
        ((4.0, 4.1, 4.0), 3.55),
    ],
)
def test_gains_that_are_none_or_out_of_proportion(losses: tuple[float, ...], after: float) -> None:
    found = predicted({2: 5.0, 3: 4.5}, (*losses, 3.9, 3.9))
    assert found[2].loss == pytest.approx(after, abs=0.01)
    assert found[3].loss == pytest.approx(3.9)
    assert all(one.low <= one.loss <= one.high for one in found.values())


def test_the_range_has_the_prediction_beyond_the_deep_probe_too() -> None:
    """There a shallow depth that gains much raises what is predicted."""
    found = predicted({15: 5.6, 22: 4.2, 28: 3.0}, (4.2, 3.8, 3.5, 3.3, 3.29))
    assert all(one.low <= one.loss <= one.high for one in found.values())


def test_cuts_that_are_alike_are_predicted_alike() -> None:
    found = predicted({2: 4.0, 3: 4.0}, (4.0, 3.9, 3.82, 4.0, 3.9))
    assert found[2].loss == pytest.approx(found[3].loss) and found[2].loss < 3.8


@pytest.mark.parametrize(
    ("target", "start", "warned"), [(2.9, 15, False), (2.8, 20, False), (2.6, 24, False), (2.5, 24, True)]
)
def test_the_smallest_depth_that_should_be_good_enough(
    tmp_path: Path, caplog: Any, target: float, start: int, warned: bool
) -> None:
    forecast = a_forecast({15: 5.0, 20: 4.0, 24: 3.5}, target=target)
    probes = five(20, 15, 20)
    for probe, loss in zip(probes, (3.4, 3.3, 3.2, 3.2, 3.1), strict=True):
        WindowLosses(np.full(4, loss), 32).save(tmp_path / probe.directory / "validation.json")
    (tmp_path / "reference").mkdir()
    path = tmp_path / "reference" / "forecast.json"
    # Both doublings of the steps gain 0.1; those from 80 to 400, each 1.17 times as much as the one before, 0.302.
    assert conclude(path, forecast, probes).start == start
    assert load_forecast(path).start == start
    assert ("no depth is expected to reach a loss of" in caplog.text) == warned


def test_probes_are_the_training_in_short() -> None:
    settings = parse_recipe(
        {"steps": 1000, "schedule": {"warmup_steps": 200}, "checkpoints": {"every": 100}}, Training
    )
    found = probe_trainings(30, settings)
    assert [(layers, short.steps, short.schedule.warmup_steps) for layers, short in found] == [
        *[(15, 50, 10), (15, 100, 20), (15, 200, 40)],
        *[(22, 50, 10), (22, 100, 20)],
    ]
    assert {layers for layers, _ in probe_trainings(3, settings)} == {1, 2}
    assert probe_trainings(2, settings) == []
    shortest = parse_recipe({"steps": 4, "schedule": {"warmup_steps": 0}}, Training)
    assert [short.steps for _, short in probe_trainings(4, shortest)] == [1, 2, 4, 1, 2]


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
    assert [(p.layers, p.steps) for p in forecast.probes] == [(2, 2), (2, 4), (2, 8), (3, 2), (3, 4)]
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


def test_runs_that_began_with_four_probes_go_on(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Before the shallow depth had a third one: what is not concluded trains it, what is stays as it is."""
    tiny_model("llama").save_pretrained(tmp_path / "large")
    pretrained = {"pretrained": str(tmp_path / "large")}
    settings = recipe(data, reference=pretrained, start_layers="auto", training=training(steps=40))
    directory, path = tmp_path / "run", tmp_path / "run/reference/forecast.json"
    with monkeypatch.context() as patch:
        patch.setattr("inheritune.start_depth.probe_trainings", four_trainings)
        patch.setattr("inheritune.start_depth.conclude", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(settings, directory)
    assert len(list(directory.glob("probe-*"))) == 4 and load_forecast(path).start is None
    steps, step = 0, Stepper.__call__

    def call(self: Stepper, *rest: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(self, *rest, **options)

    monkeypatch.setattr(Stepper, "__call__", call)
    summary = run(settings, directory)
    assert steps == 8 + 40 * len(summary.rounds), "the missing probe, and the rounds"
    now = load_forecast(path)
    assert len(now.probes) == 5

    before = now.model_copy(update={"probes": tuple(p for p in now.probes if p.steps < 8)})
    save(path, before)
    shutil.rmtree(directory / "probe-2-layers-8-steps")
    (directory / "state.json").write_text('{"phase": "round", "round": 1}')
    again = run(settings, directory)
    assert steps == 8 + 40 * len(summary.rounds), "nothing is trained again"
    assert again.predicted == summary.predicted and again.verdict == summary.verdict
    assert load_forecast(path) == before


def four_trainings(depth: int, training: Training) -> list[tuple[int, Training]]:
    return [probe for probe in probe_trainings(depth, training) if probe[1].steps < 8]


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


@pytest.mark.parametrize("begun", [True, False])
def test_a_first_round_that_has_begun_without_a_forecast_keeps_its_layers(
    data: Path, tmp_path: Path, begun: bool
) -> None:
    """An analysis beside the reference says nothing of where to begin."""
    model = handmade_model([(), (), (), range(4)])
    model.save_pretrained(tmp_path / "large")
    directory = tmp_path / "run"
    settings = recipe(data, reference={"pretrained": str(tmp_path / "large")}, start_layers="auto")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("inheritune.algorithm.first_depth", lambda *_: 1 / 0)
        run(settings, directory)
    save_analyses(directory / "reference/analysis.json", [analyze(model, data, window=32, sequences=2)])
    if begun:
        (directory / "round-1-3-layers").mkdir()
    layers = run(settings, directory).rounds[0].layers
    assert (directory / "reference/forecast.json").exists() is not begun
    assert layers == 3 or not begun


def test_too_few_steps_for_probes(data: Path) -> None:
    with pytest.raises(
        UserError, match=r"`training\.steps` of 3 are too few for that: give a number, or 4 steps"
    ):
        recipe(data, start_layers="auto", training={"steps": 3, "schedule": {"warmup_steps": 0}})


@pytest.mark.parametrize("changes", [{"start_layers": "auto"}, {"keep": "measured", "start_layers": 2}])
def test_a_reference_whose_cuts_cannot_be_measured_is_refused_before_it_is_trained(
    changes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    architecture = {
        "model_type": "rwkv",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "attention_hidden_size": 32,
        "rescale_every": 2,
    }
    settings = recipe(data, reference={"architecture": architecture}, **changes)
    with pytest.raises(UserError, match="'rwkv' model: its blocks cannot be run apart"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run/reference").exists()


def test_a_pretrained_reference_whose_cuts_cannot_be_measured_is_refused_before_it_is_corrected(
    data: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "attention_hidden_size": 32, "vocab_size": 256}
    RwkvForCausalLM(RwkvConfig(**sizes, rescale_every=2)).save_pretrained(tmp_path / "large")
    settings = recipe(
        data,
        reference={"pretrained": str(tmp_path / "large")},
        start_layers=2,
        distillation={"corrected": True},
    )
    with pytest.raises(UserError, match="'rwkv' model: its blocks cannot be run apart"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run/teacher").exists()


def test_a_damaged_forecast_is_named(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    path.write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"forecast\.json is not a forecast of format 1"):
        load_forecast(path)
    save(path, a_forecast({2: 4.0}))
    assert load_forecast(path) == a_forecast({2: 4.0})


def test_a_plan_has_the_probes(data: Path) -> None:
    planned = plan(recipe(data, start_layers="auto", training=training(steps=40)))
    assert [stage.name for stage in planned.stages][1:6] == [
        "probe, 2 layers, 2 steps",
        "probe, 2 layers, 4 steps",
        "probe, 2 layers, 8 steps",
        "probe, 3 layers, 2 steps",
        "probe, 3 layers, 4 steps",
    ]
    rounds = {stage.layers: stage.flops for stage in planned.stages if stage.name.startswith("round")}
    assert planned.stages[2].flops == pytest.approx(rounds[2] / 10)
