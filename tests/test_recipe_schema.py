"""The JSON Schema of recipes takes every recipe that is shipped, says what keys mean, and marks mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inheritune import plain_yaml
from inheritune.cli.main import main
from inheritune.recipe_file import load_any
from inheritune.recipe_schema import FOLDER, KINDS, Kind, schema_of, schema_text

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml"))
RUN: dict[str, Any] = {"data": {"path": "x"}, "reference": {"pretrained": "y"}}
TRAIN: dict[str, Any] = {"data": {"path": "x"}, "model": {"pretrained": "y"}}


def mistakes(kind: Kind, values: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of(kind))
    return [error.json_path for error in validator.iter_errors(values)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_for_editors_are_those_of_this_version(kind: Kind) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(kind))
    path = FOLDER / f"{kind}.json"
    how = f"inheritune schema {kind} > {path.relative_to(ROOT)}"
    assert path.read_text("utf-8") == schema_text(kind), f"write it anew: {how}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_is_valid_and_names_its_schema(path: Path) -> None:
    kind = next(kind for kind, recipe in KINDS.items() if isinstance(load_any(path), recipe))
    assert mistakes(kind, plain_yaml.read(path)) == []
    first = path.read_text("utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found
    assert (path.parent / found[1]).resolve() == FOLDER / f"{kind}.json"


@pytest.mark.parametrize(
    ("kind", "values", "place"),
    [
        ("run", {**RUN, "trainng": {}}, "$"),
        ("run", {"reference": {"pretrained": "y"}}, "$"),
        ("run", {**RUN, "data": {}}, "$.data"),
        ("run", {**RUN, "training": {"steps": 0}}, "$.training.steps"),
        ("run", {**RUN, "training": {"steps": "many"}}, "$.training.steps"),
        ("run", {**RUN, "training": {"stpes": 3}}, "$.training"),
        ("run", {**RUN, "training": {"parallel": "dpp"}}, "$.training.parallel"),
        ("run", {**RUN, "training": {"optimizer": {"beta1": 1}}}, "$.training.optimizer.beta1"),
        (
            "run",
            {**RUN, "training": {"activation_checkpointing": "frist 2"}},
            "$.training.activation_checkpointing",
        ),
        ("run", {**RUN, "keep": "both"}, "$.keep"),
        ("run", {**RUN, "start_layers": 1.5}, "$.start_layers"),
        ("run", TRAIN, "$"),
        ("train", {**TRAIN, "initialization": {"layers": "frist 2"}}, "$.initialization"),
        ("train", {**TRAIN, "initialization": {"parts": "attention+norm"}}, "$.initialization"),
        ("train", {**TRAIN, "model": {"row": "a"}}, "$.model"),
        ("study", {"reference": "a", "rows": {}}, "$.rows"),
        ("study", {"reference": "a", "rows": {"a": {**TRAIN, "training": {"stpes": 1}}}}, "$.rows.a"),
        ("study", {"reference": "a", "rows": {"a": RUN}, "shared": {"trainng": {}}}, "$.shared"),
    ],
)
def test_mistakes_are_marked_where_they_are(kind: Kind, values: dict[str, Any], place: str) -> None:
    assert place in mistakes(kind, values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            "run",
            {**RUN, "training": {"parallel": "fsdp", "steps": 1e4, "optimizer": {"learning_rate": "3e-4"}}},
        ),
        ("run", {**RUN, "keep": [0, 3], "training": {"activation_checkpointing": "every 2"}}),
        ("train", {**TRAIN, "initialization": {"layers": "0:24:2", "parts": "attention+layernorm"}}),
        ("train", {**TRAIN, "initialization": {"layers": "measured 4"}}),
        ("study", {"reference": "a", "rows": {"a": {"model": {"row": "b"}, "flops_of": ["b"]}, "b": {}}}),
        (
            "study",
            {"reference": "a", "shared": TRAIN, "rows": {"a": {"distillation": {"teacher": {"row": "b"}}}}},
        ),
    ],
)
def test_what_only_validators_understand_is_valid_too(kind: Kind, values: dict[str, Any]) -> None:
    assert mistakes(kind, values) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_that_has_a_docstring_has_a_description(kind: Kind) -> None:
    """Those of a part are in its own definition."""
    schema = schema_of(kind)
    assert schema["description"].startswith(str(KINDS[kind].__doc__).splitlines()[0])
    for name, part in {"": schema, **schema["$defs"]}.items():
        assert part.get("description") or name == "JsonValue", name
    if kind != "study":
        steps = schema["$defs"]["Data"]["properties"]
        assert all(entry.get("description") for entry in steps.values())


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["inheritune", "schema", "train"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == schema_text("train")
