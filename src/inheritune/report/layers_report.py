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
    load_layers,
    save,
    telling,
)
from inheritune.quantities import ranges, signed_interval
from inheritune.report.figures import BLOCK, KEPT, Line, Picture, curves
from inheritune.report.pages import Block, Fold, Paragraph, pictures, write_files
from inheritune.report.runs import Run, round_directories
from inheritune.report.table import Table
from inheritune.run_directory import RATES_FILE, Summary, TriedRates, load_rates

BLOCK_COLUMNS = ("Block", "Difference", "95% interval", "Influence")
INFLUENCE = (
    "Difference: the loss without the block minus the loss with it, nats per token, before any training. Influence: "
    "1 - cosine of the hidden states before and after the block."
)


def block_table(name: str, blocks: Sequence[BlockFigures]) -> Table:
    """What each block is worth."""
    title = f"{name}: the loss without each block minus the loss with it"
    return Table(title, BLOCK_COLUMNS, map(_block_cells, blocks))


def _block_cells(figures: BlockFigures) -> tuple[str, ...]:
    interval = signed_interval((figures.low, figures.high), 3)
    return str(figures.block), f"{figures.added:+.3f}", interval, f"{figures.influence:.3f}"


def cut_table(analysis: LayerAnalysis) -> Table:
    """Losses of cuts as they are."""
    losses: dict[int, dict[str, float]] = {}
    for point in analysis.curve:
        losses.setdefault(len(point.layers), {})[point.keep] = point.loss
    rules = list(losses[max(losses)])
    depths = telling(depth for depth, found in losses.items() if len(found) == len(rules))
    rows = [[str(depth), *(f"{losses[depth][rule]:.2f}" for rule in rules)] for depth in depths]
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


def worth_picture(blocks: Sequence[BlockFigures], kept: Sequence[int] | None = None) -> Picture | None:
    """The loss that each block's absence adds, with its interval; marks of those that are not kept are hollow."""
    numbers = np.array([figures.block for figures in blocks])
    added = np.array([figures.added for figures in blocks])
    band = np.array([figures.high - figures.added for figures in blocks])
    hollow = None if kept is None else ~np.isin(numbers, kept)
    line = Line("without it", numbers.astype(float), added, 0, marks=len(blocks), band=band, hollow=hollow)
    # The first block of a good model may be worth fifty times as much as those among which one chooses.
    low, high, usual = added.min(), (added + band).max(), 4 * float(np.quantile(added + band, 0.75))
    high = min(high, usual) if usual > low else high
    gap = 0.06 * max(high - min(low, 0), 1e-6)
    heading = "loss without the block minus loss with it, nats per token"
    return curves([line], heading, BLOCK, limits=(min(low, 0) - gap, high + gap))


def cut_picture(cuts: Sequence[Point]) -> Picture | None:
    """The loss of cuts as they are, over their depth, one line for each rule, the first of which is to be seen."""
    rules = list(dict.fromkeys(point.keep for point in cuts))
    lines = []
    for place, rule in enumerate(rules):
        points = sorted((len(point.layers), point.loss) for point in cuts if point.keep == rule)
        depths, losses = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        lines.append(Line(rule, depths, losses, place, marks=len(points)))
    low, most = min(point.loss for point in cuts), max(point.loss for point in cuts)
    high = min(most, low + max(3 * (float(lines[0].y.max()) - low), 0.5))
    gap = 0.06 * max(high - low, 0.01)
    heading = "loss of the cut as it is, nats per token"
    return curves(lines, heading, KEPT, limits=(low - gap, high + gap))


def write_layers(directory: Path, analysis: LayerAnalysis) -> list[Path]:
    """Write `layers.json`, `worth.svg` and `cuts.svg`; returns what it wrote."""
    pictures = {"worth.svg": worth_picture(analysis.blocks), "cuts.svg": cut_picture(analysis.curve)}
    written = write_files(directory, pictures)
    save(directory / LAYERS_FILE, analysis)
    return [directory / LAYERS_FILE, *written]


def choices_of(run: Path) -> dict[int, Kept]:
    """Round -> which layers it kept, of the rounds of a run directory that recorded it."""
    paths = {number: run / name / CHOICE for number, _, name in round_directories(run)}
    return {number: load_kept(path) for number, path in paths.items() if path.is_file()}


