"""Models in GGUF: read as any other, and refused in a sentence."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import tiny_gguf
from inheritune import UserError, inherit
from inheritune.analysis.analyze import analyze
from inheritune.config import EvaluationSettings, TrainRecipe
from inheritune.data.prepare import prepare
from inheritune.evaluation.evaluate import evaluate
from inheritune.evaluation.speed import checkpoint_bytes
from inheritune.models.load import load_config, load_model, load_tokenizer
from inheritune.recipe_file import parse_recipe
from inheritune.single_model import train_model
from small_tokenizers import byte_level, texts
from tiny_gguf import write_gguf
from tiny_models import tiny_model
from tiny_recipes import training

Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def large() -> Parts:
    tokenizer = byte_level()
    return tiny_model("llama", vocab_size=len(tokenizer), tie_word_embeddings=True), tokenizer


@pytest.fixture
def file(large: Parts, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "large.gguf", *large)


def stored(weight: torch.Tensor, kind: Type, dtype: torch.dtype) -> torch.Tensor:
    """A matrix as a file of this type has it."""
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)).to(dtype)


@pytest.mark.parametrize(("kind", "dtype"), [(Type.F16, torch.float16), (Type.Q8_0, torch.bfloat16)])
def test_a_cut_has_the_weights_of_the_file_and_its_tokenizer(
    large: Parts, tmp_path: Path, kind: Type, dtype: torch.dtype
) -> None:
    model, tokenizer = large
    (tmp_path / "folder").mkdir()
    write_gguf(tmp_path / "folder/large.gguf", model, tokenizer, kind)
    small = inherit(tmp_path / "folder", keep=[0, 3], output=tmp_path / "small")
    assert small.dtype == load_config(tmp_path / "folder").dtype == dtype
    expected = inherit(model, keep=[0, 3]).state_dict()
    for name, weight in small.state_dict().items():
        wanted = expected[name]
        # Rotary queries and keys are stored in another order of rows, of which each is quantized alone.
        assert torch.equal(weight, stored(wanted, kind, dtype) if wanted.dim() > 1 else wanted.to(dtype)), (
            name
        )
    assert (tmp_path / "small/model.safetensors").exists() and not list((tmp_path / "small").glob("*.gguf"))
    text = texts(3)
    for found in (load_tokenizer(tmp_path / "small"), load_tokenizer(tmp_path / "folder/large.gguf")):
        assert found is not None
        assert (
            found(text, add_special_tokens=False).input_ids
            == tokenizer(text, add_special_tokens=False).input_ids
        )


def test_what_takes_a_model_takes_a_gguf(file: Path, large: Parts, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare([texts(400)], data, tokenizer=str(file), end_of_text="</s>", validation=0.1)
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(file)},
        "initialization": {"layers": "measured 2"},
        "training": training(steps=2, schedule={"warmup_steps": 0}),
    }
    train_model(parse_recipe(values, TrainRecipe), tmp_path / "run")
    assert load_config(tmp_path / "run/model").num_hidden_layers == 2
    assert load_config(tmp_path / "run/model").dtype == torch.float16
    large[0].save_pretrained(tmp_path / "plain")
    large[1].save_pretrained(tmp_path / "plain")
    settings = EvaluationSettings(validation=data, window=32)
    plain, packed = (
        evaluate([model], settings, dtype="float32", device="cpu").validation
        for model in (tmp_path / "plain", file)
    )
    assert plain is not None and packed is not None
    assert packed.scores[0].value == pytest.approx(plain.scores[0].value, abs=1e-3)
    assert checkpoint_bytes(file) == file.stat().st_size
    assert analyze(str(file), data, device="cpu").model_type == "llama"


def damaged(file: Path, damage: str, large: Parts) -> Path:
    """A file with something wrong with it, or with the name of a part."""
    data = file.read_bytes()
    if damage == "architecture":
        return write_gguf(file.with_name("other.gguf"), *large, architecture="mpt")
    if damage == "part":
        return file.rename(file.with_name("large-00001-of-00002.gguf"))
    file.write_bytes({"head": b"GGUF" + data[64:], "end": data[:-100], "other": b"no model"}[damage])
    return file


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("head", "cannot be read: it is damaged, or no GGUF"),
        ("other", "cannot be read: it is damaged, or no GGUF"),
        ("end", "is cut off: download or copy it again"),
        ("part", "is a part of a model: merge the parts first"),
        ("architecture", "transformers cannot read .*other.gguf, a GGUF of the architecture 'mpt'"),
    ],
)
def test_what_is_wrong_with_a_file(
    file: Path, large: Parts, tmp_path: Path, damage: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        inherit(damaged(file, damage, large), layers=2, output=tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_scaled_positions_are_not_passed_over(
    large: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_gguf.NAMES, "model.norm.weight", "rope_freqs.weight")
    with pytest.raises(UserError, match="has scaled rotary positions"):
        load_model(write_gguf(tmp_path / "scaled.gguf", *large))


def test_several_files_in_a_folder(file: Path) -> None:
    shutil.copy(file, file.with_name("another.gguf"))
    with pytest.raises(UserError, match=r"has 2 GGUF files: name one, such as .*another\.gguf"):
        load_config(file.parent)


def test_no_such_file(tmp_path: Path) -> None:
    for name in (tmp_path / "no.gguf", "no.gguf", "models/no.gguf"):
        with pytest.raises(UserError, match=r"there is no file .*no\.gguf"):
            load_config(name)


@pytest.mark.parametrize("library", ["gguf", "accelerate"])
def test_the_extra_is_not_installed(file: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    real = importlib.util.find_spec
    without: Any = lambda name, *rest: None if name == library else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=rf"{library} is needed: pip install 'inheritune\[gguf\]'"):
        load_config(file)
