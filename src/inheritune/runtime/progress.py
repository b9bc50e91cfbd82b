"""How far long work has come: a bar with rate and time left, in a notebook one line, or plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from inheritune.quantities import duration

SECONDS_BETWEEN_LINES = 15.0
SECONDS_IN_NOTEBOOK = 0.5


class ProgressBar:
    """Context manager that shows work on `total` units.

    Args:
        title: what is being done.
        total: units of work in all; None where that is not known.
        unit: what one of them is, in the plural.
        done: units done before this start of the program.
    """

    def __init__(self, title: str, total: int | None, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = done
        self.last_line = time.monotonic()
        self.first: tuple[float, int] | None = None  # when the first update came, and what was done then
        console = Console(stderr=True)
        self.silent = not first_process()
        self.notebook = in_notebook()
        self.pause = SECONDS_IN_NOTEBOOK if self.notebook else SECONDS_BETWEEN_LINES
        self.longest = 0  # of the lines that were written in one place
        self.bar: Progress | None = None
        if console.is_terminal and sys.stderr.isatty() and not self.silent:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[counts]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
                expand=True,
                refresh_per_second=4,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, counts="", note="")

    def __enter__(self) -> ProgressBar:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif kind is None:
            self._line("done")
        if self.longest:
            print(flush=True)

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Say that `done` units are done in all, and if that is known better now, of how many."""
        self.done, self.total = done, self.total if total is None else total
        now = time.monotonic()
        # What came before it (skipping what an earlier start did, compiling) says nothing about the rest.
        self.first = self.first or (now, done)
        if self.bar is None and now - self.last_line < self.pause:
            return
        rate = (done - self.first[1]) / max(1e-9, now - self.first[0])
        counts = f"{done:,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}"
        if rate > 0:
            counts += f", {rate:,.0f}/s" if rate >= 1000 else f", {rate:.3g}/s"
        if self.bar:
            self.bar.update(self.task, completed=done, total=self.total, counts=counts, note=note)
            return
        left = ""
        if self.total is not None and rate > 0:
            left = f"{duration(max(0, self.total - done) / rate)} left"
        self.last_line = now
        self._line(", ".join(filter(None, (counts, left, note))))

    def _line(self, text: str) -> None:
        line = f"{self.title}: {text}"
        if self.notebook and not self.silent:  # over the line before
            self.longest = max(self.longest, len(line))
            print(f"\r{line:{self.longest}}", end="", flush=True)
        else:
            say(line)


def say(text: str) -> None:
    """A line for the user about work that is under way, from the first process only."""
    if first_process():
        # What is on stderr looks like an error in a notebook.
        print(text, file=sys.stdout if in_notebook() else sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this program."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def first_process() -> bool:
    """Whether this process is to speak for those that torchrun started; alone it always is."""
    return os.environ.get("RANK", "0") == "0"
