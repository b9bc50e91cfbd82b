"""What users get wrong on the command line: one sentence, exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import inheritune
import tiny_data
from inheritune import UserError
from inheritune.analysis.importance import ChoiceLosses
from inheritune.cli import main as cli
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, training, values

MISSING = ("void", "", "file/x", "loop", "x" * 300)
"""Where nothing can be read."""
IN_THE_WAY = ("file", "file/x", "loop", "loop/x", "", "x" * 300, "data")
"""Where nothing can be written."""

LATE = {
    "run": ("lost.yaml", "homeless.yaml", "too-deep.yaml", "too-long.yaml", "no-text.yaml"),
    "train": ("lost-alone.yaml", "too-long-alone.yaml", "no-layers.yaml"),
    "study": ("lost-study.yaml",),
}
"""Recipes whose mistakes only show when data and models are looked at."""

RECIPES = {"run": "run.yaml", "train": "train.yaml", "study": "study.yaml"}

CASES: list[tuple[str, ...]] = [
    *(
        (verb,)
        for verb in (
            *(
                "prepare",
                "analyze",
                "inherit",
                "answers",
                "plan",
                "run",
                "train",
                "study",
                "evaluate",
                "report",
            ),
        )
    ),
    ("compare",),
    ("compare", "void"),
    ("nonsense",),
    ("run", "run.yaml", "--nonsense"),
    *(
        (verb, place)
        for verb in ("plan", *RECIPES)
        for place in (*MISSING, "data", "text.jsonl", "broken.yaml")
    ),
    *((verb, recipe, "-o", place) for verb, recipe in RECIPES.items() for place in IN_THE_WAY),
    ("run", "run.yaml", "-o", "."),
    ("run", "own/recipe.yaml", "-o", "own"),  # would be overwritten
    ("study", "study/study.yaml", "-o", "study"),
    ("quickstart", "--text", "void", "-o", "OUT"),
    ("quickstart", "--text", "", "-o", "OUT"),
    *(("quickstart", "--text", "text.jsonl", "-o", place) for place in IN_THE_WAY),
    ("study", "study.yaml", "-o", "."),
    *(
        (verb, recipe, "-o", place)
        for verb, recipes in LATE.items()
        for recipe in recipes
        for place in ("OUT", "deep/er/OUT")
    ),
    ("run", "train.yaml"),
    ("train", "run.yaml"),
    ("study", "run.yaml"),
    ("study", "study.yaml", "--jobs", "0"),
    ("study", "study.yaml", "--jobs", "-1"),
    ("study", "study.yaml", "--row", "other"),
    ("study", "study.yaml", "--row", ""),
    ("plan", "no-text.yaml"),
    *(("plan", "run.yaml", "--processes", number) for number in ("0", "-1", "x", "1.5")),
    *(("plan", "run.yaml", "--flops-per-second", number) for number in ("0", "-1", "x", "nan", "inf")),
    ("plan", "run.yaml", "--device", "tpu"),
    *(("inherit", place, "--layers", "2", "-o", "OUT") for place in (*MISSING, "file", "data", "text.jsonl")),
    *(("inherit", "model", "--layers", number, "-o", "OUT") for number in ("0", "-1", "5", "x")),
    *(("inherit", "model", "--layers", "2", "-o", place) for place in (*IN_THE_WAY, "model")),
    ("inherit", "model", "--layers", "2", "-o", "OUT", "--dtype", ""),
    ("inherit", "model", "--layers", "2", "-o", "OUT", "--device", "tpu"),
    *(("analyze", "model", "--data", "data", "-n", number) for number in ("0", "-1", "4", "5")),
    *(("analyze", "model", "--data", "data", "--attention", "-n", number) for number in ("0", "9")),
    ("analyze", "model", "--data", "data", "--device", "tpu"),
    ("analyze", "model", "model", "--data", "data", "-n", "2"),
    *(("analyze", "model", "--data", "data", "--dtype", kind) for kind in ("bfloat16", "auto")),
    *(
        ("analyze", "model", "--data", "data", f"--{option}", "1")
        for option in ("sequences", "window", "tau", "mass", "degenerate", "batch")
    ),
    *(
        (*command.split(), "--seed", seed)
        for command in (
            "prepare text.jsonl --train-tokenizer 300 -o OUT",
            "analyze model --data data",
            "analyze model --data data --attention",
            "inherit model --layers 2 -o OUT",
            "answers model --data data --window 32 -o OUT",
        )
        for seed in ("-1", str(2**63))
    ),
    *(("analyze", place, "--data", "data") for place in (*MISSING, "file", "data")),
    *(("analyze", "model", "--data", place) for place in (*MISSING, "file", "model")),
    *(("answers", place, "--data", "data", "-o", "OUT") for place in (*MISSING, "file", "data")),
    *(("answers", "model", "--data", place, "-o", "OUT") for place in (*MISSING, "file", "model")),
    *(("answers", "model", "--data", "data", "--window", "32", "-o", place) for place in IN_THE_WAY),
    *(("prepare", place, "--train-tokenizer", "300", "-o", "OUT") for place in (*MISSING, "empty", "file")),
    *(("prepare", "text.jsonl", "--train-tokenizer", "300", "-o", place) for place in IN_THE_WAY),
    *(("prepare", "text.jsonl", "--tokenizer", place, "-o", "OUT") for place in (*MISSING, "file", "data")),
    ("prepare", "text.jsonl", "--train-tokenizer", "-1", "-o", "OUT"),
    *(
        ("prepare", "text.jsonl", "--train-tokenizer", "300", option, number, "-o", "OUT")
        for option, numbers in {
            "--validation": ("-1", "1", "nan", "x"),
            "--workers": ("0", "-1"),
            "--max-documents": ("0", "-1"),
        }.items()
        for number in numbers
    ),
    ("prepare", "text.jsonl", "--train-tokenizer", "300", "--text-field", "", "-o", "OUT"),
    *(("evaluate", place, "--speed", "-o", "OUT") for place in (*MISSING, "file", "data")),
    *(("evaluate", "model", "--val", place, "-o", "OUT") for place in (*MISSING, "file", "model")),
    *(
        ("evaluate", "model", "--val", "data", "-o", place)
        for place in ("file", "file/x", "loop", "loop/x", "x" * 300)
    ),
    *(
        ("evaluate", "model", "--val", "data", option, value, "-o", "OUT")
        for option, values in {
            "--window": ("0", "-1", "65", "x"),
            "--batch-size": ("0", "-1"),
            "--limit": ("0", "-1"),
            "--shots": ("-1",),
            "--batches": ("", "a", "0", "-1", "1,,2"),
            "--device": ("tpu", "", "cuda:x"),
            "--dtype": ("int3", "", "Tensor"),
            "--tokenizer": ("void", "file"),
        }.items()
        for value in values
    ),
    ("evaluate", "model", "-o", "OUT"),
    ("evaluate", "model", "model", "--val", "data", "-o", "OUT"),
    ("evaluate", "a=", "--val", "data", "-o", "OUT"),
    *(("report", place) for place in (*MISSING, "file", "data", "empty")),
    *(("compare", place, "model") for place in (*MISSING, "file", "data", "empty")),
]


WRITING = (
    "prepare text.jsonl --train-tokenizer 300",
    "analyze model --data data",
    "inherit model --layers 2 --data data",
    "answers model --data data --window 32",
    "evaluate model --val data",
    "run run.yaml",
    "train train.yaml",
    "study study.yaml",
    "init --model model --data data --budget 3K",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    tiny_data.write_shards(folder / "data", train=4000, validation=500)
    tiny_model("llama").save_pretrained(folder / "model")
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "text.jsonl").write_text('{"text": "some words"}\n' * 3)
    (folder / "broken.yaml").write_text("a: [")
    single = {
        "data": {"path": "data", "window": 32},
        "training": training(),
        "model": {"architecture": ARCHITECTURE},
    }
    recipes = {
        "run": values(Path("data")),
        "train": single,
        "study": {"reference": "a", "rows": {"a": single}},
    }
    lost = {"path": "void", "window": 32}
    model = {"pretrained": "model"}
    late = {
        "lost": values(Path("void"), reference={"pretrained": "./void"}),
        "homeless": values(Path("data"), reference={"pretrained": "./void"}),
        "too-deep": values(Path("data"), reference=model, start_layers=9),
        "too-long": {**values(Path("data"), reference=model), "data": {"path": "data", "window": 128}},
        "no-text": values(Path("data"), parity={"also": {"wiki": "void"}}),
        "lost-alone": {**single, "data": lost, "model": {"pretrained": "./void"}},
        "too-long-alone": {**single, "data": {"path": "data", "window": 128}, "model": model},
        "no-layers": {**single, "model": model, "initialization": {"layers": "first 9"}},
        "lost-study": {"reference": "a", "rows": {"a": {**single, "data": lost}}},
    }
    for name, recipe in (recipes | late).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for path, name in (("own/recipe.yaml", "run"), ("study/study.yaml", "study")):
        (folder / path).parent.mkdir()
        (folder / path).write_text("# mine\n" + yaml.safe_dump(recipes[name]))
    return folder


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("arguments", CASES, ids=lambda arguments: " ".join(arguments)[:80])
def test_one_sentence_and_nothing_left(
    arguments: tuple[str, ...],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["inheritune", *arguments])
    before = files(place)
    capfd.readouterr()
    if arguments[0] == "analyze":  # what is measured takes minutes, and would be lost
        monkeypatch.setattr(ChoiceLosses, "__call__", None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    _, errors = capfd.readouterr()
    assert ended.value.code == 2, errors
    assert "Traceback" not in errors
    assert "keeping the first layers" not in caplog.text
    usage = "Usage: inheritune" in errors  # of options that are missing or no numbers; typer frames them
    assert usage or errors.count("\n") == 1, errors
    assert usage or errors.startswith("error: ")
    assert len(errors) < 2000
    assert files(place) == before


def test_data_and_model_that_are_not_there_are_told_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for verb, recipe in (("run", "lost.yaml"), ("train", "lost-alone.yaml")):
        monkeypatch.setattr(sys, "argv", ["inheritune", verb, recipe])
        with pytest.raises(SystemExit):
            cli.main()
        errors = capfd.readouterr().err
        assert "there is no directory void" in errors
        assert "there is no model at ./void: the folder does not exist" in errors


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("prepare '' --train-tokenizer 300 -o OUT", "SOURCES"),
        ("prepare text.jsonl '' --train-tokenizer 300 -o OUT", "SOURCES"),
        ("prepare text.jsonl --train-tokenizer 300 -o ''", "--output"),
        ("inherit model -n 2 --output=", "--output"),
        ("push '' --repo a/b", "DIRECTORY"),
        ("analyze model --data ''", "--data"),
        ("run run.yaml -o ''", "--output"),
        ("evaluate model '' --val data", "MODELS"),
        ("quickstart --text ''", "--text"),
    ],
)
def test_what_is_empty_names_nothing(
    command: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["inheritune", *shlex.split(command)])
    before = files(place)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    words = "names nothing: it is empty, as where a shell variable is not set"
    assert capfd.readouterr().err == f"error: {name} {words}\n"
    assert files(place) == before


def test_an_empty_name_is_not_the_current_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for call in (
        lambda: inheritune.prepare("", "OUT", train_tokenizer=300),
        lambda: inheritune.prepare(["text.jsonl", ""], "OUT", train_tokenizer=300),
        lambda: inheritune.prepare("text.jsonl", "", train_tokenizer=300),
        lambda: inheritune.inherit("", 2),
        lambda: inheritune.importance("", "data"),
        lambda: inheritune.inherit("model", 2, output=""),
        lambda: inheritune.importance("model", ""),
        lambda: inheritune.answers("model", "data", "", window=32),
        lambda: inheritune.run("run.yaml", ""),
        lambda: inheritune.evaluate("model", "", validation="data"),
        lambda: inheritune.compare("model", output=""),
    ):
        with pytest.raises(UserError, match=r"^no .* is named: the name is empty$"):
            call()
    assert not Path("OUT").exists()


@pytest.mark.parametrize("command", WRITING)
def test_what_cannot_be_written_is_said_before_anything_is_computed(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Path, *given: object, **named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.chdir(place)
    # As whoever runs the tests may write everywhere.
    monkeypatch.setattr("os.access", lambda where, how: Path(where).name != "empty")
    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(sys, "argv", ["inheritune", *command.split(), "-o", "empty/OUT"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capfd.readouterr().err.splitlines()
    assert (ended.value.code, len(errors)) == (2, 1), errors
    assert "is read-only here; give another place" in errors[0] or errors[0].startswith("error: Read-only")
    assert not list((place / "empty").iterdir())
