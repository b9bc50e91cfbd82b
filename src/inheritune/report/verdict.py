"""The outcome of a run in one sentence, and its rounds as a table."""

from __future__ import annotations

from collections.abc import Callable

import rich.table

from inheritune.quantities import (
    count,
    duration,
    flops,
    loss_decimals,
    signed_interval,
    significant,
    without_spread,
)
from inheritune.report.table import PER_BYTE, Row, Table
from inheritune.run_directory import ControlFigures, ReferenceFigures, RoundFigures, Summary


def verdict_sentence(summary: Summary) -> str:
    """What was reached or not, in how many layers and parameters, how sure it is, and what it cost.

    How sure is what the interval of the paired difference says.
    """
    entry, reference = summary.reported, summary.reference
    if entry is not None:
        return f"{_outcome(summary, entry)}{_comparison(summary, entry)}{_cost(summary, entry)}."
    if reference is None or reference.loss is None:
        return "No verdict yet: no round is finished."
    return (
        f"No verdict yet: the reference ({reference.layers} layers) has a validation loss of "
        f"{reference.loss:.3f}, no round is finished."
    )


def verdict_words(summary: Summary) -> list[str]:
    """The outcome, and once there is a verdict which of the four questions hold."""
    return [line for line in (verdict_sentence(summary), summary.answers_sentence()) if line]


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
        rows.append(Row(cells, "parity" if entry.as_good else ""))
    if summary.control is not None and reference is not None:
        rows.append(Row(_control_cells(summary.control, reference, per_byte, decimals)))
    headings = (
        *("<Round", "Layers", "Params", "Loss", PER_BYTE, "Predicted", "Difference", "95% interval"),
        *("Steps", "Time", "FLOPs", "All rounds", "Cost"),
    )
    hot = ", ".join(str(entry.round) for entry in summary.rounds if not entry.cooled)
    if hot:
        notes = (*notes, f"Grown before the learning rate had decayed, so that losses are high: round {hot}.")
    hidden = set() if reference is not None and reference.training_flops else {"Cost"}
    if reference is None or reference.bytes_per_token is None:
        hidden.add(PER_BYTE)
    if all(entry.predicted is None for entry in summary.rounds):
        hidden.add("Predicted")
    return Table(title, headings, rows, notes).without(hidden)


def _control_cells(
    control: ControlFigures, reference: ReferenceFigures, per_byte: Callable[[float], str], decimals: int
) -> tuple[str, ...]:
    """Its row of `rounds_table`; the difference is that to the untouched reference."""
    found = control.to_reference
    return (
        *("ctrl.", str(reference.layers), count(reference.parameters)),
        *(f"{found.loss:.{decimals}f}", per_byte(found.loss), ""),
        *(f"{found.difference:+.{decimals}f}", signed_interval(found.interval, decimals)),
        *(f"{control.steps:,}", duration(control.seconds), flops(control.training_flops), "", ""),
    )


def texts_table(summary: Summary) -> Table | None:
    """Every round on every other text; None if there is none."""
    rows = []
    for entry in summary.rounds:
        for name, found in entry.also.items():
            decimals = loss_decimals(found.interval)
            of_reference = found.loss - found.difference
            losses = (f"{of_reference:.{decimals}f}", f"{found.loss:.{decimals}f}")
            interval = signed_interval(found.interval, decimals)
            cells = (name, str(entry.round), *losses, f"{found.difference:+.{decimals}f}", interval)
            rows.append(Row(cells, "parity" if found.parity else ""))
    headings = ("<Text", "Round", "Reference", "Loss", "Difference", "95% interval")
    return Table("Other text, on all windows of each", headings, rows) if rows else None


def decisions_table(summary: Summary) -> Table | None:
    """What `search: frugal` decided in every round, and what the run had cost by then; None if it did not search."""
    rows, spent = [], summary.first_flops
    for entry in summary.rounds:
        for one in entry.decisions:
            expected = [one.expected, one.low, one.high]
            cost = spent + entry.training_flops * one.step / entry.steps
            cells = (
                *(str(entry.round), str(entry.layers), f"{one.step:,}", f"{one.loss:.3f}"),
                f"{one.loss - one.target:+.3f}",
                *("" if loss is None else f"{loss:.3f}" for loss in expected),
                flops(cost),
                one.what if one.next is None else f"{one.what} to step {one.next:,}",
            )
            rows.append(Row(cells, "parity" if one.what == "parity" else ""))
        spent = entry.total_training_flops
    headings = (
        *("<Round", "Layers", "Step", "Loss", "To the target"),
        *("Expected|in the end", "from", "to", "All FLOPs|so far", "<Decision"),
    )
    note = (
        "Losses in nats per token: on all validation windows where the learning rate had decayed, on those of "
        "every validation before. Expected: after all steps of the round, by what was gained since the last decay; a "
        "round grows, and the last one is given up, when even the lower bound misses the target."
    )
    return Table("What was decided, and when", headings, rows, (note,)) if rows else None


def terminal_rounds(summary: Summary) -> rich.table.Table:
    """What matters most of `rounds_table`: the cost or, where that is unknown, the FLOPs of all rounds."""
    table = rounds_table(summary)
    rest = {"All rounds"} if "Cost" in table.headings else set()
    return table.without({"Steps", "Time", "FLOPs"} | rest).terminal()


def _outcome(summary: Summary, entry: RoundFigures) -> str:
    """Parity, no parity or neither yet, and whether the interval agrees."""
    low, high = entry.interval
    spread = not without_spread(entry.interval)
    number = len(summary.rounds)
    rounds = "1 round" if number == 1 else f"{number} rounds"
    if summary.verdict is None:
        return f"No verdict yet, after {rounds}: "
    within = "" if summary.margin == 0 else f" within the margin of {significant(summary.margin)}"
    if summary.verdict == "parity":
        doubt = "" if high <= summary.margin and spread else " by mean loss, but not beyond chance,"
        return f"Parity{within}{doubt} after round {entry.round}: "
    if entry.parity:
        return f"Parity{within} on its own data after round {entry.round}, but not on {', '.join(entry.worse_on)}: "
    doubt = "" if low > summary.margin and spread else ", though not beyond chance"
    closest = "" if number == 1 else f"the closest is round {entry.round} with "
    return f"No parity{within} after {rounds}{doubt}: {closest}"


def _comparison(summary: Summary, entry: RoundFigures) -> str:
    reference = summary.reference
    assert reference is not None and reference.loss is not None, "a summary with rounds has them"
    decimals = loss_decimals(entry.interval)
    zero = ", which includes 0" if entry.interval[0] <= 0 <= entry.interval[1] else ""
    return (
        f"{entry.layers} of {reference.layers} layers, "
        f"{entry.parameters / reference.parameters:.2f} of the parameters, "
        f"validation loss {entry.loss:.{decimals}f} against the reference's {reference.loss:.{decimals}f} "
        f"(difference {entry.difference:+.{decimals}f}, "
        f"95% interval {signed_interval(entry.interval, decimals)}{zero}{_worth(entry)})"
    )


def _worth(entry: RoundFigures) -> str:
    if entry.worth is None:
        return ""
    what = "gap" if entry.difference > 0 else "lead"
    return f"; a {what} worth about {entry.worth.steps:,} steps ({count(entry.worth.tokens)} tokens) of its training"


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
