"""`inheritune compare` at the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inheritune.cli import main as cli
from inheritune.report.comparison import FILES
from report.synthetic_comparison import write_training


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["inheritune", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_training(tmp_path / "large", [3.0, 3.2, 2.8])
    write_training(tmp_path / "small", [3.1, 3.4, 2.9])
    return tmp_path


def test_it_prints_the_table_and_the_paths(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(runs)
    assert call(monkeypatch, "compare", "a=small", "large", "--reference", "large") == 0
    out = capfd.readouterr().out
    assert "+0.133" in out
    assert "Compared with large" in out
    assert out.split()[-len(FILES) :] == [f"comparison/{name}" for name in FILES]
    assert all((runs / "comparison" / name).is_file() for name in FILES)


def test_directory_and_title_can_be_chosen(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        call(monkeypatch, "compare", runs / "large", runs / "small", "-o", runs / "x", "--title", "T1") == 0
    )
    assert "<h1>T1</h1>" in (runs / "x" / "comparison.html").read_text("utf-8")
    assert not (runs / "comparison").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "error: nowhere does not exist; give directories that"),
        (("large", "x=nowhere"), "error: nowhere does not exist"),
        (("large", "--reference", "nowhere"), "error: the reference nowhere is none of the runs"),
        ((".",), "error: . is not the directory of a run: it has no recipe.yaml"),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_2(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(runs)
    assert call(monkeypatch, "compare", *arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith(sentence)
    assert err.count("\n") == 1
    assert not (runs / "comparison").exists()
