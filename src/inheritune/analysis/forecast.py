"""How good a cut will be after its training, predicted from short ones; and the file that says so.

`forecast.json`, in the directory of a run's reference, holds the loss of the best cut at each depth, the probes that
were trained, and what they predict (`start_layers: auto`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from inheritune.analysis.kept import Kept
from inheritune.analysis.result import Record
from inheritune.runtime import files

FORECAST = "forecast.json"

SHRINKS = 2**-0.28
"""What a doubling of the tokens T gains, in parts of the one before: the loss is E + B * T ** -0.28 (Hoffmann et al.,
2022, arXiv 2203.15556)."""


class Probe(Record):
    """A short training, with a schedule that ends with it."""

    layers: int
    steps: int
    loss: float
    """Validation loss in the end, nats per token."""
    flops: float
    directory: str


class Prediction(Record):
    """Validation loss of a depth after a whole training, nats per token."""

    layers: int
    loss: float
    low: float
    """If each doubling of the tokens gains as much as the probes' did; and lower by what windows leave open."""
    high: float
    """If what a doubling gains shrinks twice as fast as usual; and higher by what windows leave open."""


class Forecast(Record):
    """What a run predicts of each depth before its first round."""

    format: Literal[1] = 1
    curve: list[Kept]
    """The choice at each depth that rounds may have, from shallow to deep, with its loss before training."""
    steps: int
    """Of a whole training."""
    target: float
    """The validation loss to reach: the reference's, and the margin."""
    probes: tuple[Probe, ...] = ()
    depths: tuple[Prediction, ...] = ()
    start: int | None = None
    """Layers of the first round; None before the probes have been trained."""

    def kept(self, layers: int) -> Kept:
        """The choice at a depth."""
        return next(kept for kept in self.curve if len(kept.layers) == layers)


def load_forecast(path: Path) -> Forecast:
    """Read a `forecast.json`.

    Raises:
        UserError: it is something else, or damaged.
    """
    return files.read_record(path, Forecast, "a forecast of format 1")


def gain(times: float, ratio: float) -> float:
    """What `times` as many steps gain, in units of what the last doubling gained.

    Each doubling gains `ratio` times what the one before it gained: 2 ** -e where the loss falls as steps ** -e.
    """
    doublings = math.log2(times)
    return doublings if ratio == 1 else ratio * (ratio**doublings - 1) / (ratio - 1)
