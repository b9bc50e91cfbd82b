"""Narrower models: in recipes, from the command line, from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import inheritune
from inheritune import UserError
from inheritune import single_model as train_module
from inheritune.analysis.kept import Kept, load_kept
from inheritune.cli.inherit import inherit_command
from inheritune.config import TrainRecipe
from inheritune.initialization.narrow import Width, first_taken, narrow, width_of
from inheritune.models.architecture import layer_count
from inheritune.models.load import load_model
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.single_model import train_model
from tiny_data import write_shards
from tiny_models import LAYERS, shaken, tiny_model
from tiny_recipes import training


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    shaken(tiny_model("llama", tie_word_embeddings=True)).save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def single(data: Path, large: Path, **initialization: Any) -> TrainRecipe:
    return parse_recipe(
        {
            "data": {"path": str(data), "window": 32},
            "model": {"pretrained": str(large)},
            "initialization": initialization,
            "training": training(),
        },
        TrainRecipe,
    )


@pytest.mark.parametrize(
    ("initialization", "layers", "width"),
    [
        ({"mlp": 40}, LAYERS, Width(32, 4, 40)),
        ({"layers": "measured 3", "hidden": 24, "heads": 2, "mlp": 48}, 3, Width(24, 2, 48)),
        ({"layers": "ends 2", "heads": 2, "narrow": "first"}, 2, Width(32, 2, 64)),
    ],
)
def test_a_training_starts_narrower_and_again_the_same(
    data: Path,
    large: Path,
    tmp_path: Path,
    initialization: dict[str, Any],
    layers: int,
    width: Width,
    monkeypatch,
) -> None:
    recipe = single(data, large, **initialization)
    planned = plan(recipe).stages[0]
    losses = train_model(recipe, tmp_path / "one")
    model = load_model(tmp_path / "one/model")
    assert width_of(model.config) == width
    assert (planned.layers, planned.parameters) == (layers, sum(p.numel() for p in model.parameters()))
    kept = load_kept(tmp_path / "one/choice.json")
    assert len(kept.layers) == layers and kept.width is not None
    assert kept.width.narrow == initialization.get("narrow", "importance")
    assert (kept.loss is None) == (kept.width.narrow == "first")
    # Stopped after its choice it resumes with that one, and measures nothing.
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train", lambda initial, *rest, **options: (initial(), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            train_model(recipe, tmp_path / "two")
    monkeypatch.setattr(train_module, "keep_width", lambda *_: pytest.fail("it is measured again"))
    assert load_kept(tmp_path / "two/choice.json") == kept
    assert train_model(recipe, tmp_path / "two").losses.tolist() == losses.losses.tolist()


def test_a_record_of_a_version_without_width_is_read(tmp_path: Path) -> None:
    old = {"keep": "list", "layers": [0, 3], "of_layers": 4}
    (tmp_path / "choice.json").write_text(json.dumps(old), "utf-8")
    assert load_kept(tmp_path / "choice.json") == Kept(**old)


@pytest.mark.parametrize(
    ("initialization", "message"),
    [
        ({"mlp": 65}, "`mlp` is 65, but this 'llama' model has 64"),
        ({"heads": 3}, "give a multiple of 2"),
        ({"hidden": 25}, r"does not allow a hidden size of 25 with 4 heads"),
    ],
)
def test_sizes_that_cannot_be_leave_no_run(
    data: Path, large: Path, tmp_path: Path, initialization: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_model(single(data, large, **initialization), tmp_path / "run")
    with pytest.raises(UserError, match=message):
        plan(single(data, large, **initialization))
    assert not (tmp_path / "run").exists()


def test_inherit_takes_sizes(data: Path, large: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(large).eval()
    first = inheritune.inherit(large, mlp=40, heads=2, narrow="first")
    assert same(first, narrow(reference, first_taken(reference.config, Width(32, 2, 40))))
    best = inheritune.inherit(large, mlp=40, heads=2, data=data)
    assert width_of(best.config) == width_of(first.config)
    assert not same(best, first)
    assert same(best, inheritune.inherit(reference, mlp=40, heads=2, data=data))
    both = inheritune.inherit(large, 2, mlp=40, keep="measured", data=data)
    assert (both.config.num_hidden_layers, both.config.intermediate_size) == (2, 40)
    assert same(inheritune.inherit(large, mlp=64), reference)


def test_inherit_says_what_is_wrong(data: Path, large: Path) -> None:
    with pytest.raises(UserError, match="by importance takes text to measure on"):
        inheritune.inherit(large, mlp=40)
    with pytest.raises(UserError, match="narrow is 'last', but should be importance or first"):
        inheritune.inherit(large, mlp=40, narrow="last")  # type: ignore[arg-type]


def test_from_the_command_line(data: Path, large: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(inherit_command)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(large), *map(str, arguments)])

    result = call("-n", 3, "--mlp", 32, "--data", data, "-o", tmp_path / "small")
    assert result.exit_code == 0, result.exception
    kept = load_kept(tmp_path / "small/choice.json")
    assert kept.width is not None and "hidden size 32, 4 heads, MLP 32 by importance" in result.output
    assert f"loss {kept.loss:.3f} as they are, the whole model's {kept.whole:.3f}" in result.output
    card = (tmp_path / "small/README.md").read_text("utf-8")
    assert "3 of 4 layers of large, narrower" in card
    assert "MLP channels of most importance (hidden size 32, 4 heads, MLP 32)" in card
    assert load_model(tmp_path / "small").config.intermediate_size == 32
    first = call("--heads", 2, "--narrow", "first", "-o", tmp_path / "first")
    assert first.exit_code == 0 and "loss" not in first.output


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_in_memory_is_as_large_as_its_own_weights(
    data: Path, tmp_path: Path, model_type: str
) -> None:
    """Read in bfloat16, as transformers does by itself, and read so but made float32 by hand."""
    tiny_model(model_type).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    whole = sum(p.numel() for p in half.parameters())
    assert half.dtype == torch.bfloat16
    small = inheritune.inherit(half, parameters=int(0.7 * whole), data=data)
    assert small.num_parameters() <= 0.7 * whole
    limit = int(0.7 * 4 * whole)
    small = inheritune.inherit(half.float(), memory=limit, data=data)
    assert small.dtype == torch.float32 and limit // 2 < 4 * small.num_parameters() <= limit
    with pytest.raises(UserError, match="unknown dtype 'bf16'"):
        inheritune.inherit(tmp_path / "half", memory=limit, data=data, dtype="bf16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": 2.0}, "layers is 2.0"),
        ({"layers": [0, 1]}, r"layers is \[0, 1\]"),
        ({"parameters": "30K"}, "parameters is '30K'"),
        ({"hidden": 24.0}, "hidden is 24.0"),
        ({"heads": True}, "heads is True"),
        ({"keep": ["0", "1"]}, r"keep is \['0', '1'\]"),
        ({"keep": 3}, "keep is 3"),
    ],
)
def test_sizes_that_are_no_numbers(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        inheritune.inherit(tiny_model("llama"), **arguments)


@pytest.mark.parametrize("keep", [np.array([0, 3]), torch.tensor([0, 3]), (np.int64(0), np.int64(3))])
def test_numbers_of_blocks_may_be_an_array(keep: Any) -> None:
    assert layer_count(inheritune.inherit(tiny_model("llama"), keep=keep).config) == 2
