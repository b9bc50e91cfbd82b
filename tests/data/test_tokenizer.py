"""What a tokenizer puts in front of a text by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer, CanineTokenizer, LlamaTokenizer

from bos_tokenizers import BOS, EOS, make_tokenizer, save_tokenizer
from inheritune import UserError
from inheritune.data import tokenizer as tokenizers
from inheritune.data.tokenizer import Encoder, bos_id, tokens_in_front


@pytest.mark.parametrize(
    ("template", "front"),
    [
        (None, []),
        ("$A", []),
        ("<bos> $A", [BOS]),
        ("$A <eos>", []),
        ("<bos> $A <eos>", [BOS]),
        ("<eos> $A", [EOS]),
        ("<bos> <sop> $A", [BOS, 3]),
        ("<bos> <sop> $A <eos>", [BOS, 3]),
    ],
)
def test_only_what_stands_in_front_counts(tmp_path: Path, template: str | None, front: list[int]) -> None:
    for tokenizer in (
        make_tokenizer(template),
        AutoTokenizer.from_pretrained(save_tokenizer(tmp_path, template)),
    ):
        assert tokens_in_front(tokenizer) == front
        if len(front) < 2:
            assert bos_id(tokenizer) == (front[0] if front else None)
        assert bos_id(tokenizer, "none") is None
        assert bos_id(tokenizer, "<sop>") == 3


def test_several_tokens_in_front_must_be_settled_by_the_user() -> None:
    with pytest.raises(
        UserError, match=r"more than one token in front of a text \(<bos>, <sop>\): name the .*--bos"
    ):
        bos_id(make_tokenizer("<bos> <sop> $A"))


def test_a_token_that_is_not_there() -> None:
    with pytest.raises(UserError, match="the beginning-of-text token '<s>' is not in the vocabulary"):
        bos_id(make_tokenizer(), "<s>")


def test_tokenizers_in_python() -> None:
    assert bos_id(ByT5Tokenizer()) is None, "it appends </s>"
    canine = CanineTokenizer()
    assert bos_id(canine) == canine.cls_token_id


def test_llama_by_its_setting() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
    for adds, expected in ((True, 1), (False, None)):
        tokenizer = LlamaTokenizer(
            vocab=vocabulary, merges=[("▁", "a")], add_bos_token=adds, add_eos_token=True
        )
        assert bos_id(tokenizer) == expected


def test_a_tokenizer_that_cannot_be_seen_through() -> None:
    class Odd:
        def __call__(self, text: str, add_special_tokens: bool = True) -> Odd:
            self.input_ids = [7, 8] if add_special_tokens else [5, 6]
            return self

    with pytest.raises(UserError, match="it cannot be seen what the tokenizer puts in front of a text: name"):
        bos_id(Odd())


def test_a_tokenizer_that_we_train_adds_none(tmp_path: Path) -> None:
    tokenizers.train(["some words"] * 10, 300, tmp_path / "made")
    assert Encoder(tmp_path / "made").bos is None


def test_the_encoder_writes_no_beginning(tmp_path: Path) -> None:
    encoder = Encoder(save_tokenizer(tmp_path / "made", "<bos> $A <eos>"))
    assert encoder.bos == BOS
    plain = make_tokenizer(None)("the <bos> window", split_special_tokens=True).input_ids
    assert BOS not in plain
    assert encoder(["the <bos> window"])[0].tolist() == [*plain, EOS]


@pytest.mark.parametrize(
    ("special", "template", "end", "told"),
    [
        (["<|endoftext|>", "<|im_end|>"], None, "<|endoftext|>", "so texts end with <|endoftext|>"),
        (["</s>", "[/turn]"], "{{ message }}[/turn]", "</s>", "so texts end with </s>"),
        (["<|im_end|>"], None, "<eos>", "so texts end with <eos>"),
        (["<|endoftext|>", "[END]"], "{{ message }}{{ eos_token }}", "[END]", None),
        (["<|endoftext|>", "</s>"], "{{ message }}</s>", "</s>", None),
    ],
)
def test_texts_do_not_end_with_the_end_of_a_turn(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    special: list[str],
    template: str | None,
    end: str,
    told: str | None,
) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": special[-1]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    assert Encoder(tmp_path).end_of_text == tokenizer.convert_tokens_to_ids(end)
    assert caplog.text == "" if told is None else f"{special[-1]} ends turns of a chat, {told}" in caplog.text
    assert Encoder(tmp_path, end_of_text="<eos>").end_of_text == EOS


def test_an_end_of_a_turn_that_is_the_only_end_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "TEXT_ENDS", ())
    save_tokenizer(tmp_path / "made")
    monkeypatch.setattr(tokenizers, "CHAT_ENDS", ("<eos>",))
    assert Encoder(tmp_path / "made").end_of_text == EOS
    assert "<eos> ends turns of a chat, but it knows no other, so texts end with it too" in caplog.text
