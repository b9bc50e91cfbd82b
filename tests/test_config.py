"""Recipes: defaults, round trips, and one clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from inheritune.config import Recipe, TrainRecipe
from inheritune.recipe_file import differences, load_recipe, parse_recipe, to_yaml

MINIMAL: dict[str, Any] = {"data": {"path": "x"}, "reference": {"pretrained": "gpt2"}}


def test_the_defaults_are_the_papers() -> None:
    training = parse_recipe(MINIMAL, Recipe).training
    assert (training.steps, training.tokens_per_step) == (100_000, 3 * 16 * 1024)
    optimizer = training.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.gradient_clip) == (
        0.9,
        0.95,
        0.1,
        1.0,
    )
    assert (optimizer.learning_rate, training.schedule.final_learning_rate) == (3e-4, 1e-5)
    assert parse_recipe(MINIMAL, Recipe).start_layers == "half"
    assert parse_recipe(MINIMAL, Recipe).grow.layers == 2


def test_the_resolved_recipe_reads_back_equal() -> None:
    values = {
        **MINIMAL,
        "reference": {"architecture": {"preset": "gpt2-medium"}, "training": {"steps": 5000}},
    }
    recipe = parse_recipe(values, Recipe)
    assert parse_recipe(yaml.safe_load(to_yaml(recipe)), Recipe) == recipe


def test_the_reference_is_trained_like_the_rounds_except_for_what_it_sets_itself() -> None:
    values = {
        "data": {"path": "x"},
        "reference": {"architecture": {"preset": "gpt2-medium"}, "training": {"optimizer": {"beta2": 0.99}}},
        "training": {"steps": 5000, "optimizer": {"learning_rate": "2e-4"}},
    }
    training = parse_recipe(values, Recipe).reference.training
    assert training is not None
    assert (training.steps, training.optimizer.learning_rate, training.optimizer.beta2) == (5000, 2e-4, 0.99)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"stpes": 3}}, "unknown key `training.stpes`; did you mean `steps`?"),
        ({"refrence": {}}, "unknown key `refrence`; did you mean `reference`?"),
        ({"training": {"steps": "many"}}, "`training.steps` is 'many', but should be a valid integer"),
        ({"training": {"steps": 0}}, "`training.steps` is 0, but should be greater than 0"),
        (
            {"training": {"micro_batch": "big"}},
            "`training.micro_batch` is 'big', but should be a valid integer",
        ),
        (
            {"training": {"schedule": {"warm-up": 3}}},
            "unknown key `training.schedule.warm-up`; did you mean `w",
        ),
        ({"training": {"steps": 10}}, "schedule.warmup_steps (2000) must be below steps (10)"),
        ({"data": 3}, "`data` is 3, but should be a valid dictionary"),
        ({"start_layers": "hlf"}, "`start_layers` is 'hlf', but should be a valid integer"),
        ({"start_layers": 0}, "`start_layers` is 0, but should be greater than 0 or 'half'"),
        ({"reference": {}}, "reference: give either `pretrained`"),
        ({"reference": {"pretrained": "a", "architecture": {}}}, "reference: give either `pretrained`"),
        (
            {"reference": {"architecture": {"n_layer": 2}}},
            "`architecture` needs either `preset` or `model_type`",
        ),
        ({"reference": {"pretrained": "a", "training": {}}}, "takes no `training`"),
        ({"data": {}}, "the key `data.path` is missing"),
        ({"grow": {"mode": "stack"}}, "`grow.mode` is 'stack', but should be 'reinherit' or 'append'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe: ") as caught:
        parse_recipe({**MINIMAL, **changes}, Recipe)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match=r"recipe\.yaml is not a YAML file"):
        load_recipe(path, Recipe)
    path.write_text("- 1")
    with pytest.raises(ValueError, match="with the keys name, data, model, initialization, training"):
        load_recipe(path, TrainRecipe)
    path.write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="is not a YAML file"):
        load_recipe(path, Recipe)


def test_differences_name_every_setting_that_changed() -> None:
    old = parse_recipe(MINIMAL, Recipe)
    new = parse_recipe({**MINIMAL, "training": {"steps": 7000}, "grow": {"mode": "append"}}, Recipe)
    assert differences(old, new) == ["grow.mode: reinherit -> append", "training.steps: 100000 -> 7000"]
    assert differences(old, old) == []
