"""`inheritune.analyze`: what it reads, what it says, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from handmade_attention import handmade_model
from inheritune.algorithm import run
from inheritune.analysis.analyze import Options, analyze, analyze_run, analyze_side_by_side
from inheritune.analysis.lazy import measure_heads
from inheritune.analysis.maps import Head, parse_heads
from inheritune.analysis.result import load_analyses, save_analyses
from inheritune.data.loader import read_windows
from inheritune.data.shards import open_split
from tiny_data import write_shards
from tiny_models import VOCABULARY, tiny_model
from tiny_recipes import recipe, training

TEXT = " ".join(f"w{i % 40}" for i in range(600))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def word_tokenizer(words: int = 40, shift: int = 0) -> PreTrainedTokenizerFast:
    vocabulary = {"[UNK]": 0, **{f"w{i}": 1 + (i + shift) % words for i in range(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def save(folder: Path, model_type: str = "gpt2", *, tokenizer: Any = None, **changes: Any) -> Path:
    tiny_model(model_type, **changes).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def test_every_number_is_that_of_the_windows_named(shards: Path) -> None:
    model = tiny_model("llama")
    found = analyze(model, shards, sequences=5, window=24, tau=0.8, mass=0.7, seed=3)
    assert (found.window, found.sequences, found.seed, found.tau, found.mass) == (24, 5, 3, 0.8, 0.7)
    assert len(set(found.windows)) == 5
    split = open_split(shards, "validation")
    assert max(found.windows) < (split.tokens - 1) // 24
    inputs = read_windows(split, found.windows, 24)[:, :-1]  # type: ignore[arg-type]
    heads = measure_heads(model, inputs, tau=0.8, mass=0.7)
    assert found.ranks == [ranks.tolist() for ranks in heads.ranks]
    assert found.masses == [masses.tolist() for masses in heads.masses]


def test_the_same_seed_gives_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_analyses(tmp_path / name, [analyze(model, shards, sequences=4, window=16, seed=seed)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_analyses(tmp_path / "a")[0].windows != load_analyses(tmp_path / "c")[0].windows


def test_lazy_layers_are_found_and_the_file_reads_back(shards: Path, tmp_path: Path) -> None:
    everything = range(4)
    model = handmade_model([(), (0,), (1, 2, 3), (), everything, everything])
    found = analyze(model, shards, sequences=3, window=40)
    assert [layer.lazy for layer in found.layers] == [False] * 4 + [True] * 2
    assert found.layers[2].degenerate_heads == [1, 2, 3]
    assert found.cut.verdict == "too deep"
    assert found.cut.suggested == 4
    assert found.cut.sentence.startswith(
        "Layers 5-6 are lazy; a first cut at 3 is too deep: it drops layer 4"
    )
    save_analyses(tmp_path / "analysis.json", [found])
    assert load_analyses(tmp_path / "analysis.json") == [found]


def test_a_text_file_is_read_with_the_models_tokenizer(tmp_path: Path) -> None:
    path = save(tmp_path / "model", tokenizer=word_tokenizer())
    (tmp_path / "text.txt").write_text(TEXT)
    found = analyze(path, tmp_path / "text.txt", sequences=1000, window=32)
    assert sorted(found.windows) == list(range(600 // 32)), "all there are"
    assert analyze(path, tmp_path / "text.txt", sequences=2).window == 64, "the model's context"
    (tmp_path / "short.txt").write_text("w1 w2 w3 w4 w5")
    assert analyze(path, tmp_path / "short.txt").window == 5, "as long as the text"


def test_two_models_read_the_same_sequences(shards: Path) -> None:
    large, small = handmade_model([(), (0, 1, 2, 3)]), handmade_model([()], n_positions=32)
    found = analyze_side_by_side([large, small], shards, Options(sequences=4), maps=True)
    first, second = (one.analysis for one in found)
    assert first.windows == second.windows
    assert first.window == second.window == 32, "the shorter context"
    assert (first.depth, second.depth) == (2, 1)
    assert first.ranks[0] == second.ranks[0]
    assert [str(head) for head in found[0].maps] == ["L1H0", "L2H0"]


def test_maps_are_those_of_the_heads_named(shards: Path) -> None:
    model = handmade_model([(), (2,)])
    heads = parse_heads("L2H2, l2h1")
    assert heads == [Head(2, 2), Head(2, 1)]
    maps = analyze_side_by_side([model], shards, Options(sequences=3, window=8), heads=heads)[0].maps
    assert list(maps) == heads
    assert maps[Head(2, 2)][:, 0].tolist() == pytest.approx([1.0] * 8)
    assert maps[Head(2, 1)][7].tolist() == pytest.approx([1 / 8] * 8)


def test_the_model_is_left_as_it_was(shards: Path) -> None:
    model = tiny_model("llama").train()
    analyze(model, shards, sequences=2, window=16)
    assert model.training
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window": 65}, "windows of 65 tokens are longer than the model's context of 64"),
        ({"window": 1}, "a window of 1 tokens is too short"),
        ({"sequences": 0}, "cannot analyze 0 sequences"),
        ({"tau": 1.5}, "tau is 1.5, but must be above 0 and at most 1"),
        ({"mass": 0}, "mass is 0, but must be above 0 and at most 1"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_settings_out_of_range(shards: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        analyze(tiny_model("gpt2"), shards, **changes)


def test_a_model_without_attention(shards: Path, tmp_path: Path) -> None:
    mamba = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}
    path = save(tmp_path / "mamba", "mamba", **mamba)
    for model in (path, tiny_model("mamba", **mamba)):
        with pytest.raises(ValueError, match="a 'mamba' model has no attention matrices to analyze"):
            analyze(model, shards)


@pytest.mark.parametrize(
    ("heads", "sentence"),
    [
        ("L5H0", "there is no head L5H0: the model has layers 1 to 4 with heads 0 to 3 each"),
        ("L1H0,L1H4", "there is no head L1H4"),
        ("L0H1", "there is no head L0H1"),
        ("4.3", "'4.3' is not a head: write heads as L4H3,L7H0"),
        ("", "'' is not a head"),
    ],
)
def test_heads_out_of_range(shards: Path, heads: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        analyze_side_by_side([tiny_model("gpt2")], shards, Options(), heads=parse_heads(heads))


def test_data_with_another_vocabulary(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"token \d\d occurs in .*, but the embedding of gpt2 has 50 rows"):
        analyze(tiny_model("gpt2", vocab_size=50), shards)
    data = write_shards(tmp_path / "data", vocabulary=41)
    word_tokenizer().save_pretrained(data / "tokenizer")
    analyze(save(tmp_path / "same", tokenizer=word_tokenizer()), data, sequences=1, window=8)
    analyze(save(tmp_path / "none"), data, sequences=1, window=8)
    with pytest.raises(ValueError, match="which has another tokenizer"):
        analyze(save(tmp_path / "other", tokenizer=word_tokenizer(shift=1)), data)


def test_two_models_of_different_tokens(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    same = save(tmp_path / "same", tokenizer=word_tokenizer())
    other = save(tmp_path / "other", tokenizer=word_tokenizer(shift=1))
    with pytest.raises(ValueError, match="tokenizer"):
        analyze_side_by_side([same, other], tmp_path / "text.txt", Options())
    with pytest.raises(ValueError, match="cannot be put side by side: they have different tokenizers"):
        analyze_side_by_side([same, other], shards, Options())
    with pytest.raises(ValueError, match="different vocabularies, of 97 and 120 tokens"):
        analyze_side_by_side([tiny_model("gpt2"), tiny_model("gpt2", vocab_size=120)], shards, Options())


def test_no_text(tmp_path: Path) -> None:
    path = save(tmp_path / "model", tokenizer=word_tokenizer())
    text = tmp_path / "text.txt"
    with pytest.raises(ValueError, match=r"neither a folder of token shards nor a text file at .*text\.txt"):
        analyze(path, text)
    text.write_text(" \n")
    with pytest.raises(ValueError, match=r"there is no text in .*text\.txt"):
        analyze(path, text)
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="byte 0 is not UTF-8"):
        analyze(path, text)
    text.write_text("w1 w2 w3")
    with pytest.raises(ValueError, match="has 3 tokens, fewer than one window of 8"):
        analyze(path, text, window=8)
    with pytest.raises(ValueError, match="comes without a tokenizer to read"):
        analyze(save(tmp_path / "mute"), text)


def test_damaged_analyses_are_told(tmp_path: Path) -> None:
    path = tmp_path / "analysis.json"
    path.write_text('{"format": 2, "analyses": []}')
    with pytest.raises(ValueError, match="is not an attention analysis of format 1: format"):
        load_analyses(path)


def test_the_models_of_a_run(shards: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(ValueError, match="is not the directory of a finished run"):
        analyze_run(directory)
    run(recipe(shards, training=training(steps=4)), directory)
    found = analyze_run(directory, sequences=3)
    assert {name: a.depth for name, a in found.items()} == {"reference": 4, "final": 2}
    assert found["reference"].windows == found["final"].windows
    shutil.rmtree(directory / "reference" / "model")
    assert analyze_run(directory, sequences=7) == found, "what is there is not measured again"
    (directory / "final" / "analysis.json").unlink()
    assert analyze_run(directory, sequences=7) == found, "on as many sequences as the other"


def test_results_do_not_depend_on_the_weights_dtype_of_the_file(shards: Path, tmp_path: Path) -> None:
    tiny_model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    assert analyze(tmp_path, shards, sequences=1, window=8).dtype == "float32"
    assert analyze(tmp_path, shards, sequences=1, window=8, dtype="auto").dtype == "bfloat16"
