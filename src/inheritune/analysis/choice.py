"""Which layers to keep: a search among choices, by the loss that each has as it is, before any training.

Letters: L layers of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from inheritune.analysis.importance import Choice, ChoiceLosses

FEWEST = 4
"""Windows on which candidates are compared first."""

CLEAR = 3.0
"""Standard errors of a paired difference by which a candidate is clearly worse than another one."""


def race(losses: ChoiceLosses, candidates: Iterable[Choice], keep: int) -> list[Choice]:
    """The best of some choices, best first: at most `keep`.

    All of them are measured on a few windows, the better ones on twice as many, and so on up to all windows. What is
    left out on the way is clearly worse than the last one kept, by the paired differences, or in the worse half.
    """
    alive, windows = sorted(set(candidates)), min(FEWEST, len(losses.windows))
    while True:
        measured = losses(alive, windows)
        order = np.argsort(measured.mean(1), kind="stable")
        alive, measured = [alive[i] for i in order], measured[order]
        if windows == len(losses.windows):
            return alive[:keep]
        last = measured[min(keep, len(alive)) - 1]
        limit = max(keep, len(alive) // 2)
        alive = [
            choice
            for place, choice in enumerate(alive)
            if place < keep or (place < limit and not _clearly_above(measured[place], last))
        ]
        windows = min(2 * windows, len(losses.windows))


def _clearly_above(losses: np.ndarray, others: np.ndarray) -> bool:
    difference = losses - others
    return bool(difference.mean() > CLEAR * difference.std(ddof=1) / math.sqrt(len(difference)))


def without_each(choice: Choice, fixed: Collection[int] = ()) -> list[Choice]:
    """The choices with one block less; those in `fixed` stay."""
    return [tuple(b for b in choice if b != block) for block in choice if block not in fixed]


def with_each(choice: Choice, depth: int) -> list[Choice]:
    """The choices with one block more."""
    return [tuple(sorted((*choice, block))) for block in range(depth) if block not in choice]


def search(
    losses: ChoiceLosses,
    lowest: int,
    *,
    beam: int = 4,
    sweeps: int = 3,
    starts: Iterable[Choice] = (),
    tell: Callable[[int], None] = lambda size: None,
) -> dict[int, Choice]:
    """The best choice found of every size from `lowest` to L - 1.

    Down from the whole model one block is left out at a time, of each of the `beam` best choices; then up, one is put
    back at a time; and so on, until a sweep finds nothing better or there were `sweeps`. What a sweep found stays among
    the candidates, so that no choice gets worse.
    """
    depth = losses.depth
    best: dict[int, list[Choice]] = {depth: [tuple(range(depth))]}
    for start in starts:
        best.setdefault(len(start), []).append(start)
    for sweep in range(sweeps):
        before = {size: choices[0] for size, choices in best.items()}
        down = sweep % 2 == 0
        sizes = range(depth - 1, lowest - 1, -1) if down else range(lowest + 1, depth)
        for size in sizes:
            near = best[size + 1] if down else best[size - 1]
            moved = [c for choice in near for c in (without_each(choice) if down else with_each(choice, depth))]
            best[size] = race(losses, [*moved, *best.get(size, ())], beam)
            tell(size)
        if sweep and all(best[size][0] == before[size] for size in best):
            break
    return {size: choices[0] for size, choices in best.items() if lowest <= size < depth}
