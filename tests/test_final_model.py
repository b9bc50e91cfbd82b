"""What the final checkpoint of a run comes with: the tokenizer, its chat template, settings of generation."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import tiny_data
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.config import Recipe
from inheritune.recipe_file import parse_recipe
from tiny_checkpoints import write_checkpoint, write_sentencepiece, write_tokenizer
from tiny_recipes import recipe, values


@pytest.mark.parametrize("data_has", ["no tokenizer", "the same without a template", "another one"])
def test_tokenizer_and_template_of_the_final_model(tmp_path: Path, data_has: str) -> None:
    reference = write_checkpoint(tmp_path / "reference", pad_token_id=None)
    (reference / "generation_config.json").write_text('{"eos_token_id": [2, 96]}')
    (reference / "chat_template.jinja").write_text("reference's {{ messages }}")
    data = tiny_data.write_shards(tmp_path / "data")
    if data_has != "no tokenizer":
        tokenizer = write_tokenizer(tmp_path / "other", vocabulary=97 if "same" in data_has else 60)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(data / "tokenizer")
    shards = {"path": str(data), "window": 32, "ignore_tokenizer": data_has == "another one"}
    changes = {"data": shards, "reference": {"pretrained": str(reference)}, "parity": {"margin": 100.0}}
    run(parse_recipe(values(data) | changes, Recipe), tmp_path / "run")
    final = tmp_path / "run" / "final"
    found = AutoTokenizer.from_pretrained(final)
    assert len(found.get_vocab()) == (60 if data_has == "another one" else 97)
    assert found.chat_template == (None if data_has == "another one" else "reference's {{ messages }}")
    assert json.loads((final / "generation_config.json").read_text())["eos_token_id"] == [2, 96]


def test_a_run_ends_well_without_a_tokenizer_that_can_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = without_tokenizer(tmp_path / "reference")
    write_sentencepiece(reference)
    data = tiny_data.write_shards(tmp_path / "data")
    run(
        recipe(data, reference={"pretrained": str(reference)}, parity={"margin": 100.0}),
        tmp_path / "run",
    )
    final = tmp_path / "run" / "final"
    assert ("tokenizer" in caplog.text) and (final / "model.safetensors").is_file()
    if not (final / "tokenizer.json").exists():  # it is, where sentencepiece is installed
        copied = (final / "tokenizer.model").read_bytes()
        assert copied == (reference / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("links", [True, False])
def test_the_final_weights_are_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*given: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr("os.link", refused)
    reference = write_checkpoint(tmp_path / "reference")
    data = tiny_data.write_shards(tmp_path / "data")
    changes = {"reference": {"pretrained": str(reference)}, "parity": {"margin": 100.0}}
    run(recipe(data, **changes), tmp_path / "run")
    (model,), final = (tmp_path / "run").glob("round-1-*/model"), tmp_path / "run" / "final"
    one, other = model / "model.safetensors", final / "model.safetensors"
    assert one.samefile(other) is links and one.read_bytes() == other.read_bytes()
    shared = [file.name for file in model.iterdir() if file.samefile(final / file.name)]
    assert shared == (["model.safetensors"] if links else []), (
        "what is small is written anew for the final model"
    )


def test_a_damaged_tokenizer_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    reference = without_tokenizer(tmp_path / "reference")
    (reference / "tokenizer.json").write_text("{")
    data = tiny_data.write_shards(tmp_path / "data")
    with pytest.raises(UserError, match=r"the tokenizer of .*reference cannot be read"):
        run(recipe(data, reference={"pretrained": str(reference)}), tmp_path / "run")


def without_tokenizer(path: Path) -> Path:
    reference = write_checkpoint(path)
    for file in [*reference.glob("tokenizer*"), reference / "chat_template.jinja"]:
        file.unlink()
    return reference
