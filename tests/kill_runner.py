"""Kills a verb again and again: `killed` is for `forks.forked`, since it forks before torch has threads."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tiny_data
from forks import run_forked
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.config import EvaluationSettings, TrainRecipe
from inheritune.data import answers
from inheritune.data import prepare as preparation
from inheritune.data.prepare import prepare
from inheritune.evaluation.evaluate import evaluate
from inheritune.recipe_file import parse_recipe
from inheritune.single_model import train_model
from inheritune.training import checkpoint
from inheritune.training.teacher import answers as ask
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, recipe, training

SHORT = training(steps=8, checkpoints={"every": 2})
WRITING = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def do_prepare(work: Path, directory: Path) -> None:
    """Train a tokenizer, and make shards of some thousand documents."""
    preparation._BATCH_CHARACTERS = 5_000
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghiä漢 é", k=generator.randint(2, 9))) for _ in range(300)]
    texts = [" ".join(generator.choices(words, k=generator.randint(20, 80))) for _ in range(800)]
    prepare(
        [texts],
        directory,
        train_tokenizer=400,
        validation=0.05,
        shard_tokens=20_000,
        workers=1,
        save_every=0.0,
    )


def do_run(work: Path, directory: Path) -> None:
    """The reference, and two rounds."""
    values = recipe(work / "data", training=SHORT, grow={"max_rounds": 2}, parity={"margin": -100.0})
    run(values, directory)


def do_probes(work: Path, directory: Path) -> None:
    """The reference, what it answers, the probes that say where to begin, and a round."""
    long = training(steps=40, checkpoints={"every": 20})
    taught = {"start_layers": "auto", "distillation": {"draws": 5}}
    run(recipe(work / "data", training=long, parity={"margin": -100.0}, **taught), directory)


def do_answers(work: Path, directory: Path) -> None:
    """A teacher, asked about 125 windows, in files of 10."""
    answers.FILE_TOKENS = 10 * 32
    ask(work / "teacher", work / "data", directory, window=32, draws=20, device="cpu")


def do_frugal(work: Path, directory: Path) -> None:
    """The reference, and three rounds that end when they are decided."""
    long = training(steps=64, checkpoints={"every": 5})
    run(
        recipe(
            work / "data",
            training=long,
            search="frugal",
            start_layers=1,
            grow={"layers": 1},
            parity={"margin": -9},
        ),
        directory,
    )


def do_yardsticks(work: Path, directory: Path) -> None:
    """The reference and a round, measured on other text too, and the fair control."""
    parity = {"margin": -100.0, "control": True, "also": {"other": str(work / "other")}}
    run(recipe(work / "data", training=SHORT, grow={"max_rounds": 1}, parity=parity), directory)


def do_train(work: Path, directory: Path) -> None:
    """One model."""
    values = {"data": {"path": str(work / "data"), "window": 32}, "model": {"architecture": ARCHITECTURE}}
    train_model(parse_recipe({**values, "training": SHORT}, TrainRecipe), directory)


def do_study(work: Path, directory: Path) -> None:
    """Three rows, two at the same time."""
    values = {
        "reference": "reference",
        "shared": {"data": {"path": str(work / "data"), "window": 32}, "training": SHORT},
        "rows": {
            "reference": {"model": {"architecture": ARCHITECTURE}},
            "small": {"reference": {"row": "reference"}, "grow": {"max_rounds": 1}},
            "alone": {"model": {"architecture": {**ARCHITECTURE, "n_layer": 2}}},
        },
    }
    run_forked(values, directory)


def do_evaluate(work: Path, directory: Path) -> None:
    """Two models: the answers to two tasks, and the loss on held-out text."""
    settings = {"tasks": ["boolq", "sciq"], "data": str(work / "items"), "validation": str(work / "text")}
    models = [work / "large", work / "small"]
    evaluate(models, parse_recipe(settings, EvaluationSettings), directory, device="cpu")


VERBS = {
    "prepare": do_prepare,
    "run": do_run,
    "probes": do_probes,
    "frugal": do_frugal,
    "answers": do_answers,
    "yardsticks": do_yardsticks,
    "train": do_train,
    "study": do_study,
    "evaluate": do_evaluate,
}


def make_inputs(verb: str, work: Path) -> None:
    """What the verb reads."""
    tiny_data.write_shards(work / "data", train=4000, validation=1000)
    tiny_data.write_shards(work / "other", train=1000, validation=700)
    if verb == "answers":
        tiny_model("llama").save_pretrained(work / "teacher")
    if verb == "evaluate":
        from evaluation import tiny_items

        tokenizer = tiny_items.make_tokenizer(work / "tokenizer")
        for name, layers in (("large", 2), ("small", 1)):
            tiny_items.make_model(tokenizer, layers=layers).save_pretrained(work / name)
            tokenizer.save_pretrained(work / name)
        tiny_items.write_items(work / "items", ["boolq", "sciq"])
        tiny_data.write_shards(work / "text", vocabulary=600, validation=3000)


def result(verb: str, directory: Path) -> str:
    """One SHA-256 over the files that count, with their names; of JSON without what a clock says."""
    names = {"prepare": ("*",), "answers": ("*",), "evaluate": ("evaluation.json", "*/*.json")}.get(
        verb, ("model.safetensors", "validation*.json", "summary.json", "forecast.json", "decisions.json")
    )
    digest = hashlib.sha256()
    left = [str(path) for path in directory.rglob("*.tmp")]
    assert verb == "evaluate" or not left, f"killed writers left {left}"
    files = (path for name in names for path in directory.rglob(name) if path.is_file())
    for path in sorted(set(files)):
        if path.parent.name.startswith("step-"):
            continue
        content = path.read_bytes()
        if path.suffix == ".json" and verb != "prepare":
            content = json.dumps(without_clock(json.loads(content))).encode()
        digest.update(f"{path.relative_to(directory)}\n".encode() + content)
    return digest.hexdigest()


def without_clock(value: Any) -> Any:
    """A JSON value without seconds and environments."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in ("seconds", "environment")}
    return [without_clock(part) for part in value] if isinstance(value, list) else value


