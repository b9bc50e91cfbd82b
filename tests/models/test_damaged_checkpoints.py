"""Any damage to a checkpoint's files: either one sentence, or the very same model.

A file may be missing, cut off anywhere, exchanged with or overwritten by another one (of this model or of a model of
another size), or have one byte changed in what describes the weights. Then a cut, written to a folder and read by
transformers, and the whole model either give the undamaged one's logits, or are refused by a `UserError` of one
line that leaves nothing behind. No other exception is right.

Two kinds of damage nobody can see, because the format has no checksums, and they are left out: other bytes within
the numbers themselves, and a file of another model with the same names and shapes. A configuration with other values
describes another model; there it is only tested that nothing but a `UserError` is raised.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from inheritune import UserError
from inheritune.cut import Parts, cut_to_folder
from inheritune.models.architecture import blocks
from inheritune.models.load import load_model
from tiny_checkpoints import INDEX, WEIGHTS, write_checkpoint
from tiny_models import tokens

LAYERS = 2
KINDS = {
    "llama": ("llama", 1, {}),
    "llama in 3 files": ("llama", 3, {}),
    "gpt2": ("gpt2", 1, {}),
    "qwen2, tied, in 2 files": ("qwen2", 2, {"tie_word_embeddings": True}),
    "mixtral in 3 files": ("mixtral", 3, {}),
    "opt": ("opt", 1, {}),
}
WIDTHS = {"gpt2": {"n_embd": 48}, "opt": {"hidden_size": 48, "word_embed_proj_dim": 48}}
OTHERS: dict[str, Any] = {"hidden_size": 48}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of folders that need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each kind a checkpoint, and one of another width."""
    place = tmp_path_factory.mktemp("originals")
    return {
        name: (
            write_checkpoint(place / name / "this", kind, shards=shards, **fields),
            write_checkpoint(
                place / name / "other", kind, shards=shards, seed=1, **{**fields, **WIDTHS.get(kind, OTHERS)}
            ),
        )
        for name, (kind, shards, fields) in KINDS.items()
    }


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(), use_cache=False).logits


@pytest.fixture(scope="module")
def expected(originals: dict[str, tuple[Path, Path]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits of the cut and of the whole."""
    found = {}
    for name, (folder, _) in originals.items():
        whole, short = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
        del blocks(short)[LAYERS:]
        short.config.num_hidden_layers = LAYERS
        found[name] = (logits(short), logits(whole))
    return found


def outcome(folder: Path, output: Path) -> tuple[Tensor | None, Tensor | None]:
    """Logits of the cut that was written, and of the whole; None where there is one good sentence instead."""
    short = whole = None
    try:
        cut_to_folder(str(folder), Parts(LAYERS), output)
        short = logits(AutoModelForCausalLM.from_pretrained(output).eval())
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) > 20, error
        assert not output.exists()
        assert not list(output.parent.glob(f"{output.name}*"))
    try:
        whole = logits(load_model(folder))
    except UserError as error:
        assert len(str(error).splitlines()) == 1, error
    return short, whole


def damage(data: st.DataObject, folder: Path, other: Path) -> str:
    """Do one thing to one file; returns what."""
    names = sorted(path.name for path in folder.iterdir())
    name = data.draw(st.sampled_from(names))
    path = folder / name
    content = path.read_bytes()
    described = 8 + int.from_bytes(content[:8], "little") if name.endswith(".safetensors") else len(content)
    how = data.draw(
        st.sampled_from(["remove", "cut off", "cut off early", "exchange", "copy", "foreign", "byte"])
    )
    if how == "remove":
        path.unlink()
    elif how.startswith("cut off"):
        end = data.draw(st.integers(0, (described if how == "cut off early" else len(content)) - 1))
        path.write_bytes(content[:end])
    elif how in ("exchange", "copy"):
        second = folder / data.draw(st.sampled_from(names))
        if how == "exchange":
            path.write_bytes(second.read_bytes())
            second.write_bytes(content)
        else:
            path.write_bytes(second.read_bytes())
    elif how == "foreign":
        path.write_bytes(
            (other / data.draw(st.sampled_from(sorted(p.name for p in other.iterdir())))).read_bytes()
        )
    elif name != "config.json":
        place, value = data.draw(st.integers(0, described - 1)), data.draw(st.integers(0, 255))
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    return f"{how} {name}"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_one_sentence_or_the_same_model(
    originals: dict[str, tuple[Path, Path]], expected: dict[str, tuple[Tensor, Tensor]], kind: str
) -> None:
    @settings(max_examples=100)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with TemporaryDirectory() as place:
            folder = Path(place) / "model"
            shutil.copytree(originals[kind][0], folder)
            done = damage(data, folder, originals[kind][1])
            for found, right in zip(outcome(folder, Path(place) / "small"), expected[kind], strict=True):
                assert found is None or torch.equal(found, right), done

    check()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 200)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral in 3 files"])
def test_any_configuration_gives_one_sentence_or_a_model(
    originals: dict[str, tuple[Path, Path]], kind: str
) -> None:
    whole = json.loads((originals[kind][0] / "config.json").read_text())

    @settings(max_examples=100)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        values = json.loads(json.dumps(whole))
        part = values
        if isinstance(values.get("rope_parameters"), dict) and data.draw(st.booleans()):
            part = values["rope_parameters"]
        key = data.draw(st.sampled_from(sorted(part)))
        if data.draw(st.booleans()):
            del part[key]
        else:
            part[key] = data.draw(JSON)
        with TemporaryDirectory() as place:
            folder = Path(place) / "model"
            shutil.copytree(originals[kind][0], folder)
            (folder / "config.json").write_text(json.dumps(values))
            try:
                cut_to_folder(str(folder), Parts(LAYERS), Path(place) / "small")
            except UserError as error:
                assert len(str(error).splitlines()) == 1, error
                assert not (Path(place) / "small").exists()

    check()


def test_the_undamaged_ones_are_read(
    tmp_path: Path, originals: dict[str, tuple[Path, Path]], expected: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Else the tests above could pass by refusing everything."""
    for kind, (folder, other) in originals.items():
        for found, right in zip(outcome(folder, tmp_path / kind), expected[kind], strict=True):
            assert found is not None and torch.equal(found, right)
        assert not (folder / (WEIGHTS if KINDS[kind][1] > 1 else INDEX)).exists()
        assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
