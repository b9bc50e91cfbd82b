"""Any value at any key of any recipe: it works, or it is refused in one sentence. Nothing else, and nothing huge."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel

import tiny_data
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.config import EvaluationSettings, Recipe, Study, TrainRecipe
from inheritune.evaluation.evaluate import check_settings
from inheritune.plain_yaml import parse
from inheritune.planning import Plan, plan
from inheritune.recipe_file import load_any, load_recipe, parse_recipe, to_yaml
from inheritune.recipe_schema import KINDS, schema_of
from inheritune.single_model import train_model
from inheritune.study import recipe_of, rows_of
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, training, values

MORE = int(os.environ.get("INHERITUNE_FUZZ", "1"))
"""How many times as many examples; more than one are random ones."""

SECONDS = 60
ROOM = 6 * 2**30
"""What one example may take of time, and of memory beyond what the program has."""

SHORT = training(
    steps=3,
    checkpoints={"every": 2},
    schedule={"warmup_steps": 1, "final_learning_rate": 1e-4},
    log_every=1,
)


@contextmanager
def bounded() -> Iterator[None]:
    """No example may hang or take all memory."""

    def hang(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def attempt(action: Callable[[], Any]) -> Any:
    """What it gives; or the sentence in which it refuses."""
    with bounded():
        try:
            return action()
        except UserError as error:
            sentence = str(error)
    assert sentence.strip()
    assert "\n" not in sentence
    assert len(sentence) < 3000
    return sentence


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data, and with a model that was trained elsewhere."""
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_data.write_shards(folder / "data", train=4000, validation=500)
    tiny_model("llama").save_pretrained(folder / "model")
    return folder


Base = tuple[type[BaseModel], dict[str, Any]]


def bases(place: Path) -> dict[str, Base]:
    """Valid recipes of every kind, with every key written out, so that each can be changed."""
    data = {"path": str(place / "data"), "window": 32}
    pretrained = {"pretrained": str(place / "model")}
    single = {"data": data, "training": SHORT}
    found: dict[str, Base] = {
        "scratch": (Recipe, values(place / "data", training=SHORT, grow={"max_rounds": 1})),
        "pretrained": (
            Recipe,
            {
                "data": data,
                "reference": {**pretrained, "training_tokens": 10},
                "training": SHORT,
                "distillation": {"alpha": 0.5},
                "samples": {"prompts": ["a"]},
                "evaluation": {"validation": str(place / "data"), "window": 32},
            },
        ),
        "llama": (
            TrainRecipe,
            {
                **single,
                "model": {
                    "architecture": {
                        "model_type": "llama",
                        "hidden_size": 32,
                        "intermediate_size": 64,
                        "num_hidden_layers": 2,
                        "num_attention_heads": 4,
                        "num_key_value_heads": 2,
                        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
                    }
                },
            },
        ),
        "preset": (
            TrainRecipe,
            {
                **single,
                "model": {
                    "architecture": {
                        "preset": "gpt2-small",
                        "n_layer": 2,
                        "n_embd": 32,
                        "n_head": 2,
                        "n_positions": 32,
                        "vocab_size": 97,
                    }
                },
            },
        ),
        "part": (
            TrainRecipe,
            {
                **single,
                "model": pretrained,
                "initialization": {"layers": [0, 1], "stack_to": 4, "parts": ["attention", "mlp"]},
                "distillation": {"teacher": pretrained, "alpha": 0.5},
            },
        ),
        "narrow": (
            TrainRecipe,
            {**single, "model": pretrained, "initialization": {"width": 0.5, "divide": "heads"}},
        ),
        "sizes": (
            TrainRecipe,
            {
                **single,
                "model": pretrained,
                "initialization": {"layers": "first 2", "mlp": 16, "narrow": "first"},
            },
        ),
        "evaluation": (
            EvaluationSettings,
            {"tasks": ["sciq"], "validation": str(place / "data"), "speed": True, "prompts": ["a"]},
        ),
    }
    full = {
        name: (kind, parse_recipe(recipe, kind).model_dump(mode="json", exclude_none=True))
        for name, (kind, recipe) in found.items()
    }
    full["study"] = (
        Study,
        {
            "name": "study",
            "seeds": [3, 4],
            "headline": ["small"],
            "reference": "reference",
            "shared": {"data": data, "training": SHORT},
            "rows": {
                "reference": {"model": {"architecture": ARCHITECTURE}},
                "small": {"reference": {"row": "reference"}, "start_layers": 2, "grow": {"max_rounds": 1}},
                "controlled": {
                    "model": {"architecture": {**ARCHITECTURE, "n_layer": 2}},
                    "flops_of": ["small"],
                },
                "stacked": {"model": {"row": "reference"}, "initialization": {"stack_to": 8}},
                "taught": {
                    "model": {"architecture": ARCHITECTURE},
                    "distillation": {"teacher": {"row": "reference"}},
                },
            },
        },
    )
    return full


