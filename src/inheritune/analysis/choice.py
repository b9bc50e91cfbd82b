"""Which blocks of a model to keep: found by the loss that each choice has as it is, before any training.

Greedy search, beside a few simple rules, is what holds up. On SmolLM2-135M, at 15, 20 and 24 of 30 blocks, nothing
better was found by beams of up to eight choices, by putting blocks back and dropping others, by swaps or by simulated
annealing, for 0.2 to 7 times its work. Block influence, the losses without single blocks, and first-order gradients
(Taylor) as orders of dropping all begin at a higher loss (`results/real-model/`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np

from inheritune import UserError
from inheritune.analysis.importance import Choice, ChoiceLosses
from inheritune.training.validation import standard_error

FEWEST, ENOUGH = 4, 16
"""Windows on which candidates are compared at first, and at last."""

CLEAR = 3.0
"""Standard errors of a paired difference from which on a candidate is clearly worse than another one."""

ALL = 128
"""So many choices of one size all race."""

NEAR = 8
"""So many moves race: those that were the best when last measured. On SmolLM2-135M 12 find the same choices."""


def race(losses: ChoiceLosses, candidates: Iterable[Choice]) -> Choice:
    """The best of some choices.

    All of them are measured on a few windows, the better half on twice as many, and so on up to enough. Those of
    the better half that are clearly worse than the first, by paired differences, are dropped as well.
    """
    enough = min(ENOUGH, len(losses.windows))
    alive, windows = sorted(set(candidates)), min(FEWEST, enough)
    while True:
        measured = losses(alive, windows)
        order = np.argsort(measured.mean(1), kind="stable")
        alive, measured = [alive[i] for i in order], measured[order]
        if windows == enough or len(alive) == 1:
            return alive[0]
        half = (len(alive) + 1) // 2
        alive = [c for c, row in zip(alive[:half], measured, strict=False) if not _worse(row, measured[0])]
        windows = min(2 * windows, enough)


def _best(losses: ChoiceLosses, choices: Sequence[Choice]) -> Choice:
    """Of choices that may have little in common: a few windows do not tell them apart, so none is halved away."""
    enough = min(ENOUGH, len(losses.windows))
    measured = losses(choices, (enough + 1) // 2)
    first = measured[measured.mean(1).argmin()]
    alive = [choice for choice, row in zip(choices, measured, strict=True) if not _worse(row, first)]
    return alive[int(losses(alive, enough).mean(1).argmin())]


def _worse(losses: np.ndarray, others: np.ndarray) -> bool:
    difference = losses - others
    return bool(difference.mean() > CLEAR * standard_error(difference))


def promising(
    losses: ChoiceLosses, base: Choice, moves: Sequence[Choice], last: dict[int, float]
) -> list[Choice]:
    """The moves that are worth a race: those that were the best when they were last measured, at a neighbouring size.

    A block whose absence costs 7 nats need not be measured at every size. What the others cost rises from size to
    size, so that in the end it is their turn, or that of what was not measured for long.

    Args:
        losses: of the model's choices.
        base: what a block is dropped from.
        moves: what is left of it.
        last: block -> change of the loss by its move where it was last measured; brought up to date.
    """
    windows = min(FEWEST, len(losses.windows))
    by_block = {block: move for move in moves for block in set(base) ^ set(move)}

    def measure(blocks: list[int]) -> None:
        changes = losses([by_block[block] for block in blocks], windows).mean(1)
        last.update(zip(blocks, (changes - losses([base], windows).mean()).tolist(), strict=True))

    if new := [block for block in by_block if block not in last]:
        measure(new)
    near = sorted(by_block, key=last.__getitem__)[:NEAR]
    measure(near)
    return [by_block[block] for block in near]


def search(
    losses: ChoiceLosses,
    fewest: int,
    *,
    rules: Callable[[int], Sequence[Choice]] = lambda size: (),
    tell: Callable[[int], None] = lambda left: None,
) -> dict[int, Choice]:
    """The best choice found of each number of blocks, from `fewest` to all but one.

    From the whole model the block is dropped whose absence costs least, one after the other, unless the choice of a
    rule is better; then the next one is dropped from that. Of sizes with few choices all race.

    Args:
        losses: of the model's choices.
        fewest: blocks to stop at.
        rules: choices of a size by simple rules, one of which is taken where it is better: a few blocks that are
            dropped one after the other may cost more than as many that follow each other.
        tell: is called before each race with how many are left, as far as is known.

    Raises:
        UserError: `fewest` is not from 1 to all but one, or there are too few windows.
    """
    whole = losses.whole
    check_fewest(fewest, len(whole))
    if len(losses.windows) < FEWEST:
        raise UserError(
            f"{len(losses.windows)} windows are too few to choose layers by: give at least {FEWEST}"
        )
    found, last = {len(whole): whole}, dict[int, float]()
    for size in range(len(whole) - 1, fewest - 1, -1):
        tell(size - fewest + 1)
        base = found[size + 1]
        if math.comb(len(whole), size) <= ALL:
            found[size] = race(losses, combinations(whole, size))
            continue
        dropped = race(losses, promising(losses, base, without_each(base), last))
        found[size] = _best(losses, [dropped, *rules(size)])
    del found[len(whole)]
    return found


def check_fewest(fewest: int, depth: int) -> None:
    """UserError unless a model of this depth can be cut to so few layers."""
    if depth == 1:
        raise UserError("the model has one layer: there is none to leave out")
    if not 1 <= fewest < depth:
        raise UserError(f"cannot choose {fewest} of {depth} layers: choose 1 to {depth - 1}")


def put_back(losses: ChoiceLosses, kept: Choice, layers: int) -> Choice:
    """`layers` blocks, of which `kept` are some: the others are those whose return lowers the loss most, in turn."""
    while len(kept) < layers:
        kept = race(losses, with_each(kept, losses.whole))
    return kept


def contiguous(angles: np.ndarray, layers: int) -> Choice:
    """All blocks but the run of them between whose ends the hidden state turns least.

    Args:
        angles: of `ChoiceLosses.similarities`, [L + 1, L + 1].
        layers: how many to keep.

    Source: "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887.
    """
    depth = len(angles) - 1
    dropped = depth - layers
    start = min(range(layers + 1), key=lambda place: float(angles[place, place + dropped]))
    return tuple(block for block in range(depth) if not start <= block < start + dropped)


def without_each(choice: Choice) -> list[Choice]:
    """The choices with one block less."""
    return [tuple(other for other in choice if other != block) for block in choice]


def with_each(choice: Choice, whole: Choice) -> list[Choice]:
    """The choices with one block more."""
    return [tuple(sorted((*choice, block))) for block in whole if block not in choice]
