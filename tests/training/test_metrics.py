"""Where the lines of `metrics.jsonl` are copied to."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny_data
from inheritune import UserError
from inheritune.config import TrainRecipe
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.signals import Interrupted
from inheritune.train import train_model
from tiny_recipes import ARCHITECTURE, stop_after, training


class _Wandb(SimpleNamespace):
    """In place of the module: it remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__(started=[], lines=[], finished=0)

    def init(self, **settings: Any) -> _Wandb:
        self.started.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> _Wandb:
    module = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    return module


def recipe(data: Path, **changes: Any) -> TrainRecipe:
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"architecture": ARCHITECTURE},
        "training": training(wandb="small-models", **changes),
    }
    return parse_recipe(values, TrainRecipe)


def test_a_training_that_continues_is_one_run_of_wandb(
    tmp_path: Path, wandb: _Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data.write_shards(tmp_path / "data")
    settings = recipe(data)
    with monkeypatch.context() as stopped, pytest.raises(Interrupted):
        stop_after(stopped, 5)
        train_model(settings, tmp_path / "one")
    train_model(settings, tmp_path / "one")
    first, second = wandb.started
    assert first == second
    assert first["resume"] == "allow"
    assert first["project"] == "small-models"
    assert first["name"] == "one"
    assert first["config"] == settings.training.model_dump(mode="json")
    assert first["config"]["optimizer"]["weight_decay"] == 0.1
    assert wandb.finished == 2
    assert [step for step, values in wandb.lines if "train/loss" in values] == [2, 4, 6, 8, 10, 12]
    train_model(settings, tmp_path / "two")
    assert wandb.started[-1]["id"] != first["id"], "another training is another run"


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="asks for `wandb`, which is not installed"):
        train_model(recipe(tiny_data.write_shards(tmp_path / "data")), tmp_path / "one")
