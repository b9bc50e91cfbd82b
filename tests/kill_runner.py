"""Kills a run again and again, and tells what it ended with. A program of its own: it forks before torch has threads.

Usage: kill_runner.py DATA WORK KILLS SEED. Prints JSON: the sha256 of the final weights of an undisturbed run
and of the disturbed ones, and how many kills hit and how many of them while a checkpoint was being written.
"""

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

import torch

sys.path.insert(0, str(Path(__file__).parent))

from inheritune.recipe import run
from inheritune.training import checkpoint
from tiny_recipes import recipe, training

SETTINGS = training(steps=24, checkpoints={"every": 2})


def start(data: Path, directory: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run in a child process; its number."""
    child = os.fork()
    if child == 0:
        os.close(1)
        prepare()
        try:
            run(recipe(data, training=SETTINGS, grow={"max_rounds": 2}, parity={"margin": -100.0}), directory)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def die_while_saving(after: int) -> None:
    """Make the process kill itself in the middle of its `after`-th checkpoint, between two of its files."""
    original, saves = checkpoint.save_file, 0

    def save_file(*arguments: object) -> None:
        nonlocal saves
        saves += 1
        if saves == after:
            Path(str(arguments[1])).write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)  # type: ignore[arg-type]

    checkpoint.save_file = save_file  # type: ignore[assignment]


def weights(directory: Path) -> str:
    """One sha256 over every weight file that the run left."""
    files = [directory / "reference/model", *sorted(directory.glob("round-*/model")), directory / "final"]
    digest = hashlib.sha256()
    for folder in files:
        digest.update((folder / "model.safetensors").read_bytes())
    return digest.hexdigest()


def main() -> None:
    data, work, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    generator = random.Random(seed)
    began = time.monotonic()
    assert os.waitpid(start(data, work / "undisturbed"), 0)[1] == 0
    length = time.monotonic() - began

    hits, while_saving, ended = 0, 0, []
    while hits < kills or not ended:
        directory = work / f"disturbed-{len(ended)}"
        while True:
            in_save = generator.random() < 0.3 and hits < kills
            saves = generator.randint(1, 6)
            child = start(data, directory, (lambda n=saves: die_while_saving(n)) if in_save else lambda: None)
            if not in_save and hits < kills:
                time.sleep(generator.uniform(0.02, 0.35) * length)
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                hits += 1
                while_saving += in_save
                continue
            assert status == 0, f"the run failed with status {status}"
            break
        ended.append(weights(directory))
    result = {"undisturbed": weights(work / "undisturbed"), "disturbed": ended, "kills": hits}
    print(json.dumps({**result, "while_saving": while_saving, "seconds": length}))


if __name__ == "__main__":
    main()
