"""Figures of a comparison: the differences with their intervals, and validation loss over steps and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from inheritune.report import drawing
from inheritune.report.comparison_entries import Curve
from inheritune.report.comparison_pairing import Compared, Comparison, Row
from inheritune.report.drawing import GROUND, INK, MUTED, Interval, Label, Look, look, thin
from inheritune.report.metrics import FloatArray
from inheritune.report.quantities import flop_scale, signed_interval
from inheritune.report.svg import to_svg

Axis = Literal["step", "flops"]
Curves = Mapping[Compared, tuple[FloatArray, FloatArray]]

HEADING = "validation loss, nats per token"
SEED = "seed "
LETTER = 6.6  # units of width, about
LONGEST_NAME = 34  # letters of a name in a figure
DIRECT_LABELS = 8  # rows that one pair of axes can hold; of more, each gets a panel
PANEL_COLUMNS = 4
HIDDEN_IN_PANELS = 0.3  # of a curve: panels are low, and the ends matter
BACKGROUND_POINTS = 40  # of a curve that is drawn in every panel


def difference_figure(comparison: Comparison, *, standalone: bool = False) -> str | None:
    """The paired difference of every entry with its 95% interval, around 0; None without any.

    A filled mark is told apart from 0. Several seeds stand below their mean.
    """
    lines: list[Interval] = []
    looks = _looks(comparison)
    for row in comparison.rows:
        lines += _row_intervals(row, looks[row.label], comparison.decimals)
    if not lines:
        return None
    left = 24 + LETTER * max(len(line.name) for line in lines)
    with drawing.style():
        figure, axes = drawing.frame(
            760, 74 + 22 * len(lines), left=max(left, 100), right=190, top=26, bottom=48
        )
        drawing.intervals(axes, lines, ("← better", "worse →"))
        for tick, line in zip(axes.get_yticklabels(), lines, strict=True):
            if line.name.startswith(SEED):
                tick.set_color(MUTED)
        axes.set_xlabel(f"loss minus that of {_short(comparison.reference)}, nats per token")
        label = f"Difference of validation loss to {comparison.reference}, with 95% interval: " + "; ".join(
            f"{line.name.strip()} {line.text}" for line in lines
        )
        return to_svg(figure, "differences", label, standalone=standalone)


def loss_figure(comparison: Comparison, axis: Axis, *, standalone: bool = False) -> str | None:
    """Validation loss of every entry over its steps, or over its training FLOPs and those of earlier rounds.

    A few rows share one pair of axes; of many, each has a panel in which the others are grey. None if there is no
    curve, or with `axis="flops"` no FLOPs were recorded.
    """
    finite = ((seed, _finite(seed.entry.curve, axis)) for seed in comparison.seeds)
    curves = {seed: (x, y) for seed, (x, y) in finite if len(x)}
    if not curves:
        return None
    rows = [row for row in comparison.rows if not curves.keys().isdisjoint(row.seeds)]
    draw = _one_frame if len(rows) <= DIRECT_LABELS else _panels
    with drawing.style():
        figure = draw(comparison, rows, curves, axis)
        over = "steps" if axis == "step" else "training FLOPs, earlier rounds included"
        ends = (
            f"{seed.name} {'stands' if seed.entry.losses is None else 'ended'} at {_end(seed, y):.3f}"
            for seed, (_, y) in curves.items()
        )
        label = f"Validation loss in nats per token over {over}: {'; '.join(ends)}."
        return to_svg(figure, f"loss-by-{axis}", label, standalone=standalone)


def _row_intervals(row: Row, how: Look, decimals: int) -> list[Interval]:
    paired = [(seed, seed.paired) for seed in row.seeds if seed.paired is not None]
    several = len(row.seeds) > 1
    lines = [
        Interval(
            f"{SEED}{seed.entry.seed}" if several else _short(row.label),
            one.difference,
            one.interval,
            f"{one.difference:+.{decimals}f} {signed_interval(one.interval, decimals)}",
            how,
            seed.verdict in ("better", "worse"),
        )
        for seed, one in paired
    ]
    if row.mean_difference is not None:
        text = f"{row.mean_difference:+.{decimals}f}, sd {row.spread:.{decimals}f}"
        mean = Look(how.color, "|", how.linestyle)
        lines.insert(0, Interval(_short(row.label), row.mean_difference, None, text, mean, True))
    elif several and lines:
        lines[0] = lines[0]._replace(name=f"{_short(row.label)}, {lines[0].name}")
    return lines


def _one_frame(comparison: Comparison, rows: Sequence[Row], curves: Curves, axis: Axis) -> Figure:
    """All curves in one pair of axes, each row named at the end of its first curve."""
    right = 26 + LETTER * max(len(_short(row.label)) for row in rows)
    figure, axes = drawing.frame(760, 380, left=42, right=max(90, right), top=30, bottom=44)
    scale = _set_limits(axes, comparison, curves, axis)
    drawing.head(axes, HEADING)
    labels = []
    looks = _looks(comparison)
    for row in rows:
        _draw(axes, row, curves, scale, looks[row.label])
        first = next(seed for seed in row.seeds if seed in curves)
        x, y = curves[first]
        labels.append(Label(x[-1] / scale, _end(first, y), _short(row.label), looks[row.label].color))
    _reference_line(axes, comparison, curves)
    drawing.label_ends(axes, labels)
    return figure


def _panels(comparison: Comparison, rows: Sequence[Row], curves: Curves, axis: Axis) -> Figure:
    """A panel for each row but the reference's, which is in all of them; the others are grey in each."""
    reference = comparison.reference_row
    shown = [row for row in rows if row is not reference]
    looks = _looks(comparison)
    width, side, top, bottom = 960.0, 130.0, 58.0, 46.0
    left, gap, between = 42.0, 28.0, 38.0
    lines = -(-len(shown) // PANEL_COLUMNS)
    height = top + lines * side + (lines - 1) * between + bottom
    across = (width - left - (PANEL_COLUMNS - 1) * gap - 12) / PANEL_COLUMNS
    # One line with gaps: as many lines as curves would make the file larger.
    thinned = [thin(*curve, points=BACKGROUND_POINTS) for curve in curves.values()]
    grey = [np.concatenate([np.append(curve[column], np.nan) for curve in thinned]) for column in (0, 1)]
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.text(8 / width, 1 - 16 / height, HEADING, color=MUTED)
    for place, row in enumerate(shown):
        line, column = divmod(place, PANEL_COLUMNS)
        x, y = left + column * (across + gap), height - top - side - line * (side + between)
        axes = figure.add_axes((x / width, y / height, across / width, side / height), label=f"panel-{place}")
        scale = _set_limits(axes, comparison, curves, axis, HIDDEN_IN_PANELS)
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelleft=column == 0, labelbottom=place + PANEL_COLUMNS >= len(shown))
        if place + PANEL_COLUMNS < len(shown):
            axes.set_xlabel("")
        axes.plot(grey[0] / scale, grey[1], color=MUTED, linewidth=0.6, alpha=0.3)
        _reference_line(axes, comparison, curves)
        _draw(axes, reference, curves, scale, looks[reference.label])
        _draw(axes, row, curves, scale, looks[row.label])
        ends = [_end(seed, curves[seed][1]) for seed in row.seeds if seed in curves]
        axes.annotate(
            f"{_short(row.label, int(across / LETTER) - 8)}  {fmean(ends):.3f}",
            (0, 1),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            color=looks[row.label].color,
        )
    return figure


