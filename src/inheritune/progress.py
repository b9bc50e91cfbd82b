"""How far long work has come: a bar with rate and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inheritune.quantities import duration

SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Context manager that shows work on `total` units.

    Args:
        title: what is being done.
        total: units of work in all.
        unit: what one of them is, in the plural.
        done: units done before this start of the program; they do not count for the rate.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.first = self.done = done
        self.started = self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.silent = not first_process()
        self.bar: Progress | None = None
        if console.is_terminal and sys.stderr.isatty() and not self.silent:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
                expand=True,
                refresh_per_second=4,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, rate="", note="")

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

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` units are done in all."""
        self.done = done
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.started)
        if self.bar:
            self.bar.update(self.task, completed=done, rate=f"{rate:,.3g} {self.unit}/s", note=note)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            left = (self.total - done) / rate if rate > 0 else float("nan")
            self._line(f"{done}/{self.total} {self.unit}, {rate:,.3g}/s, {duration(left)} left, {note}")

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        if not self.silent:
            print(f"{self.title}: {text.rstrip(', ')}", file=sys.stderr, flush=True)


def first_process() -> bool:
    """Whether this process is to speak for those that torchrun started; alone it always is."""
    return os.environ.get("RANK", "0") == "0"
