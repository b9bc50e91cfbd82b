"""Where the lines of `metrics.jsonl` are copied to, and what differences are worth by them."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tiny_data
from inheritune import UserError
from inheritune.config import TrainRecipe
from inheritune.recipe_file import load_recipe, parse_recipe
from inheritune.runtime.progress import ProgressBar
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.training.metrics import FILE, read, steps_worth
from inheritune.training.step import Stepper
from tiny_recipes import ARCHITECTURE, stop_after, training


class _Tracker(SimpleNamespace):
    """In place of the module: it remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__(started=[], lines=[], finished=0)

    def init(self, **settings: Any) -> _Tracker:
        self.started.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1


LIBRARIES = pytest.mark.parametrize("library", ["wandb", "trackio"])


def recipe(data: Path, library: str) -> TrainRecipe:
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"architecture": ARCHITECTURE},
        "training": training(tracking={"tensorboard": False, library: "small-models"}),
    }
    return parse_recipe(values, TrainRecipe)


def test_the_progress_line_has_the_loss_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: dict[int, str] = {}

    class Bar(ProgressBar):
        def update(self, done: int, note: str = "", total: int | None = None) -> None:
            super().update(done, note, total)
            notes[done] = note

    monkeypatch.setattr("inheritune.training.loop.ProgressBar", Bar)
    values = {
        "data": {"path": str(tiny_data.write_shards(tmp_path / "data")), "window": 32},
        "model": {"architecture": ARCHITECTURE},
        "training": training(log_every=12),
    }
    train_model(parse_recipe(values, TrainRecipe), tmp_path / "run")
    shown = [float(notes[step].removeprefix("loss ")) for step in range(1, 12)]
    assert len(set(shown)) == 11, "however seldom it is written down"


