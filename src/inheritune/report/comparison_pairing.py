"""Which model is compared with which: pairs over validation windows, rows over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from inheritune import UserError
from inheritune.report.comparison_entries import Entry
from inheritune.report.quantities import loss_decimals
from inheritune.training import validation

Verdict = Literal["reference", "better", "worse", "not told apart", "not paired", "unfinished"]
"""`better` and `worse` mean only that the 95% interval over windows excludes 0."""


@dataclass(frozen=True, eq=False)
class Compared:
    """An entry against its reference.

    `name` is the label, with the seed where the row has several; `relative_flops` are the entry's total FLOPs as
    a multiple of the reference's.
    """

    name: str
    entry: Entry
    paired: validation.Comparison | None
    relative_flops: float | None
    verdict: Verdict
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """The seeds of one label."""

    label: str
    seeds: tuple[Compared, ...]

    @property
    def differences(self) -> list[float]:
        """Of the seeds that are paired."""
        return [seed.paired.difference for seed in self.seeds if seed.paired is not None]

    @property
    def mean_loss(self) -> float | None:
        """Mean validation loss of the finished seeds."""
        losses = [seed.entry.losses.mean for seed in self.seeds if seed.entry.losses is not None]
        return fmean(losses) if losses else None

    @property
    def mean_difference(self) -> float | None:
        """Mean difference to the reference over seeds, if there are two or more."""
        return fmean(self.differences) if len(self.differences) > 1 else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the difference between seeds, if there are two or more."""
        return stdev(self.differences) if len(self.differences) > 1 else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs compared with one reference; `reference` is the label of its row."""

    title: str
    reference: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> list[Compared]:
        """All entries, row by row."""
        return [seed for row in self.rows for seed in row.seeds]

    @property
    def reference_row(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.label == self.reference)

    @property
    def decimals(self) -> int:
        """How many decimals the losses deserve: as many as the narrowest interval does."""
        paired = [seed.paired for seed in self.seeds if seed.paired is not None]
        return max((loss_decimals(one.interval) for one in paired), default=3)

    @property
    def summary(self) -> str:
        """What the differences are relative to, on which windows, and how they came out."""
        losses = next((s.entry.losses for s in self.reference_row.seeds if s.entry.losses is not None), None)
        if losses is None:
            return f"The reference, {self.reference}, is unfinished: there is nothing to compare with yet."
        mean = self.reference_row.mean_loss
        counted = Counter(seed.verdict for seed in self.seeds)
        told: tuple[Verdict, ...] = ("better", "worse", "not told apart", "not paired", "unfinished")
        others = [f"{counted[verdict]} {verdict}" for verdict in told if counted[verdict]]
        return (
            f"Compared with {self.reference}, whose validation loss is {mean:.{self.decimals}f} on "
            f"{len(losses.losses):,} windows of {losses.window:,} tokens: {', '.join(others) or 'nothing else'}."
        )


def pair(entries: Sequence[Entry], reference: str | None, title: str) -> Comparison:
    """Compare every entry with the reference, seed with seed where both have it.

    Args:
        entries: what `read_entries` gave.
        reference: label or path; by default the reference of the first run of Algorithm 1, else the first entry.
        title: of the comparison.

    Raises:
        UserError: no entry is called so, or lies there.
    """
    label = default_reference(entries) if reference is None else find_reference(entries, reference)
    if label is None:
        known = ", ".join(dict.fromkeys(entry.label for entry in entries))
        raise UserError(f"the reference {reference} is none of the runs that are compared: {known}")
    by_label: dict[str, list[Entry]] = {}
    for entry in entries:
        by_label.setdefault(entry.label, []).append(entry)
    names = {entry: _name(entry, seeds) for seeds in by_label.values() for entry in seeds}
    references = by_label[label]
    rows = tuple(
        Row(row, tuple(_compare(entry, references, names) for entry in seeds))
        for row, seeds in by_label.items()
    )
    notes = [f"{names[entry]}: {note}" for entry in entries for note in entry.notes]
    notes += [seed.note for row in rows for seed in row.seeds if seed.note is not None]
    return Comparison(title, label, rows, tuple(notes))


def default_reference(entries: Sequence[Entry]) -> str:
    """Label of the first run's reference, else of the first entry."""
    return next((entry.label for entry in entries if entry.kind == "reference"), entries[0].label)


def find_reference(entries: Sequence[Entry], text: str) -> str | None:
    """The label that is meant by a label, an entry's path, or the directory of a run; None if there is none."""
    path = Path(text).resolve()
    for entry in entries:
        if entry.label == text:
            return text
    for entry in entries:
        if entry.path.resolve() == path or (entry.kind == "reference" and entry.run.resolve() == path):
            return entry.label
    return None


def _compare(entry: Entry, references: Sequence[Entry], names: Mapping[Entry, str]) -> Compared:
    reference, expected = _partner(entry, references)
    name, other = names[entry], names[reference]
    if entry.losses is None:
        so_far = "no step is recorded" if entry.steps is None else f"its last record is step {entry.steps:,}"
        return Compared(name, entry, None, None, "unfinished", f"{name} is unfinished: {so_far}.")
    relative = None
    if reference.losses is not None and entry.total_flops is not None and reference.total_flops:
        relative = entry.total_flops / reference.total_flops
    if entry in references:
        return Compared(name, entry, None, relative, "reference")
    if reference.losses is None:
        note = f"{name} has no difference: its reference, {other}, is unfinished."
        return Compared(name, entry, None, relative, "not paired", note)
    try:
        paired = validation.compare(entry.losses, reference.losses)
    except UserError as error:
        note = f"{name} has no difference to {other}: {error}."
        return Compared(name, entry, None, relative, "not paired", note)
    unexpected = None if expected else f"{name} is compared with {other}."
    return Compared(name, entry, paired, relative, _verdict(entry.losses, paired), unexpected)


def _partner(entry: Entry, references: Sequence[Entry]) -> tuple[Entry, bool]:
    """The reference to pair with, and whether no other was to be expected."""
    if entry in references:
        return entry, True
    finished = [reference for reference in references if reference.losses is not None] or references
    same = [reference for reference in finished if reference.seed == entry.seed]
    return (same or finished)[0], bool(same) or len(references) == 1


def _name(entry: Entry, seeds: Sequence[Entry]) -> str:
    if len(seeds) == 1:
        return entry.label
    return f"{entry.label}, {'unknown seed' if entry.seed is None else f'seed {entry.seed}'}"


def _verdict(losses: validation.WindowLosses, paired: validation.Comparison) -> Verdict:
    low, high = paired.interval
    if len(losses.losses) < 2 or low <= 0 <= high:  # one window has no spread, so no interval
        return "not told apart"
    return "better" if high < 0 else "worse"
