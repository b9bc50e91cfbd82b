"""Figures of an attention analysis: rank and mass over depth, attention maps, gradient norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from inheritune.analysis.result import AttentionAnalysis, LayerFigures, Spread
from inheritune.report import drawing
from inheritune.report.drawing import GROUND, MUTED, Label, look
from inheritune.report.metrics import FloatArray
from inheritune.report.quantities import significant
from inheritune.report.svg import LIGHT, to_svg

if TYPE_CHECKING:  # a report is written without torch
    from inheritune.analysis.maps import Maps

Quantity = Literal["rank", "mass"]

HEADINGS = {
    "rank": "approximate rank k*, highest mean over heads",
    "mass": "columns m* that hold most mass, mean over heads",
}
MAP_CELLS = 128
"""Sides of a drawn attention map; of a larger one each cell shows the largest value it covers."""
SHOWN_LAYERS = 5
"""Of a model whose gradient norms are drawn over steps."""


def over_depth(
    analyses: Mapping[str, AttentionAnalysis], quantity: Quantity, *, standalone: bool = False
) -> str:
    """Rank (paper, figures 1a and 9) or mass (figure 1b) of every layer, one line for each model.

    The band is one standard deviation over sequences to both sides; lazy layers have hollow marks.
    """
    width, height = (760, 380) if standalone else (480, 300)
    curves = {name: [_spread(layer, quantity) for layer in a.layers] for name, a in analyses.items()}
    with drawing.style():
        figure, axes = drawing.frame(width, height, left=42, right=150, top=30, bottom=42)
        depth = max(a.depth for a in analyses.values())
        highest = max(spread.mean + spread.deviation for curve in curves.values() for spread in curve)
        axes.set(xlim=(0.5, depth + 0.5), ylim=(0, 1.08 * max(highest, 2)))
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        drawing.head(axes, HEADINGS[quantity])
        labels = []
        for index, (name, analysis) in enumerate(analyses.items()):
            colour, marker, dash = look(index)
            layer = np.arange(1, analysis.depth + 1)
            mean = np.array([spread.mean for spread in curves[name]])
            deviation = np.array([spread.deviation for spread in curves[name]])
            axes.fill_between(
                layer,
                np.maximum(mean - deviation, 0),
                mean + deviation,
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(layer, mean, color=colour, linestyle=dash, marker=marker)
            lazy = np.array([figures.lazy for figures in analysis.layers])
            axes.plot(layer[lazy], mean[lazy], marker, color=colour, markerfacecolor=GROUND)
            labels.append(Label(layer[-1], mean[-1], name, colour))
        if quantity == "rank":
            for threshold in sorted({a.degenerate for a in analyses.values()}):
                axes.axhline(threshold, color=MUTED, linewidth=1, linestyle=(0, (1, 2.5)), zorder=1.5)
        drawing.label_ends(axes, labels)
        described = "; ".join(
            f"{name}: {', '.join(significant(spread.mean, 2) for spread in curve)}"
            for name, curve in curves.items()
        )
        label = f"{HEADINGS[quantity].capitalize()}, layer by layer. {described}."
        return to_svg(figure, f"attention-{quantity}", label, standalone=standalone)


def attention_maps(models: Mapping[str, Maps]) -> str | None:
    """Attention maps of single heads (paper, figure 2), a row for each model; an SVG file of its own.

    Darker is more attention (by its square root), from the token of the row to that of the column. None if there
    is no map.
    """
    rows = {name: maps for name, maps in models.items() if maps}
    if not rows:
        return None
    side, gap, top, left = 150.0, 18.0, 44.0, 16.0
    columns = max(len(maps) for maps in rows.values())
    width, height = left + columns * (side + gap), len(rows) * (side + top) + 16
    colours = LinearSegmentedColormap.from_list("attention", [GROUND, LIGHT["series-1"], LIGHT["ink"]])
    with drawing.style():
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        for row, (name, maps) in enumerate(rows.items()):
            base = height - (row + 1) * (side + top)
            figure.text(left / width, (base + side + 24) / height, name, color=MUTED)
            for column, (head, attention_tt) in enumerate(maps.items()):
                box = (left + column * (side + gap), base, side, side)
                axes = figure.add_axes(
                    (box[0] / width, box[1] / height, box[2] / width, box[3] / height),
                    label=f"{row}-{column}",
                )
                axes.imshow(
                    _pooled(attention_tt.numpy()),
                    cmap=colours,
                    norm=PowerNorm(0.5, vmin=0, vmax=1),
                    interpolation="nearest",
                )
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(visible=True, color=LIGHT["grid"])  # lighter than a first column
                axes.grid(False)
                axes.annotate(str(head), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points")
        label = "Attention maps, queries from top to bottom and keys from left to right. " + "; ".join(
            f"{name}: {', '.join(map(str, maps))}" for name, maps in rows.items()
        )
        return to_svg(figure, "attention-maps", f"{label}.", standalone=True)


def gradients_over_layers(trainings: Mapping[str, tuple[int, FloatArray]], what: str, name: str) -> str:
    """Mean gradient norm of each layer over the recorded steps, one line for each model.

    `trainings` maps a model's name to its round and norms [steps, layers]; `what` heads the figure, `name` is for
    its ids.
    """
    with drawing.style():
        figure, axes = drawing.frame(480, 280, left=48, right=150, top=30, bottom=42)
        labels = []
        for model, (round_, norms_sl) in trainings.items():
            colour, marker, dash = look(round_)
            mean = norms_sl.mean(0)
            layer = np.arange(1, len(mean) + 1)
            axes.plot(layer, _positive(mean), color=colour, marker=marker, linestyle=dash)
            labels.append(Label(layer[-1], mean[-1], model, colour))
        deepest = max(norms_sl.shape[1] for _, norms_sl in trainings.values())
        axes.set_xlim(0.5, deepest + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.set_xlabel("layer")
        _logarithmic(axes, [norms_sl.mean(0) for _, norms_sl in trainings.values()])
        drawing.head(axes, what)
        drawing.label_ends(axes, [label for label in labels if label.y > 0])
        label = f"{what}, layer by layer: " + "; ".join(
            f"{model} from {significant(norms_sl.mean(0)[0])} to {significant(norms_sl.mean(0)[-1])}"
            for model, (_, norms_sl) in trainings.items()
        )
        return to_svg(figure, name, label)


def gradients_over_steps(steps: FloatArray, norms_sl: FloatArray, what: str, name: str) -> str:
    """Gradient norm over the recorded steps, of a few layers from the first to the last: norms [steps, layers]."""
    depth = norms_sl.shape[1]
    shown = sorted({round(1 + i * (depth - 1) / (SHOWN_LAYERS - 1)) for i in range(SHOWN_LAYERS)})
    with drawing.style():
        figure, axes = drawing.frame(480, 280, left=48, right=110, top=30, bottom=42)
        labels = []
        for index, layer in enumerate(shown):
            colour, _, dash = look(index)
            norms = norms_sl[:, layer - 1]
            axes.plot(steps, _positive(norms), color=colour, linestyle=dash, linewidth=1.4)
            labels.append(Label(steps[-1], norms[-1], f"layer {layer}", colour))
        axes.set_xlim(0, 1.01 * max(1.0, steps[-1]))
        drawing.number_x(axes, "step")
        _logarithmic(axes, [norms_sl])
        drawing.head(axes, what)
        drawing.label_ends(axes, [label for label in labels if label.y > 0])
        label = f"{what} over steps: " + "; ".join(
            f"layer {layer} from {significant(norms_sl[0, layer - 1])} to {significant(norms_sl[-1, layer - 1])}"
            for layer in shown
        )
        return to_svg(figure, name, label)


def _spread(layer: LayerFigures, quantity: Quantity) -> Spread:
    return layer.max_rank if quantity == "rank" else layer.mean_mass


def _pooled(attention_tt: FloatArray) -> FloatArray:
    """At most `MAP_CELLS` cells a side, each the largest of the values it covers: thin columns stay visible."""
    size = len(attention_tt)
    if size <= MAP_CELLS:
        return attention_tt
    edges = np.linspace(0, size, MAP_CELLS + 1).astype(int)
    rows = np.stack([attention_tt[a:b].max(0) for a, b in pairwise(edges)])
    return np.stack([rows[:, a:b].max(1) for a, b in pairwise(edges)], axis=1)


def _positive(values: FloatArray) -> FloatArray:
    """NaN, which is not drawn, in place of what a logarithmic axis cannot show."""
    return np.where(values > 0, values, np.nan)


def _logarithmic(axes: Axes, values: Sequence[FloatArray]) -> None:
    every = np.concatenate([part.ravel() for part in values])
    every = every[every > 0]
    if not len(every):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}" if y < 0.001 else significant(y)))
    axes.set_ylim(every.min() * 0.8, every.max() * 1.25)
