"""`distillation.corrected`: a reference that is trained on the text before it teaches."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from inheritune.algorithm import run
from inheritune.config import Recipe, Training, TrainRecipe
from inheritune.corrected_teacher import teacher_training
from inheritune.models.load import load_config
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.run_directory import RunDirectory
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.training.step import Stepper
from tiny_data import write_shards
from tiny_models import tiny_model
from tiny_recipes import recipe, training


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    return write_shards(tmp_path / "data")


def settings(data: Path, corrected: bool | int = 6, **distillation: Any) -> Recipe:
    return recipe(
        data,
        reference={"pretrained": str(data.parent / "large"), "training_tokens": 10_000},
        start_layers=2,
        keep="first",
        grow={"max_rounds": 1},
        distillation={"corrected": corrected, **distillation},
    )


def weights(directory: Path) -> bytes:
    return (directory / "model" / "model.safetensors").read_bytes()


def alone(data: Path, **changes: Any) -> TrainRecipe:
    large = str(data.parent / "large")
    return parse_recipe(
        {"data": {"path": str(data), "window": 32}, "model": {"pretrained": large}, **changes}, TrainRecipe
    )


def test_the_rounds_learn_from_the_reference_that_was_trained_on(data: Path, tmp_path: Path) -> None:
    summary = run(settings(data), tmp_path / "run")
    directory, only = tmp_path / "run", summary.rounds[0]
    schedule = {"warmup_steps": 1, "final_learning_rate": 3e-3 / 40}
    short = training(steps=6, optimizer={"learning_rate": 3e-3 / 4}, schedule=schedule)
    train_model(alone(data, training=short), tmp_path / "teacher")
    assert weights(directory / "teacher") == weights(tmp_path / "teacher")
    student = alone(
        data,
        initialization={"layers": "first 2"},
        distillation={"teacher": {"pretrained": str(tmp_path / "teacher" / "model")}},
        training=training(),
    )
    train_model(student, tmp_path / "student")
    assert weights(directory / only.directory) == weights(tmp_path / "student")
    assert (
        summary.teacher_flops > 0 and only.total_training_flops == summary.teacher_flops + only.training_flops
    )
    planned = {stage.name: stage for stage in plan(settings(data)).stages}
    long = settings(data, corrected=True).model_copy(
        update={"training": parse_recipe(training(checkpoints={"every": 3}), Training)}
    )
    taught = teacher_training(long, load_config(settings(data).reference.trained))
    assert taught is not None and taught.checkpoints.every == 3, "as often as a round"
    assert planned["teacher"].steps == 6 and planned["teacher"].flops == pytest.approx(summary.teacher_flops)
    (directory / "state.json").write_text('{"phase": "round", "round": 1}')
    assert run(settings(data), directory) == summary


def test_a_corrected_teacher_is_asked_once(data: Path, tmp_path: Path) -> None:
    summary = run(settings(data, corrected=True, draws=20), tmp_path / "run")
    only = summary.rounds[0]
    earlier = summary.teacher_flops + summary.answers_flops
    assert summary.answers_flops and only.total_training_flops == earlier + only.training_flops
    others = run(settings(data, corrected=False, draws=20), tmp_path / "others")
    assert others.teacher_flops == 0 and not (tmp_path / "others/teacher").exists()
    assert weights(tmp_path / "run" / only.directory) != weights(tmp_path / "others" / only.directory)


def test_a_run_that_ends_while_its_teacher_is_trained_resumes_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(settings(data), tmp_path / "whole")
    original = Stepper.__call__

    def call(self: Stepper, number: int, *rest: Any, **options: Any) -> Any:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *rest, **options)

    with monkeypatch.context() as stopped, pytest.raises(Interrupted):
        stopped.setattr(Stepper, "__call__", call)
        run(settings(data), tmp_path / "stopped")
    assert list((tmp_path / "stopped/teacher/checkpoints").iterdir())
    state = json.loads((tmp_path / "stopped/state.json").read_bytes())
    assert state["phase"] == "preparation", "the reference is known"
    assert RunDirectory(tmp_path / "stopped").read_summary().reference is not None
    assert run(settings(data), tmp_path / "stopped").rounds[0].loss == whole.rounds[0].loss
