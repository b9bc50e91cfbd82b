"""YAML as recipes have it: plain values, and one sentence for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inheritune import UserError
from inheritune.plain_yaml import dump, parse, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e4", 1e4),
        ("-2E-3", -2e-3),
        ("3.0e-4", 3e-4),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("1_000", 1000),
        ("0x1f", 31),
        ("-7", -7),
        ("yes", True),
        ("~", None),
        ("2:8", "2:8"),
        ("0:24:2", "0:24:2"),
        ("010", "010"),
        ("2024-05-01", "2024-05-01"),
        ("1e", "1e"),
        ("é漢", "é漢"),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    found = parse(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)
    assert parse(dump({"key": value})) == {"key": value}


@pytest.mark.parametrize(
    "text", ["1e4", "2:8", "010", "yes", "null", "2024-05-01", "1_0", "", "a: b", "- a", "<<", "#"]
)
def test_texts_that_look_like_something_else_are_written_in_quotes(text: str) -> None:
    assert parse(dump({text or "key": [text]})) == {text or "key": [text]}


def test_anchors_and_merge_keys() -> None:
    assert parse("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\ne: *x") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 3},
        "e": {"b": 1, "c": 2},
    }


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: 1\nb: {c: 1, c: 2}", "the key 'c' is given twice in line 2, column 11"),
        (b"a: 1\n1: 2", "this key is not a text: put it in quotes in line 2"),
        (b"? [a]\n: 1", "this key is not a text"),
        (b"a: &a [*a]", "a structure that holds itself"),
        (b"a: &a {<<: *a}", "a structure that holds itself"),
        (LAUGHS.encode(), "more than 100000 values"),
        (b"a: " + b"[" * 40 + b"]" * 40, "more than 32 levels deep"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"a: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag"),
        (b"a: !!set {b}", "could not determine a constructor for the tag"),
        (b"a: !!int b", "this is no value of 'int'"),
        (b"a: !!bool b", "this is no value of 'bool'"),
        (b"a: " + b"9" * 5000, "this is no value of 'int'"),
        (b'a: "\\ud800"', "half of a character"),
        (b"a: 1\n---\nb: 2", "expected a single document"),
        (b"a: \xff", "codec can't decode byte 0xff"),
        (b"a: *" + b"b" * 100_000, "found undefined alias"),
        (b"\ta: 1", "cannot start any token"),
        (b"a: [1", "is not a YAML file of plain values"),
        (b"a: x" * 300_000, "it is larger than 256 KiB"),
    ],
)
def test_what_is_not_plain_is_refused_in_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{path} is ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"# nothing", b"\xef\xbb\xbfa: 1"])
def test_empty_files_and_byte_order_marks(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert read(path) == ({"a": 1} if b"a" in content else None)