def watch(directory: Path, act: Callable[[int], None]) -> None:
    """Call `act` with the number of every operation on a file below the directory, before it happens."""
    count = 0
    prefix = str(directory)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in WRITING or not str(arguments[0]).startswith(prefix):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        count += 1
        act(count)

    original = checkpoint.save_file

    def half_a_file_first(tensors: Any, path: Any, *rest: Any) -> None:
        nonlocal count
        Path(path).write_bytes(b"half a file")
        count += 1
        act(count)
        original(tensors, path, *rest)

    checkpoint.save_file = half_a_file_first  # type: ignore[assignment]
    sys.addaudithook(hook)


def start(verb: str, work: Path, directory: Path, act: Callable[[int], None] | None = None) -> int:
    """Do it in a child process; its number. A study whose row was killed says so, and ends with 75."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if act is not None:
            watch(directory, act)
        VERBS[verb](work, directory)
        code = 0
    except UserError as error:
        code = 75 if "exit code -9" in str(error) else 1
        print(repr(error), file=sys.stderr, flush=True)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def die_at(number: int) -> Callable[[int], None]:
    """Kill this process before an operation."""
    return lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == number else None


def undisturbed(verb: str, work: Path) -> tuple[str, float, int]:
    """What comes out, the seconds it takes, and how many operations on files there are."""
    log = work / "operations"
    began = time.monotonic()
    child = start(verb, work, work / "undisturbed", lambda count: log.write_text(str(count)) and None)
    assert os.waitpid(child, 0)[1] == 0
    return result(verb, work / "undisturbed"), time.monotonic() - began, int(log.read_text())


def killed(verb: str, work: Path, kills: int, first: int) -> dict[str, Any]:
    """The results of an undisturbed start and of those that were killed on their way, and how many kills there were.

    Half of the kills come after a random time, half before a random operation on a file (made, opened for writing,
    half written, renamed, removed), which is how those that take no time are met; and each of the `first` operations
    is the last one of a start of its own.
    """
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    child = os.fork()  # not here: tokenizers and models leave threads behind
    if child == 0:
        make_inputs(verb, work)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    expected, length, operations = undisturbed(verb, work)
    generator = random.Random(1)
    hits, at_files, ended = 0, 0, []
    for number in range(1, first + 1):
        directory = work / f"first-{number}"
        assert os.waitpid(start(verb, work, directory, die_at(number)), 0)[1] == signal.SIGKILL
        assert os.waitpid(start(verb, work, directory), 0)[1] == 0, f"after a kill at operation {number}"
        ended.append(result(verb, directory))
        hits, at_files = hits + 1, at_files + 1
    kills += hits
    while hits < kills or not ended:
        directory = work / f"disturbed-{len(ended)}"
        while True:
            at_file = generator.random() < 0.5
            number = generator.randint(1, operations)
            child = start(verb, work, directory, die_at(number) if at_file and hits < kills else None)
            if not at_file and hits < kills:
                time.sleep(generator.uniform(0, 0.7) * length)
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code in (-signal.SIGKILL, 75):
                hits += 1
                at_files += at_file
                continue
            assert code == 0, f"{verb} failed with code {code} after {hits} kills"
            break
        ended.append(result(verb, directory))
    return {"undisturbed": expected, "disturbed": ended, "kills": hits, "at_files": at_files}
