"""Any choice of layers, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_data
from inheritune.config import TrainRecipe, parse_recipe
from inheritune.initialization import inherit, select
from inheritune.models.architecture import blocks_name
from inheritune.single import train_model
from inheritune.training import metrics
from tiny_models import ARCHITECTURES, tiny_model, tokens
from tiny_recipes import training


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_blocks_come_from_the_layers_named(model_type: str) -> None:
    reference = tiny_model(model_type)
    weights, prefix = reference.state_dict(), blocks_name(reference)
    layers = (3, 1, 1)
    for name, value in select(reference, layers).state_dict().items():
        source = name
        for place, layer in enumerate(layers):
            if name.startswith(f"{prefix}.{place}."):
                source = name.replace(f"{prefix}.{place}.", f"{prefix}.{layer}.", 1)
        assert torch.equal(value, weights[source]), name


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_first_layers_are_what_inherit_takes(model_type: str) -> None:
    reference = tiny_model(model_type)
    with torch.no_grad():
        assert torch.equal(
            select(reference, range(2))(tokens()).logits, inherit(reference, 2)(tokens()).logits
        )


def test_random_blocks_keep_only_what_is_around_them() -> None:
    reference = tiny_model("gpt2")
    weights, small = (
        reference.state_dict(),
        select(reference, (0, 1), random_blocks=True, seed=5).state_dict(),
    )
    for name, value in small.items():
        if "h." not in name:
            assert torch.equal(value, weights[name]), name
        elif name.endswith("c_fc.weight"):
            assert not torch.equal(value, weights[name]), name
    again = select(reference, (0, 1), random_blocks=True, seed=5).state_dict()
    assert all(torch.equal(again[name], value) for name, value in small.items())


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="cannot take layer 4 of a model with 4: its layers are 0 to 3"):
        select(tiny_model("gpt2"), (0, 4))
    with pytest.raises(ValueError, match="cannot take an empty list of layers"):
        select(tiny_model("gpt2"), ())


def test_a_recipe_can_train_part_of_a_model(tmp_path: Path) -> None:
    data = tiny_data.write_shards(tmp_path / "data")
    tiny_model("llama").save_pretrained(tmp_path / "large")
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(tmp_path / "large")},
        "initialization": {"layers": [2, 3]},
        "training": training(steps=3),
    }
    train_model(parse_recipe(values, TrainRecipe), tmp_path / "run")
    assert metrics.read(tmp_path / "run/metrics.jsonl")
    wrong = {**values, "initialization": {"layers": [7]}}
    with pytest.raises(ValueError, match="cannot take layer 7"):
        train_model(parse_recipe(wrong, TrainRecipe), tmp_path / "wrong")
    scratch = {**values, "model": {"architecture": {"model_type": "gpt2"}}}
    with pytest.raises(ValueError, match="takes layers of a `pretrained` model, and `model` names none"):
        parse_recipe(scratch, TrainRecipe)
