"""The quickstart's text: the docstrings of the installation, or the user's own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from inheritune import quickstart
from inheritune.data.shards import read_manifest
from inheritune.data.sources import docstring_documents
from inheritune.recipe_file import parse_recipe


def test_docstrings_are_several_megabytes_and_always_the_same() -> None:
    first = list(docstring_documents())
    assert sum(map(len, first)) > 4_000_000
    assert len(first) > 500
    assert min(map(len, first)) >= 500
    assert first == list(docstring_documents())


def test_one_long_file_becomes_documents(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    lines = [f"line {i} of my notes, which go on and on\n" for i in range(1000)]
    path.write_text("".join(lines))
    documents = quickstart.pieces(path)
    assert isinstance(documents, list)
    assert "".join(documents) == path.read_text()
    assert all(2000 <= len(document) < 2100 for document in documents[:-1])
    assert quickstart.pieces(tmp_path) == tmp_path


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("tiny words here")
    with pytest.raises(ValueError, match=r"tiny\.txt: 15 characters are too little text .* at least 100,000"):
        quickstart.quickstart(tmp_path / "run", [str(tmp_path / "tiny.txt")])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.txt"]


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 30_000)
    with pytest.raises(ValueError, match=r"latin\.txt"):
        quickstart.quickstart(tmp_path / "run", [str(tmp_path / "latin.txt")])


def test_the_users_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One .txt file is enough; the run is shortened here, nothing else is changed."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 9))) for _ in range(3000)]
    text = "\n".join(" ".join(generator.choices(words, k=12)) for _ in range(6000))
    (tmp_path / "my notes.txt").write_text(text)
    original = quickstart.quickstart_recipe

    def short(data: Path) -> quickstart.Recipe:
        values = original(data).model_dump(mode="json", exclude={"reference": {"training"}})
        values["training"] |= {"steps": 4, "tracking": {"tensorboard": False}}
        values["training"]["schedule"]["warmup_steps"] = 1
        return parse_recipe(values, quickstart.Recipe)

    monkeypatch.setattr(quickstart, "quickstart_recipe", short)
    summary = quickstart.quickstart(tmp_path / "run", [str(tmp_path / "my notes.txt")])
    assert summary.verdict is not None
    assert read_manifest(tmp_path / "run-data").splits["train"].tokens > 50_000
    assert (tmp_path / "run/reference/analysis.json").exists()
    assert (tmp_path / "run/final/analysis.json").exists()