def kept_table(choices: Mapping[int, Kept], before: Mapping[int, float] | None = None) -> Table:
    """Which layers each round kept; `before` has their validation losses before training, by round."""

    def known(loss: float | None) -> str:
        return "" if loss is None else f"{loss:.3f}"

    rows = [
        (
            str(number),
            f"{len(kept.layers)} of {kept.of_layers}",
            ranges(kept.layers),
            kept.keep,
            *map(known, (kept.loss, kept.whole, (before or {}).get(number))),
        )
        for number, kept in choices.items()
    ]
    measured = "Loss at the cut", "Loss of all"
    columns = ("<Round", "Layers", "<Kept, from 0", "<Rule", *measured, "Before training|validation loss")
    table = Table("Which of the reference's layers each round has", columns, rows)
    seen = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return table.select(seen)


def kept_blocks(run: Run) -> list[Block]:
    """Which layers the rounds of a run kept, at which loss they began, what was known of layers, and predicted."""
    choices = choices_of(run.path)
    starts = {t.round: t.metrics.validation for t in run.trainings if t.round}
    before = {
        number: float(rows["loss"][0])
        for number, rows in starts.items()
        if len(rows["step"]) and not rows["step"][0] and np.isfinite(rows["loss"][0])
    }
    blocks: list[Block] = [kept_table(choices, before)] if choices else []
    forecasts, layers = run.path / "reference" / FORECAST, run.path / LAYERS_FILE
    forecast = load_forecast(forecasts) if forecasts.is_file() else None
    records: list[Kept | LayerAnalysis] = [load_layers(layers)] if layers.is_file() else []
    records += [*(forecast.curve if forecast else ()), *choices.values()]
    known = max(records, key=lambda record: len(record.curve), default=None)
    if known is not None:
        blocks += measured_blocks(known, choices)
    blocks += forecast_blocks(forecast, run.summary) if forecast else []
    rates = run.path / RATES_FILE
    return [*blocks, *(rate_blocks(load_rates(rates)) if rates.is_file() else ())]


def rate_blocks(tried: TriedRates) -> list[Block]:
    """The learning rates that short trainings had, and the one that was taken."""
    rows = [
        (f"{one.learning_rate:.1e}", "not finite" if one.loss is None else f"{one.loss:.3f}")
        for one in sorted(tried.trials, key=lambda trial: trial.learning_rate)
    ]
    note = (
        f"At each of these learning rates {tried.layers} layers were trained for {tried.steps:,} steps. The rounds "
        f"take {tried.learning_rate:.1e}: the best rate grows with the length of a training."
    )
    return [Table("Short trainings", ("Learning rate", "Loss"), rows), Paragraph(note)]


def measured_blocks(known: Kept | LayerAnalysis, choices: Mapping[int, Kept] = {}) -> list[Block]:
    """What each layer is worth, and the loss over depth by rule; `choices` are those of a run's rounds."""
    if known.measured is None or not known.blocks:
        return []
    on = f"on some of {known.measured.windows} windows of {known.measured.window} tokens"
    last = max(choices) if choices else None
    worth = f"What each layer is worth, {on}, with the 95% interval"
    worth += f"; hollow marks are layers that round {last} does not have." if last else "."
    cuts = f"The loss of cuts before any training, by the rule that says which layers are kept, {on}."
    rows = [
        (*cells, ", ".join(str(number) for number, kept in choices.items() if figures.block in kept.layers))
        for figures, cells in zip(known.blocks, map(_block_cells, known.blocks), strict=True)
    ]
    table = Table("What each layer is worth", (*BLOCK_COLUMNS, "<In rounds"), rows, (INFLUENCE,))
    return [
        *pictures(
            (worth_picture(known.blocks, choices[last].layers if last else None), worth),
            (cut_picture(known.curve), cuts),
        ),
        Fold("What each layer is worth, in figures", [table if choices else table.without({"In rounds"})]),
    ]


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
        "low end of the range": ([one.low for one in forecast.depths], 0),
        "high end of the range": ([one.high for one in forecast.depths], 0),
    }
    lines = [Line(name, x, np.array(y), i, marks=marks) for i, (name, (y, marks)) in enumerate(sides.items())]
    if found:
        depths = np.array(sorted(found), dtype=float)
        lines.append(
            Line("found", depths, np.array([found[int(n)] for n in depths]), len(lines), marks=len(depths))
        )
    level = forecast.target, "wanted"
    picture = curves(lines, "loss after training, nats per token", KEPT, level=level)
    title = f"The loss that was predicted of each depth after {forecast.steps:,} steps"
    return [Table(title, columns, rows), Paragraph(note), *pictures((picture, f"{title}."))]