ODD: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    7,
    2**31,
    2**63,
    10**9,
    10**30,
    -(10**30),
    1 << 20_000,
    0.5,
    -0.5,
    1e-320,
    1e300,
    float("inf"),
    float("nan"),
    "",
    " ",
    "auto",
    "1e4",
    "a\nb",
    "\0",
    "../x",
    "/",
    "/dev/null",
    "x" * 100_000,
    "漢字 é\u202e",
    "first 2",
    "-:-",
    "::0",
    "none",
    [],
    [[]],
    [None],
    [1, 1],
    [-1],
    ["a", "a"],
    [10**9],
    {},
    {"a": 1},
    {"row": "small"},
    {"row": ["small"]},
    {"pretrained": "x"},
    {"": {"": []}},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a structure of plain values, its own too."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in parts for found in places(part, (*path, key)))]


def changed(recipe: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path; `...` takes the key away."""
    if not path:
        return value
    recipe = copy.deepcopy(recipe)
    parent = recipe
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return recipe


def planned(recipe: Any) -> Plan | None:
    """What `inheritune plan` computes; of an evaluation, what it checks at first."""
    if isinstance(recipe, EvaluationSettings):
        return check_settings(recipe.model_copy(update={"tasks": ()}))
    return plan(recipe)


def small_work(recipe: Any, stages: Plan) -> bool:
    """Whether it is a matter of a second."""
    work = sum(stage.flops for stage in stages.stages)
    parameters = max(stage.parameters for stage in stages.stages)
    samples = getattr(recipe, "samples", None)
    return (
        recipe.training.compile is not True  # seconds each, in processes of its own
        and work < 1e10
        and parameters < 1e6
        and sum(stage.steps for stage in stages.stages) <= 20
        and (samples is None or samples.tokens <= 64)
    )


def do(recipe: Any, directory: Path) -> Any:
    """Run or train it."""
    return run(recipe, directory) if isinstance(recipe, Recipe) else train_model(recipe, directory)


def loads(recipe: Any) -> bool:
    """Whether what was read is a recipe to the end: rows of a study are read later."""
    place = Path("study")
    return not isinstance(recipe, Study) or not isinstance(
        attempt(lambda: [recipe_of(recipe, row, place) for row in rows_of(recipe)]), str
    )


NAMES = ("scratch", "pretrained", "llama", "preset", "part", "narrow", "sizes", "evaluation", "study")
TRAINED = ("scratch", "pretrained", "llama", "preset", "part", "narrow", "sizes")


@pytest.mark.parametrize("name", NAMES)
def test_every_odd_value_at_every_key(place: Path, name: str) -> None:
    """About 25,000 cases."""
    kind, base = bases(place)[name]
    paths = places(base)[1:]
    assert len(paths) > 10
    schemas = {KINDS[verb]: Draft202012Validator(schema_of(verb)) for verb in KINDS}
    schema = schemas.get(kind)  # there is none of evaluations
    for path in paths:
        for value in (..., *ODD):
            recipe = attempt(lambda p=path, v=value: parse_recipe(changed(base, p, v), kind))
            if isinstance(recipe, str):
                told = path[0] if path[0] not in ("model", "reference") else "recipe"
                assert told in recipe, (path, recipe)
                continue
            if isinstance(value, str) and len(value) < 100:
                assert parse_recipe(parse(to_yaml(recipe)), kind) == recipe, path
            if schema is not None and loads(recipe):
                assert schema.is_valid(changed(base, path, value)), (path, value)


# Hypothesis shows what it draws, and Python cannot write a number of so many digits.
WRITABLE = [value for value in ODD if value != 1 << 20_000]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([value for value in WRITABLE if not isinstance(value, dict | list)])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | scalars, inner, max_size=3)
    ),
    max_leaves=6,
)


def examples(count: int) -> Callable[..., Any]:
    """So many examples of a test; always the same ones, unless more are asked for."""
    return settings(
        max_examples=count * MORE,
        derandomize=MORE == 1,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutants(draw: st.DrawFn, names: tuple[str, ...], most: int = 3) -> tuple[str, list[tuple[int, Any]]]:
    """The name of a base, and what to change in it: the number of a path (modulo how many there are), and a value."""
    change = st.tuples(st.integers(0, 10_000), anything | st.sampled_from(WRITABLE) | st.just(...))
    return draw(st.sampled_from(names)), draw(st.lists(change, min_size=1, max_size=most))


def mutated(base: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """The base with these changes, one after the other."""
    for number, value in changes:
        paths = places(base)[1:]
        if paths:
            base = changed(base, paths[number % len(paths)], value)
    return base


def written(recipe: Any, path: Path) -> Path | None:
    """The recipe as YAML, as far as YAML can say it."""
    try:
        path.write_text(yaml.dump(recipe, allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, ValueError):  # half a character; a number of too many digits
        return None
    return path


@examples(400)
@given(mutant=mutants(NAMES))
def test_any_yaml_values_are_read_and_planned_or_refused(place: Path, mutant: Any) -> None:
    kind, base = bases(place)[mutant[0]]
    file = written(mutated(base, mutant[1]), place / "mutant.yaml")
    if file is not None:
        attempt(lambda: planned(load_recipe(file, kind)))


TEXTS = [
    *sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")),
    *sorted((Path(__file__).parents[1] / "recipes" / "paper").glob("*.yaml")),
]
FRAGMENTS = [
    b"",
    b"\t",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b": ",
    b"- ",
    b"---\n",
    b"...\n",
    b"#",
    b"&a ",
    b"*a",
    b"<<: *gpt2",
    b"<<: 3",
    b"!!python/object/apply:os.system [x] ",
    b"!!int ",
    b"!!set ",
    b"!!binary ",
    b"? ",
    b"| ",
    b"> ",
    b"{",
    b"}",
    b"[",
    b"]" * 50,
    b"[" * 3000,
    b"'",
    b'"',
    b"%YAML 9.9\n",
    b"@",
    b"`",
    b"1e400",
    b".nan",
    b"2024-99-99",
    b"0x" + b"f" * 6000,
    b"x" * 2_000_000,
]


@examples(500)
@given(
    number=st.integers(0, len(TEXTS) - 1),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(FRAGMENTS) | st.binary(max_size=6)),
        min_size=1,
        max_size=3,
    ),
    end=st.none() | st.floats(0, 1),
)
def test_any_damage_to_a_file_is_read_or_refused(place: Path, number: int, edits: Any, end: Any) -> None:
    content = TEXTS[number].read_bytes()
    for where, removed, fragment in edits:
        at = int(where * len(content))
        content = content[:at] + fragment + content[at + removed :]
    if end is not None:
        content = content[: int(end * len(content))]
    file = place / "damaged.yaml"
    file.write_bytes(content)
    attempt(lambda: load_any(file))


@examples(60)
@given(mutant=mutants(TRAINED, most=1))
def test_what_is_valid_and_small_runs(place: Path, mutant: Any) -> None:
    kind, base = bases(place)[mutant[0]]
    directory = place / "run"
    shutil.rmtree(directory, ignore_errors=True)

    def from_start_to_end() -> None:
        recipe = parse_recipe(mutated(base, mutant[1]), kind)
        stages = plan(recipe)
        if small_work(recipe, stages):
            do(recipe, directory)

    attempt(from_start_to_end)


@pytest.mark.parametrize("name", TRAINED)
def test_what_the_fuzz_starts_from_runs(place: Path, name: str) -> None:
    kind, base = bases(place)[name]
    recipe = parse_recipe(base, kind)
    assert small_work(recipe, plan(recipe))
    do(recipe, place / f"base-{name}")
