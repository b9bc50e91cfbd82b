"""`inheritune init`: what it writes loads, plans and runs; what it lacks it asks for, and it overwrites nothing."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest

from inheritune import UserError, plain_yaml
from inheritune.cli import init
from inheritune.cli.main import main
from inheritune.config import Recipe
from inheritune.new_recipe import Budget, _scalar, _windows, parse_budget
from inheritune.planning import plan
from inheritune.recipe_file import load_recipe
from inheritune.recipe_schema import schema_of, schema_text
from small_tokenizers import KINDS, save, texts
from tiny_models import tiny_model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model and its tokenizer, and a text."""
    vocabulary = len(KINDS["byte-level"]())
    tiny_model("llama", vocab_size=vocabulary).save_pretrained(tmp_path / "model")
    save("byte-level", tmp_path / "model")
    lines = (json.dumps({"text": text}) for text in texts(400))
    (tmp_path / "notes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", ["inheritune", *shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_what_is_written_loads_plans_and_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "init --model model --text notes.jsonl --budget 3K -o small.yaml") == 0
    assert "inheritune run small.yaml" in capsys.readouterr().out
    first = Path("small.yaml").read_text("utf-8").splitlines()[0]
    schema = place / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.parent == place, "beside it"
    assert schema.read_text("utf-8") == schema_text("run")
    values = plain_yaml.read(Path("small.yaml"))
    assert jsonschema.Draft202012Validator(schema_of("run")).is_valid(values)
    recipe = load_recipe(Path("small.yaml"), Recipe)
    assert (recipe.keep, recipe.start_layers, recipe.grow.max_rounds) == ("measured", 3, 1)
    assert recipe.data.window == 64
    assert recipe.training.steps * recipe.training.tokens_per_step == pytest.approx(3000, abs=64)
    assert str(recipe.data.path) == "data/notes"
    assert [stage.name for stage in plan(recipe).stages] == ["reference", "round 1"]
    assert call(monkeypatch, "run small.yaml -o out") == 0
    assert (place / "out/final/model.safetensors").exists()
    before = Path("small.yaml").read_bytes()
    assert call(monkeypatch, "init --model model --data data/notes --budget 3K -o again.yaml") == 0
    Path("other").mkdir()
    Path("other/run.schema.json").write_text("mine")
    assert call(monkeypatch, "init --model model --data data/notes --budget 3K -o other/small.yaml") == 2
    assert "other/run.schema.json is not a schema of recipes" in capsys.readouterr().err
    assert [path.name for path in Path("other").iterdir()] == ["run.schema.json"]
    assert call(monkeypatch, "init --model model --data data/notes --budget 3K -o small.yaml") == 2
    assert "small.yaml exists already" in capsys.readouterr().err
    assert Path("small.yaml").read_bytes() == before


def test_a_budget_in_time_is_paid_at_the_rate_of_this_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("inheritune.new_recipe.measured_rate", lambda recipe: 1e7)
    assert call(monkeypatch, "init --model model --text notes.jsonl --budget 2min") == 0
    planned = plan(load_recipe(Path("recipe.yaml"), Recipe))
    small = planned.stages[1]
    assert small.flops / 1e7 == pytest.approx(0.9 * 120, rel=0.02)
    assert "about 2 min at 1e+07 FLOP/s here" in Path("recipe.yaml").read_text()


def test_what_is_not_given_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["model", "notes.jsonl", "3K"])
    asked: list[str] = []

    def prompt(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("typer.prompt", prompt)
    assert call(monkeypatch, "init") == 0
    assert asked == list(init.QUESTIONS.values())
    assert Path("recipe.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "--text notes.jsonl --budget 3K",
            "--model is missing: give it, or start `inheritune init` in a terminal",
        ),
        ("--model model --budget 3K", "--data or --text is missing"),
        ("--model model --text notes.jsonl", "--budget is missing"),
        (
            "--model model --text notes.jsonl --data data --budget 3K",
            "give either --data (token shards) or --text",
        ),
        (
            "--model model --text notes.jsonl --budget soon",
            "the budget is 'soon', but should be hours such as 2h",
        ),
        (
            "--model ./void --text notes.jsonl --budget 3K",
            "there is no model at ./void: the folder does not",
        ),
        ("--model model --data void --budget 3K", "there is no directory void"),
    ],
)
def test_what_cannot_be_written(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert call(monkeypatch, f"init {arguments}") == 2
    assert f"error: {sentence}" in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["model", "notes.jsonl"]


def test_a_budget_for_no_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "init --model model --text notes.jsonl --budget 500") == 2
    assert "500 tokens are 7 steps of one window of 64 tokens, too few" in capsys.readouterr().err
    assert not (place / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2h", Budget(seconds=7200)),
        ("1.5 h", Budget(seconds=5400)),
        ("30min", Budget(seconds=1800)),
        ("50M", Budget(tokens=50_000_000)),
        ("1.5B", Budget(tokens=1_500_000_000)),
    ],
)
def test_budgets(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "h", "0h", "0", "-5M", "2 days", "2hours", "1e9"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UserError, match="but should be hours such as 2h"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("tokens", "windows"), [(100, 1), (47_000_000, 128), (10**12, 128), (3_000_000, 8), (400 * 1024, 2)]
)
def test_steps_are_many_and_no_larger_than_need_be(tokens: int, windows: int) -> None:
    assert _windows(tokens, 1024) == windows


@pytest.mark.parametrize("text", ["a/b-1.x", "12", "yes", "a b", "ümlaut", 'quo"te', "1e4", "a: b"])
def test_names_are_read_back_as_they_are(text: str) -> None:
    assert plain_yaml.parse(_scalar(text)) == text
