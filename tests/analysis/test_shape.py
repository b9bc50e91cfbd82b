"""A shape for a size: which are compared, and which one is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from transformers import PretrainedConfig
from typer.testing import CliRunner

import inheritune
from inheritune import UserError
from inheritune.analysis import shape as shape_module
from inheritune.analysis.kept import load_kept
from inheritune.analysis.sequences import text_of
from inheritune.analysis.shape import Shape, Target, loss_after_training, shapes
from inheritune.cli.inherit import inherit_command
from inheritune.data.shards import open_split
from inheritune.initialization.narrow import Width, width_config, width_of
from inheritune.models.architecture import choose_layers, parameter_count
from inheritune.models.load import load_model
from inheritune.models.size import on_meta
from initialization.test_half_width import BY_HEADS, MORE
from tiny_data import write_shards
from tiny_models import LAYERS, shaken, tiny_model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    shaken(tiny_model("llama")).save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def parameters(config: PretrainedConfig, shape: Shape) -> int:
    return parameter_count(on_meta(width_config(choose_layers(config, range(shape.layers)), shape.width)))


@pytest.mark.parametrize("model_type", BY_HEADS)
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_shapes_come_closest_below_the_target(model_type: str, share: float) -> None:
    config = tiny_model(model_type, **MORE.get(model_type, {})).config
    have, whole = width_of(config), parameter_count(on_meta(config))
    target = Target(parameters=round(share * whole))
    found = shapes(config, target)
    assert [shape.layers for shape in found] == list(range(LAYERS, found[-1].layers - 1, -1))
    assert found[-1].layers >= LAYERS // 2
    for shape in found:
        assert parameters(config, shape) <= target.most
        width = shape.width
        if width.mlp < have.mlp:  # a step more would be too much
            wider = min(have.mlp, width.mlp + -(-have.mlp // 8))
            assert (
                parameters(config, Shape(shape.layers, Width(width.hidden, width.heads, wider))) > target.most
            )
    if found[-1].layers > LAYERS // 2:
        assert found[-1].width == have
    assert all(shape.width != have for shape in found[:-1])


def test_the_bytes_of_the_weights() -> None:
    config = tiny_model("llama").config
    whole = parameter_count(on_meta(config))
    assert shapes(config, Target(memory=2 * (whole - 1000))) == shapes(
        config, Target(parameters=whole - 1000)
    )
    assert shapes(config, Target(memory=4 * (whole - 1000), bytes_each=4)) == shapes(
        config, Target(parameters=whole - 1000)
    )


def test_targets_that_no_shape_has() -> None:
    config = tiny_model("llama").config
    with pytest.raises(
        UserError, match=r"the model has 43\.\dK parameters, so there is nothing to cut to 1M"
    ):
        shapes(config, Target(parameters=1_000_000))
    with pytest.raises(
        UserError, match=r"no shape of this model has at most 1K parameters: with half of its layers"
    ):
        shapes(config, Target(parameters=1000))
    with pytest.raises(UserError, match="cannot choose the width of a 'bloom' model"):
        shapes(tiny_model("bloom").config, Target(parameters=1000))


def test_the_shape_that_is_best_after_training_is_taken(data: Path, large: Path, monkeypatch) -> None:
    given: list[int] = []

    def trained(model, text, seed, tell) -> float:
        given.append(parameter_count(model))
        return [3.0, 1.0, 2.0][len(given) - 1]

    monkeypatch.setattr(shape_module, "loss_after_training", trained)
    monkeypatch.setattr(shape_module, "TRIED", 3)
    small = inheritune.inherit(large, parameters=28_000, data=data)
    assert len(given) == 3 and parameter_count(small) == given[1] <= 28_000


def test_from_the_command_line(data: Path, large: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shape_module, "STEPS", 4)
    monkeypatch.setattr("inheritune.analysis.layers.LENGTH", 32)
    app = typer.Typer()
    app.command()(inherit_command)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(large), *map(str, arguments)])

    result = call("--parameters", "28K", "--data", data, "-o", tmp_path / "small")
    assert result.exit_code == 0, result.exception
    kept = load_kept(tmp_path / "small/choice.json")
    tried = [trial for trial in kept.trials if trial.trained is not None]
    best = min(tried, key=lambda trial: trial.trained or 0)
    model = load_model(tmp_path / "small")
    assert len(kept.layers) == best.layers == model.config.num_hidden_layers
    assert width_of(model.config) == Width(best.hidden, best.heads, best.mlp)
    assert parameter_count(model) == best.parameters <= 28_000
    assert len(tried) == 3 == len(kept.trials) and kept.loss == best.loss
    assert "Loss as cut" in result.output and f"{best.parameters:,}" in result.output
    # The weights are those of the reference, and again the same.
    again = inheritune.inherit(large, parameters=28_000, data=data)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    wrong = call("--memory", "112", "--data", data, "-o", tmp_path / "memory")
    assert isinstance(wrong.exception, UserError) and "'112' is no number of bytes" in str(wrong.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": 28_000}, "which shape is best is measured on text"),
        ({"parameters": 28_000, "memory": 1}, "give either a number of parameters or the memory"),
        ({"parameters": 28_000, "keep": [0, 1]}, "a shape is searched for: leave out layers, keep"),
        ({"parameters": 28_000, "layers": 2}, "a shape is searched for: leave out layers, keep"),
        ({"memory": 28_000, "mlp": 2}, "a shape is searched for: leave out layers, keep"),
        ({"parameters": 0, "data": "x"}, "no shape of this model has at most 0 parameters"),
    ],
)
def test_what_does_not_go_together(large: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inheritune.inherit(large, **options)


def test_a_trial_learns_and_is_the_same_again(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(shape_module, "STEPS", 12)
    monkeypatch.setattr(shape_module, "RATE", 3e-3)
    text = text_of(open_split(data, "train"))
    first = loss_after_training(tiny_model("llama"), text, 0)
    assert first == loss_after_training(tiny_model("llama"), text, 0)
    assert first < 4.5  # ln 97 is 4.57


def test_a_short_text_is_enough(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shape_module, "STEPS", 12)
    text = text_of(open_split(write_shards(tmp_path / "short", train=200), "train"))
    assert loss_after_training(tiny_model("llama"), text, 0) > 0
