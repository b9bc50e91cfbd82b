"""`inherit` with a smaller vocabulary: from a model and its text to a checkpoint that reads every text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import inheritune
from inheritune import UserError
from inheritune.analysis.kept import load_kept
from inheritune.cli import main as cli
from inheritune.data.prepare import prepare
from inheritune.data.shards import open_split
from inheritune.models.architecture import parameter_count
from small_tokenizers import KINDS, save, texts
from tiny_checkpoints import change_json, write_checkpoint
from tiny_models import tiny_model

ROWS = 448
"""Of the embedding: more than any of the tokenizers has tokens."""


def write_model(folder: Path, kind: str = "byte-level", model_type: str = "llama", **changes: Any) -> Path:
    tokenizer = KINDS[kind]()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tiny_model(model_type, vocab_size=ROWS, **special, **changes).save_pretrained(folder)
    save(kind, folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts(300)), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_with_fewer_tokens(tmp_path: Path, text: Path, kind: str) -> None:
    folder = write_model(tmp_path / "model", kind, tie_word_embeddings=True)
    small = inheritune.inherit(
        folder, 2, vocabulary="used", data=text, keep="ends", output=tmp_path / "small"
    )
    whole, tokenizer = (
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(tmp_path / "small"),
    )
    record = load_kept(tmp_path / "small" / "choice.json")
    assert record.layers == [0, 3]
    assert record.vocabulary is not None
    assert record.vocabulary.tokens == len(tokenizer) == small.config.vocab_size <= len(whole)
    assert record.vocabulary.of_tokens == len(whole)
    assert record.vocabulary.bytes_per_token_before >= record.vocabulary.bytes_per_token > 1
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(small.config, field) == getattr(tokenizer, field)
        assert getattr(small.generation_config, field) == getattr(tokenizer, field)
    reference, sentence = inheritune.inherit(folder, keep=[0, 3]), texts(1, seed=9)[0]
    ids, others = (one(sentence, return_tensors="pt").input_ids for one in (whole, tokenizer))
    assert whole.convert_ids_to_tokens(ids[0]) == tokenizer.convert_ids_to_tokens(others[0])
    places = whole.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    with torch.no_grad():
        found, expected = small(others).logits, reference(ids).logits[..., places]
    torch.testing.assert_close(found, expected)


def test_a_size_counts_the_tokens_that_are_left(tmp_path: Path, text: Path, monkeypatch) -> None:
    monkeypatch.setattr("inheritune.analysis.shape.STEPS", 2)
    monkeypatch.setattr("inheritune.analysis.layers.LENGTH", 32)
    folder = write_model(tmp_path / "model", tie_word_embeddings=True)
    small = inheritune.inherit(
        folder, parameters=30_000, vocabulary="used", data=text, output=tmp_path / "small"
    )
    record = load_kept(tmp_path / "small" / "choice.json")
    assert record.vocabulary is not None and record.vocabulary.tokens == small.config.vocab_size < ROWS
    taken = min(record.trials, key=lambda trial: float("inf") if trial.trained is None else trial.trained)
    # A step of MLP channels more, eight of them in each layer, would be too many.
    assert 30_000 - 3 * 32 * 8 * taken.layers < taken.parameters == parameter_count(small) <= 30_000


def test_shards_of_the_model_choose_tokens_and_its_result_makes_new_ones(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", model_type="gpt2")
    prepare([texts(300)], tmp_path / "data", tokenizer=folder, validation=0.1)
    small = inheritune.inherit(folder, vocabulary=300, data=tmp_path / "data", output=tmp_path / "small")
    assert (small.config.num_hidden_layers, small.config.vocab_size) == (4, 300)
    record = load_kept(tmp_path / "small" / "choice.json").vocabulary
    assert record is not None and record.identity is not None
    assert record.identity.sha256 == open_split(tmp_path / "data", "train").identity.sha256
    new = prepare([texts(300)], tmp_path / "new", tokenizer=tmp_path / "small", validation=0.1)
    assert new.tokenizer.vocabulary == 300
    one, other = (open_split(tmp_path / name, "validation").identity for name in ("data", "new"))
    assert one.text_bytes == other.text_bytes and one.sha256 != other.sha256
    assert one.bytes_per_token > other.bytes_per_token > 1
    # the shards of the whole vocabulary are no longer the model's
    with pytest.raises(UserError, match=r"token \d+ occurs in .* has 300 rows"):
        inheritune.inherit(tmp_path / "small", 2, data=tmp_path / "data")


def test_layers_without_a_vocabulary_keep_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    small = inheritune.inherit(folder, 2, keep="first", output=tmp_path / "small")
    assert small.config.vocab_size == ROWS
    assert torch.equal(small.lm_head.weight, AutoModelForCausalLM.from_pretrained(folder).lm_head.weight)
    assert load_kept(tmp_path / "small" / "choice.json").vocabulary is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--vocabulary", "300"],
            "which tokens to keep is counted in text: give token shards or a text file",
        ),
        (
            ["--vocabulary", "many", "--text", "TEXT"],
            "--vocabulary is 'many', but should be a number of tokens, or",
        ),
        (
            ["--vocabulary", "200", "--text", "TEXT"],
            "cannot keep a vocabulary of 200 tokens: this tokenizer has 402",
        ),
        (
            ["--vocabulary", "9999", "--text", "TEXT"],
            "cannot keep a vocabulary of 9,999 tokens: this tokenizer has",
        ),
        (["--vocabulary", "300", "--text", "EMPTY"], "there is no text in"),
        (
            ["--vocabulary", "300", "--data", "OTHER"],
            "which has another tokenizer: prepare the text with the",
        ),
    ],
)
def test_one_sentence_and_nothing_left(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    folder = write_model(tmp_path / "model")
    (tmp_path / "empty.txt").write_text("\n")
    prepare([texts(100)], tmp_path / "other", train_tokenizer=300, validation=0.1)
    places = {"TEXT": text, "EMPTY": tmp_path / "empty.txt", "OTHER": tmp_path / "other"}
    given = [str(places.get(argument, argument)) for argument in arguments]
    monkeypatch.setattr(
        sys, "argv", ["inheritune", "inherit", str(folder), *given, "-o", str(tmp_path / "small")]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    assert sentence in " ".join(said.split())
    assert not (tmp_path / "small").exists()


def test_models_without_a_tokenizer_of_which_tokens_can_be_taken(tmp_path: Path, text: Path) -> None:
    words = write_checkpoint(tmp_path / "words")
    bare = write_model(tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    options: dict[str, Any] = {"vocabulary": 300, "data": text, "output": tmp_path / "small"}
    with pytest.raises(UserError, match="of the type WordLevel: it has to be a BPE, or a Unigram"):
        inheritune.inherit(words, **options)
    with pytest.raises(UserError, match="bare has no tokenizer that can be used here"):
        inheritune.inherit(bare, **options)
    with pytest.raises(UserError, match="say in which folder to save both"):
        inheritune.inherit(words, vocabulary=300, data=text)
    with pytest.raises(UserError, match="a llama model in memory has no tokenizer"):
        inheritune.inherit(tiny_model("llama"), **options)
    assert not (tmp_path / "small").exists()


def test_records_without_a_vocabulary_still_open(tmp_path: Path, text: Path) -> None:
    folder = write_model(tmp_path / "model")
    inheritune.inherit(folder, 2, keep="first", output=tmp_path / "small")
    path = tmp_path / "small" / "choice.json"
    assert "vocabulary" in json.loads(path.read_text())
    change_json(path, vocabulary=None)
    assert "vocabulary" not in json.loads(path.read_text())
    assert load_kept(path).layers == [0, 1]
