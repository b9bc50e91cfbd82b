"""Which windows make up step s: a pure function of (seed, s, data).

Every epoch is a permutation of all windows that is computed where it is needed, never stored: a Feistel
network over the smallest even number of bits that holds the window numbers, with cycle walking to stay inside
them (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). So the order does not depend on how
many processes share a step, on the micro-batch, or on interruptions, and a resumed run continues with exactly
the windows that an undisturbed one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from inheritune import UserError

ROUNDS = 6
_U64 = np.uint64


@dataclass(frozen=True)
class Order:
    """The windows of every step.

    Args:
        windows: how many windows the data has.
        per_step: how many of them make up one step.
        seed: of the permutations.
        kind: `shuffled`, or `sequential` for the order of the text in every epoch.
    """

    windows: int
    per_step: int
    seed: int = 0
    kind: Literal["shuffled", "sequential"] = "shuffled"

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise UserError("the data is shorter than one window")
        assert self.per_step >= 1, self.per_step

    def step(self, step: int) -> np.ndarray:
        """Window numbers of step `step` (0-based), int64 [per_step]; a step may span two epochs."""
        positions = np.arange(step * self.per_step, (step + 1) * self.per_step, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.windows)
        if self.kind == "sequential":
            return offsets
        return np.concatenate(
            [
                permute(offsets[epochs == epoch], self.windows, self.seed, int(epoch))
                for epoch in np.unique(epochs)
            ]
        )

    def share(self, step: int, rank: int, processes: int) -> np.ndarray:
        """The windows of step `step` that process `rank` of `processes` works on: a contiguous share.

        Raises:
            UserError: the windows of a step cannot be shared out evenly.
        """
        if self.per_step % processes:
            raise UserError(
                f"a step of {self.per_step} windows cannot be shared evenly by {processes} processes: "
                "make tokens_per_step a multiple of window * processes"
            )
        each = self.per_step // processes
        return self.step(step)[rank * each : (rank + 1) * each]


def permute(indices: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Images of `indices` (int64, each in [0, size)) under the permutation of [0, size) of this seed and epoch."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)
    values = _feistel(indices.astype(_U64), half, keys)
    # Walk along the cycle until inside again; the network's domain is less than four times `size`.
    outside = values >= size
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = _U64((1 << half) - 1)
    left, right = values >> _U64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << _U64(half)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al., 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))
