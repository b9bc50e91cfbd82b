"""What a training leaves: a model of the type it came from, its own losses, a tokenizer, and no checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import tiny_data
from inheritune import UserError, analyze
from inheritune.algorithm import run
from inheritune.config import EvaluationSettings, Recipe, Training, TrainRecipe
from inheritune.cut import Parts, cut_to_folder, inherit
from inheritune.data.loader import open_data
from inheritune.evaluation.evaluate import default_directory, evaluate
from inheritune.evaluation.subjects import check_memory, find_subjects
from inheritune.models.load import load_config, load_model, load_tokenizer
from inheritune.models.size import on_meta
from inheritune.recipe_file import deciding_settings, differences, parse_recipe, to_yaml
from inheritune.runtime.hardware import Hardware
from inheritune.single_model import train_model
from inheritune.training import final_model
from inheritune.training.final_model import saved_dtype
from inheritune.training.loss import NextTokenLoss
from inheritune.training.parallel import place
from inheritune.training.step import NonFiniteError
from inheritune.training.validation import WindowLosses, validate
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, training, values

CPU = Hardware(torch.device("cpu"), bf16=False, compile=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


def pretrained(folder: Path, dtype: torch.dtype, key: str = "dtype") -> Path:
    """A reference of this type, as its `config.json` says under this key."""
    tiny_model("llama", tie_word_embeddings=True).to(dtype).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config[key] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def single(data: Path, model: dict[str, Any], **changes: Any) -> TrainRecipe:
    recipe = {
        "data": {"path": str(data), "window": 32},
        "model": model,
        "training": training(**changes),
    }
    return parse_recipe(recipe, TrainRecipe)


def types(folder: Path) -> set[str]:
    """Of the tensors in a checkpoint's files, and what its configuration says."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118 - no dict
    return found | {str(load_config(folder).dtype)}


def measured_again(data: Path, folder: Path) -> np.ndarray:
    """Losses of the model in a folder, on all windows."""
    opened = open_data(parse_recipe(values(data), Recipe).data)
    placed = place(NextTokenLoss(load_model(folder)), Training(), CPU, 32)
    return validate(placed.loss, opened.validation, opened.window, CPU).losses


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_run_leaves_the_type_of_its_reference(
    data: Path, tmp_path: Path, dtype: torch.dtype, key: str
) -> None:
    source = pretrained(tmp_path / "reference", dtype, key)
    recipe = values(
        data, reference={"pretrained": str(source)}, grow={"max_rounds": 1}, parity={"margin": -100.0}
    )
    summary = run(parse_recipe(recipe, Recipe), tmp_path / "run")
    folder = tmp_path / "run" / summary.rounds[0].directory
    assert types(folder / "model") == types(tmp_path / "run/final") == {str(dtype)}
    losses = WindowLosses.load(folder / "validation.json").losses
    np.testing.assert_allclose(measured_again(data, folder / "model"), losses, rtol=0, atol=1e-6)
    assert summary.rounds[0].loss == losses.mean()
    assert f"are {str(dtype).removeprefix('torch.')}." in (tmp_path / "run/final/README.md").read_text()
    if dtype != torch.float32:
        size = (tmp_path / "run/final/model.safetensors").stat().st_size
        assert size < (source / "model.safetensors").stat().st_size, (
            "the smaller model is smaller on the disk"
        )


