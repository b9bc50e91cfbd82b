"""Does a training by several processes go on to the same weights? Killed, by fewer processes, and under a teacher.

    python benchmarks/resume.py                                     # on the CPU, two processes, a tiny model
    python benchmarks/resume.py --device cuda --processes 8 --size medium-24 --steps 40

For DDP and FSDP, with deterministic kernels, as `inheritune train` under torchrun:

whole       a training that is not stopped; the others are compared with it
killed      one process is killed in the middle of a save (of a step, if no save is caught), and all are started again
2 and back  stopped after a third of the steps, continued by two processes to two thirds, and by all to the end
teacher     distilled from the result of `whole`, stopped and continued; compared with one that is not stopped

The same number of processes has to give the same weights to the bit; another number adds up in another order, and the
final losses are told instead. Sizes are those of `gpu.py`. Exits with 1 where weights differ that should not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from scaling import SIZES, recipe_of, together, write_data

Condition = Callable[[], bool]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ways", default="ddp,fsdp")
    options = parser.parse_args()
    print("| way | training | weights | loss | seconds |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = write_data(Path(name), options.size)
        return max(Layout(way, folder, options).try_all() for way in options.ways.split(","))


class Layout:
    """Trainings of one way to share them out."""

    def __init__(self, way: str, data: Path, options: argparse.Namespace) -> None:
        self.way, self.data, self.options = way, data, options
        self.folder = data / way
        self.folder.mkdir()
        self.started = time.monotonic()
        self.worse = 0

    def try_all(self) -> int:
        """1 if weights differ that should not."""
        count, third = self.options.processes, self.options.steps // 3
        whole, killed, fewer = (self.folder / name for name in ("whole", "killed", "fewer"))
        recipe = self.recipe("plain")
        self.finish(recipe, whole)
        self.tell("whole", whole, None)
        self.start(recipe, killed, until=lambda: self.saves(killed, third), number=signal.SIGKILL, one=True)
        self.finish(recipe, killed)
        self.tell("killed", killed, whole)
        if count > 2:
            self.start(recipe, fewer, until=lambda: steps(fewer) >= third, number=signal.SIGTERM)
            self.start(recipe, fewer, 2, until=lambda: steps(fewer) >= 2 * third, number=signal.SIGTERM)
            self.finish(recipe, fewer)
            self.tell("2 and back", fewer, whole, same=False)
        taught, stopped = self.folder / "taught", self.folder / "stopped"
        recipe = self.recipe("teacher", distillation={"teacher": {"pretrained": str(whole / "model")}})
        self.finish(recipe, taught)
        self.tell("teacher", taught, None)
        self.start(recipe, stopped, until=lambda: steps(stopped) >= third, number=signal.SIGTERM)
        self.finish(recipe, stopped)
        self.tell("teacher, stopped", stopped, taught)
        return self.worse

    def recipe(self, name: str, **more: Any) -> Path:
        """A recipe file: deterministic, a checkpoint in every sixth of the steps."""
        options = self.options
        recipe: dict[str, Any] = recipe_of(
            SIZES[options.size], self.data, options, options.processes, self.way
        )
        every = max(1, options.steps // 6)
        recipe["training"] |= {"deterministic": True, "checkpoints": {"every": every}, "log_every": 1}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | more))
        return path

    def start(
        self,
        recipe: Path,
        output: Path,
        processes: int | None = None,
        *,
        until: Condition | None = None,
        number: int = 0,
        one: bool = False,
    ) -> int:
        """Train; send the signal to the last process (`one`), or to all, once a condition holds. The exit code."""
        program = ("-m", "inheritune", "train", str(recipe), "-o", str(output))
        threads = {} if self.options.device == "cuda" else {"OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            started = subprocess.Popen(
                [*together(processes or self.options.processes), *program],
                env={**os.environ, **threads},
                stdout=log,
                stderr=log,
            )
            while until and started.poll() is None:
                if until():
                    ranks = psutil.Process(started.pid).children()
                    for rank in ranks[-1:] if one else ranks:
                        rank.send_signal(number)
                    break
                time.sleep(0.01)
            return started.wait()

    def finish(self, recipe: Path, output: Path) -> None:
        """Train to the end."""
        if self.start(recipe, output):
            said = [
                line for line in (self.folder / "log").read_text().splitlines() if line.startswith("error")
            ]
            sys.exit(f"{output.name} under {self.way} failed: {said[-1] if said else 'no error was told'}")

    def saves(self, output: Path, step: int) -> bool:
        """Whether a checkpoint is being written from that step on; or the step is well behind without one seen."""
        done = steps(output)
        return done >= step and (any((output / "checkpoints").glob("*.tmp*")) or done >= 2 * step)

    def tell(self, what: str, output: Path, expected: Path | None, same: bool = True) -> None:
        """A row of the table."""
        loss = json.loads((output / "validation.json").read_text())["loss"]
        verdict = ""
        if expected:
            equal = digest(output) == digest(expected)
            self.worse |= same and not equal
            verdict = "the same" if equal else "other" if same else "other, as they may be"
        print(
            f"| {self.way}, {self.options.processes} | {what} | {verdict} | {loss:.5f} | "
            f"{time.monotonic() - self.started:.0f} |",
            flush=True,
        )


def steps(output: Path) -> int:
    """How many steps a training has written of."""
    path = output / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return sum('"train"' in line for line in lines)


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
