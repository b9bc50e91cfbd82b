"""What each layer of a model is worth and what cuts cost: tables, pictures, and the files that are left.

And which layers the rounds of a run kept, the search for them, and what was predicted of each depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from inheritune.analysis.forecast import FORECAST, Forecast, load_forecast
from inheritune.analysis.kept import (
    CHOICE,
    LAYERS_FILE,
    BlockFigures,
    Kept,
    LayerAnalysis,
    Point,
    Trial,
    load_kept,
    save,
)
from inheritune.quantities import ranges
from inheritune.report.figures import Line, Picture, curves
from inheritune.report.pages import Block, Paragraph, pictures, write_files
from inheritune.report.runs import round_directories
from inheritune.report.table import Table
from inheritune.run_directory import Summary

SHOWN = 6
"""Depths of which the table of cuts has a row."""


def block_table(name: str, blocks: Sequence[BlockFigures]) -> Table:
    """What each block is worth."""
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
    return Table(f"{name}: the loss without each block minus the loss with it", columns, rows)


def cut_table(analysis: LayerAnalysis) -> Table:
    """Losses of cuts as they are."""
    losses: dict[int, dict[str, float]] = {}
    for point in analysis.curve:
        losses.setdefault(len(point.layers), {})[point.keep] = point.loss
    depths = sorted(losses, reverse=True)
    places = np.unique(np.linspace(0, len(depths) - 1, min(SHOWN, len(depths))).round().astype(int))
    rules = list(losses[depths[0]])
    rows = [[str(depths[i]), *(f"{losses[depths[i]][rule]:.2f}" for rule in rules)] for i in places]
    columns = ("Layers", *(rule.capitalize() for rule in rules))
    return Table("Loss of a cut as it is, by which layers are kept", columns, rows)


def shape_table(trials: Sequence[Trial]) -> Table:
    """The shapes that were compared for a size."""
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
    return Table("Shapes of this size", columns, rows)


def worth_picture(analysis: LayerAnalysis) -> Picture | None:
    """The loss that each block's absence adds, with its interval."""
    blocks = np.array([float(figures.block) for figures in analysis.blocks])
    added = np.array([figures.added for figures in analysis.blocks])
    band = np.array([figures.high - figures.added for figures in analysis.blocks])
    line = Line("without it", blocks, added, 0, marks=len(blocks), band=band)
    return curves([line], "loss without the block minus loss with it, nats per token", "block, from 0")


def cut_picture(cuts: Sequence[Point]) -> Picture | None:
    """The loss of cuts as they are, over their depth, one line for each rule."""
    rules = list(dict.fromkeys(point.keep for point in cuts))
    lines = []
    for place, rule in enumerate(rules):
        points = sorted((len(point.layers), point.loss) for point in cuts if point.keep == rule)
        depths, losses = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        lines.append(Line(rule, depths, losses, place, marks=len(points)))
    return curves(lines, "loss of the cut as it is, nats per token", "layers kept")


def write_layers(directory: Path, analysis: LayerAnalysis) -> list[Path]:
    """Write `layers.json`, `worth.svg` and `cuts.svg`; returns what it wrote."""
    pictures = {"worth.svg": worth_picture(analysis), "cuts.svg": cut_picture(analysis.curve)}
    written = write_files(directory, pictures)
    save(directory / LAYERS_FILE, analysis)
    return [directory / LAYERS_FILE, *written]


def choices_of(run: Path) -> dict[int, Kept]:
    """Round -> which layers it kept, of the rounds of a run directory that recorded it."""
    paths = {number: run / name / CHOICE for number, _, name in round_directories(run)}
    return {number: load_kept(path) for number, path in paths.items() if path.is_file()}


def kept_table(choices: Mapping[int, Kept]) -> Table:
    """Which layers each round kept."""
    rows = [
        (
            str(number),
            f"{len(kept.layers)} of {kept.of_layers}",
            ranges(kept.layers),
            kept.keep,
            "" if kept.loss is None else f"{kept.loss:.3f}",
            "" if kept.whole is None else f"{kept.whole:.3f}",
        )
        for number, kept in choices.items()
    ]
    columns = ("<Round", "Layers", "<Kept, from 0", "<Rule", "Loss at the cut", "Loss of all")
    table = Table("Which of the reference's layers each round has", columns, rows)
    return table if any(kept.loss is not None for kept in choices.values()) else table.select(range(4))


def kept_blocks(run: Path, summary: Summary) -> list[Block]:
    """Which layers the rounds of a run kept, the search for them, and what was predicted of each depth."""
    choices = choices_of(run)
    path = run / "reference" / FORECAST
    blocks: list[Block] = [kept_table(choices)] if choices else []
    searched = max(choices.values(), key=lambda kept: len(kept.path_losses), default=None)
    if searched is not None and searched.path_losses and searched.measured is not None:
        cuts = [
            Point(keep=searched.keep, layers=list(choice), loss=loss)
            for choice, loss in zip(searched.path, searched.path_losses, strict=True)
        ]
        read = f"{searched.measured.windows} training windows of {searched.measured.window} tokens"
        caption = f"The best choice that was found at each depth, before any training, on {read}."
        blocks += pictures((cut_picture(cuts), caption))
    return blocks + (forecast_blocks(load_forecast(path), summary) if path.is_file() else [])


def forecast_blocks(forecast: Forecast, summary: Summary) -> list[Block]:
    """What was predicted of each depth, from which probes, and what the rounds found."""
    if not forecast.depths:
        return []
    found = {entry.layers: entry.loss for entry in summary.rounds if entry.predicted is not None}
    rows = []
    for one in forecast.depths:
        kept, loss = forecast.kept(one.layers), found.get(one.layers)
        cells = f"{kept.loss:.3f}", f"{one.loss:.3f}", f"{one.low:.3f} to {one.high:.3f}"
        after = ("", "") if loss is None else (f"{loss:.3f}", f"{one.loss - loss:+.3f}")
        rows.append((str(one.layers), ranges(kept.layers), *cells, *after))
    probes = "; ".join(f"{p.layers} layers, {p.steps} steps: {p.loss:.3f}" for p in forecast.probes)
    note = (
        f"Probes, short trainings whose schedule ends with them: {probes}. The wanted loss is {forecast.target:.3f}; "
        f"the run started with {forecast.start} layers."
    )
    columns = ("Layers", "<Kept, from 0", "Loss at the cut", "Predicted", "Range", "Found", "Off by")
    x = np.array([float(one.layers) for one in forecast.depths])
    sides = {
        "predicted": ([one.loss for one in forecast.depths], len(x)),
        "if gains stay as they are": ([one.low for one in forecast.depths], 0),
        "if gains fade twice as fast": ([one.high for one in forecast.depths], 0),
    }
    lines = [Line(name, x, np.array(y), i, marks=marks) for i, (name, (y, marks)) in enumerate(sides.items())]
    if found:
        depths = np.array(sorted(found), dtype=float)
        lines.append(
            Line("found", depths, np.array([found[int(n)] for n in depths]), len(lines), marks=len(depths))
        )
    level = forecast.target, "wanted"
    picture = curves(lines, "loss after training, nats per token", "layers kept", level=level)
    title = f"The loss that was predicted of each depth after {forecast.steps:,} steps"
    return [Table(title, columns, rows), Paragraph(note), *pictures((picture, f"{title}."))]
