"""The rows of a study in one table and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inheritune.config import Recipe, Study
from inheritune.report.comparison import Comparison, Entry, read_entries, write_comparison
from inheritune.study import Row


def compare_rows(study: Study, rows: Sequence[Row], directory: Path) -> Comparison:
    """Compare the finished rows of a study with its reference, and write the result to `comparison/` in it."""
    entries = study_entries(study, rows, directory)
    return write_comparison(entries, study.reference, directory / "comparison", study.name)


def study_entries(study: Study, rows: Sequence[Row], directory: Path) -> list[Entry]:
    """The models of finished rows, in the order of the study; seeds of a row stand together.

    Total FLOPs of a row are its own and those of the rows that made its first weights, but not the reference's:
    that one is there before any of them.
    """
    entries: list[Entry] = []
    total: dict[tuple[str, int], float] = {}
    for row in rows:
        before = 0.0
        if row.starts_from is not None and row.starts_from != study.reference:
            before = total[row.starts_from, row.seed]
        found = [_with_earlier(entry, before) for entry in _entries(row, directory)]
        total[row.name, row.seed] = found[-1].total_flops or 0.0
        entries += found
    order = {name: position for position, name in enumerate(study.rows)}
    return sorted(entries, key=lambda entry: order[entry.label.partition(" round ")[0]])


def _entries(row: Row, directory: Path) -> list[Entry]:
    """One model; or the rounds of Algorithm 1, of which the last has the row's name."""
    read = read_entries([(row.name, row.folder(directory))])
    if row.kind is not Recipe:
        return read
    *earlier, last = [entry for entry in read if entry.kind == "round"]
    named = [replace(entry, label=f"{row.name} round {n}") for n, entry in enumerate(earlier, start=1)]
    return [*named, replace(last, label=row.name)]


def _with_earlier(entry: Entry, flops: float) -> Entry:
    if entry.total_flops is None:
        return entry
    curve = replace(entry.curve, flops=entry.curve.flops + flops)
    return replace(entry, total_flops=entry.total_flops + flops, curve=curve)
