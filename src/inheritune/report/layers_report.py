"""What each layer of a model is worth and what cuts cost: tables, pictures, and the files that are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.table

from inheritune.analysis.kept import LAYERS_FILE, BlockFigures, LayerAnalysis, Trial, save
from inheritune.report.figures import Line, Picture, curves
from inheritune.report.pages import write_files
from inheritune.report.table import Table

SHOWN = 6
"""Depths of which the table of cuts has a row."""


def block_table(name: str, blocks: Sequence[BlockFigures]) -> rich.table.Table:
    """What each block is worth, for the terminal."""
    rows = [
        (
            str(figures.block),
            f"{figures.added:+.3f}",
            f"[{figures.low:+.3f}, {figures.high:+.3f}]",
            f"{figures.influence:.3f}",
        )
        for figures in blocks
    ]
    columns = ("Block", "Difference", "95% interval", "Influence")
    return Table(f"{name}: the loss without each block minus the loss with it", columns, rows).terminal()


def cut_table(analysis: LayerAnalysis) -> rich.table.Table:
    """Losses of cuts as they are, for the terminal."""
    losses: dict[int, dict[str, float]] = {}
    for point in analysis.curve:
        losses.setdefault(len(point.layers), {})[point.keep] = point.loss
    depths = sorted(losses, reverse=True)
    places = np.unique(np.linspace(0, len(depths) - 1, min(SHOWN, len(depths))).round().astype(int))
    rules = list(losses[depths[0]])
    rows = [[str(depths[i]), *(f"{losses[depths[i]][rule]:.2f}" for rule in rules)] for i in places]
    columns = ("Layers", *(rule.capitalize() for rule in rules))
    return Table("Loss of a cut as it is, by which layers are kept", columns, rows).terminal()


def shape_table(trials: Sequence[Trial]) -> rich.table.Table:
    """The shapes that were compared for a size, for the terminal."""
    rows = [
        (
            *map(str, (trial.layers, trial.hidden, trial.heads, trial.mlp)),
            f"{trial.parameters:,}",
            f"{trial.loss:.3f}",
            "" if trial.trained is None else f"{trial.trained:.3f}",
        )
        for trial in trials
    ]
    columns = ("Layers", "Hidden", "Heads", "MLP", "Parameters", "Loss as cut", "After a trial")
    return Table("Shapes of this size", columns, rows).terminal()


def worth_picture(analysis: LayerAnalysis) -> Picture | None:
    """The loss that each block's absence adds, with its interval."""
    blocks = np.array([float(figures.block) for figures in analysis.blocks])
    added = np.array([figures.added for figures in analysis.blocks])
    band = np.array([figures.high - figures.added for figures in analysis.blocks])
    line = Line("without it", blocks, added, 0, marks=len(blocks), band=band)
    return curves([line], "loss without the block minus loss with it, nats per token", "block, from 0")


def cut_picture(analysis: LayerAnalysis) -> Picture | None:
    """The loss of cuts as they are, over their depth, one line for each rule."""
    rules = list(dict.fromkeys(point.keep for point in analysis.curve))
    lines = []
    for place, rule in enumerate(rules):
        points = sorted((len(point.layers), point.loss) for point in analysis.curve if point.keep == rule)
        depths, losses = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        lines.append(Line(rule, depths, losses, place, marks=len(points)))
    return curves(lines, "loss of the cut as it is, nats per token", "layers kept")


def write_layers(directory: Path, analysis: LayerAnalysis) -> list[Path]:
    """Write `layers.json`, `worth.svg` and `cuts.svg`; returns what it wrote."""
    pictures = {"worth.svg": worth_picture(analysis), "cuts.svg": cut_picture(analysis)}
    written = write_files(directory, pictures)
    save(directory / LAYERS_FILE, analysis)
    return [directory / LAYERS_FILE, *written]
