"""Recipes: defaults, round trips, and one clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inheritune import UserError
from inheritune.config import Recipe, Settings, Study, Tracking, TrainRecipe
from inheritune.recipe_file import differences, load_any, load_recipe, parse_recipe, to_yaml

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


BAD_NAMES = ["../../x", "a/b", "/tmp/x", "..", ".", "", "a\\b", "x/", "line\nbreak", "nul\0"]
KINDS: list[tuple[type[Settings], dict[str, Any]]] = [
    (Recipe, MINIMAL),
    (TrainRecipe, {"data": {"path": "x"}, "model": {"pretrained": "gpt2"}}),
    (Study, {"reference": "r", "rows": {"r": {}}}),
]


@pytest.mark.parametrize(("kind", "rest"), KINDS)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_one_folder(kind: type[Settings], rest: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=r"^recipe: name: it is .*(name of one folder|that no name can have)"):
        parse_recipe({**rest, "name": name}, kind)


@pytest.mark.parametrize(("kind", "rest"), KINDS)
@pytest.mark.parametrize("name", ["GPT-2 medium, half", "v1.0", "..hidden", "größe", "-x"])
def test_any_other_name_will_do(kind: type[Settings], rest: dict[str, Any], name: str) -> None:
    assert parse_recipe({**rest, "name": name}, kind).name == name  # type: ignore[attr-defined]


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
        (
            {"training": {"steps": 10, "schedule": {"warmup_steps": 10}}},
            "schedule.warmup_steps (10) must be below steps (10)",
        ),
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
        (
            {"training": {"optimizer": {"learning_rate": 1e-6}, "schedule": {"final_learning_rate": 1e-5}}},
            "schedule.final_learning_rate (1e-05) must not be above optimizer.learning_rate (1e-06)",
        ),
        ({"training": {"optimizer": {"learning_rate": float("inf")}}}, "should be a finite number"),
        ({"distillation": {"alpha": 0}}, "`distillation.alpha` is 0, but should be greater than 0"),
        ({"distillation": {"teacher": {}}}, "unknown key `distillation.teacher`"),
        ({"grow": {"mode": "stack"}}, "`grow.mode` is 'stack', but should be 'reinherit' or 'append'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe: ") as caught:
        parse_recipe({**MINIMAL, **changes}, Recipe)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"path": "x", "steps": 3}}, "unknown key `data.steps`; did you mean"),
        ({"a.b": 3}, "unknown key `a.b`; known keys are"),
        ({"a\nb": 3}, r"unknown key `'a\nb'`"),
        ({"x" * 10**6: 3}, "unknown key `'xxx"),
        ({3: 4}, "the key 3 is not a text"),
        ({"data": {"path": ""}}, "data.path: it is empty, too long, or has characters that no name can have"),
        ({"data": {"path": "a\0b"}}, "data.path: it is empty, too long, or has characters"),
        ({"data": {"path": "x" * 300}}, "data.path: it is empty, too long, or has characters"),
        (
            {"data": {"path": "x", "window": 10**12}},
            "`data.window` is 1000000000000, but should be less than",
        ),
        ({"name": "../x"}, "name: it is '../x', but should be the name of one folder"),
        ({"name": ".."}, "name: it is '..', but should be the name of one folder"),
        ({"name": "a\nb"}, "name: it is empty, too long, or has characters that no name can have"),
        ({"training": {"steps": True}}, "training.steps: it is true, but should be a number"),
        ({"training": {"steps": 10**30}}, "`training.steps` is 1" + "0" * 30 + ", but should be less than"),
        ({"training": {"steps": 1 << 20_000}}, "`training.steps` is a number of 20001 bits, but should be"),
        ({"training": {"tokens_per_step": 10**12}}, "`training.tokens_per_step` is"),
        ({"training": {"seed": 2**64}}, "`training.seed` is 18446744073709551616, but should be less than"),
        (
            {"training": {"optimizer": {"learning_rate": 1e300}}},
            "`training.optimizer.learning_rate` is 1e+300",
        ),
        ({"training": {"optimizer": {"weight_decay": 1e39}}}, "`training.optimizer.weight_decay` is 1e+39"),
        (
            {"training": {"parallel": {"timeout_seconds": 1e300}}},
            "`training.parallel.timeout_seconds` is 1e+300",
        ),
        ({"training": {"activation_checkpointing": "-:"}}, "training.activation_checkpointing: it is '-:'"),
        (
            {"training": {"activation_checkpointing": "0:8:0"}},
            "it is '0:8:0', but should be none, all, a list",
        ),
        ({"training": {"activation_checkpointing": "first " + "9" * 5000}}, "it is 'first 99"),
        ({"grow": {"max_rounds": 10**9}}, "`grow.max_rounds` is 1000000000, but should be less than"),
        ({"samples": {"tokens": 10**9}}, "`samples.tokens` is 1000000000, but should be less than"),
        ({"reference": {"pretrained": " "}}, "reference.pretrained: it is empty"),
        (
            {"reference": {"architecture": {"model_type": "gpt2", "n_layer": 2**80}}},
            "176 in it, which is too large",
        ),
        (
            {"grow": {"mode": 3, "layers": "x"}, "parity": {"margin": "y"}},
            "`grow.mode` is 3, but should be 'reinherit' or 'append'; `grow.layers` is 'x', but should be a valid "
            "integer, unable to parse string as an integer; `parity.margin` is 'y'",
        ),
        ({"refrence": 1, "trainin": 2}, "did you mean `reference`?; unknown key `trainin`; did you mean"),
        (
            {"training": dict.fromkeys("abcdefghijkl", 1)},
            "tracking; unknown key `training.b`; unknown",
        ),
        ({"training": dict.fromkeys("abcdefghijkl", 1)}, "(and 2 more)"),
    ],
)
def test_what_no_recipe_can_mean(changes: dict[Any, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe({**MINIMAL, **changes}, Recipe)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {
                "dat": {"path": "x"},
                "reference": {"pretraned": "y"},
                "training": {"stpes": 10, "steps": "ten"},
            },
            "unknown key `reference.pretraned`; did you mean `pretrained`?; unknown key `training.stpes`; did you "
            "mean `steps`?; unknown key `dat`; did you mean `data`?; `training.steps` is 'ten', but should be a "
            "valid integer, unable to parse string as an integer",
        ),
        (
            {"refrence": {"pretrained": "y"}, "keep": "spread", "grow": {"mode": "append"}},
            "unknown key `refrence`; did you mean `reference`?; the key `data` is missing",
        ),
        (
            {**MINIMAL, "keep": "spread", "grow": {"mode": "append"}, "trainng": {"steps": 5}},
            "unknown key `trainng`; did you mean `training`?; `keep: spread` has other layers at each depth, so "
            "`grow.mode: append` cannot keep them",
        ),
        (
            {
                **MINIMAL,
                "training": {
                    "stps": 5,
                    "optimizer": {"learning_rate": 1e-6},
                    "schedule": {"warmup_steps": 5, "final_learning_rate": 1e-5},
                },
            },
            "unknown key `training.stps`; did you mean `steps`?; training: schedule.warmup_steps (5) must be below "
            "steps (5); schedule.final_learning_rate (1e-05) must not be above optimizer.learning_rate (1e-06)",
        ),
    ],
)
def test_all_mistakes_are_told_at_once(values: dict[str, Any], sentence: str) -> None:
    """Those too that could be seen only once a key is spelt right; and no more."""
    with pytest.raises(UserError) as caught:
        parse_recipe(values, Recipe)
    assert str(caught.value) == f"recipe: {sentence}"


@pytest.mark.parametrize(
    ("training", "warmup", "final"),
    [
        ({}, 2000, 1e-5),
        ({"steps": 2001}, 2000, 1e-5),
        ({"steps": 2000}, 200, 1e-5),
        ({"steps": 5}, 0, 1e-5),
        ({"steps": 100, "schedule": {"warmup_steps": 30}, "optimizer": {"learning_rate": 2e-6}}, 30, 2e-7),
    ],
)
def test_a_schedule_that_is_left_out_fits_the_steps(
    training: dict[str, Any], warmup: int, final: float
) -> None:
    recipe = parse_recipe({**MINIMAL, "training": training}, Recipe)
    schedule = recipe.training.schedule
    assert (schedule.warmup_steps, schedule.final_learning_rate) == (warmup, pytest.approx(final))
    assert f"warmup_steps: {warmup}\n" in to_yaml(recipe)  # what was done is on record


def test_the_references_schedule_fits_its_own_steps() -> None:
    reference = {"architecture": {"preset": "gpt2-medium"}, "training": {"steps": 500}}
    recipe = parse_recipe({**MINIMAL, "reference": reference}, Recipe)
    assert recipe.reference.training is not None
    assert recipe.reference.training.schedule.warmup_steps == 50
    assert recipe.training.schedule.warmup_steps == 2000


def test_a_recipe_is_a_mapping() -> None:
    for value in (None, [], "x", 3):
        with pytest.raises(
            UserError, match=r"^recipe is not a recipe: it must be a mapping with the keys name"
        ):
            parse_recipe(value, Recipe)  # type: ignore[arg-type]


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {path: x}\n"
        "reference: {architecture: {model_type: gpt2, layer_norm_epsilon: 1e-6}}\n"
        "training: {steps: 1e4, tokens_per_step: 1.28e5, optimizer: {learning_rate: 1e-3}}\n"
    )
    recipe = load_recipe(path, Recipe)
    assert (recipe.training.steps, recipe.training.tokens_per_step) == (10_000, 128_000)
    assert recipe.training.optimizer.learning_rate == 1e-3
    assert recipe.reference.architecture == {"model_type": "gpt2", "layer_norm_epsilon": 1e-6}


SINGLE: dict[str, Any] = {"data": {"path": "data"}, "model": {"pretrained": "big"}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": []}, "initialization: `layers` is an empty list: nothing would be inherited"),
        ({"parts": []}, "initialization: `parts` is an empty list: nothing would be inherited"),
        ({}, "initialization: it is empty: give `layers`, `stack_to`, `parts`, `width`, `hidden`"),
        ({"width": 0.5, "mlp": 8}, "`width` keeps all layers and parts, so it cannot be combined with `mlp`"),
        ({"layers": "first 2", "narrow": "first"}, "`narrow` belongs to `hidden`, `heads` or `mlp`"),
        ({"heads": 2, "parts": "mlp"}, "`parts` cannot be combined with `heads`"),
        ({"hidden": 2, "stack_to": 8}, "`stack_to` cannot be combined with `hidden`"),
        ({"mlp": 0}, "`initialization.mlp` is 0, but should be greater than 0"),
        (
            {"mlp": 8, "narrow": "last"},
            "`initialization.narrow` is 'last', but should be 'importance' or 'first'",
        ),
        (
            {"layers": "frist 3"},
            "`layers` is 'frist 3', but should be a list of block numbers, a slice such as",
        ),
        ({"layers": "first 0"}, "`layers` is 'first 0'"),
        ({"parts": "attention+norm"}, "`initialization.parts` is 'norm', but should be 'attention', 'mlp'"),
        (
            {"width": 0.5, "layers": "first 3"},
            "`width` keeps all layers and parts, so it cannot be combined with `layers`",
        ),
        ({"width": 0.5, "stack_to": 4}, "so it cannot be combined with `stack_to`"),
        ({"layers": "first 3", "divide": "heads"}, "`divide` belongs to `width`, which is not given"),
        ({"layers": "0:24:0"}, "`layers` is '0:24:0'"),
        ({"layers": [10**9]}, "`initialization.layers` is 1000000000, but should be less than"),
        ({"layers": "first 2", "stack_to": 10**9}, "`initialization.stack_to` is 1000000000, but should be"),
        ({"width": 1}, "`initialization.width` is 1, but should be less than 1"),
        ({"random_blocks": True}, "unknown key `initialization.random_blocks`"),
    ],
)
def test_mistakes_of_an_initialization(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe: ") as caught:
        parse_recipe({**SINGLE, "initialization": changes}, TrainRecipe)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"initialization": {"width": 0.5}}, "`initialization` takes weights of a `pretrained` model"),
        ({"distillation": {}}, "`distillation` needs a `teacher`, as `model` is not a pretrained one"),
        (
            {"distillation": {"teacher": {"architecture": {"preset": "gpt2-medium"}}}},
            "a `teacher` must be `pretrained`",
        ),
    ],
)
def test_what_random_weights_lack(changes: dict[str, Any], sentence: str) -> None:
    values = {**SINGLE, "model": {"architecture": {"preset": "gpt2-small"}}, **changes}
    with pytest.raises(ValueError, match=sentence):
        parse_recipe(values, TrainRecipe)


def test_parts_can_be_joined_in_one_word() -> None:
    values = {**SINGLE, "initialization": {"parts": "attention+layernorm"}}
    part = parse_recipe(values, TrainRecipe).initialization
    assert part is not None
    assert part.parts == ("attention", "layernorm")


def test_resolved_recipes_of_every_kind_read_back_equal(tmp_path: Path) -> None:
    trained_here = {"architecture": {"preset": "gpt2-medium"}, "training": {"steps": 5000}}
    recipes: list[tuple[type[Any], dict[str, Any]]] = [
        (Recipe, {**MINIMAL, "reference": trained_here}),
        (Recipe, {"data": {"path": "data"}, "reference": {"pretrained": "big"}, "distillation": {}}),
        (TrainRecipe, {**SINGLE, "initialization": {"layers": "first 3"}, "distillation": {"alpha": 0.5}}),
        (Study, {"reference": "a", "rows": {"a": SINGLE}}),
    ]
    path = tmp_path / "recipe.yaml"
    for kind, values in recipes:
        recipe = parse_recipe(values, kind)
        path.write_text(to_yaml(recipe))
        assert load_recipe(path, kind) == recipe
        assert load_any(path) == recipe


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match=r"recipe\.yaml is not a YAML file"):
        load_recipe(path, Recipe)
    path.write_text("- 1")
    with pytest.raises(ValueError, match="with the keys name, data, model, initialization, distillation"):
        load_recipe(path, TrainRecipe)
    path.write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="is not a YAML file"):
        load_recipe(path, Recipe)


def test_differences_name_every_setting_that_changed() -> None:
    old = parse_recipe(MINIMAL, Recipe)
    new = parse_recipe({**MINIMAL, "training": {"steps": 7000}, "grow": {"mode": "append"}}, Recipe)
    assert differences(old, new) == ["grow.mode: reinherit -> append", "training.steps: 100000 -> 7000"]
    assert differences(old, old) == []


def test_what_changed_for_the_reference_and_the_rounds_is_told_once() -> None:
    values = {**MINIMAL, "reference": {"architecture": {"preset": "gpt2-small"}}}
    old = parse_recipe(values, Recipe)
    both = parse_recipe({**values, "training": {"steps": 7000}}, Recipe)
    assert differences(old, both) == ["training.steps: 100000 -> 7000"]
    own = {"architecture": {"preset": "gpt2-small"}, "training": {"steps": 7000}}
    assert differences(old, parse_recipe({**values, "reference": own}, Recipe)) == [
        "reference.training.steps: 100000 -> 7000"
    ]


def test_what_is_tracked_is_said_in_one_place_and_was_said_in_two() -> None:
    old = parse_recipe({**MINIMAL, "training": {"wandb": "mine", "tensorboard": False}}, Recipe)
    assert old.training.tracking == Tracking(wandb="mine", tensorboard=False)
    new = {"tracking": {"wandb": "mine", "tensorboard": False}}
    assert old == parse_recipe({**MINIMAL, "training": new}, Recipe)
    with pytest.raises(UserError, match="`wandb` is given twice: keep that in `tracking`"):
        parse_recipe({**MINIMAL, "training": {**new, "wandb": "other"}}, Recipe)
