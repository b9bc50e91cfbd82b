"""Requests to stop: signals, and the end of the process that started this one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """SIGINT or SIGTERM arrived; what was under way was finished, and what a later start can use is written."""


STDERR = 2
STARTED_BY = "INHERITUNE_STARTED_BY"
"""Environment variable with the number of a study's process, for its rows."""


@contextmanager
def signals(ending: Callable[[], str]) -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only set a flag, which the yielded function returns.

    The user is told at once what is being done until then, which `ending` says. A second signal acts at once, as it
    would outside. When torchrun or a study is killed, it sends none to the
    processes that it started; they stop when they are orphaned.
    """
    study = os.environ.get(STARTED_BY)
    parent = int(study) if study else os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    arrived: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: object) -> None:
        arrived.append(number)
        signal.signal(number, previous[signal.Signals(number)] or signal.SIG_DFL)
        if first_process():
            start = "\n" if os.isatty(STDERR) else ""  # below the progress bar
            # Not `print`: the signal may have come while this thread was writing.
            os.write(STDERR, f"{start}{ending()}; a second signal ends it at once\n".encode())

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it handles signals
        pass
    try:
        yield lambda: bool(arrived) or parent not in (None, os.getppid())
    finally:
        for number, handler in previous.items():
            # None: one that was not installed from Python, and cannot be.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt too, so that what is half-written is removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def first_process() -> bool:
    """Whether this process is to speak for those that torchrun started; alone it always is."""
    return os.environ.get("RANK", "0") == "0"