def _draw(axes: Axes, row: Row, curves: Curves, scale: float, how: Look) -> None:
    """The curves of a row, in one look, with a mark where each one ends; a hollow one if it is unfinished."""
    for seed in row.seeds:
        if seed in curves:
            x, y = thin(*curves[seed])
            axes.plot(x / scale, y, color=how.color, linestyle=how.linestyle, linewidth=1.4)
            fill = GROUND if seed.entry.losses is None else how.color
            axes.plot(x[-1] / scale, y[-1], how.marker, color=how.color, markersize=4.5, markerfacecolor=fill)


def _reference_line(axes: Axes, comparison: Comparison, curves: Curves) -> None:
    """The final loss of the reference as a dotted line, with its name if it has no curve."""
    reference = comparison.reference_row
    if reference.mean_loss is None:
        return
    axes.axhline(reference.mean_loss, color=INK, linewidth=1, linestyle=(0, (1, 2.5)), zorder=1.5)
    if curves.keys().isdisjoint(reference.seeds):
        axes.annotate(
            _short(reference.label),
            (1, reference.mean_loss),
            (-2, 4),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )


def _set_limits(
    axes: Axes, comparison: Comparison, curves: Curves, axis: Axis, hidden: float = drawing.HIDDEN_SHARE
) -> float:
    """The same range for all curves; returns what a position is divided by to be in the unit of the axis."""
    largest = max(float(x[-1]) for x, _ in curves.values())
    scale, unit = flop_scale(largest) if axis == "flops" else (1.0, "")
    level = comparison.reference_row.mean_loss
    # The share of first steps that may be cut off is of a curve's own length, also where it starts later.
    own = ((x - x[0], y, float(x[-1] - x[0])) for x, y in curves.values())
    low, high, _ = drawing.loss_limits(own, [] if level is None else [level], hidden)
    axes.set(xlim=(0, 1.02 * max(largest / scale, 1e-9)), ylim=(low, high))
    drawing.number_x(axes, "step" if axis == "step" else f"training compute, {unit}")
    return scale


def _looks(comparison: Comparison) -> dict[str, Look]:
    """The reference in ink, every other row in a look of its own as far as they go."""
    others = (row.label for row in comparison.rows if row.label != comparison.reference)
    return {comparison.reference: look(0)} | {label: look(place) for place, label in enumerate(others, 1)}


def _finite(curve: Curve, axis: Axis) -> tuple[FloatArray, FloatArray]:
    x = curve.steps if axis == "step" else curve.flops
    shown = np.isfinite(x) & np.isfinite(curve.losses)
    return x[shown], curve.losses[shown]


def _end(seed: Compared, losses: FloatArray) -> float:
    """The final loss, or of an unfinished training the last one."""
    return float(losses[-1]) if seed.entry.losses is None else seed.entry.losses.mean


def _short(name: str, letters: int = LONGEST_NAME) -> str:
    """The name, its middle left out if it is too long: both ends tell runs apart."""
    if len(name) <= letters:
        return name
    half = (letters - 1) // 2
    return f"{name[: letters - 1 - half]}…{name[-half:]}"
