"""`inheritune evaluate` at the command line."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny_data
from evaluation import tiny_items
from inheritune.cli import main as cli
from inheritune.evaluation.result import load_evaluation
from inheritune.report.evaluation_report import FILES

FILES = ("evaluation.json", *FILES)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Path):
    """Calls `inheritune evaluate` in the folder with the models and the items."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["inheritune", "evaluate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `large`, `small` and `bare` (no tokenizer), `items`, `broken` items and `text`."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = tiny_items.make_tokenizer(folder / "tokenizer")
    for name, layers in (("large", 2), ("small", 1), ("bare", 1)):
        tiny_items.make_model(tokenizer, layers=layers).save_pretrained(folder / name)
        if name != "bare":
            tokenizer.save_pretrained(folder / name)
    tiny_items.write_items(folder / "items", ["boolq", "lambada_openai"])
    tiny_items.write_items(folder / "broken", ["boolq"])
    with (folder / "broken" / "boolq" / "validation.jsonl").open("a") as file:
        file.write('{"question": \n')
    tiny_data.write_shards(folder / "text", vocabulary=600)
    return folder


def test_it_prints_tables_and_writes_its_files(command, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = command(
        *("before=large", "after=small", "--tasks", "boolq,lambada_openai", "--data", "items"),
        *("--val", "text", "--window", 64, "--limit", 5, "--device", "cpu", "-o", output),
    )
    assert result.code == 0, result.err
    for word in ("before", "after", "boolq", "lambada_openai", "evaluation.html"):
        assert word in result.out
    assert {path.name for path in output.iterdir()} == {*FILES, "items"}
    found = load_evaluation(output / "evaluation.json")
    assert [model.name for model in found.models] == ["before", "after"]
    assert [task.items for task in found.tasks] == [5, 5]
    assert found.validation is not None
    assert found.validation.window == 64
    assert found.environment["command"].startswith(
        "inheritune evaluate before=large after=small --tasks boolq,"
    )
    for name in ("evaluation.md", "evaluation.html"):
        text = (output / name).read_text("utf-8")
        assert all(word in text for word in ("before", "after", "boolq", "lambada_openai"))
    with (output / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["task"], row["metric"], row["model"]): row for row in csv.DictReader(file)}
    for i, model in enumerate(("before", "after")):
        value = found.task("boolq").of("acc").scores[i].value
        assert float(rows["boolq", "acc", model]["value"]) == value
        assert f"{100 * value:.2f}" in (output / "evaluation.md").read_text("utf-8")
        assert f"{100 * value:.2f}" in result.out


def test_tasks_can_be_given_one_by_one_and_what_is_left_out_is_told(command, tmp_path: Path) -> None:
    result = command(
        *("small", "--tasks", "boolq", "--tasks", "sciq", "--data", "items", "--skip-missing"),
        *("--shots", 1, "--batch-size", 3, "--dtype", "float32", "--device", "cpu", "-o", tmp_path / "out"),
    )
    assert result.code == 0, result.err
    assert "skipped sciq: there are no items of sciq in items" in " ".join(result.out.split())
    found = load_evaluation(tmp_path / "out" / "evaluation.json")
    assert [(task.task, task.shots) for task in found.tasks] == [("boolq", 1)]
    assert list(found.skipped) == ["sciq"]
    assert found.settings["batch_size"] == 3


def test_without_an_output_it_is_a_folder_here(command, place: Path) -> None:
    result = command(
        "bare", "--tokenizer", "tokenizer", "--tasks", "boolq", "--data", "items", "--device", "cpu"
    )
    assert result.code == 0, result.err
    assert (place / "evaluation" / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "it asks for nothing: give `tasks`, `validation`, `speed` or `samples`"),
        (("--tasks", "boolk"), "there is no task 'boolk': the nearest names are boolq"),
        (("--tasks", ",boolq"), "evaluation: tasks: it is empty"),
        (
            ("--tasks", "boolq", "--data", "nowhere"),
            "there is no folder nowhere: give the one with the evaluation",
        ),
        (("--tasks", "sciq", "--data", "items"), "items: sciq/validation.jsonl or test.jsonl is not there"),
        (
            ("--tasks", "boolq", "--data", "broken"),
            "broken/boolq/validation.jsonl, line 7, is not valid JSON",
        ),
        (
            ("--tasks", "boolq", "--data", "items", "--device", "gpu"),
            "there is no device 'gpu': give cpu, cuda",
        ),
        (
            ("--tasks", "boolq", "--data", "items", "--dtype", "floaty"),
            "there is no type of weights 'floaty'",
        ),
        (("--val", "nowhere"), "nowhere"),
        (("--val", "items"), "items"),
        (
            ("--val", "text", "--window", "600"),
            "windows of 600 tokens are longer than a model's context of 512",
        ),
        (("--speed", "--batches", "1,x"), "batches"),
        (("--speed", "--batches", "0"), "batches"),
        (("large", "--speed"), "two models are called large: name them, as in A=PATH B=PATH"),
        (("bare", "--samples"), "bare comes without a tokenizer: give one with --tokenizer"),
        (("./none", "--speed"), "there is no model at ./none"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(
    command,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    sentence: str,
) -> None:
    if "boolk" in arguments or ",boolq" in arguments:  # instead of the whole index of the harness
        index = SimpleNamespace(task_index={"boolq": 0}, all_tasks=["boolq"])
        monkeypatch.setattr("inheritune.evaluation.tasks._manager", lambda only=None: index)
    result = command("large", *arguments, "-o", tmp_path / "out")
    assert result.code == 2, result.err
    assert sentence in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("large", "--limit", "0"), ("large", "--shots", "-1"), ("--tasks", "x")]
)
def test_wrong_options_exit_with_2(command, arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_an_output_that_is_a_file_is_refused(command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    result = command(
        "small", "--tasks", "boolq", "--data", "items", "--device", "cpu", "-o", tmp_path / "file"
    )
    assert result.code == 2
    assert "file" in result.err
    assert "Traceback" not in result.err
    assert (tmp_path / "file").read_text() == "here"
