"""A study: rows of one table, each a recipe, some of which start from what others made: order, runner, comparison."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inheritune import UserError
from inheritune.algorithm import check_finished, complete
from inheritune.config import Recipe, Study, TrainRecipe, merge
from inheritune.data.loader import open_data
from inheritune.plain_yaml import shown
from inheritune.quantities import duration
from inheritune.recipe_file import load_recipe, parse_recipe, to_yaml
from inheritune.run_directory import RunDirectory
from inheritune.runtime import files
from inheritune.runtime.signals import STARTED_BY, Interrupted, signals
from inheritune.single_model import affordable_steps, check_inputs

if TYPE_CHECKING:
    from inheritune.report.comparison import Entry, RunComparison

FILE = "study.yaml"
NAME = re.compile(r"(?!.*\.(yaml|log)$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a row, and of its folder; ROW.yaml and ROW.log are beside it."""
POLL_SECONDS = 0.5
SOURCES = frozenset({"row", "pretrained", "revision", "architecture"})
"""What says which model a `model` or `reference` is."""
PATIENCE_SECONDS = 60.0
"""That a start waits for the rows of one that was killed: they save, and end."""

AnyRow = Recipe | TrainRecipe


@dataclass(frozen=True, eq=False)
class Row:
    """One run of a study.

    Args:
        name: of the row; several seeds of it have the same.
        seed: of its training.
        values: its recipe, in which `row: NAME` may stand for a model.
        flops_of: rows whose FLOPs it may spend, all together; none: its recipe says for how many steps it trains.
        starts_from: the row whose model it continues to train, wholly or in part, if there is one.
        needs: rows of the same seed that must be finished before it.
    """

    name: str
    seed: int
    values: Mapping[str, Any]
    flops_of: tuple[str, ...]
    starts_from: str | None
    needs: frozenset[str]

    @property
    def kind(self) -> type[AnyRow]:
        """Recipe of `inheritune run`, or of `inheritune train`."""
        return Recipe if "reference" in self.values else TrainRecipe

    def folder(self, study: Path) -> Path:
        """The directory of its run, in that of the study."""
        return study / f"seed-{self.seed}" / self.name

    def model(self, study: Path) -> Path:
        """Where its result is once it is finished."""
        return self.folder(study) / ("final" if self.kind is Recipe else "model")


def rows_of(study: Study, only: tuple[str, ...] = ()) -> list[Row]:
    """Every run of a study, each after those that it needs; only the rows of these names and their needs, if any.

    Raises:
        UserError: a recipe with a mistake, an unknown row, or rows that need each other.
    """
    for name in study.rows:
        if not NAME.fullmatch(name):
            raise UserError(
                f"a row cannot be called {shown(name)}: its name is a folder, of up to 100 letters, digits and .-_, "
                "and ROW.yaml and ROW.log are beside it"
            )
    for where, asked in (("headline", study.headline), ("reference", (study.reference,)), ("--row", only)):
        for name in asked:
            _check_known(study, name, where)
    needs = {name: row_named(study, name, 0).needs for name in study.rows}
    order: list[str] = []
    while len(order) < len(needs):
        left = [name for name in needs if name not in order]
        ready = next((name for name in left if needs[name] <= set(order)), None)
        if ready is None:
            raise UserError(f"these rows need each other, so none can be first: {', '.join(left)}")
        order.append(ready)

    def with_needs(names: Sequence[str]) -> set[str]:
        found = set(names)
        for name in reversed(order):
            found |= needs[name] if name in found else set()
        return found

    wanted = with_needs([*only, study.reference] if only else order)
    repeated = wanted & with_needs([*study.headline, study.reference])
    return [
        row_named(study, name, seed)
        for seed in study.seeds
        for name in order
        if name in (wanted if seed == study.seeds[0] else repeated)
    ]


