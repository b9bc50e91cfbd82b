"""Being asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """SIGINT or SIGTERM arrived; the step was finished and a checkpoint written."""


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only set a flag, which the function that is given tells.

    A second signal acts at once, as it would outside.
    """
    arrived: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: object) -> None:
        arrived.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it handles signals
        pass
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
