"""Runs the rows of a study, each as a program of its own, and goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from inheritune import UserError
from inheritune.algorithm import check_finished, complete
from inheritune.config import Recipe, Study, TrainRecipe
from inheritune.data.loader import open_data
from inheritune.plan import affordable_steps
from inheritune.quantities import duration
from inheritune.recipe_file import load_recipe, to_yaml
from inheritune.run_directory import RunDirectory
from inheritune.runtime import files
from inheritune.runtime.signals import STARTED_BY, Interrupted, signals
from inheritune.study import AnyRow, Row, recipe_of, row_named, rows_of

FILE = "study.yaml"
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""That a start waits for the rows of one that was killed: they save, and end."""


def run_study(
    study: Study,
    directory: Path,
    *,
    only: tuple[str, ...] = (),
    jobs: int = 1,
    tell: Callable[[str], None] = print,
) -> list[Row]:
    """Run every row that is not finished yet, each after those that it needs.

    Every row is `inheritune run` or `inheritune train` on a recipe that stands beside its directory,
    `seed-N/ROW.yaml`. With several jobs, what a row prints goes to `seed-N/ROW.log`. Rows do not outlive the study:
    if it is killed, each saves and ends at its next step, and a second start waits for them.

    Args:
        study: what to run.
        directory: of the study.
        only: rows to run, with what they need; all, if there are none.
        jobs: rows at work at the same time; they share the machine's cores, and each has a GPU of its own as far as
            there are as many.
        tell: is told of every row that ends.

    Returns:
        The rows, all of them finished.

    Raises:
        UserError: a mistake in a recipe; another start at work in the directory; or a row that failed, told after all
            others that could be run were.
        Interrupted: a signal asked to stop; everything is saved.
    """
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}, but should be at least 1")
    rows = rows_of(study, only)
    for row in rows:
        recipe_of(study, row, directory)  # a mistake is told before anything runs
    _check_place(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with closing(RunDirectory(directory)) as folder:
        _hold(folder, tell)
        for place in (directory, *directory.glob("seed-*/")):
            files.remove_leftovers(place)
        files.write_text(directory / FILE, to_yaml(study))
        runner = Runner(study, folder, rows, jobs, tell)
        with signals() as interrupted:
            while runner.at_work():
                if interrupted():
                    runner.stop()
                    raise Interrupted("the study stopped; the same command goes on from there")
                runner.start_ready()
                runner.collect_ended()
    if runner.failed:
        raise UserError("; ".join(runner.failed.values()))
    return rows


def _check_place(directory: Path) -> None:
    """The directory is new, or a study's; what a user wrote is not overwritten.

    Raises:
        UserError: it is something else.
    """
    path = directory / FILE
    if next(directory.glob("seed-*/"), None) is not None and path.exists():
        return
    others = [entry for entry in directory.glob("*") if not files.is_leftover(entry)]
    if others and (others != [path] or path.read_text("utf-8") != to_yaml(load_recipe(path, Study))):
        raise UserError(f"{directory} is not empty and not a study; give another directory")


def _hold(folder: RunDirectory, tell: Callable[[str], None]) -> None:
    """Keep other starts out. The rows hold the directory too, so it is free once the last of them has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    told = False
    while True:
        try:
            folder.hold()
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
        if not told:
            tell(f"waiting for an earlier start in {folder.path} to save and end")
            told = True
        time.sleep(POLL_SECONDS)


class Runner:
    """Which rows of a study wait, run, are done, or failed."""

    def __init__(
        self, study: Study, folder: RunDirectory, rows: list[Row], jobs: int, tell: Callable[[str], None]
    ) -> None:
        self.study, self.folder, self.directory, self.jobs, self.tell = study, folder, folder.path, jobs, tell
        self.waiting = list(rows)
        self.running: dict[Row, subprocess.Popen[bytes]] = {}
        self.gpus: dict[str, set[Row]] = {name: set() for name in visible_gpus()} if jobs > 1 else {}
        self.done: set[tuple[str, int]] = set()
        self.failed: dict[tuple[str, int], str] = {}
        self.started = time.monotonic()
        self.ran = 0

    def at_work(self) -> bool:
        """Whether anything is left that can be done."""
        return bool(self.waiting or self.running)

    def start_ready(self) -> None:
        """Start rows whose needs are met, as many as there are jobs for; pass over what is finished already."""
        for row in list(self.waiting):
            lacking = [name for name in row.needs if (name, row.seed) in self.failed]
            if lacking:
                self.waiting.remove(row)
                self._fail(row, f"was not run: it needs {lacking[0]}")
            elif len(self.running) < self.jobs and all((n, row.seed) in self.done for n in row.needs):
                self.waiting.remove(row)
                try:
                    self._start(row)
                except UserError as error:
                    self._fail(row, str(error))

    def collect_ended(self) -> None:
        """Wait a moment, and take note of the rows that ended in it."""
        time.sleep(POLL_SECONDS if self.running else 0)
        for row, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[row]
            for rows in self.gpus.values():
                rows.discard(row)
            if process.returncode == 0:
                self.done.add((row.name, row.seed))
                self.ran += 1
                self.tell(self._standing(row))
            else:
                self._fail(row, f"failed with exit code {process.returncode}{self._last_words(row)}")

    def stop(self) -> None:
        """Ask every row to save and end, and wait until it has."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            process.wait()

    def _start(self, row: Row) -> None:
        steps = steps_for(self.study, row, self.directory) if row.flops_of else None
        recipe = recipe_of(self.study, row, self.directory, steps)
        folder = row.folder(self.directory)
        if finished(folder, recipe):
            self.done.add((row.name, row.seed))
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = folder.with_name(f"{row.name}.yaml")
        files.write_text(path, to_yaml(recipe))
        verb = "run" if isinstance(recipe, Recipe) else "train"
        command = [sys.executable, "-m", "inheritune", verb, str(path), "-o", str(folder)]
        held = () if self.folder.held is None else (self.folder.held,)
        environment = {**os.environ, STARTED_BY: str(os.getpid())}
        if self.jobs == 1:
            self.tell(f"{row.name}, seed {row.seed}")
            self.running[row] = subprocess.Popen(command, env=environment, pass_fds=held)
            return
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        environment.update(self._gpu_for(row, recipe))
        with folder.with_name(f"{row.name}.log").open("ab") as log:
            self.running[row] = subprocess.Popen(
                command,
                env=environment,
                pass_fds=held,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def _gpu_for(self, row: Row, recipe: AnyRow) -> dict[str, str]:
        """What shows a row the GPU with the fewest rows at work, and no other."""
        if not self.gpus or recipe.training.device == "cpu":
            return {}
        name = min(self.gpus, key=lambda name: len(self.gpus[name]))
        self.gpus[name].add(row)
        return {"CUDA_VISIBLE_DEVICES": name}

    def _fail(self, row: Row, why: str) -> None:
        self.failed[row.name, row.seed] = f"{row.name}, seed {row.seed}: {why}"
        self.tell(self.failed[row.name, row.seed])

    def _standing(self, row: Row) -> str:
        left = len(self.waiting) + len(self.running)
        each = (time.monotonic() - self.started) / self.ran
        rest = f"; {left} left, about {duration(left * each)}" if left else ""
        return f"{row.name}, seed {row.seed}: done{rest}"

    def _last_words(self, row: Row) -> str:
        log = row.folder(self.directory).with_name(f"{row.name}.log")
        if self.jobs == 1 or not log.exists():
            return ""
        lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        return f" ({lines[-1].strip()})" if lines else ""


def visible_gpus() -> list[str]:
    """The GPUs that this program may use, as CUDA_VISIBLE_DEVICES names them; none of them is touched."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(number) for number in range(count)] if shown is None else shown.split(",")
    return [name.strip() for name in names[:count]]


def finished(folder: Path, recipe: AnyRow) -> bool:
    """Whether a run is there and complete.

    Raises:
        UserError: it is complete, but of another recipe or other data.
    """
    done = complete(recipe, folder) if isinstance(recipe, Recipe) else (folder / "model").exists()
    if done:
        check_finished(recipe, RunDirectory(folder))
    return done


def steps_for(study: Study, row: Row, directory: Path) -> int:
    """For how many steps a row can train with the FLOPs of the rows that it names."""
    recipe = recipe_of(study, row, directory)
    assert isinstance(recipe, TrainRecipe), "rows with a reference have no `flops_of`"
    budget = sum(spent_flops(row_named(study, name, row.seed), directory) for name in row.flops_of)
    return affordable_steps(recipe, budget, open_data(recipe.data.model_copy(update={"verify": False})))


def spent_flops(row: Row, directory: Path) -> float:
    """Training FLOPs of a finished row; of Algorithm 1, all its rounds, without the reference."""
    folder = row.folder(directory)
    if row.kind is Recipe:
        return RunDirectory(folder).read_summary().rounds[-1].total_training_flops
    return float(json.loads((folder / "training.json").read_text(encoding="utf-8"))["flops"])
