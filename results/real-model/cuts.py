"""Add what was known of each cut before training to table.csv, and the difference to the untouched reference.

python results/real-model/cuts.py [STUDY], by default real-model itself; others with its windows are compared too.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import tables  # noqa: E402

from inheritune.evaluation.tasks import GROUPS  # noqa: E402
from inheritune.training.validation import WindowLosses, compare  # noqa: E402

SIX = (*GROUPS["zero-shot"].columns, ("winogrande", "acc"))


def added(folder: Path, study: tables.Results) -> Iterator[dict[str, str]]:
    """The columns that README.md explains, for each line of the table."""
    of = {(entry.label, entry.seed): entry for entry in study.entries}
    untouched = WindowLosses.load(HERE / "untouched.json")
    with (HERE / "cuts.csv").open(newline="", encoding="utf-8") as file:
        cuts = {line["row"]: line for line in csv.DictReader(file)}
    tasks = six_tasks(folder / "tasks.csv")
    for entry in study.entries:
        keep = entry.label.removesuffix(f"-{entry.layers}")
        cut, measured = cuts.get(entry.label, {}), of.get((f"measured-{entry.layers}", entry.seed))
        assert entry.losses is not None
        same = len(entry.losses.losses) == len(untouched.losses)  # unless it has a vocabulary of its own
        paired = compare(entry.losses, untouched) if same else None
        beside = None
        if paired and measured is not None and measured is not entry and measured.losses is not None:
            beside = compare(entry.losses, measured.losses)
        yield {
            "keep": keep,
            "blocks": cut.get("blocks", ""),
            "loss_at_cut": cut.get("loss_at_cut", ""),
            "loss_at_cut_61_windows": str(float(entry.metrics.validation["loss"][0])),
            "difference_to_measured": str(beside.difference) if beside else "",
            "measured_low": str(beside.interval[0]) if beside else "",
            "measured_high": str(beside.interval[1]) if beside else "",
            "difference_to_untouched": str(paired.difference) if paired else "",
            "low": str(paired.interval[0]) if paired else "",
            "high": str(paired.interval[1]) if paired else "",
            "six_tasks": str(tasks.get((entry.label, str(entry.seed)), "")),
        }


def six_tasks(path: Path) -> dict[tuple[str, str], float]:
    """Mean of the six tasks in percent, of each model that was asked all of them: (row, seed) -> mean."""
    figures = defaultdict[tuple[str, str], list[float]](list)
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if (line["task"], line["metric"]) in SIX:
                figures[line["model"], line["seed"]].append(100 * float(line["value"]))
    return {key: fmean(found) for key, found in figures.items() if len(found) == len(SIX)}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else HERE
    found = tables.read_study(folder)
    tables.write_table(folder, replace(found, added=tuple(added(folder, found))))
