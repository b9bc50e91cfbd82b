"""The outcome of a run in one sentence, and its rounds as a table."""

from __future__ import annotations

import rich.table

from inheritune.quantities import count, duration, flops, loss_decimals, signed_interval, significant
from inheritune.report.table import PER_BYTE, Row, Table
from inheritune.run_directory import RoundFigures, Summary


def verdict_sentence(summary: Summary) -> str:
    """What was reached or not, in how many layers and parameters, how sure it is, and what it cost.

    How sure is what the interval of the paired difference says.
    """
    entry, reference = reported_round(summary), summary.reference
    if entry is not None:
        return f"{_outcome(summary, entry)}{_comparison(summary, entry)}{_cost(summary, entry)}."
    if reference is None or reference.loss is None:
        return "No verdict yet: no round is finished."
    return (
        f"No verdict yet: the reference ({reference.layers} layers) has a validation loss of "
        f"{reference.loss:.3f}, no round is finished."
    )


def reported_round(summary: Summary) -> RoundFigures | None:
    """The round a verdict is about: the first with parity, without parity the closest, without a verdict the last."""
    if not summary.rounds:
        return None
    if summary.verdict == "parity":
        return next((entry for entry in summary.rounds if entry.parity), summary.rounds[-1])
    if summary.verdict == "no parity":
        return min(summary.rounds, key=lambda entry: entry.difference)
    return summary.rounds[-1]


def rounds_table(summary: Summary, title: str = "", notes: tuple[str, ...] = ()) -> Table:
    """The reference and the finished rounds.

    Without the bytes of the text there are no bits per byte, and without the reference's training FLOPs there is no
    last column, the cost so far as a multiple of them.
    """
    reference = summary.reference

    def per_byte(loss: float | None) -> str:
        bits = summary.bits_per_byte(loss)
        return "" if bits is None else f"{bits:.{decimals + 1}f}"

    decimals = max((loss_decimals(entry.interval) for entry in summary.rounds), default=3)
    rows = []
    if reference is not None:
        loss = "" if reference.loss is None else f"{reference.loss:.{decimals}f}"
        steps = "" if reference.steps is None else f"{reference.steps:,}"
        own = flops(reference.training_flops) if reference.training_flops else "unknown"
        size = str(reference.layers), count(reference.parameters)
        rows.append(
            Row(("ref.", *size, loss, per_byte(reference.loss), "", "", "", steps, "", own, "", "1.00x"))
        )
    for entry in summary.rounds:
        cost = summary.cost(entry)
        cells = (
            str(entry.round),
            str(entry.layers),
            count(entry.parameters),
            f"{entry.loss:.{decimals}f}",
            per_byte(entry.loss),
            "" if entry.predicted is None else f"{entry.predicted:.{decimals}f}",
            f"{entry.difference:+.{decimals}f}",
            signed_interval(entry.interval, decimals),
            f"{entry.steps:,}",
            duration(entry.seconds),
            flops(entry.training_flops),
            flops(entry.total_training_flops),
            "" if cost is None else f"{cost:.2f}x",
        )
        rows.append(Row(cells, "parity" if entry.parity else ""))
    headings = (
        *("<Round", "Layers", "Params", "Loss", PER_BYTE, "Predicted", "Difference", "95% interval"),
        *("Steps", "Time", "FLOPs", "All rounds", "Cost"),
    )
    hidden = set() if reference is not None and reference.training_flops else {"Cost"}
    if reference is None or reference.bytes_per_token is None:
        hidden.add(PER_BYTE)
    if all(entry.predicted is None for entry in summary.rounds):
        hidden.add("Predicted")
    return Table(title, headings, rows, notes).without(hidden)


def terminal_rounds(summary: Summary) -> rich.table.Table:
    """What matters most of `rounds_table`: the cost or, where that is unknown, the FLOPs of all rounds."""
    table = rounds_table(summary)
    rest = {"All rounds"} if "Cost" in table.headings else set()
    return table.without({"Steps", "Time", "FLOPs"} | rest).terminal()


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
    assert reference is not None and reference.loss is not None, "a summary with rounds has them"
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
    if cost is not None:
        return f", {used} {cost:.2f} times the reference's training FLOPs"
    return (
        f", {used} {flops(payer.total_training_flops)} of training "
        "(the reference's training FLOPs are not known, so neither is the cost to parity)"
    )
