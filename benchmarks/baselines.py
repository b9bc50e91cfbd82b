"""What `gpu.py` measured, against what the same card did before.

    python benchmarks/baselines.py gpu.jsonl             # exits with 1 where a figure is more than 10% worse
    python benchmarks/baselines.py gpu.jsonl --record    # makes these figures the card's baselines

`baselines/CARD.json` holds of each size and contestant micro-batch, tokens/s, FLOP/s, memory and versions. Rows
without a baseline are named and pass. Cards of one model differ: of four H100 by 4% in their matmul rate.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from gpu import read

FOLDER = Path(__file__).parent / "baselines"
MARGIN = 0.10
"""Fewer tokens per second or more memory by this share of the baseline is a failure."""

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measured", type=Path, help="what gpu.py wrote")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    measured = rows_of(options.measured)
    if not measured:
        parser.error(f"there are no figures in {options.measured}")
    failures = 0
    for card, rows in measured.items():
        path = options.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', card)}.json"
        known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
        for name, row in rows.items():
            worse = compare(row, known[name]) if name in known else None
            failures += bool(worse)
            print(f"{card}: {name}: {'no baseline' if worse is None else '; '.join(worse) or 'as before'}")
        if options.record:
            options.folder.mkdir(parents=True, exist_ok=True)
            record = {"card": card, "rows": dict(sorted({**known, **rows}.items()))}
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(bool(failures) and not options.record)


def rows_of(path: Path) -> dict[str, dict[str, Row]]:
    """By card, then by size and contestant; the latest of each."""
    found: dict[str, dict[str, Row]] = {}
    machine: Row = {}
    for row in read(path):
        if row.get("contestant") == "machine":
            machine = row
        elif "tokens_per_second" in row:
            kept = {
                key: row[key] for key in ("micro_batch", "tokens_per_second", "memory_bytes") if key in row
            }
            kept["flops_per_second"] = row["flops_per_token"] * row["tokens_per_second"]
            kept |= {key: machine["described"][key] for key in ("torch", "transformers")}
            found.setdefault(row["device"], {})[f"{row['size']} {row['contestant']}"] = kept
    return found


def compare(row: Row, before: Row) -> list[str]:
    """What is worse than it was by more than the margin, in words."""
    rate = row["tokens_per_second"] / before["tokens_per_second"]
    memory = row["memory_bytes"] / before["memory_bytes"] if before["memory_bytes"] else 1.0
    worse = [f"{rate:.2f} of {before['tokens_per_second']:,.0f} tokens/s"] if rate < 1 - MARGIN else []
    if memory > 1 + MARGIN:
        worse.append(f"{memory:.2f} times {before['memory_bytes'] / 2**30:.1f} GiB")
    return worse


if __name__ == "__main__":
    sys.exit(main())
