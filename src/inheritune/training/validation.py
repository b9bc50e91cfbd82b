"""Validation loss per window, and the comparison of two models on the same windows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from inheritune import UserError
from inheritune.data.loader import batches, window_count
from inheritune.data.shards import DataIdentity, Split, check_same_data
from inheritune.quantities import bits_per_byte
from inheritune.runtime import files
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.out_of_memory import SHARED_OUT, needing_memory
from inheritune.training.loss import NextTokenLoss

Z95 = 1.959963984540054
"""Half-width of a 95% interval of the normal distribution, in standard errors."""

MANY = 100
"""Values from which on Student's t is wider by less than 1.3%, and the normal distribution is taken for it."""

BATCH_TOKENS = {"cpu": 8_192, "cuda": 16_384}
"""In one forward pass; part of how a loss is rounded, so it does not depend on memory."""


class NonFiniteLossesError(UserError):
    """The losses of a trained model are NaN or infinite."""


@dataclass(frozen=True)
class WindowLosses:
    """Validation loss of a model.

    Args:
        losses: mean loss of each window, nats per token, float64 [windows].
        window: tokens of each.
        data: which the windows are of; None where it is not recorded.
    """

    losses: np.ndarray
    window: int
    data: DataIdentity | None = None

    @property
    def mean(self) -> float:
        """Validation loss, nats per token."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over windows."""
        return standard_error(self.losses)

    @property
    def bytes_per_token(self) -> float | None:
        """Of the split that the windows are of; None where it is not known."""
        return None if self.data is None else self.data.bytes_per_token

    @property
    def bits_per_byte(self) -> float | None:
        """The loss for each byte of the text, whatever tokens it is in; None where the bytes are not known."""
        return bits_per_byte(self.mean, self.bytes_per_token)

    def thinned(self, windows: int | Literal["all"]) -> WindowLosses:
        """What `validate` would have measured on so many windows, out of the losses on all of them."""
        return replace(self, losses=self.losses[_spread(len(self.losses), windows)])

    def save(self, path: Path) -> None:
        """Write as JSON, at once; the folder is made if need be.

        Raises:
            NonFiniteLossesError: a loss is NaN or infinite.
        """
        if not np.isfinite(self.losses).all():
            raise NonFiniteLossesError(
                f"the validation loss is not finite, so {path} is not written: the model's weights are too large or "
                "damaged; if it was trained here, try a lower learning rate in another directory"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "loss": self.mean,
            "standard_error": self.standard_error,
            "bits_per_byte": self.bits_per_byte,
            "windows": len(self.losses),
            "window_tokens": self.window,
            "data": self.data and self.data.model_dump(),
            "losses": [float(x) for x in self.losses],
        }
        files.write_json(path, values)

    @classmethod
    def load(cls, path: Path) -> WindowLosses:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        data = values.get("data")
        return cls(
            np.array(values["losses"], dtype=np.float64),
            values["window_tokens"],
            data and DataIdentity.model_validate(data),
        )


@dataclass(frozen=True)
class Comparison:
    """A small model against its reference, window by window.

    Args:
        difference: mean of (target - reference), nats per token; negative means that the target is better.
        standard_error: of that mean, over windows.
        interval: 95% interval of the mean, see `interval_of`.
        parity: whether the difference is at most the margin (Algorithm 1, step 3).
    """

    difference: float
    standard_error: float
    interval: tuple[float, float]
    parity: bool


