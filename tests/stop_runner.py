"""Stops verbs with real signals: `stopped` is for `forks.forked`, since it forks before torch has threads."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

import tiny_data
from evaluation import tiny_items
from inheritune import cut
from inheritune.cli import main as cli
from inheritune.data import answers
from inheritune.runtime.progress import ProgressBar
from tiny_models import tiny_model
from tiny_recipes import training, values

CASES: dict[str, tuple[str, int, str]] = {
    "prepare-reading": ("reading for the tokenizer", 1, "prepare text.jsonl --train-tokenizer 300 -o OUT"),
    "prepare-training": ("training the tokenizer", 1, "prepare text.jsonl --train-tokenizer 300 -o OUT"),
    "prepare-encoding": ("encoding", 1, "prepare text.jsonl --tokenizer tokenizer -o OUT"),
    "analyze": ("worth of each layer", 2, "analyze model --data data -o OUT --device cpu"),
    "attention": ("attention of", 2, "analyze model --data data --attention -o OUT --device cpu"),
    "inherit": ("choosing 2 of 4", 3, "inherit model -n 2 --data data -o OUT --device cpu"),
    "loading": ("", 0, "inherit model -n 2 --data data -o OUT --device cpu"),
    "answers": ("answers of", 2, "answers model --data data --window 32 --draws 5 -o OUT --device cpu"),
    "tasks": ("small: sciq", 1, "evaluate large small --tasks boolq,sciq --data items -o OUT --device cpu"),
    "losses": ("small: validation loss", 1, "evaluate large small --val words -o OUT --device cpu"),
    "speed": ("speed at a batch of 2", 3, "evaluate large small --speed --batches 1,2 -o OUT --device cpu"),
    "samples": ("samples", 2, "evaluate large small --samples -o OUT --device cpu"),
    "run": ("choosing 2 of 4", 3, "run run.yaml -o OUT"),
}
"""Name -> title of a progress bar, the look at which to stop, and the command; without a title while it loads."""


def make_inputs() -> None:
    """What the verbs read, here."""
    tiny_data.write_shards(Path("data"), train=4000, validation=1000)
    tiny_data.write_shards(Path("words"), vocabulary=600, validation=3000)
    tiny_model("llama", num_hidden_layers=4).save_pretrained("model")
    tokenizer = tiny_items.make_tokenizer(Path("tokenizer"))
    for name, layers in (("large", 2), ("small", 1)):
        tiny_items.make_model(tokenizer, layers=layers).save_pretrained(name)
        tokenizer.save_pretrained(name)
    tiny_items.write_items(Path("items"), ["boolq", "sciq"])
    rows = ({"text": f"document number {n} {'of many words ' * (n % 20)}"} for n in range(3000))
    Path("text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = values(
        Path("data"),
        reference={"pretrained": "model"},
        keep="measured",
        grow={"max_rounds": 1},
        training=training(steps=4),
    )
    Path("run.yaml").write_text(yaml.safe_dump(recipe))


def start(command: str, log: Path, stop: Callable[[], None] | None = None) -> int:
    """Start a verb in a child process; its number."""
    child = os.fork()
    if child:
        return child
    code: Any = 1
    try:
        with log.open("wb") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        answers.FILE_TOKENS = 10 * 32
        if stop is not None:
            stop()
        sys.argv = ["inheritune", *command.split()]
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def waiting(ready: int) -> None:
    """Say that the signal may come, and wait until it has."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    os.write(ready, b"x")
    until = time.monotonic() + 20
    while handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]:
        time.sleep(0.01)
        assert time.monotonic() < until, "no signal came"


def stopping(title: str, look: int, ready: int) -> None:
    """Have this process wait for a signal at a look of a bar at how far it is, or while a model is opened."""
    show, open_text, looks = ProgressBar._show, cut.text_for, 0

    def shown(self: ProgressBar, now: float, note: str) -> None:
        nonlocal looks
        if self.title.startswith(title):
            looks += 1
            if looks == look:
                waiting(ready)
        show(self, now, note)

    def opened(*given: Any, **named: Any) -> Any:
        waiting(ready)
        return open_text(*given, **named)

    if title:
        ProgressBar._show = shown  # type: ignore[method-assign]
    else:
        cut.text_for = opened


def tree(output: Path) -> dict[str, int]:
    """The files of a folder, and when they were written."""
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def case(name: str, number: signal.Signals) -> dict[str, Any]:
    """Stop a verb, look at what is left, and start it again."""
    title, look, command = CASES[name]
    output, log = Path(f"out-{name}"), Path(f"{name}.log")
    command = command.replace("OUT", str(output))
    ready, write = os.pipe()
    child = start(command, log, lambda: stopping(title, look, write))
    os.close(write)
    os.read(ready, 1)  # nothing, if it ended before
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    there, left, said = output.exists(), tree(output), log.read_text()
    again = os.waitstatus_to_exitcode(os.waitpid(start(command, log), 0)[1])
    after = tree(output)
    return {
        "code": code,
        "said": said,
        "there": there,
        "left": list(left),
        "again": again,
        "after": list(after),
        "kept": [path for path, time in left.items() if after.get(path) == time],
    }


def stopped(work: Path) -> dict[str, dict[str, Any]]:
    """How every case ended in a folder.

    Each verb stops itself before a certain look at its progress, and waits there for the signal that this process
    sends; then it is started again. Of every case: the exit code of the stopped start and what it said, the files
    that it left, the code of the second start, and which files that left as they were.
    """
    os.chdir(work)
    torch.set_num_threads(1)
    child = os.fork()  # not here: tokenizers and models leave threads behind
    if child == 0:
        make_inputs()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    numbers = (signal.SIGTERM, signal.SIGINT)
    return {name: case(name, numbers[i % 2]) for i, name in enumerate(CASES)}
