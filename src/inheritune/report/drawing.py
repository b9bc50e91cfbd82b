"""What the figures of a report have in common: style, frame, the look of a model, smoothing, direct labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from inheritune.report.metrics import FloatArray
from inheritune.report.quantities import count
from inheritune.report.svg import LIGHT

INK, MUTED, GROUND = LIGHT["ink"], LIGHT["muted"], LIGHT["ground"]
SERIES = [colour for name, colour in LIGHT.items() if name.startswith("series-")]
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1.2)), (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1)))
POINTS = 400  # of a curve: more cannot be seen, and would only make the file larger
LABEL_GAP = 14.0

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same on every machine
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


class Look(NamedTuple):
    """How a model is drawn wherever it appears."""

    color: str
    marker: str
    linestyle: Any


class Label(NamedTuple):
    """A text for the point (x, y) of the axes."""

    x: float
    y: float
    text: str
    color: str


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own defaults and the style of the report, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def frame(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """One pair of axes in a figure of this size, with these margins, in SVG units; inside `style()`."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    inner = ((width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes((left / width, bottom / height, *inner))


def look(round_: int) -> Look:
    """Colour, marker and dash of a round; the reference (round 0) is in ink, with circles and a solid line."""
    if round_ == 0:
        return Look(INK, "o", "-")
    index = round_ - 1
    return Look(SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])


def number_x(axes: Axes, label: str) -> None:
    """Few and short numbers below an axis that starts at 0."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x) if x >= 10_000 else f"{x:,.5g}"))


def head(axes: Axes, text: str, above: float = 8.0) -> None:
    """What the vertical axis shows, written level above it, where it is easier to read."""
    left = axes.get_window_extent().x0
    axes.annotate(
        text, (0, 1), (8 - left, above), xycoords="axes fraction", textcoords="offset points", color=MUTED
    )


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label in the right margin, at the height of its point or as near as the others let it."""
    if not labels:
        return
    box = axes.get_window_extent()
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    ends = axes.transAxes.inverted().transform(points)
    places = spread([float(y) for _, y in ends], LABEL_GAP / box.height)
    for label, (end, fraction), place in zip(labels, ends, places, strict=True):
        axes.plot(
            [end, 1 + 4 / box.width, 1 + 12 / box.width],
            [fraction, fraction, place],
            color=label.color,
            linewidth=0.6,
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.annotate(
            label.text,
            (1, place),
            (15, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center_baseline",
            color=label.color,
        )


def smooth(values: FloatArray) -> FloatArray:
    """The mean over a centred window of 4% of the rows, at least five, narrower at both ends; NaN is left out."""
    finite = np.isfinite(values)
    half = max(2, len(values) // 50)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    number = np.concatenate([[0], np.cumsum(finite)])
    row = np.arange(len(values))
    start, stop = np.maximum(row - half, 0), np.minimum(row + half + 1, len(values))
    rows = number[stop] - number[start]
    return np.divide(total[stop] - total[start], rows, out=np.full(len(values), np.nan), where=rows > 0)


def thin(*columns: FloatArray) -> list[FloatArray]:
    """The same at most `POINTS` rows of every column, evenly spaced, the first and the last included."""
    rows = len(columns[0])
    index = np.unique(np.linspace(0, rows - 1, POINTS).astype(int)) if rows else np.empty(0, dtype=int)
    return [column[index] for column in columns]


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Places between 0 and 1 for labels of these positions: in the same order and at least `gap` apart.

    They are the nearest such places in least squares. More labels than fit stand closer than `gap`, evenly.
    """
    if len(positions) > 1:
        gap = min(gap, 1 / (len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda index: (positions[index], -index))
    # Places p_i with p_i + gap <= p_(i+1) are non-decreasing p_i - gap * i: isotonic regression, by pooling
    # neighbours that are out of order (each pool is [sum, size]), and then clipping to the bounds.
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        total, size = positions[index] - gap * rank, 1
        while pools and pools[-1][0] / pools[-1][1] > total / size:
            before = pools.pop()
            total, size = total + before[0], size + before[1]
        pools.append((total, size))
    highest = 1 - gap * (len(positions) - 1)
    levels = [min(max(total / size, 0.0), highest) for total, size in pools for _ in range(size)]
    places = [0.0] * len(positions)
    for rank, (index, level) in enumerate(zip(order, levels, strict=True)):
        places[index] = level + gap * rank
    return places