@needing_memory(
    "a validation",
    f"whatever the micro-batch, it reads up to {BATCH_TOKENS['cuda']:,} tokens at once on a GPU and "
    f"{BATCH_TOKENS['cpu']:,} on a CPU, as that decides how losses are rounded; free memory there, or {SHARED_OUT}",
)
def validate(
    loss: NextTokenLoss,
    split: Split,
    window: int,
    hardware: Hardware,
    windows: int | Literal["all"] = "all",
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> WindowLosses:
    """Loss of a model on the non-overlapping windows of a split.

    The processes of a world share the batches. A batch is the same wherever it is computed, so that how many there
    are does not show in the result.

    Args:
        loss: of the model, on the hardware's device; put into evaluation mode for the time.
        split: where the windows are.
        window: tokens of each.
        hardware: precision, and the processes.
        windows: all of them, or this many, spread evenly.
        tell: is called after each batch with how many of this process's windows are done, and how many it has.

    Raises:
        UserError: the split is shorter than one window.
    """
    available, world = window_count(split, window), hardware.world
    numbers = _spread(available, windows)
    size = max(1, BATCH_TOKENS[hardware.device.type] // window)
    starts = list(range(0, len(numbers), size))
    # Sharded models compute together, so everyone has as many batches; what is too many is done twice. Of those of
    # a process only the last can be a short one.
    turns = -(-len(starts) // world.size)
    mine = [starts[(turn * world.size + world.rank) % len(starts)] for turn in range(turns)]
    chosen = np.concatenate([numbers[start : start + size] for start in mine])
    mode = loss.training
    loss.eval()
    try:
        losses, done = [], 0
        for inputs_bt, targets_bt in batches(split, chosen, window, size, hardware.device):
            # Compiled blocks would round otherwise than a whole graph, and learn of other shapes than training's.
            with hardware.autocast(), torch.compiler.set_stance("force_eager"):
                losses.append(loss.per_window(inputs_bt, targets_bt))
            done += len(inputs_bt)
            tell(done, len(chosen))
        measured = torch.cat(losses).double().cpu().numpy()
    finally:
        loss.train(mode)
    found = dict(zip(chosen.tolist(), measured.tolist(), strict=True))
    for others in world.gather(found):
        found |= others
    return WindowLosses(np.array([found[number] for number in numbers.tolist()]), window, split.identity)


def compare(target: WindowLosses, reference: WindowLosses, margin: float = 0.0) -> Comparison:
    """Paired comparison on the same windows.

    Raises:
        UserError: the two were not measured on the same windows of the same data.
    """
    check_same_data(target.data, reference.data, "the losses that are to be compared")
    if target.window != reference.window or len(target.losses) != len(reference.losses):
        raise UserError(
            f"cannot pair {len(target.losses)} windows of {target.window} tokens with "
            f"{len(reference.losses)} of {reference.window}: both models need the same validation windows"
        )
    differences = target.losses - reference.losses
    mean, error = float(differences.mean()), standard_error(differences)
    interval = interval_of(mean, error, len(differences))
    return Comparison(mean, error, interval, parity=mean <= margin)


def compare_per_byte(
    target: WindowLosses, reference: WindowLosses
) -> tuple[float, tuple[float, float]] | None:
    """Two models on one text in different tokens: target minus reference in bits per byte, and its 95% interval.

    Windows are different pieces of the text, so they are not paired and the interval is wider than that of `compare`.
    None if it is not the same split of the same number of bytes, or if that is not known.
    """
    one, other = target.data, reference.data
    if one is None or other is None or one.sha256 == other.sha256:
        return None
    a, b = target.bits_per_byte, reference.bits_per_byte
    if a is None or b is None or (one.split, one.text_bytes) != (other.split, other.text_bytes):
        return None
    errors = [
        bits_per_byte(losses.standard_error, losses.bytes_per_token) or 0.0 for losses in (target, reference)
    ]
    fewest = min(len(target.losses), len(reference.losses))
    return a - b, interval_of(a - b, math.hypot(*errors), fewest)


def _spread(available: int, windows: int | Literal["all"]) -> np.ndarray:
    """Numbers of so many windows, spread evenly over those there are."""
    count = available if windows == "all" else min(windows, available)
    return np.arange(count, dtype=np.int64) * available // count


def interval_of(mean: float, error: float, count: int) -> tuple[float, float]:
    """95% interval of a mean of so many values by its standard error; a single one has no spread, so no width.

    By Student's t where they are fewer than `MANY`, else by the normal distribution.
    """
    half = 0.0 if count < 2 else error * (Z95 if count >= MANY else t95(count - 1))
    return mean - half, mean + half


def t95(degrees: int) -> float:
    """Half-width of a 95% interval of Student's t, to 0.2% (Cornish-Fisher; of one and two degrees exactly)."""
    if degrees < 3:
        return math.tan(0.475 * math.pi) if degrees == 1 else math.sqrt(2 / (0.05 * 1.95) - 2)
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def standard_error(values: np.ndarray) -> float:
    """Of the mean of these values; 0 for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
