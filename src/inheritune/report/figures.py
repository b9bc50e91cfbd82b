"""The figures of reports as SVG: curves, paired differences with their intervals, attention maps.

Each function gives a `Picture`, or None where there is nothing to draw. The same numbers give the same bytes.
Models are distinguished by marker and dash as well as by colour, and listed in the legend in the order of their ends.
A figure has a light ground of its own, on which it can be read wherever it is shown.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from inheritune.quantities import count, significant
from inheritune.report.runs import FloatArray
from inheritune.report.table import minus, printable

INK, MUTED, GRID, GROUND = "#1f2328", "#59636e", "#e3e6ea", "#ffffff"
# Each has a contrast of at least 4.5 to 1 on the ground.
SERIES = ("#0b62b0", "#b54708", "#16794a", "#7a43d0", "#b3307f", "#7d6100")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1.2)), (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1)))
DOTTED = (0, (1, 2.5))

NARROW, WIDE = 480, 760  # of a figure, in SVG units
POINTS = 400  # of a curve: more cannot be seen, and would only make the file larger
MARKS = 16  # at most, on one curve
FEW_POINTS = 8  # of a training, thin curve included
LAYER, KEPT, BLOCK = "layer", "layers kept", "block, from 0"
"""What horizontal axes of whole numbers are called."""
PANELS_FROM = 9  # rows that no longer fit into one pair of axes
MAP_CELLS = 128
"""Sides of a drawn attention map; of a larger one each cell shows the largest value it covers."""

STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "inheritune",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same on every machine
    **dict.fromkeys(("font.size", "axes.titlesize"), 11),
    "text.color": INK,
    "text.parse_math": False,
    **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), MUTED
    ),
    "axes.titlelocation": "left",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.color": GRID,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.labelcolor": "linecolor",
    "legend.handlelength": 2.2,
}
HEADING: dict[str, Any] = {"color": MUTED, "fontsize": 11, "x": 0.01, "ha": "left"}  # of several axes
# Matplotlib's own defaults and the style of the report, whatever the user's matplotlibrc says.
_styled = matplotlib.style.context(["default", STYLE])


class Drawing(Figure):
    """A figure that a notebook shows, whether matplotlib was set up for it or not."""

    def _repr_svg_(self) -> str:
        return _svg(self)


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, and what it shows in words, for those who cannot see it."""

    figure: Drawing
    label: str

    @cached_property
    def svg(self) -> str:
        """As an SVG file."""
        return _svg(self.figure, self.label)


@dataclass(frozen=True, eq=False)
class Line:
    """One curve: `place` decides its look (0 is the reference), `marks` how many points are marked at most.

    Lines of one name are seeds of one model. `faint` are the points of a thin curve beside it, `band` a half-width
    around it; `hollow` tells which marks are, as is the last one of a training that is not `finished`. `final` is a
    loss that was measured more closely than the last point.
    """

    name: str
    x: FloatArray
    y: FloatArray
    place: int
    marks: int = MARKS
    faint: tuple[FloatArray, FloatArray] | None = None
    band: FloatArray | None = None
    hollow: NDArray[np.bool_] | None = None
    finished: bool = True
    final: float | None = None

    @property
    def points(self) -> list[tuple[FloatArray, FloatArray]]:
        """What can be drawn of the curve and the thin one beside it, as far as there are any."""
        parts = [(self.x, self.y), *([] if self.faint is None else [self.faint])]
        finite = [(x, y, np.isfinite(x) & np.isfinite(y)) for x, y in parts]
        return [(x[seen], y[seen]) for x, y, seen in finite if np.any(seen)]

    @property
    def end(self) -> float:
        """The final or last value, of the thin curve where there is no other; NaN if there is none."""
        if self.final is not None:
            return self.final
        return float(self.points[0][1][-1]) if self.points else float("nan")


class Interval(NamedTuple):
    """A difference, the ends of its interval if it has one, and both as text."""

    name: str
    value: float
    ends: tuple[float, float] | None
    text: str
    place: int
    filled: bool


