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

EASES = (1.35, 1.17, 1.0)
"""What a doubling of the steps gains, in parts of the one before it, is this times the measured ratio from the third
doubling on: the most hopeful, what is expected, the least.

The one that is expected was fitted on two series of decayed trainings of 5%, 10%, 20% and 100% of the steps:
SmolLM2-135M cut to 15 layers, whose ratio is 0.62 (1.20 would have been right), and a GPT-2 of 185K parameters cut to
6 (1.10, and 1.14). Four more learning rates of that GPT-2, with ratios of 0.93 to 1.11, would have needed 1.06 to
1.22."""

WITHIN = (0.5, 1.25)
"""Ratios that are believed; the measured ones that predict well are 0.62 to 1.11.

Less comes where the shortest probe had scarcely begun to recover (0.23 for SmolLM2-135M at twice its best rate) and
says nothing of the doublings after it: with 0.5 the loss falls as 1 / steps already, faster than is to be expected in
the long run. With 1.25 the 2.3 doublings that are left gain 4.5 times what the last one did, which noise should not
exceed."""


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
    """The lowest that one of `EASES` gives, as a rule the most hopeful, and lower by what windows leave open."""
    high: float
    """The highest that one of `EASES` gives, and higher by what windows leave open."""


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
    """Of the shallow depth, from short to long, then of the deep one."""
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


def ratio(first: float, second: float) -> float:
    """What a doubling of the steps gains, in parts of the one before, by what two in a row gained; within `WITHIN`.

    Where the first gained nothing, it is the upper limit if the second gained anything, and else the lower one.
    """
    least, most = WITHIN
    if first <= 0:
        return most if second > 0 else least
    return min(max(second / first, least), most)