def test_a_line_counts_the_time_that_its_numbers_were_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a step is not done when the host has asked for it."""
    waited = 0.0

    def wait(stepper: Stepper) -> None:
        nonlocal waited
        time.sleep(0.03)
        waited += 0.03

    monkeypatch.setattr(Stepper, "check_last", wait)
    values = {
        "data": {"path": str(tiny_data.write_shards(tmp_path / "data")), "window": 32},
        "model": {"architecture": ARCHITECTURE},
        "training": training(log_every=1, validation={"every": 12}),
    }
    train_model(parse_recipe(values, TrainRecipe), tmp_path / "run")
    rows = [row for row in read(tmp_path / "run" / FILE) if row["kind"] == "train"]
    assert len(rows) == 12 and rows[-1]["seconds"] >= waited >= 12 * 0.03
    assert all(row["tokens_per_second"] <= rows[0]["tokens"] / 0.03 for row in rows)


def train_in_two_starts(settings: TrainRecipe, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped, pytest.raises(Interrupted):
        stop_after(stopped, 5)
        train_model(settings, directory)
    train_model(settings, directory)


@LIBRARIES
def test_a_training_that_is_resumed_is_one_run_there(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _Tracker()
    monkeypatch.setitem(sys.modules, library, module)  # type: ignore[arg-type]
    settings = recipe(tiny_data.write_shards(tmp_path / "data"), library)
    train_in_two_starts(settings, tmp_path / "one", monkeypatch)
    first, second = module.started
    assert first == second
    assert first["resume"] == "allow"
    assert first["project"] == "small-models"
    assert first["name"].startswith("one")
    assert first["config"] == settings.training.model_dump(mode="json")
    assert first["config"]["optimizer"]["weight_decay"] == 0.1
    assert module.finished == 2
    assert [step for step, values in module.lines if "train/loss" in values] == [2, 4, 6, 8, 10, 12]
    train_model(settings, tmp_path / "two/one")
    assert [module.started[-1].get(key) for key in ("id", "name")] != [first.get("id"), first["name"]]


@LIBRARIES
def test_a_library_that_is_not_installed(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"asks for `{library}`, which is not installed"):
        train_model(recipe(tiny_data.write_shards(tmp_path / "data"), library), tmp_path / "one")


def test_weights_and_biases_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = tmp_path / "one"
    train_in_two_starts(recipe(tiny_data.write_shards(tmp_path / "data"), "wandb"), directory, monkeypatch)
    run = (directory / "wandb-run").read_text()
    files = sorted((directory / "wandb").glob(f"offline-run-*-{run}/run-{run}.wandb"))
    assert len(files) == 2, "each start writes a file of the same run"
    assert all(b"train/loss" in file.read_bytes() for file in files)


def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    directory = tmp_path / "one"
    train_in_two_starts(recipe(tiny_data.write_shards(tmp_path / "data"), "trackio"), directory, monkeypatch)
    run = f"one-{(directory / 'trackio-run').read_text()}"
    with sqlite3.connect(tmp_path / "trackio/small-models.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _, _ in rows} == {run}
    copied = [(step, json.loads(metrics)) for _, step, metrics in rows]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    assert [(step, values["train/loss"]) for step, values in copied if "train/loss" in values] == expected


def test_a_run_with_the_keys_of_version_0_1_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _Tracker()
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    settings = recipe(tiny_data.write_shards(tmp_path / "data"), "wandb")
    directory = tmp_path / "one"
    with monkeypatch.context() as stopped, pytest.raises(Interrupted):
        stop_after(stopped, 5)
        train_model(settings, directory)
    written = yaml.safe_load((directory / "recipe.yaml").read_text())
    tracking = written["training"].pop("tracking")
    old = {key: tracking[key] for key in ("tensorboard", "wandb")}
    (directory / "recipe.yaml").write_text(
        yaml.safe_dump({**written, "training": {**written["training"], **old}})
    )
    train_model(load_recipe(directory / "recipe.yaml", TrainRecipe), directory)
    assert [step for step, values in module.lines if "train/loss" in values] == [2, 4, 6, 8, 10, 12]


def curve(losses: dict[int, float]) -> list[dict[str, Any]]:
    rows = [{"kind": "validation", "step": step, "loss": loss} for step, loss in losses.items()]
    return [{"kind": "train", "step": 1, "loss": -99.0}, *rows]


LINE = {step: 5 - 0.01 * step for step in range(0, 101, 5)}


@given(share=st.floats(0.01, 0.99))
def test_on_a_straight_line_a_difference_is_worth_the_same_steps_in_both_directions(share: float) -> None:
    steps = max(1, round(share * 100))
    assert steps_worth(curve(LINE), 0.01 * steps) == pytest.approx(steps, abs=1)
    assert steps_worth(curve(LINE), -0.01 * steps) == pytest.approx(steps, abs=1)


def test_what_is_ahead_counts_from_the_last_time_it_was_behind() -> None:
    losses = {0: 5.0, 10: 3.0, 20: 4.0, 30: 3.2, 40: 3.0}
    assert steps_worth(curve(losses), -0.5) == 40 - (20 + round((4.0 - 3.5) / 0.8 * 10))


def test_what_is_behind_goes_by_the_last_quarter() -> None:
    bent = {step: 5 - 0.1 * step for step in range(0, 70, 10)} | {70: -1.1, 80: -1.2, 90: -1.3, 100: -1.4}
    assert steps_worth(curve(bent), 0.2) == 20
    assert steps_worth(curve({0: 9.0, 50: 4.0, 75: 3.5, 100: 3.0}), 1.0) == 50, "or by three"


@pytest.mark.parametrize(
    ("losses", "difference"),
    [
        ({}, 0.1),
        ({100: 2.0}, 0.1),
        ({100: 2.0}, -0.1),
        (LINE, 0.0),
        (LINE, 10.1),  # more than ten such trainings
        (LINE, -1.01),  # ahead all along
        ({0: 5.0, 40: 4.0, 90: 3.1, 100: 3.0}, 0.1),  # two validations are no scatter
        (dict.fromkeys(range(0, 101, 5), 3.0), 0.1),
        ({step: 3.0 + 0.01 * step for step in range(0, 101, 5)}, 0.1),
        ({**LINE, 80: 4.1, 85: 4.3, 90: 4.05, 95: 4.3, 100: 4.0}, 0.1),  # its fall may be chance
    ],
)
def test_nothing_is_said_where_the_curve_does_not_say_it(losses: dict[int, float], difference: float) -> None:
    assert steps_worth(curve(losses), difference) is None
