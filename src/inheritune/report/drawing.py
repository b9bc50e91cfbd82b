"""What the figures of a report have in common: style, frame, the look of a model, smoothing, direct labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from inheritune.report.metrics import FloatArray
from inheritune.report.quantities import MINUS, count
from inheritune.report.svg import LIGHT

INK, MUTED, GROUND = LIGHT["ink"], LIGHT["muted"], LIGHT["ground"]
SERIES = [colour for name, colour in LIGHT.items() if name.startswith("series-")]
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1.2)), (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1)))
POINTS = 400  # of a curve: more cannot be seen, and would only make the file larger
LABEL_GAP = 14.0
HIDDEN_SHARE = (
    0.15  # of a curve, its first steps: they need not be visible, their height would flatten the rest
)

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


class Interval(NamedTuple):
    """One line of a figure of intervals: a value, the ends of its interval if it has one, and a text beside it."""

    name: str
    value: float
    ends: tuple[float, float] | None
    text: str
    look: Look
    filled: bool


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


def loss_limits(
    curves: Iterable[tuple[FloatArray, FloatArray, float]],
    levels: Sequence[float] = (),
    hidden: float = HIDDEN_SHARE,
) -> tuple[float, float, bool]:
    """The range of a loss axis, and whether it cuts off the first steps of a curve.

    Each curve is its steps, its losses and its last step; `levels` are losses that must be visible too, `hidden`
    is the share of first steps that need not be.
    """
    early, late = [], [np.array(levels, dtype=np.float64)]
    for step, loss, last_step in curves:
        shown = step >= hidden * last_step
        early.append(loss[~shown])
        late.append(loss[shown])
    losses = np.concatenate(late)
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return 0.0, 1.0, False
    low, high = float(losses.min()), float(losses.max())
    margin = 0.06 * max(high - low, 0.01)
    return low - margin, high + margin, any(np.any(loss > high + margin) for loss in early)


def intervals(
    axes: Axes, lines: Sequence[Interval], sides: tuple[str, str], visible: Sequence[float] = ()
) -> None:
    """Values with their intervals around 0, one below the other, each with its name and its text.

    `sides` says what is left and right of 0; the range also takes in the values of `visible`.
    """
    ends = [0.0, *visible, *(end for line in lines for end in (line.value, *(line.ends or ())))]
    margin = 0.06 * max(max(ends) - min(ends), 1e-4)
    axes.set(xlim=(min(ends) - margin, max(ends) + margin), ylim=(len(lines) - 0.5, -0.5))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=INK, linewidth=1)
    for text, side, offset in ((sides[0], "right", -6), (sides[1], "left", 6)):
        axes.annotate(
            text,
            (0, 1),
            (offset, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            color=MUTED,
            ha=side,
        )
    for position, line in enumerate(lines):
        colour, marker, _ = line.look
        if line.ends is not None:
            axes.plot(line.ends, [position, position], color=colour, solid_capstyle="butt")
        axes.plot(
            [line.value],
            [position],
            marker,
            color=colour,
            markersize=7 if line.ends is not None else 13,
            markeredgewidth=1 if line.ends is not None else 2,
            markerfacecolor=colour if line.filled else GROUND,
        )
        axes.text(
            1.04,
            position,
            line.text.replace("-", MINUS),
            va="center_baseline",
            fontsize=10,
            transform=axes.get_yaxis_transform(),
        )
    axes.set_yticks(range(len(lines)), [line.name for line in lines], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+.3g}".replace("-", MINUS) if x else "0"))


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


def thin(*columns: FloatArray, points: int = POINTS) -> list[FloatArray]:
    """The same at most `points` rows of every column, evenly spaced, the first and the last included."""
    rows = len(columns[0])
    index = np.unique(np.linspace(0, rows - 1, points).astype(int)) if rows else np.empty(0, dtype=int)
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