@_styled
def curves(
    lines: Sequence[Line],
    heading: str,
    x_label: str,
    *,
    width: int = NARROW,
    limits: tuple[float, float] | None = None,
    level: tuple[float, str] | None = None,
    logarithmic: bool = False,
    separated: bool = False,
) -> Picture | None:
    """Lines in one pair of axes, with a legend in the order of their ends; None if no line can be seen.

    A figure of `NARROW` width has its legend above, one of `WIDE` on the right. `heading`, `limits` and `logarithmic`
    are of the vertical axis; what is above its limits is said in the figure, and a line that is there as a whole is
    only in the legend. `level` is marked by a dotted line, and is in the legend if it has a name. Where lines are
    `separated` a thin vertical line is at the beginning of each that begins after 0.
    """
    if logarithmic:  # NaN, which is not drawn, in place of what such an axis cannot show
        lines = [replace(line, y=np.where(line.y > 0, line.y, np.nan)) for line in lines]
    lines = _drawable(lines, x_label)
    if not lines:
        return None
    figure = Drawing(figsize=(width / 72, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_with_cut(heading, lines, limits))
    legend: dict[str, tuple[float, Any]] = {}
    for line in lines:
        above = limits is not None and all(np.min(y) > limits[1] for _, y in line.points)
        name = f"{short(line.name)}, above" if above else line.name
        legend.setdefault(name, (line.end, _draw(axes, line)))
        if separated and not above and (begins := line.points[0][0][0]) > 0:
            axes.axvline(begins, color=MUTED, linewidth=0.6)
    if level is not None:
        legend.setdefault(level[1], (level[0], _draw_level(axes, level[0])))
    _set_axes(axes, lines, x_label, limits, logarithmic)
    names = sorted(filter(None, legend), key=lambda name: -legend[name][0])
    figure.legend(
        [legend[name][1] for name in names],
        # Matplotlib leaves out what begins with an underscore.
        [f" {short(name)}" if name.startswith("_") else short(name) for name in names],
        loc="outside right upper" if width == WIDE else "outside upper left",
        ncols=1 if width == WIDE else 2,
    )
    return _picture(figure, _curves_label(lines, heading, x_label, level))


@_styled
def panels(
    lines: Sequence[Line],
    heading: str,
    x_label: str,
    limits: tuple[float, float],
    level: tuple[float, str] | None,
) -> Picture | None:
    """Many lines: a panel for each name but the reference's (place 0), which is in all; the others are grey."""
    lines = _drawable(lines, x_label)
    names = list(dict.fromkeys(line.name for line in lines if line.place))
    if not names:
        return None
    columns = 4
    rows = -(-len(names) // columns)
    figure = Drawing(figsize=(960 / 72, 0.6 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    figure.suptitle(_with_cut(heading, lines, limits), **HEADING)
    figure.supxlabel(x_label, color=MUTED, fontsize=11)
    # One line with gaps: as many lines as curves would make the file larger.
    thinned = [thin(line.x, line.y, points=24) for line in lines]
    grey = [np.concatenate([np.append(line[column], np.nan) for line in thinned]) for column in (0, 1)]
    for axes, name in zip(grid, names, strict=False):
        axes.plot(*grey, color=MUTED, linewidth=0.6, alpha=0.3)
        own = [line for line in lines if line.name == name]
        for line in [*(line for line in lines if line.place == 0), *own]:
            _draw(axes, line)
        if level is not None:
            _draw_level(axes, level[0])
        end = np.mean([line.end for line in own])
        axes.set_title(f"{short(name, 24)}  {end:.3f}", color=_look(own[0].place)[0])
        _set_axes(axes, lines, "", limits)
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    return _picture(figure, _curves_label(lines, heading, x_label, level))


@_styled
def differences(lines: Sequence[Interval], x_label: str, margin: float = 0.0) -> Picture | None:
    """Differences with their 95% intervals around 0, one below the other; None without any.

    A filled mark is significant; a stroke is a mean without an interval. A dashed line is at the margin, if
    there is one.
    """
    if not lines:
        return None
    figure = Drawing(figsize=(WIDE / 72, 1.1 + 0.32 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=INK, linewidth=1)
    if margin:
        axes.axvline(margin, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    for position, line in enumerate(lines):
        colour, marker, _ = _look(line.place)
        if line.ends is None:
            axes.plot(line.value, position, "|", color=colour, markersize=13, markeredgewidth=2)
            continue
        axes.plot(line.ends, [position, position], color=colour, solid_capstyle="butt")
        fill = colour if line.filled else GROUND
        axes.plot(line.value, position, marker, color=colour, markersize=7, markerfacecolor=fill)
    axes.set(ylim=(len(lines) - 0.5, -0.5), xlabel=x_label)
    axes.set_yticks(range(len(lines)), [printable(line.name) for line in lines], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: minus(f"{x:+.3g}") if x else "0"))
    texts = axes.secondary_yaxis("right")
    texts.spines["right"].set_visible(False)
    texts.set_yticks(range(len(lines)), [minus(line.text) for line in lines], color=INK)
    described = "; ".join(f"{line.name} {line.text}" for line in lines)
    return _picture(figure, f"{x_label}, with 95% intervals: {described}.")


@_styled
def maps(models: Mapping[str, Mapping[Any, FloatArray]]) -> Picture | None:
    """Attention maps of single heads [query, key] (paper, figure 2), a row for each model; None if there is none.

    Darker is more attention, by its square root.
    """
    models = {name: heads for name, heads in models.items() if heads}
    if not models:
        return None
    columns = max(map(len, models.values()))
    colours = LinearSegmentedColormap.from_list("attention", [GROUND, SERIES[0], INK])
    figure = Drawing(figsize=(2.4 * columns, 2.8 * len(models)), layout="constrained")
    rows = figure.subfigures(len(models), squeeze=False).ravel()
    for part, (name, heads) in zip(rows, models.items(), strict=True):
        part.suptitle(printable(name), **HEADING)
        grid = part.subplots(1, columns, squeeze=False).ravel()
        for axes in grid[len(heads) :]:
            axes.set_visible(False)
        for axes, (head, attention_tt) in zip(grid, heads.items(), strict=False):
            norm = PowerNorm(0.5, vmin=0, vmax=1)
            axes.imshow(_pooled(attention_tt), cmap=colours, norm=norm, interpolation="nearest")
            axes.set_title(str(head), color=INK)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=GRID)
            axes.grid(False)
    shown = "; ".join(f"{name}: {', '.join(map(str, heads))}" for name, heads in models.items())
    return _picture(figure, f"Attention maps, queries from top to bottom, keys from left to right. {shown}.")


def loss_limits(lines: Sequence[Line], levels: Sequence[float] = ()) -> tuple[float, float]:
    """The range of a loss axis in which ends and levels can be distinguished.

    Above the highest of these it has room for three times their distance and for half a nat, and for the second half
    of every curve; but for no loss of the first 15% of a curve, where what has just been cut from a good model may be
    at the height of a random one. A training that is not finished is as long as the longest for this. As long as all
    have only begun there is room for everything, of one with few points for the first ones too.
    """
    drawn = [(line, line.points) for line in lines if line.points]
    longest = max((x[-1] - x[0] for _, points in drawn for x, _ in points), default=0.0)
    begun = not any(line.finished for line, _ in drawn)
    late, half, ends = [*levels], [], [*levels]
    for line, points in drawn:
        few = begun and sum(len(x) for x, _ in points) < FEW_POINTS
        for x, y in points:
            share = (x - x[0]) / max(x[-1] - x[0] if line.finished else longest, 1e-12)
            if line.finished or few or share[-1] >= 0.15:
                share[-1] = 1  # the end counts, also of a single point
                counts = share >= (0 if few else 0.15)
                late += y[counts].tolist()
                half += y[counts if begun else share >= 0.5].tolist()
                ends.append(float(y[-1]))
    if not ends:
        return 0.0, 1.0
    top = max([max(ends) + max(3 * (max(ends) - min(ends)), 0.5), *half])
    low, high = min(late), min(max(late), top)
    gap = 0.06 * max(high - low, 0.01)
    return low - gap, high + gap


def smooth(values: FloatArray) -> FloatArray:
    """The mean over a centred window of 4% of the rows, narrower at both ends; NaN is left out.

    The window has at least five rows, but no more than a fifth of them: a few rows are shown as they are.
    """
    if not len(values):
        return values
    half = min(max(2, len(values) // 50), len(values) // 10)
    seen = np.isfinite(values)
    total, number = (
        np.convolve(column, np.ones(2 * half + 1))[half : half + len(values)]
        for column in (np.where(seen, values, 0.0), seen)
    )
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def thin(*columns: FloatArray, points: int = POINTS) -> list[FloatArray]:
    """The same at most `points` rows of every column, evenly spaced, the first and the last included."""
    rows = len(columns[0])
    index = np.unique(np.linspace(0, rows - 1, points).astype(int)) if rows else np.empty(0, dtype=int)
    return [column[index] for column in columns]


def short(name: str, letters: int = 34) -> str:
    """The name, its middle left out if it is too long: both ends tell names apart."""
    name = printable(name)
    if len(name) <= letters:
        return name
    half = (letters - 1) // 2
    return f"{name[: letters - 1 - half]}…{name[-half:]}"


def _look(place: int) -> tuple[str, str, Any]:
    """Colour, marker and dash of a model; the reference (place 0) is in ink, with circles and a solid line."""
    if place == 0:
        return INK, "o", "-"
    index = place - 1
    return SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]


def _drawable(lines: Sequence[Line], x_label: str) -> list[Line]:
    """Those that can be seen: a layer is a point of its own; of a training one point is no curve."""
    least = 1 if x_label in (LAYER, KEPT, BLOCK) else 2
    return [line for line in lines if any(len(x) >= least for x, _ in line.points)]


def _draw(axes: Axes, line: Line) -> Any:
    """Draw a line, and return what stands for it in a legend."""
    colour, marker, dash = _look(line.place)
    if line.faint is not None:
        axes.plot(*thin(*line.faint), color=colour, linewidth=0.8, alpha=0.6)
    if line.band is not None:
        low, high = np.maximum(line.y - line.band, 0), line.y + line.band
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
    x, y = thin(line.x, line.y)
    # Marks are counted from the end, so that the last value, which decides, always has one.
    marked = list(range(len(x) - 1, -1, -max(1, -(-len(x) // line.marks)))) if line.marks else []
    (drawn,) = axes.plot(
        x, y, color=colour, linestyle=dash, marker=marker if marked else "", markevery=marked or None
    )
    if marked:
        hollow = np.zeros(len(line.x), dtype=bool) if line.hollow is None else line.hollow.copy()
        hollow[-1] |= not line.finished
        axes.plot(line.x[hollow], line.y[hollow], marker, color=colour, markerfacecolor=GROUND, linestyle="")
    return drawn


def _draw_level(axes: Axes, value: float) -> Any:
    return axes.axhline(value, color=INK, linewidth=1, linestyle=DOTTED, zorder=1.5)


def _with_cut(heading: str, lines: Sequence[Line], limits: tuple[float, float] | None) -> str:
    """The heading, and below it what is above the limits, if something is."""
    highest = max(float(np.max(y)) for line in lines for _, y in line.points)
    if limits is None or highest <= limits[1]:
        return heading
    return f"{heading}\ncut off above {significant(limits[1])}; the highest is {significant(highest)}"


def _set_axes(
    axes: Axes,
    lines: Sequence[Line],
    x_label: str,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> None:
    """Ranges, and few and short numbers on both axes."""
    x, whole = np.concatenate([x for line in lines for x, _ in line.points]), x_label in (LAYER, KEPT, BLOCK)
    axes.set(xlabel=x_label, xlim=(x.min() - 0.5, x.max() + 0.5) if whole else (0, 1.02 * x.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x) if x >= 10_000 else f"{x:,.5g}"))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: minus(f"{y:.4g}".replace("e-0", "e-"))))
    if limits is not None:
        axes.set_ylim(limits)


def _curves_label(lines: Sequence[Line], heading: str, x_label: str, level: tuple[float, str] | None) -> str:
    ends = [f"{line.name} ends at {significant(line.end, 4)}" for line in lines if np.isfinite(line.end)]
    if level is not None and level[1]:
        ends.append(f"{level[1]} {significant(level[0], 4)}")
    return f"{heading}, by {x_label}: {'; '.join(ends)}."


def _pooled(attention_tt: FloatArray) -> FloatArray:
    """At most `MAP_CELLS` cells a side, each the largest of the values it covers: thin columns stay visible."""
    starts = np.unique(np.arange(MAP_CELLS) * len(attention_tt) // MAP_CELLS)
    return np.maximum.reduceat(np.maximum.reduceat(attention_tt, starts, axis=0), starts, axis=1)


def _picture(figure: Drawing, label: str) -> Picture:
    return Picture(figure, printable(label[0].upper() + label[1:]))


@_styled
def _svg(figure: Figure, title: str = "") -> str:
    buffer = io.BytesIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata={"Title": title, **nothing})
    return buffer.getvalue().decode()
