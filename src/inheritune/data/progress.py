"""How far `prepare` is: a bar where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from inheritune.data.sources import Source

_SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class Progress:
    """How far `prepare` is. `fraction` is None where the size of the sources is not known."""

    stage: str
    documents: int
    tokens: int
    fraction: float | None


class Reporter:
    """Tells a callback how far the work on these sources is."""

    def __init__(
        self,
        sources: Sequence[Source],
        max_documents: int | None,
        callback: Callable[[Progress], None] | None,
    ) -> None:
        self._sources = sources
        self._max_documents = max_documents
        self._callback = callback

    def __call__(self, stage: str, documents: int, tokens: int) -> None:
        """Report the counts so far."""
        if self._callback is None:
            return
        fraction = None
        sizes = [source.size for source in self._sources if source.size is not None]
        total = sum(sizes)
        if total and len(sizes) == len(self._sources):
            fraction = sum(source.read for source in self._sources) / total
        if self._max_documents is not None:
            fraction = max(fraction or 0.0, documents / self._max_documents)
        self._callback(Progress(stage, documents, tokens, fraction))


@contextmanager
def shown(console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
    """A callback for `prepare` that shows progress with rate and time left while the block lasts."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, counts="")
        rate = _Rate()

        def show(progress: Progress) -> None:
            bar.update(
                task,
                description=progress.stage,
                total=None if progress.fraction is None else 1.0,
                completed=progress.fraction or 0.0,
                counts=f"{_counts(progress)}  {rate(progress)}",
            )

        yield show


class _Rate:
    """Tokens a second since the first report of a stage, so that what was done by an earlier start is not counted."""

    def __init__(self) -> None:
        self._first: tuple[float, Progress] | None = None

    def __call__(self, progress: Progress) -> str:
        now = time.monotonic()
        if self._first is None or self._first[1].stage != progress.stage:
            self._first = (now, progress)
        since, first = self._first
        if now - since < 1 or not progress.tokens:
            return ""
        return f"{(progress.tokens - first.tokens) / (now - since) / 1e6:.2f} M tokens/s"

    def seconds_left(self, progress: Progress) -> float | None:
        """Linear in the fraction done since the first report; None while not known."""
        if self._first is None or progress.fraction is None or self._first[1].fraction is None:
            return None
        done = progress.fraction - self._first[1].fraction
        elapsed = time.monotonic() - self._first[0]
        return elapsed * (1 - progress.fraction) / done if done > 0 else None


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._rate = _Rate()
        self._last = 0.0
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        rate = self._rate(progress)
        now = time.monotonic()
        if progress.stage == self._stage and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._stage, self._last = progress.stage, now
        parts = [progress.stage, _counts(progress), rate]
        if progress.fraction is not None:
            parts.append(f"{progress.fraction:.0%}")
        left = self._rate.seconds_left(progress)
        if left is not None:
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        self._console.print(", ".join(filter(None, parts)), highlight=False)


def _counts(progress: Progress) -> str:
    tokens = f", {progress.tokens / 1e6:.1f} M tokens" if progress.tokens else ""
    return f"{progress.documents:,} documents{tokens}"
