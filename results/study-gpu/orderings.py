"""Print the pairs of rows that README.md speaks of: python results/study-gpu/orderings.py [RUNS]."""

from __future__ import annotations

import sys
from pathlib import Path

from inheritune.training.validation import WindowLosses, compare

RUNS = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "runs"
INHERIT_6, INHERIT_8 = "inheritune-6/round-1-6-layers", "inheritune-6/round-2-8-layers"
PAIRS = [
    (INHERIT_6, "random-6"),
    (INHERIT_8, "random-8"),
    (INHERIT_6, "random-6-double"),
    (INHERIT_8, "random-6-double"),
    (INHERIT_6, "stacking-6"),
    ("hybrid-stacking-6", "stacking-6"),
    (INHERIT_6, "half-width"),
    ("half-width", "random-6"),
    (INHERIT_6, "distillation-6"),
    (INHERIT_6, "distilbert-6"),
    ("distilbert-6", "distillation-6"),
    ("distillation-6", "random-6"),
    ("inheritune-distilled-6/round-1-6-layers", INHERIT_6),
    ("attention-layernorm-6", "random-6"),
    ("mlp-layernorm-6", "random-6"),
    ("attention-mlp-6", "random-6"),
    ("attention-mlp-6", "attention-layernorm-6"),
    ("attention-layernorm-6", "mlp-layernorm-6"),
    ("inheritune-4-append/round-2-6-layers", "inheritune-4-reinherit/round-2-6-layers"),
]


def _short(name: str) -> str:
    """`inheritune-6/round-1-6-layers` as "inheritune-6, 6 layers"."""
    row, _, directory = name.partition("/")
    return f"{row}, {directory.split('-')[2]} layers" if directory else row


def main() -> None:
    """One line for each pair and seed."""
    print("| first | second | seed | first minus second, 95% interval |\n|---|---|---|---|")
    for first, second in PAIRS:
        for seed in sorted(RUNS.glob("seed-*")):
            paths = [seed / name / "validation.json" for name in (first, second)]
            if all(path.exists() for path in paths):
                result = compare(*(WindowLosses.load(path) for path in paths))
                low, high = result.interval
                names = f"{_short(first)} | {_short(second)} | {seed.name[5:]}"
                print(f"| {names} | {result.difference:+.3f} [{low:+.3f}, {high:+.3f}] |")


if __name__ == "__main__":
    main()
