"""Which layers are kept: in recipes, from the command line, from Python."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import typer
import yaml
from click.testing import Result
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import inheritune
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.analysis import layers as layers_module
from inheritune.analysis.kept import load_kept
from inheritune.cli.inherit import inherit_command
from inheritune.config import Recipe, TrainRecipe
from inheritune.initialization import select
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.single_model import train_model
from inheritune.training.step import Stepper
from tiny_data import write_shards
from tiny_models import LAYERS, tiny_model
from tiny_recipes import recipe, training, values


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model whose blocks all matter, as a checkpoint."""
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(tmp_path / "large")
    return tmp_path / "large"


NEVER = {"margin": -1e9}
"""A parity that is not reached."""


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_default_is_measured_for_a_pretrained_reference_and_the_papers_for_others(data, large) -> None:
    assert recipe(data).keep == "first"
    assert recipe(data, reference={"pretrained": str(large)}).keep == "measured"
    assert recipe(data, keep="ends").keep == "ends"
    assert recipe(data, keep=[0, 3], start_layers=2).keep == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "best"}, "`keep` is 'best'"),
        ({"keep": "spread", "grow": {"mode": "append"}}, "other layers at each depth"),
        ({"keep": [0, 1], "start_layers": 3}, "`keep` lists 2 layers, but `start_layers` is 3"),
    ],
)
def test_rules_that_cannot_be(data: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(data, **changes)


@pytest.mark.parametrize("keep", ["measured", "contiguous", [0, 3]])
@pytest.mark.parametrize("mode", ["append", "reinherit"])
def test_a_run_records_what_it_kept(data: Path, large: Path, tmp_path: Path, keep, mode: str) -> None:
    settings = recipe(
        data,
        reference={"pretrained": str(large)},
        keep=keep,
        start_layers=2,
        grow={"layers": 1, "mode": mode, "max_rounds": 2},
        parity=NEVER,
    )
    summary = run(settings, tmp_path / "run")
    first, second = (
        load_kept(tmp_path / "run" / figures.directory / "choice.json") for figures in summary.rounds
    )
    assert [figures.kept for figures in summary.rounds] == [first.layers, second.layers]
    assert len(first.layers) == 2 and len(second.layers) == 3
    if mode == "append" or keep == [0, 3]:
        assert set(first.layers) < set(second.layers)
    card = (tmp_path / "run/final/README.md").read_text("utf-8")
    if second.layers != [0, 1, 2]:
        assert f"Layers {', '.join(map(str, second.layers))} of 4 layers" in card
    assert run(settings, tmp_path / "run") == summary


def test_rounds_start_from_the_blocks_that_were_kept(
    data: Path, large: Path, tmp_path: Path, monkeypatch
) -> None:
    from inheritune import running

    given: list[PreTrainedModel] = []
    real = running.check_tied
    monkeypatch.setattr(running, "check_tied", lambda model: (given.append(model), real(model)))
    settings = recipe(
        data,
        reference={"pretrained": str(large)},
        keep="ends",
        start_layers=2,
        grow={"layers": 1, "max_rounds": 1},
        parity=NEVER,
    )
    with monkeypatch.context() as patch:
        patch.setattr(running, "train", lambda first_weights, *rest, **options: (first_weights(), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run(settings, tmp_path / "run")
    assert same(given[0], select(large, [0, 3]))


def test_a_run_of_a_version_that_kept_the_first_layers_resumes_as_such(data, large, tmp_path) -> None:
    changes = {"reference": {"pretrained": str(large)}, "start_layers": 3, "grow": {"layers": 1}}
    run(recipe(data, keep="first", **changes), tmp_path / "run")
    path = tmp_path / "run/recipe.yaml"
    old = yaml.safe_load(path.read_text("utf-8"))
    del old["keep"]
    path.write_text(yaml.safe_dump(old), "utf-8")
    with pytest.raises(UserError, match="keep: first -> measured"):
        run(recipe(data, **changes), tmp_path / "run")
    assert run(recipe(data, keep="first", **changes), tmp_path / "run").rounds


@pytest.mark.parametrize("layers", ["measured 2", "contiguous 2"])
def test_a_single_training_measures_what_it_keeps(
    data: Path, large: Path, tmp_path: Path, layers: str
) -> None:
    wanted = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(large)},
        "initialization": {"layers": layers},
        "training": training(),
    }
    settings = parse_recipe(wanted, TrainRecipe)
    losses = train_model(settings, tmp_path / "one")
    kept = load_kept(tmp_path / "one/choice.json")
    assert kept.keep == layers.split(maxsplit=1)[0] and len(kept.layers) == 2
    listed = parse_recipe({**wanted, "initialization": {"layers": kept.layers}}, TrainRecipe)
    assert train_model(listed, tmp_path / "two").losses.tolist() == losses.losses.tolist()


def test_what_was_decided_before_the_first_step_is_of_this_recipe(
    data: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ran out in the first step; fewer layers are asked for in the same directory."""

    def settings(layers: str) -> TrainRecipe:
        wanted = {
            "data": {"path": str(data), "window": 32},
            "model": {"pretrained": str(large)},
            "initialization": {"layers": layers},
            "training": training(),
        }
        return parse_recipe(wanted, TrainRecipe)

    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    found = []
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises((torch.OutOfMemoryError, UserError)):
            patch.setattr(Stepper, "__call__", fail)
            train_model(settings("measured 3"), tmp_path / "run")
        found.append((tmp_path / "run/choice.json").stat().st_mtime_ns)
    assert found[0] == found[1], "it is not measured twice"
    losses = train_model(settings("measured 2"), tmp_path / "run")
    assert len(load_kept(tmp_path / "run/choice.json").layers) == 2
    assert train_model(settings("measured 2"), tmp_path / "new").losses.tolist() == losses.losses.tolist()
    with pytest.raises(UserError, match="another recipe"):
        train_model(settings("measured 3"), tmp_path / "run")


def test_layers_that_are_measured_are_no_blocks_to_checkpoint(data: Path) -> None:
    with pytest.raises(UserError, match="activation_checkpointing"):
        recipe(data, training=training(activation_checkpointing="measured 2"))


def test_inherit_measures_where_there_is_data(data: Path, large: Path, caplog) -> None:
    reference = AutoModelForCausalLM.from_pretrained(large).eval()
    measured = inheritune.inherit(large, 2, data=data)
    listed = inheritune.inherit(reference, keep=[0, 3])
    assert same(listed, select(reference, [0, 3]))
    assert same(inheritune.inherit(reference, 2, keep="measured", data=data), measured)
    with caplog.at_level(logging.WARNING):
        first = inheritune.inherit(large, 2)
    assert same(first, select(reference, [0, 1])) and "measured choice" in caplog.text
    assert not same(measured, first)


def test_inherit_says_what_is_missing(data: Path, large: Path) -> None:
    with pytest.raises(UserError, match="say how many layers"):
        inheritune.inherit(large)
    with pytest.raises(UserError, match="takes text to measure on"):
        inheritune.inherit(large, 2, keep="measured")
    with pytest.raises(UserError, match="neither a folder of token shards nor a text file"):
        inheritune.inherit(large, 2, data="./nowhere")


def test_data_of_another_vocabulary_is_refused(large: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", vocabulary=1000)
    with pytest.raises(UserError, match="the embedding of"):
        inheritune.inherit(large, 2, data=other)


def test_from_the_command_line(data: Path, large: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(inherit_command)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(large), *map(str, arguments)])

    result = call("-n", 2, "--data", data, "-o", tmp_path / "small")
    assert result.exit_code == 0, result.exception
    kept = json.loads((tmp_path / "small/choice.json").read_text("utf-8"))
    assert kept["keep"] == "measured"
    assert f"kept {', '.join(map(str, kept['layers']))}: loss" in result.output
    assert call("--keep", "0,3", "-o", tmp_path / "listed").exit_code == 0
    assert "Blocks 0, 3 (counted from 0)" in (tmp_path / "listed/README.md").read_text("utf-8")
    wrong = call("--keep", "some", "-n", 2, "-o", tmp_path / "wrong")
    assert isinstance(wrong.exception, UserError) and "--keep is 'some'" in str(wrong.exception)
    assert not (tmp_path / "wrong").exists()


def test_a_plan_needs_no_measuring(data: Path, large: Path, monkeypatch) -> None:
    monkeypatch.setattr(layers_module, "search", lambda *_: pytest.fail("nothing is to be measured"))
    settings = parse_recipe(values(data, reference={"pretrained": str(large)}), Recipe)
    assert plan(settings).stages[1].layers == LAYERS // 2
