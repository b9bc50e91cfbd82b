"""`--set KEY=VALUE`: one recipe, and what differs from it, on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_data
from inheritune import UserError, plain_yaml
from inheritune.cli.main import main
from inheritune.config import Study, TrainRecipe
from inheritune.recipe_file import load_any, load_recipe, with_settings
from tiny_recipes import ARCHITECTURE, training, values


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_data.write_shards(tmp_path / "data", train=4000, validation=500)
    single: dict[str, Any] = {
        "data": {"path": "data", "window": 32},
        "training": training(),
        "model": {"architecture": ARCHITECTURE},
    }
    study = {"reference": "v1.0", "shared": {"training": {"steps": 9}}, "rows": {"v1.0": single}}
    for name, recipe in {"run": values(Path("data")), "train": single, "study": study}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["inheritune", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_values_are_yaml_and_the_last_one_counts(place: Path) -> None:
    found = load_recipe(
        place / "train.yaml",
        TrainRecipe,
        [
            "training.steps=3",
            "training.steps=1e2",
            "training.parallel.backend=gloo",
            "training.parallel=fsdp",
            "model.architecture.n_layer=2",
            "data.path=a=b",
            "training.activation_checkpointing=[0, 1]",
        ],
    )
    assert (found.training.steps, found.training.tokens_per_step) == (100, 128)
    assert found.training.parallel.strategy == "fsdp"
    assert found.model.architecture == {**ARCHITECTURE, "n_layer": 2}
    assert str(found.data.path) == "a=b"
    assert found.training.activation_checkpointing == (0, 1)


def test_a_reference_is_trained_with_what_is_set_for_both(place: Path) -> None:
    found = load_any(place / "run.yaml", ["training.steps=5"])
    assert found.training.steps == found.reference.training.steps == 5  # type: ignore[union-attr]


def test_rows_are_set_by_their_names(place: Path) -> None:
    found = load_any(
        place / "study.yaml", ["rows.v1.0.training.steps=5", "shared.training.seed=1", "seeds=[3]"]
    )
    assert isinstance(found, Study)
    assert found.rows["v1.0"]["training"]["steps"] == 5  # type: ignore[index, call-overload]
    assert found.shared == {"training": {"steps": 9, "seed": 1}}
    assert found.seeds == (3,)


def test_a_word_gives_way_to_its_parts() -> None:
    values = {"training": {"parallel": "fsdp"}}
    assert with_settings(values, ["training.parallel.strategy=ddp"]) == {
        "training": {"parallel": {"strategy": "ddp"}}
    }
    assert values == {"training": {"parallel": "fsdp"}}


@pytest.mark.parametrize("setting", ["training.steps", "", "=3", "a..b=3", ".=1"])
def test_what_is_no_setting(setting: str) -> None:
    with pytest.raises(UserError, match=r"^--set '.*' is no KEY=VALUE, such as training.steps=1000$"):
        with_settings({}, [setting])


def test_a_value_that_is_no_yaml() -> None:
    with pytest.raises(UserError, match=r"^--set 'training.steps=\[' has no value in YAML: .* line 1"):
        with_settings({}, ["training.steps=["])


@pytest.mark.parametrize("verb", ["run", "train", "plan", "study"])
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("{}stpes=3", "unknown key `training.stpes`; did you mean `steps`?"),
        ("{}steps=few", "`training.steps` is 'few', but should be a valid integer"),
    ],
)
def test_errors_name_the_key(
    verb: str,
    setting: str,
    sentence: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = "train.yaml" if verb == "plan" else f"{verb}.yaml"
    prefix = "rows.v1.0.training." if verb == "study" else "training."
    assert call(monkeypatch, verb, file, "--set", setting.format(prefix)) == 2
    assert sentence in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_what_is_set_is_recorded_and_what_decides_the_weights_refused_later(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("train", "train.yaml", "-o", "out", "--set")
    assert call(monkeypatch, *train, "training.steps=4") == 0
    assert plain_yaml.read(place / "out/recipe.yaml")["training"]["steps"] == 4
    assert call(monkeypatch, *train, "training.steps=5") == 2
    assert "training.steps: 4 -> 5" in capsys.readouterr().err


def test_a_plan_is_of_what_is_set(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plan", "train.yaml", "--set", "training.steps=1000") == 0
    assert "128K" in capsys.readouterr().out
