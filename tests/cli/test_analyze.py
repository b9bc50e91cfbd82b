"""`inheritune analyze` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from handmade_attention import handmade_model
from inheritune.analysis.kept import BlockFigures, load_layers
from inheritune.analysis.layers import disagreement
from inheritune.cli.analyze import analyze_command
from tiny_data import write_shards

app = typer.Typer()
app.command()(analyze_command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a reference whose second half is lazy, and a small model."""
    path = tmp_path_factory.mktemp("analyze")
    write_shards(path / "data")
    handmade_model([(), (0, 1), range(4), range(4)]).save_pretrained(path / "reference")
    handmade_model([(), (0, 1)]).save_pretrained(path / "small")
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_table_sentence_and_files(folder: Path, tmp_path: Path) -> None:
    result = invoke(
        folder / "reference",
        "--data",
        folder / "data",
        "-o",
        tmp_path / "out",
        "--attention",
        "--sequences",
        3,
        "--window",
        40,
    )
    assert result.exit_code == 0, result.exception
    lines = result.output.splitlines()
    assert "reference, 4 layers" in result.output
    assert any(line.split()[-2:] == ["4/4", "lazy"] for line in lines)
    assert "Layers 3-4 are lazy; a first cut at 2 is supported: all that it drops is lazy." in lines
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "analysis.json",
        "rank.svg",
        "mass.svg",
        "maps.svg",
        "layers.json",
        "worth.svg",
        "cuts.svg",
        "analysis.html",
    }
    page = (tmp_path / "out" / "analysis.html").read_text("utf-8")
    for words in (
        "<h1>reference, 4 layers</h1>",
        "The cheapest block to drop",
        "Layers 3-4 are lazy",
        "What each layer is worth, on some of",
        'id="maps"',
        "3 validation windows of 40 tokens",
    ):
        assert words in page, words
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())["analyses"][0]
    assert len(analysis["ranks"]) == 4
    assert [len(head) for head in analysis["ranks"][0]] == [3] * 4


def test_two_models_in_one_picture(folder: Path, tmp_path: Path) -> None:
    result = invoke(
        folder / "reference",
        folder / "small",
        "--data",
        folder / "data",
        "-o",
        tmp_path,
        "--heads",
        "L1H0,L3H1",
    )
    assert result.exit_code == 0, result.exception
    for name in ("rank.svg", "mass.svg", "maps.svg"):
        svg = (tmp_path / name).read_text()
        assert "reference, 4 layers" in svg
        assert "small, 2 layers" in svg
    maps = (tmp_path / "maps.svg").read_text()
    assert maps.count("<image") == 3, "L3H1 is in one of them only"
    assert len(json.loads((tmp_path / "analysis.json").read_text())["analyses"]) == 2
    page = (tmp_path / "analysis.html").read_text("utf-8")
    assert "<h1>reference, 4 layers and small, 2 layers</h1>" in page and 'id="layers"' not in page
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    invoke(
        folder / "reference",
        folder / "small",
        "--data",
        folder / "data",
        "-o",
        tmp_path,
        "--heads",
        "L1H0,L3H1",
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_each_layer_is_worth_comes_first(folder: Path, tmp_path: Path) -> None:
    result = invoke(folder / "reference", "--data", folder / "data", "-o", tmp_path, "--attention", "-n", 1)
    assert result.exit_code == 0, result.exception
    worth, cuts, attention = (
        result.output.index(text) for text in ("the loss without each block", "Loss of a cut", "Max rank")
    )
    assert worth < cuts < attention
    found = load_layers(tmp_path / "layers.json")
    assert [figures.block for figures in found.blocks] == [0, 1, 2, 3]
    assert all(figures.low <= figures.added <= figures.high for figures in found.blocks)
    assert {len(point.layers) for point in found.curve} == {1, 2, 3}
    assert {point.keep for point in found.curve} == {
        "measured",
        "contiguous",
        "first",
        "last",
        "ends",
        "spread",
    }
    assert found.sentence in result.output.replace("\n", " ") or found.sentence[:60] in result.output
    assert len(found.angles) == 3 and found.measured.identity is not None
    for name in ("worth.svg", "cuts.svg"):
        assert "<svg" in (tmp_path / name).read_text()
    before = (tmp_path / "layers.json").read_bytes()
    invoke(folder / "reference", "--data", folder / "data", "-o", tmp_path, "-n", 1)
    assert (tmp_path / "layers.json").read_bytes() == before
    page = (tmp_path / "analysis.html").read_text("utf-8")
    assert 'id="layers"' in page and 'id="attention"' not in page, "this time it was not asked for"


def test_rank_and_importance_may_disagree() -> None:
    blocks = [
        BlockFigures(block=i, added=a, low=a, high=a, influence=0) for i, a in enumerate([3, 0.1, 0.2, 2])
    ]
    assert "blocks 3 is lazy" in disagreement(blocks, [2, 3])
    assert disagreement(blocks, [1, 2]) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either --data (token shards) or --text (a text file)"),
        (["--data", "data", "--text", "x"], "give either --data (token shards) or --text (a text file)"),
        (["--data", "data", "--heads", "L1H0"], "so --output must say where to"),
        (
            ["--data", "data", "--heads", "L5H0", "-o", "out"],
            "there is no head L5H0: the model has layers 1 to 4",
        ),
        (
            ["--data", "data", "--attention", "--window", "4096"],
            "windows of 4096 tokens are longer than the model's context",
        ),
        (["--data", "nowhere"], "neither a folder of token shards nor a text file at nowhere"),
        (["--data", "data", "--device", "abacus"], "there is no device 'abacus'"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(folder)
    result = invoke("reference", *arguments)
    assert isinstance(result.exception, ValueError)
    assert sentence in str(result.exception)
    assert "\n" not in str(result.exception)
