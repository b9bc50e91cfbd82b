"""The table of a comparison: for programs (CSV), for people (Markdown and HTML), for the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from inheritune.report.comparison_pairing import Compared, Comparison, Row
from inheritune.report.quantities import count, flops

CSV_COLUMNS = (
    "name",
    "seed",
    "layers",
    "parameters",
    "steps",
    "tokens",
    "training_flops",
    "total_flops",
    "relative_flops",
    "loss",
    "standard_error",
    "difference",
    "interval_low",
    "interval_high",
    "verdict",
    "note",
)
HEADINGS = (
    "Name",
    "Seed",
    "Layers",
    "Params",
    "Steps",
    "Tokens",
    "FLOPs",
    "All rounds",
    "Relative",
    "Loss",
    "Error",
    "Difference",
    "95% interval",
    "Verdict",
)
TEXT_COLUMNS = ("Name", "Verdict")


class Line(NamedTuple):
    """A line for people, one cell for each of `HEADINGS`; `kind` is for its style.

    A `mean` heads the lines of several seeds, each of which is a `seed`; a row of its own is a `model`.
    """

    kind: str
    cells: tuple[str, ...]


def to_csv(comparison: Comparison) -> str:
    """One line an entry, numbers in full; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for seed in comparison.seeds:
        entry, paired, losses = seed.entry, seed.paired, seed.entry.losses
        finished = losses is not None
        writer.writerow(
            [
                entry.label,
                entry.seed,
                entry.layers,
                entry.parameters,
                entry.steps if finished else None,
                entry.tokens if finished else None,
                entry.flops if finished else None,
                entry.total_flops if finished else None,
                seed.relative_flops,
                losses.mean if losses is not None else None,
                losses.standard_error if losses is not None else None,
                paired.difference if paired else None,
                paired.interval[0] if paired else None,
                paired.interval[1] if paired else None,
                seed.verdict,
                seed.note,
            ]
        )
    return text.getvalue()


def lines(comparison: Comparison) -> list[Line]:
    """The table as people read it; several seeds follow a line with their mean and spread."""
    return [line for row in comparison.rows for line in _row_lines(row, comparison.decimals)]


def to_markdown(comparison: Comparison) -> str:
    """The table as aligned Markdown, with what it is relative to below it."""
    table = [HEADINGS, *([_escaped(cell) for cell in line.cells] for line in lines(comparison))]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(HEADINGS))]
    left = [heading in TEXT_COLUMNS for heading in HEADINGS]
    rule = [
        "-" * width if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    ]
    padded = [
        [
            c.ljust(width) if is_left else c.rjust(width)
            for c, width, is_left in zip(r, widths, left, strict=True)
        ]
        for r in table
    ]
    rows = [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]
    notes = [f"- {_escaped(note)}" for note in comparison.notes]
    parts = [
        f"# {_escaped(comparison.title)}",
        "\n".join(rows),
        f"{_escaped(comparison.summary)} {explanation(comparison)}",
        "\n".join(notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def explanation(comparison: Comparison) -> str:
    """What the columns mean, in plain sentences."""
    seeds = (
        " Lines without a verdict are means over seeds, with the standard deviation of the difference between seeds."
        if any(row.mean_difference is not None for row in comparison.rows)
        else ""
    )
    return (
        "FLOPs are a run's own training, all rounds adds that of the rounds before it, and relative is the latter "
        "as a multiple of the reference's. Losses are in nats per token, with their standard error over windows. "
        "The difference is to the reference, over paired windows; better and worse "
        f"mean that its 95% interval, which is over windows and not over seeds, excludes 0.{seeds}"
    )


def terminal_table(comparison: Comparison) -> Table:
    """The columns that matter most, in less than 80 characters."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Name", overflow="fold")
    for heading in ("Layers", "FLOPs", "Loss", "Difference [95%]"):
        table.add_column(heading, justify="right", no_wrap=True)
    decimals = comparison.decimals
    for row in comparison.rows:
        several = len(row.seeds) > 1
        if several:
            mean, spread = row.mean_difference, row.spread
            told = "" if mean is None else f"mean {mean:+.{decimals}f}, sd {spread:.{decimals}f}"
            table.add_row(Text(row.label), "", "", _number(row.mean_loss, decimals), told)
        for seed in row.seeds:
            name = f"  {_seed_name(seed)}" if several else row.label
            table.add_row(Text(name), *_terminal_cells(seed, decimals))
    return table


def _terminal_cells(seed: Compared, decimals: int) -> Iterator[str]:
    entry, paired = seed.entry, seed.paired
    yield "" if entry.layers is None else str(entry.layers)
    if seed.relative_flops is not None:
        yield f"{seed.relative_flops:.2f}x"
    else:
        yield "" if entry.total_flops is None or entry.losses is None else flops(entry.total_flops)
    yield "" if entry.losses is None else f"{entry.losses.mean:.{decimals}f}"
    if paired is None:
        yield seed.verdict
    else:
        yield f"{paired.difference:+.{decimals}f} {_interval(paired.interval, decimals).replace(' ', '')}"


def _row_lines(row: Row, decimals: int) -> Iterator[Line]:
    if len(row.seeds) == 1:
        yield Line("model", _cells(row.seeds[0], row.label, decimals))
        return
    difference = "" if row.mean_difference is None else f"{row.mean_difference:+.{decimals}f}"
    spread = "" if row.spread is None else f"sd {row.spread:.{decimals}f}"
    blank = [""] * (HEADINGS.index("Loss") - 2)
    loss = _number(row.mean_loss, decimals)
    yield Line("mean", (row.label, f"{len(row.seeds)} seeds", *blank, loss, "", difference, spread, ""))
    for seed in row.seeds:
        yield Line("seed", _cells(seed, "", decimals))


def _cells(seed: Compared, name: str, decimals: int) -> tuple[str, ...]:
    entry, losses, paired = seed.entry, seed.entry.losses, seed.paired
    size = (
        "unknown" if entry.layers is None else str(entry.layers),
        "unknown" if entry.parameters is None else count(entry.parameters),
    )
    shown = "" if entry.seed is None else str(entry.seed)
    if losses is None:
        return (name, shown, *size, *[""] * (len(HEADINGS) - 5), seed.verdict)
    return (
        name,
        shown,
        *size,
        "unknown" if entry.steps is None else f"{entry.steps:,}",
        "unknown" if entry.tokens is None else count(entry.tokens),
        "unknown" if entry.flops is None else flops(entry.flops),
        "unknown" if entry.total_flops is None else flops(entry.total_flops),
        "unknown" if seed.relative_flops is None else f"{seed.relative_flops:.2f} ×",
        f"{losses.mean:.{decimals}f}",
        f"{losses.standard_error:.{decimals}f}",
        "" if paired is None else f"{paired.difference:+.{decimals}f}",
        "" if paired is None else _interval(paired.interval, decimals),
        seed.verdict,
    )


def _seed_name(seed: Compared) -> str:
    return "seed unknown" if seed.entry.seed is None else f"seed {seed.entry.seed}"


def _interval(ends: Sequence[float], decimals: int) -> str:
    return f"[{ends[0]:+.{decimals}f}, {ends[1]:+.{decimals}f}]"


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _escaped(text: str) -> str:
    """Text that Markdown takes for text: no cell ends early, nothing becomes markup."""
    return re.sub(r"([\\`*<>|])", r"\\\1", text)
