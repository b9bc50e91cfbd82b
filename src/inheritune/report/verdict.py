"""The outcome of a run in one sentence, and its rounds as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from inheritune.report.quantities import count, flops, loss_decimals, signed_interval, significant
from inheritune.report.run_directory import parse_summary
from inheritune.run_directory import RoundFigures, Summary


def verdict_sentence(summary: Summary | Mapping[str, Any]) -> str:
    """The verdict in one plain sentence.

    `summary` is the content of `summary.json`; UserError if it is not. The sentence says what was reached or
    not, in how many layers and parameters, how sure it is (the interval of the paired difference), and what
    it cost.
    """
    summary = parse_summary(summary)
    entry = reported_round(summary)
    if entry is None:
        if summary.reference is None or summary.reference.loss is None:
            return "No verdict yet: no round is finished."
        return (
            f"No verdict yet: the reference ({summary.reference.layers} layers) has a validation loss of "
            f"{summary.reference.loss:.3f}, no round is finished."
        )
    return f"{_outcome(summary, entry)}{_comparison(summary, entry)}{_cost(summary, entry)}."


def reported_round(summary: Summary) -> RoundFigures | None:
    """The round a verdict is about: the first with parity, without parity the closest, without a verdict the last."""
    if not summary.rounds:
        return None
    if summary.verdict == "parity":
        return next((entry for entry in summary.rounds if entry.parity), summary.rounds[-1])
    if summary.verdict == "no parity":
        return min(summary.rounds, key=lambda entry: entry.difference)
    return summary.rounds[-1]


def rounds_table(summary: Summary | Mapping[str, Any]) -> Table:
    """The reference and the finished rounds as a table that fits into 60 columns.

    `summary` is the content of `summary.json`; UserError if it is not. The last column is the cost so far as
    a multiple of the reference's training FLOPs or, where those are unknown, the FLOPs themselves.
    """
    summary = parse_summary(summary)
    reference = summary.reference
    cost_known = reference is not None and bool(reference.training_flops)
    decimals = max((loss_decimals(entry.interval) for entry in summary.rounds), default=3)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Round", no_wrap=True)
    table.add_column("Layers", justify="right", no_wrap=True)
    table.add_column("Params", justify="right", no_wrap=True)
    table.add_column("Loss", justify="right", no_wrap=True)
    table.add_column("Difference [95%]", justify="right", overflow="fold")
    table.add_column("Cost" if cost_known else "FLOPs", justify="right", no_wrap=True)
    if reference is not None:
        loss = "" if reference.loss is None else f"{reference.loss:.{decimals}f}"
        cost = "1.00x" if cost_known else "unknown"
        table.add_row("ref.", str(reference.layers), count(reference.parameters), loss, "", cost)
    for entry in summary.rounds:
        # Without the space, a narrow terminal breaks the line before the interval and not inside it.
        interval = signed_interval(entry.interval, decimals).replace(" ", "")
        cost_so_far = summary.cost(entry)
        table.add_row(
            str(entry.round),
            str(entry.layers),
            count(entry.parameters),
            f"{entry.loss:.{decimals}f}",
            f"{entry.difference:+.{decimals}f} {interval}",
            flops(entry.total_training_flops) if cost_so_far is None else f"{cost_so_far:.2f}x",
            style="bold" if entry.parity else None,
        )
    return table


def _outcome(summary: Summary, entry: RoundFigures) -> str:
    """Parity, no parity or neither yet, and whether the interval agrees."""
    low, high = entry.interval
    number = len(summary.rounds)
    rounds = "1 round" if number == 1 else f"{number} rounds"
    if summary.verdict is None:
        return f"No verdict yet, after {rounds}: "
    within = "" if summary.margin == 0 else f" within the margin of {significant(summary.margin)}"
    if summary.verdict == "parity":
        doubt = "" if high <= summary.margin else " by mean loss, but not beyond chance,"
        return f"Parity{within}{doubt} after round {entry.round}: "
    doubt = "" if low > summary.margin else ", though not beyond chance"
    closest = "" if number == 1 else f"the closest is round {entry.round} with "
    return f"No parity{within} after {rounds}{doubt}: {closest}"


def _comparison(summary: Summary, entry: RoundFigures) -> str:
    reference = summary.reference
    assert reference is not None and reference.loss is not None, "parse_summary checks it"
    decimals = loss_decimals(entry.interval)
    contains_zero = entry.interval[0] <= 0 <= entry.interval[1]
    return (
        f"{entry.layers} of {reference.layers} layers, "
        f"{entry.parameters / reference.parameters:.2f} of the parameters, "
        f"validation loss {entry.loss:.{decimals}f} against the reference's {reference.loss:.{decimals}f} "
        f"(difference {entry.difference:+.{decimals}f}, "
        f"95% interval {signed_interval(entry.interval, decimals)}{', which includes 0' if contains_zero else ''})"
    )


def _cost(summary: Summary, entry: RoundFigures) -> str:
    # A run without parity has paid for all its rounds, whichever came closest.
    payer = summary.rounds[-1] if summary.verdict == "no parity" else entry
    used = "for" if summary.verdict == "parity" else "having used"
    cost = summary.cost(payer)
    if cost is None:
        return (
            f", {used} {flops(payer.total_training_flops)} of training "
            "(the reference's training FLOPs are not known, so neither is the cost to parity)"
        )
    return f", {used} {cost:.2f} times the reference's training FLOPs"
