"""How far long work has come: a bar with rate and time left, in a notebook one line, or plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from inheritune.quantities import duration
from inheritune.runtime.signals import Interrupted, first_process, signals

SECONDS_BETWEEN_LINES = 15.0
SECONDS_IN_NOTEBOOK = 0.5
SECONDS_BETWEEN_LOOKS = 0.5
"""While something is waited for that cannot say how far it is."""
REMEMBERED = 200
"""Updates that the rate goes by, about twice as many at most."""

AGAIN = "nothing of it is kept, and the same command begins it again"
RESUMES = "what is done is kept, and the same command resumes"
"""What becomes of work that a signal stops."""

T = TypeVar("T")


class ProgressBar:
    """Context manager that shows work on `total` units, and ends it when a signal asks to.

    A signal is answered at once, with what is done and what is kept of it; the next update raises `Interrupted`.

    Args:
        title: what is being done.
        total: units of work in all; None where that is not known.
        unit: what one of them is, in the plural.
        done: units done before this start of the program.
        keeps: what becomes of the work if a signal stops it; None where whoever does it looks at signals.
    """

    def __init__(
        self, title: str, total: int | None, unit: str, done: int = 0, keeps: str | None = AGAIN
    ) -> None:
        self.title, self.total, self.unit, self.keeps = title, total, unit, keeps
        self.before, self.done = done, done
        self.interrupted: Callable[[], bool] = lambda: False
        self.stack = ExitStack()
        self.last_line = time.monotonic()
        self.seen: deque[tuple[float, int]] = deque()
        """When updates came, and what was done then: of the second half of the time since the first."""
        self.began: float | None = None
        console = Console(stderr=True)
        self.notebook = in_notebook()
        self.pause = SECONDS_IN_NOTEBOOK if self.notebook else SECONDS_BETWEEN_LINES
        self.longest = 0  # of the lines that were written in one place
        self.bar: Progress | None = None
        if console.is_terminal and sys.stderr.isatty() and first_process():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[counts]}"),
                TextColumn("{task.fields[note]}"),
                console=console,
                expand=True,
                refresh_per_second=4,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, counts="", note="")

    def __enter__(self) -> ProgressBar:
        if self.keeps is not None:
            self.interrupted = self.stack.enter_context(signals(self._ending))
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
        self.stack.close()

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Say that `done` units are done in all, and if that is known better now, of how many.

        Raises:
            Interrupted: a signal asked to stop.
        """
        self.done, self.total = done, self.total if total is None else total
        now = time.monotonic()
        self._remember(now)
        self._show(now, note)
        self._stop_if_asked()

    def wait_for(self, work: Callable[[], T]) -> T:
        """The result of work that does not say how far it is, in a thread, so that signals are answered meanwhile.

        Raises:
            Interrupted: a signal asked to stop; the work is done.
        """
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                found.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name=self.title, daemon=True)
        thread.start()
        began = time.monotonic()
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_LOOKS)
            now = time.monotonic()
            self._show(now, f"at work for {duration(now - began)}")
        if failed:
            raise failed[0]
        self._stop_if_asked()
        return found[0]

    def _stop_if_asked(self) -> None:
        if self.interrupted():
            raise Interrupted(f"{self.title}: stopped; {self.keeps}")

    def _remember(self, now: float) -> None:
        """Note an update; forget those of the first half of the time.

        What came before the first unit was done (skipping what an earlier start did, compiling) says nothing about
        the rest, and the units after it, which are slow, soon little.
        """
        if self.done == self.before:
            return
        self.began = now if self.began is None else self.began
        if not self.seen or now - self.seen[-1][0] >= (now - self.began) / REMEMBERED:
            self.seen.append((now, self.done))
        while len(self.seen) > 1 and self.seen[1][0] <= (self.began + now) / 2:
            self.seen.popleft()

    def _show(self, now: float, note: str) -> None:
        if self.bar is None and now - self.last_line < self.pause:
            return
        counts, left = self._counts(), ""
        since, done = self.seen[0] if self.seen else (now, self.done)
        rate = (self.done - done) / max(1e-9, now - since)
        if rate > 0:
            counts += f", {rate:,.0f}/s" if rate >= 1000 else f", {rate:.3g}/s"
            if self.total is not None:
                left = f"{duration(max(0, self.total - self.done) / rate)} left"
        if self.bar:
            figures = ", ".join(filter(None, (counts, left)))
            self.bar.update(self.task, completed=self.done, total=self.total, counts=figures, note=note)
            return
        self.last_line = now
        self._line(", ".join(filter(None, (counts, left, note))))

    def _counts(self) -> str:
        if not self.done:
            return ""
        return f"{self.done:,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}"

    def _ending(self) -> str:
        done = f"{self._counts()} done; " if self.done else ""
        return f"{self.title}: {done}finishing what is under way, then stopping; {self.keeps}"

    def _line(self, text: str) -> None:
        line = f"{self.title}: {text}"
        if self.notebook and first_process():  # over the line before
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
