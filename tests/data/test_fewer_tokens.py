"""A tokenizer of some of another one's tokens: which are kept, and that it reads text as the whole one does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

import tiny_data
from inheritune import UserError
from inheritune.data.prepare import prepare
from inheritune.data.shards import open_split
from inheritune.data.tokenizer import tokens_in_front
from inheritune.data.vocabulary import BYTES, check_pruned, choose_tokens, count_tokens, prune
from small_tokenizers import KINDS, texts
from tiny_checkpoints import write_tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {kind: make() for kind, make in KINDS.items()}


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def counts_of(tokenizer: Any, documents: list[str]) -> np.ndarray:
    ids = [token for text in documents for token in encode(tokenizer, text)]
    return count_tokens(np.array(ids), len(tokenizer))


def fewest(tokenizer: Any) -> int:
    return len(choose_tokens(tokenizer, np.zeros(len(tokenizer), int), "used"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_text_is_read_as_by_the_whole_tokenizer(
    tokenizers: dict[str, Any], kind: str, seed: int, share: float
) -> None:
    whole, generator = tokenizers[kind], random.Random(seed)
    least = fewest(whole)
    wanted = least + round(share * (len(whole) - least))
    counts = np.array([generator.choice([0, 1, 5, generator.randint(0, 99)]) for _ in range(len(whole))])
    kept = choose_tokens(whole, counts, wanted)
    assert len(kept) == wanted and kept == sorted(set(kept))
    small = prune(whole, kept)
    names = [whole.convert_ids_to_tokens(token) for token in kept]
    assert small.convert_ids_to_tokens(range(len(small))) == names
    assert [kept[token] for token in tokens_in_front(small)] == tokens_in_front(whole)
    for field in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(small, field) == getattr(whole, field)
    exact = 0
    anything = [chr(generator.choice([*range(32, 127), 0xE9, 0x6F22, 0x1F600, 9, 10])) for _ in range(60)]
    for text in (
        "".join(anything),
        *texts(4, seed),
        *(whole.decode(generator.choices(kept, k=length)) for length in (1, 2, 3) for _ in range(10)),
    ):
        ids = encode(whole, text)
        again = encode(small, text)
        assert small.decode(again) == whole.decode(ids), text
        if set(ids) <= set(kept):
            assert [kept[token] for token in again] == ids, text
            exact += 1
    assert exact, "nothing was compared"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_used_is_kept_and_little_else(tokenizers: dict[str, Any], kind: str) -> None:
    whole = tokenizers[kind]
    document = texts(1, seed=3)
    kept = choose_tokens(whole, counts_of(whole, document), "used")
    ids = set(encode(whole, document[0]))
    assert ids <= set(kept)
    assert fewest(whole) < len(kept) < len(whole)
    small = prune(whole, kept)
    assert [kept[token] for token in encode(small, document[0])] == encode(whole, document[0])


def test_a_number_takes_the_most_frequent_and_of_equals_the_lower_id(tokenizers: dict[str, Any]) -> None:
    whole = tokenizers["unigram"]  # in which no token needs another one
    counts = np.zeros(len(whole), int)
    favourites = [whole.convert_tokens_to_ids(token) for token in ("▁while", "▁reads", "▁tokens", "▁window")]
    assert whole.unk_token_id not in favourites
    counts[favourites] = 5
    counts[favourites[0]] = 6
    always = set(choose_tokens(whole, counts * 0, "used"))
    for more in range(1, 5):
        kept = set(choose_tokens(whole, counts, len(always) + more))
        assert kept - always == {favourites[0], *sorted(favourites[1:])[: more - 1]}


def test_a_kept_token_keeps_what_it_is_merged_from(tokenizers: dict[str, Any]) -> None:
    for kind in ("byte-level", "byte fallback"):
        whole = tokenizers[kind]
        counts = np.zeros(len(whole), int)
        longest = max(
            (token for token in whole.get_vocab() if token not in (*BYTES, *whole.all_special_tokens)),
            key=len,
        )
        counts[whole.convert_tokens_to_ids(longest)] = 1
        model = json.loads(prune(whole, choose_tokens(whole, counts, "used")).backend_tokenizer.to_str())[
            "model"
        ]
        made = {"".join(pair) for pair in model["merges"]}
        for left, right in model["merges"]:
            assert {left, right, left + right} <= model["vocab"].keys()
        assert longest in made
        assert all(len(token) == 1 or token in made for pair in model["merges"] for token in pair)


def test_counts_are_over_all_files_of_a_split(tmp_path: Path) -> None:
    split = open_split(tiny_data.write_shards(tmp_path), "train")
    counts = count_tokens(split, 97)
    assert counts.tolist() == np.bincount(split.read(0, split.tokens), minlength=97).tolist()
    assert counts.sum() == split.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_takes_it(tokenizers: dict[str, Any], tmp_path: Path, kind: str) -> None:
    whole = tokenizers[kind]
    kept = choose_tokens(whole, counts_of(whole, texts(3)), fewest(whole) + 20)
    prune(whole, kept).save_pretrained(tmp_path / "small")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    manifest = prepare([texts(200)], tmp_path / "data", tokenizer=tmp_path / "small", validation=0.1)
    assert manifest.tokenizer.vocabulary == len(kept)
    split = open_split(tmp_path / "data", "validation")
    ids = split.read(0, split.tokens).tolist()
    first = AutoTokenizer.from_pretrained(tmp_path / "small").decode(ids[: ids.index(split.end_of_text)])
    assert first in texts(200)


def test_the_check_notices_a_tokenizer_that_reads_otherwise(tokenizers: dict[str, Any]) -> None:
    whole = tokenizers["byte-level"]
    kept = choose_tokens(whole, counts_of(whole, texts(9)), fewest(whole) + 40)
    small, held_out = (
        prune(whole, kept),
        np.array([t for text in texts(20, seed=5) for t in encode(whole, text)]),
    )
    found = check_pruned(small, whole, kept, held_out)
    assert found.whole > found.kept > 1
    content = json.loads(small.backend_tokenizer.to_str())
    content["model"]["merges"] = content["model"]["merges"][1:]
    del small
    broken = prune(whole, kept)
    broken._tokenizer = type(broken.backend_tokenizer).from_str(json.dumps(content))
    with pytest.raises(UserError, match=r"it would read '.*' in another way than before"):
        check_pruned(broken, whole, kept, held_out)


def test_what_cannot_be(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    whole = tokenizers["byte-level"]
    counts, least = np.ones(len(whole), int), fewest(whole)
    for wanted in (0, 100, least - 1, len(whole) + 1):
        with pytest.raises(UserError, match=rf"a vocabulary of {wanted} tokens: .* has 402, and {least} of"):
            choose_tokens(whole, counts, wanted)
    assert choose_tokens(whole, counts, len(whole)) == list(range(len(whole)))
    with pytest.raises(UserError, match="out of a ByT5Tokenizer: it has no tokenizer"):
        choose_tokens(ByT5Tokenizer(), counts, 300)
    with pytest.raises(UserError, match="of the type WordLevel: it has to be a BPE, or a Unigram"):
        choose_tokens(write_tokenizer(tmp_path), counts, 90)