def test_the_losses_are_those_of_the_rounded_weights(data: Path, tmp_path: Path) -> None:
    """A coarse type moves the loss by more than its tolerance, so that it shows which weights were measured."""
    source = {"architecture": ARCHITECTURE}
    full = train_model(single(data, source), tmp_path / "full")
    rounded = train_model(single(data, source, dtype="bfloat16"), tmp_path / "rounded")
    assert np.abs(full.losses - rounded.losses).max() > 1e-4
    again = measured_again(data, tmp_path / "rounded/model")
    np.testing.assert_allclose(again, rounded.losses, rtol=0, atol=1e-6)
    plain, coarse = (load_model(tmp_path / name / "model").state_dict() for name in ("full", "rounded"))
    assert all(torch.equal(plain[name].bfloat16().float(), coarse[name]) for name in plain)


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        ("bf16", {}, torch.bfloat16),
        ("bf16", {"dtype": "float32"}, torch.float32),
        ("bf16", {"dtype": "float16"}, torch.float16),
        (None, {}, torch.float32),
        (None, {"dtype": "bfloat16"}, torch.bfloat16),
    ],
)
def test_a_single_training(
    data: Path, tmp_path: Path, model: str | None, changes: dict[str, Any], expected: torch.dtype
) -> None:
    source = {"architecture": ARCHITECTURE}
    if model:
        source = {"pretrained": str(pretrained(tmp_path / model, torch.bfloat16))}
    train_model(single(data, source, steps=3, **changes), tmp_path / "run")
    assert types(tmp_path / "run/model") == {str(expected)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert loaded.dtype == expected


def test_a_reference_trained_here_and_rounds_that_append_to_the_rounded_model(
    data: Path, tmp_path: Path
) -> None:
    recipe = values(
        data,
        training=training(steps=3, dtype="bfloat16"),
        grow={"mode": "append", "layers": 1, "max_rounds": 2},
        parity={"margin": -100.0},
        start_layers=1,
    )
    run(parse_recipe(recipe, Recipe), tmp_path / "run")
    for name in ("reference/model", "round-1-1-layers/model", "round-2-2-layers/model", "final"):
        assert types(tmp_path / "run" / name) == {"torch.bfloat16"}, name
    losses = WindowLosses.load(tmp_path / "run/reference/validation.json").losses
    again = measured_again(data, tmp_path / "run/reference/model")
    np.testing.assert_allclose(again, losses, rtol=0, atol=1e-6)
    assert types(inherit_to(tmp_path / "run/final", tmp_path / "cut")) == {"torch.bfloat16"}


def inherit_to(source: Path, folder: Path) -> Path:
    inherit(source, 1).save_pretrained(folder)
    return folder


def test_checkpoints_stay_float32_and_know_nothing_of_the_type(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change between two starts of a training."""
    source = {"architecture": ARCHITECTURE}
    monkeypatch.setattr(final_model, "_remove_checkpoints", lambda directory: None)
    first, second = single(data, source, dtype="bfloat16"), single(data, source, dtype="float32")
    assert differences(first, second) == []
    assert deciding_settings(first.training) == deciding_settings(second.training)
    train_model(first, tmp_path / "run")
    assert types(tmp_path / "run/checkpoints/step-0000012") == {"torch.float32"}
    shutil.rmtree(tmp_path / "run/model")
    train_model(second, tmp_path / "run")
    assert types(tmp_path / "run/model") == {"torch.float32"}


def test_a_tied_head_stays_one_tensor(data: Path, tmp_path: Path) -> None:
    source = {"pretrained": str(pretrained(tmp_path / "bf16", torch.bfloat16))}
    train_model(single(data, source, steps=3), tmp_path / "run")
    with safe_open(tmp_path / "run/model/model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - no dict
    model = load_model(tmp_path / "run/model")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_weight_that_the_type_cannot_hold(data: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    recipe = single(data, {"pretrained": str(tmp_path / "large")}, steps=3, dtype="float16")
    with pytest.raises(UserError, match=r"too large for float16: set `training.dtype: bfloat16`"):
        train_model(recipe, tmp_path / "run")
    assert not (tmp_path / "run/model").exists()


def test_auto_without_a_type_or_with_one_of_another_kind() -> None:
    config = tiny_model("gpt2").config
    for dtype in (None, torch.float64, torch.float8_e4m3fn):
        config.dtype = dtype
        assert saved_dtype(Training(), config) == torch.float32


def test_counting_a_model_does_not_change_what_its_configuration_says(tmp_path: Path) -> None:
    config = load_config(pretrained(tmp_path / "bf16", torch.bfloat16))
    on_meta(config)
    assert config.dtype == torch.bfloat16


def test_checkpoints_go_once_the_model_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = single(data, {"architecture": ARCHITECTURE})
    with monkeypatch.context() as killed:  # between the two
        killed.setattr(final_model, "_remove_checkpoints", lambda directory: None)
        train_model(recipe, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    before = (tmp_path / "run/model/model.safetensors").stat().st_mtime_ns
    train_model(recipe, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    assert (tmp_path / "run/model/model.safetensors").stat().st_mtime_ns == before
    train_model(recipe, tmp_path / "other")
    assert not (tmp_path / "other/checkpoints").exists()


def test_checkpoints_of_a_training_that_failed_stay(data: Path, tmp_path: Path) -> None:
    wild = training(optimizer={"learning_rate": 1e9, "gradient_clip": 1e9}, checkpoints={"every": 1})
    with pytest.raises(NonFiniteError):
        run(parse_recipe(values(data, training=wild), Recipe), tmp_path / "run")
    assert list((tmp_path / "run/reference/checkpoints").glob("step-*"))


def test_every_model_comes_with_the_tokenizer_of_its_data(tmp_path: Path, words: Path) -> None:
    train_model(single(words, {"architecture": ARCHITECTURE}, steps=3), tmp_path / "one")
    recipe = values(words, training=training(steps=3), grow={"max_rounds": 1}, samples={"tokens": 1})
    summary = run(parse_recipe(recipe, Recipe), tmp_path / "run")
    models = ("one/model", "run/reference/model", f"run/{summary.rounds[0].directory}/model", "run/final")
    expected = load_tokenizer(words / "tokenizer")
    assert expected is not None
    for name in models:
        found = load_tokenizer(tmp_path / name)
        assert found is not None, name
        assert found.get_vocab() == expected.get_vocab()


def test_a_directory_of_a_training_stands_for_its_model(tmp_path: Path, words: Path) -> None:
    recipe = single(words, {"architecture": ARCHITECTURE}, steps=3)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/recipe.yaml").write_text(to_yaml(recipe))
    with pytest.raises(
        UserError, match=r"one is not the directory of a finished run of .* or `inheritune train`"
    ):
        find_subjects([tmp_path / "one"])
    train_model(recipe, tmp_path / "one")
    train_model(single(words, {"architecture": ARCHITECTURE}, steps=4), tmp_path / "two")
    first, second = find_subjects([tmp_path / "one", f"other={tmp_path / 'two'}"])
    assert (first.name, second.name) == ("one", "other")
    assert first.source.name == tmp_path / "one/model"
    assert first.tokenizer is not None
    settings = EvaluationSettings(samples=True, prompts=("the quick",), validation=words, window=32)
    found = evaluate([tmp_path / "one"], settings, default_directory([tmp_path / "one"]), device="cpu")
    assert [model.name for model in found.models] == ["one"]
    assert found.validation is not None
    expected = WindowLosses.load(tmp_path / "one/validation.json").mean
    assert found.validation.scores[0].value == pytest.approx(expected, abs=1e-6)
    assert (tmp_path / "one/evaluation/evaluation.json").exists()
    # And its model is one that a text can be read with, and cut.
    (tmp_path / "text.txt").write_text("the quick brown fox " * 50)
    assert analyze(
        tmp_path / "one/model", tmp_path / "text.txt", window=16, sequences=2, device="cpu"
    ).windows
    cut_to_folder(str(tmp_path / "one/model"), Parts(1), tmp_path / "cut")
    assert load_tokenizer(tmp_path / "cut") is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_evaluation_reads_weights_in_their_own_type(tmp_path: Path, dtype: torch.dtype) -> None:
    (subject,) = find_subjects([pretrained(tmp_path / "model", dtype)])
    check_memory([subject], CPU.device, "auto")
    assert subject.load(CPU.device, "auto").dtype == dtype


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that were made with a tokenizer."""
    from inheritune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("words") / "data"
    text = [f"{number}: the quick brown fox jumps over the lazy dog " * 8 for number in range(60)]
    prepare([text], folder, train_tokenizer=280, validation=0.2)
    return folder
