"""Add what was known of each cut before training to table.csv: python results/real-model/cuts.py"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import tables  # noqa: E402

from inheritune.initialization.layers import choose  # noqa: E402
from inheritune.training.validation import compare  # noqa: E402

BLOCKS = 30
LOSS_AT_CUT = {"ends-15": "9.12", "first-15": "21.49", "spread-15": "13.80", "ends-20": "5.39"}
"""Of the same cuts, noted to two decimals when they were trained for the first time."""


def added() -> Iterator[dict[str, str]]:
    """The columns that README.md explains, for each line of the table."""
    study = tables.read_study(HERE)
    of = {entry.label: entry for entry in study.entries}
    with (HERE / "search.csv").open(newline="", encoding="utf-8") as file:
        searched = {line["search"]: line for line in csv.DictReader(file)}
    for entry in study.entries:
        keep, _, layers = entry.label.rpartition("-")
        line = searched.get({"measured": "greedy"}.get(keep, keep), {})
        measured = of[f"measured-{layers}"]
        assert entry.losses is not None and measured.losses is not None
        paired = compare(entry.losses, measured.losses) if entry is not measured else None
        yield {
            "keep": keep,
            "blocks": line.get(f"blocks_{layers}") or " ".join(map(str, choose(f"{keep} {layers}", BLOCKS))),
            "loss_at_cut": line.get(f"loss_at_cut_{layers}") or LOSS_AT_CUT.get(entry.label, ""),
            "loss_at_cut_61_windows": str(float(entry.metrics.validation["loss"][0])),
            "difference_to_measured": str(paired.difference) if paired else "",
            "low": str(paired.interval[0]) if paired else "",
            "high": str(paired.interval[1]) if paired else "",
            "six_tasks": "",
        }


if __name__ == "__main__":
    tables.write_table(HERE, replace(tables.read_study(HERE), added=tuple(added())))