def row_named(study: Study, name: str, seed: int) -> Row:
    """A row of a study, without looking at others."""
    own = dict(study.rows[name])
    flops_of = own.pop("flops_of", [])
    values = merge(_without_sources(study.shared, own), own)
    if not isinstance(flops_of, list) or not all(isinstance(other, str) for other in flops_of):
        raise UserError(f"rows.{name}: `flops_of` is {shown(flops_of)}, but should be a list of rows")
    if flops_of and "reference" in values:
        raise UserError(
            f"rows.{name}: `flops_of` is for a single training, and a recipe with a `reference` makes several"
        )
    needs = [*_named_rows(values), *flops_of]
    for other in needs:
        _check_known(study, other, f"rows.{name}")
    model = values.get("model")
    starts_from = model.get("row") if isinstance(model, Mapping) else None
    return Row(name, seed, values, tuple(map(str, flops_of)), starts_from, frozenset(needs))


def _without_sources(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What rows share, without the models in whose place a row names others."""

    def rest(key: str, model: Any) -> Any:
        named = own.get(key)
        if not (isinstance(model, Mapping) and isinstance(named, Mapping) and SOURCES & named.keys()):
            return model
        return {k: v for k, v in model.items() if k not in SOURCES}

    return {key: rest(key, value) for key, value in shared.items()}


def _named_rows(values: Any) -> Iterator[Any]:
    """Names of the rows whose models are used in a recipe."""
    if isinstance(values, Mapping):
        if "row" in values:
            yield values["row"]
        for value in values.values():
            yield from _named_rows(value)


def _check_known(study: Study, name: Any, where: str) -> None:
    if not isinstance(name, str) or name not in study.rows:
        raise UserError(f"{where}: there is no row {shown(name)}; the rows are {', '.join(study.rows)}")


def recipe_of(study: Study, row: Row, directory: Path, steps: int | None = None) -> AnyRow:
    """The recipe of a run, with the folders of other rows' models filled in; `steps` is for a row with `flops_of`.

    Raises:
        UserError: a mistake in it, named with the row.
    """

    def fill(value: Any, key: str = "") -> Any:
        if not isinstance(value, Mapping):
            return value
        if "row" not in value:
            return {k: fill(v, k) for k, v in value.items()}
        if "pretrained" in value:
            raise UserError(f"rows.{row.name}: `row` and `pretrained` are two models: give one")
        other = row_named(study, value["row"], row.seed)
        filled = {k: v for k, v in value.items() if k != "row"}
        filled["pretrained"] = str(other.model(directory))
        if key == "reference":
            filled["training_tokens"] = _training_tokens(study, other, directory)
        return filled

    training: dict[str, Any] = {"seed": row.seed} | ({"steps": steps} if steps else {})
    values = {"name": row.name, "training": {}, **fill(row.values)}
    if isinstance(values["training"], Mapping):
        values = merge(values, {"training": training})
    return parse_recipe(values, row.kind, origin=f"rows.{row.name}")


def check_rows(study: Study, rows: Sequence[Row], directory: Path) -> None:
    """Every row has a recipe: mistakes are found before anything runs.

    Raises:
        UserError: the mistakes of all rows.
    """
    mistakes: dict[str, None] = {}
    for row in rows:
        try:
            recipe_of(study, row, directory)
        except UserError as error:
            mistakes[str(error)] = None  # once for all seeds
    if mistakes:
        raise UserError("; ".join(mistakes))


def _check_inputs(study: Study, rows: Sequence[Row], directory: Path) -> None:
    """Data and models that rows name are there, as far as they are not other rows' and the rows not begun.

    Raises:
        UserError: what is not there.
    """
    missing: dict[str, None] = {}
    for row in rows:
        if not row.needs and not row.folder(directory).exists():
            try:
                check_inputs(recipe_of(study, row, directory))
            except UserError as error:
                missing[str(error)] = None
    if missing:
        raise UserError("; ".join(missing))


def _training_tokens(study: Study, row: Row, directory: Path) -> int | None:
    """Tokens that made a row's model from random weights, if its own recipe alone says so, and no teacher helped."""
    if row.flops_of or row.starts_from:
        return None
    recipe = recipe_of(study, row, directory)
    if isinstance(recipe, Recipe) or recipe.model.pretrained is not None or recipe.distillation is not None:
        return None
    return recipe.training.steps * recipe.training.tokens_per_step


def run_study(
    study: Study,
    directory: Path,
    *,
    only: tuple[str, ...] = (),
    jobs: int = 1,
    tell: Callable[[str], None] = print,
) -> list[Row]:
    """Run every row that is not finished yet, each after those that it needs; returns all rows, finished.

    Every row is `inheritune run` or `inheritune train` on a recipe beside its directory,
    `seed-N/ROW.yaml`. With several jobs, what a row prints goes to `seed-N/ROW.log`. Rows do not outlive the study:
    if it is killed, each saves and ends at its next step, and a second start waits for them.

    Args:
        study: what to run.
        directory: of the study.
        only: rows to run, with what they need; all, if there are none.
        jobs: rows at work at the same time; they share the machine's cores, and each has a GPU of its own as far as
            there are as many.
        tell: is called with a line about every row that ends.

    Raises:
        UserError: a mistake in a recipe; another start at work in the directory; or a row that failed, raised after
            all others that could be run were.
        Interrupted: a signal asked to stop; everything is saved.
    """
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}, but should be at least 1")
    rows = rows_of(study, only)
    check_rows(study, rows, directory)
    _check_inputs(study, rows, directory)
    _check_place(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with closing(RunDirectory(directory)) as folder:
        _hold(folder, tell)
        for place in (directory, *directory.glob("seed-*/")):
            files.remove_leftovers(place)
        try:
            files.write_text(directory / FILE, to_yaml(study))
        except BaseException:
            with suppress(OSError):  # it was there before, and is not empty
                directory.rmdir()
            raise
        runner = Runner(study, folder, rows, jobs, tell)
        with signals(runner.ending) as interrupted:
            while runner.waiting or runner.running:
                if interrupted():
                    runner.stop()
                    raise Interrupted("the study stopped; the same command resumes it")
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
    files.check_place(directory)
    if next(directory.glob("seed-*/"), None) is not None and path.exists():
        return
    others = [entry for entry in directory.glob("*") if not files.is_leftover(entry)]
    if others and (others != [path] or path.read_text("utf-8") != to_yaml(load_recipe(path, Study))):
        raise UserError(f"{directory} is not empty and not a study; give another directory")


def _hold(folder: RunDirectory, tell: Callable[[str], None]) -> None:
    """Lock the directory. The rows hold it too, so it is free once the last of them has ended."""
    started = time.monotonic()
    waiting = False
    while True:
        try:
            return folder.hold()
        except UserError:
            if time.monotonic() > started + PATIENCE_SECONDS:
                raise
        if not waiting:
            tell(f"waiting for an earlier start in {folder.path} to save and end")
            waiting = True
        time.sleep(POLL_SECONDS)


class Runner:
    """Which rows of a study wait, run, are done, or failed."""

    def __init__(
        self, study: Study, folder: RunDirectory, rows: list[Row], jobs: int, tell: Callable[[str], None]
    ) -> None:
        self.study, self.folder, self.directory, self.jobs, self.tell = study, folder, folder.path, jobs, tell
        self.waiting = list(rows)
        self.running: dict[Row, subprocess.Popen[bytes]] = {}
        self.gpus = visible_gpus() if jobs > 1 else []
        self.gpu_of: dict[Row, str] = {}
        self.done: set[tuple[str, int]] = set()
        self.failed: dict[tuple[str, int], str] = {}
        self.started = time.monotonic()
        self.ran = 0

    def start_ready(self) -> None:
        """Start rows whose needs are met, as many as there are jobs for; pass over what is finished already."""
        for row in list(self.waiting):
            needs = [(name, row.seed) for name in row.needs]
            lacking = next((name for name, seed in needs if (name, seed) in self.failed), None)
            if lacking:
                self.waiting.remove(row)
                self._fail(row, f"was not run: it needs {lacking}")
            elif len(self.running) < self.jobs and self.done.issuperset(needs):
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
            self.gpu_of.pop(row, None)
            if process.returncode == 0:
                self._succeed(row)
            else:
                self._fail(row, f"failed with exit code {process.returncode}{self._last_words(row)}")

    def ending(self) -> str:
        """What stopping will wait for."""
        rows = ", ".join(f"{row.name} (seed {row.seed})" for row in self.running) or "no row"
        return f"waiting for {rows} to save and end"

    def stop(self) -> None:
        """Ask every row to save and end, and wait until it has."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            process.wait()

    def _start(self, row: Row) -> None:
        folder = row.folder(self.directory)
        recipe = recipe_of(self.study, row, self.directory, self._affordable_steps(row))
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
        if self.gpus and recipe.training.device != "cpu":
            # It sees the GPU with the fewest rows at work, and no other.
            used = list(self.gpu_of.values())
            self.gpu_of[row] = environment["CUDA_VISIBLE_DEVICES"] = min(self.gpus, key=used.count)
        quiet: dict[str, Any] = {"stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        with folder.with_name(f"{row.name}.log").open("ab") as log:
            self.running[row] = subprocess.Popen(command, env=environment, pass_fds=held, stdout=log, **quiet)

    def _affordable_steps(self, row: Row) -> int | None:
        """For how many steps a row can train with the FLOPs of the rows that it names, if it names any."""
        if not row.flops_of:
            return None
        recipe = recipe_of(self.study, row, self.directory)
        assert isinstance(recipe, TrainRecipe), "rows with a reference have no `flops_of`"
        spenders = [row_named(self.study, name, row.seed) for name in row.flops_of]
        data = open_data(recipe.data.model_copy(update={"verify": False}))
        return affordable_steps(recipe, sum(spent_flops(other, self.directory) for other in spenders), data)

    def _succeed(self, row: Row) -> None:
        self.done.add((row.name, row.seed))
        self.ran += 1
        left = len(self.waiting) + len(self.running)
        each = (time.monotonic() - self.started) / self.ran
        rest = f"; {left} left, about {duration(left * each)}" if left else ""
        self.tell(f"{row.name}, seed {row.seed}: done{rest}")

    def _fail(self, row: Row, why: str) -> None:
        self.failed[row.name, row.seed] = f"{row.name}, seed {row.seed}: {why}"
        self.tell(self.failed[row.name, row.seed])

    def _last_words(self, row: Row) -> str:
        log = row.folder(self.directory).with_name(f"{row.name}.log")
        text = log.read_text("utf-8", errors="replace").strip() if self.jobs > 1 and log.exists() else ""
        return f" ({text.splitlines()[-1].strip()})" if text else ""


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


def spent_flops(row: Row, directory: Path) -> float:
    """Training FLOPs of a finished row; of Algorithm 1, all its rounds, without the reference."""
    folder = row.folder(directory)
    if row.kind is Recipe:
        return RunDirectory(folder).read_summary().rounds[-1].total_training_flops
    return float(json.loads((folder / "training.json").read_text(encoding="utf-8"))["flops"])


def compare_rows(study: Study, rows: Sequence[Row], directory: Path) -> RunComparison:
    """Compare the finished rows of a study with its reference, and write the result to `comparison/` in it."""
    from inheritune.report.comparison import write_comparison

    entries = study_entries(study, rows, directory)
    return write_comparison(entries, study.reference, directory / "comparison", study.name)


def study_entries(study: Study, rows: Sequence[Row], directory: Path) -> list[Entry]:
    """The models of finished rows, in the order of the study; seeds of a row together.

    Total FLOPs of a row are its own and those of the rows that made its first weights, but not the reference's:
    that one is there before any of them.
    """
    from inheritune.report.comparison import read_entries

    entries: list[Entry] = []
    total: dict[tuple[str, int], float | None] = {}
    for row in rows:
        shared = row.starts_from in (None, study.reference)
        before = 0.0 if shared else total[str(row.starts_from), row.seed]
        found = read_entries([(row.name, row.folder(directory))])
        if row.kind is Recipe:  # the rounds of Algorithm 1, of which the last has the row's name
            found = [entry for entry in found if entry.kind == "round"]
            labels = [*(f"{row.name} round {n}" for n in range(1, len(found))), row.name]
            found = [replace(entry, label=label) for entry, label in zip(found, labels, strict=True)]
        for entry in found:
            flops = None if entry.total_flops is None or before is None else entry.total_flops + before
            entries.append(replace(entry, total_flops=flops))
        total[row.name, row.seed] = entries[-1].total_flops
    order = list(study.rows)
    return sorted(entries, key=lambda entry: order.index(entry.label.partition(" round ")[0]))
