"""Print the pairs of models that a study's README speaks of: python results/orderings.py STUDY."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import tables

from inheritune.training.validation import Comparison, WindowLosses, compare, compare_per_byte

INHERIT_6, INHERIT_8 = "inheritune-6/round-1-6-layers", "inheritune-6/round-2-8-layers"
PAPER = [
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
    ("inheritune-4-append/round-2-6-layers", "hybrid-stacking-6"),
    (INHERIT_6, "random-6-flops"),
    (INHERIT_6, "reference-continued"),
    ("random-8", "random-6"),
    ("random-6-double", "random-6"),
]
PAIRS = {
    "study-gpu": PAPER,
    "study-cpu": PAPER,
    "low-data": [
        ("layers-6", "random-6"),
        ("layers-3", "layers-2"),
        ("layers-8", "layers-6"),
        ("epochs-10", "layers-6"),
        ("epochs-20", "epochs-5"),
        ("fresh-10", "epochs-10"),
        ("fresh-20", "epochs-20"),
    ],
    "attention": [
        ("transfer-first", "transfer-random"),
        ("transfer-last", "transfer-random"),
        ("transfer-first", "transfer-last"),
    ],
    "healing": [
        ("rate-2-15", "plain-15"),
        ("rate-4-15", "plain-15"),
        ("rate-8-15", "plain-15"),
        ("rate-8-15", "rate-4-15"),
        ("distilled-15", "plain-15"),
        ("distilled-15", "rate-4-15"),
        ("untouched-15", "rate-4-15"),
        ("rate-4-20", "plain-20"),
        ("short-20", "plain-20"),
        ("distilled-20", "plain-20"),
        ("distilled-20", "rate-4-20"),
        ("distilled-short-20", "plain-20"),
        ("distilled-short-20", "short-20"),
        ("distilled-flops-15", "plain-15"),
        ("distilled-flops-15", "rate-4-15"),
        ("distilled-flops-15", "distilled-15"),
    ],
    "twelve-layers": [(f"{keep}-6", "first-6") for keep in ("measured", "contiguous", "ends", "spread")],
    "real-model": [
        ("influence-15", "measured-15"),
        ("best-run-15", "measured-15"),
        ("contiguous-15", "measured-15"),
        ("ends-15", "measured-15"),
        ("spread-15", "measured-15"),
        ("first-15", "measured-15"),
        ("influence-15", "best-run-15"),
        ("contiguous-15", "ends-15"),
        ("contiguous-20", "measured-20"),
        ("ends-20", "measured-20"),
        ("influence-20", "measured-20"),
        ("spread-20", "measured-20"),
        ("first-20", "measured-20"),
        ("contiguous-20", "ends-20"),
        ("ends-24", "contiguous-24"),
        ("influence-24", "contiguous-24"),
        ("greedy-24", "contiguous-24"),
        ("spread-24", "contiguous-24"),
        ("first-24", "contiguous-24"),
        ("first-24", "spread-24"),
        ("vocabulary-20", "measured-20"),
        ("vocabulary-20", "influence-15"),
        ("mlp-30", "measured-20"),
        ("mlp-30-first", "mlp-30"),
        ("ends-24", "reference-continued"),
        ("contiguous-20", "reference-continued"),
    ],
}


def orderings(folder: Path) -> Iterator[tuple[str, str, int | None, Comparison]]:
    """Names of a pair, its seed, and first minus second, for each pair and each seed that has both.

    In nats per token; in bits per byte of two that read the text in different tokens.
    """
    study = tables.read_study(folder)
    by_place = {
        (entry.path.as_posix().removeprefix(f"seed-{entry.seed}/"), entry.seed): entry
        for entry in study.entries
    }
    seeds = dict.fromkeys(entry.seed for entry in study.entries)
    for first, second in PAIRS[study.name]:
        for seed in seeds:
            one, other = by_place.get((first, seed)), by_place.get((second, seed))
            if one and other and one.losses and other.losses:
                yield _short(first), _short(second), seed, difference(one.losses, other.losses)


def difference(one: WindowLosses, other: WindowLosses) -> Comparison:
    """First minus second, paired where they are of the same windows."""
    if len(one.losses) == len(other.losses):
        return compare(one, other)
    found = compare_per_byte(one, other)
    assert found is not None, "the text's bytes are known"
    return Comparison(found[0], math.nan, found[1], parity=found[0] <= 0)


def _short(place: str) -> str:
    """`inheritune-6/round-1-6-layers` as "inheritune-6, 6 layers"."""
    row, _, directory = place.partition("/")
    return f"{row}, {directory.split('-')[2]} layers" if directory else row


def main() -> None:
    """One line for each pair and seed."""
    if len(sys.argv) != 2 or Path(sys.argv[1]).resolve().name not in PAIRS:
        raise SystemExit(f"{__doc__}\nSTUDY is the folder of one of {', '.join(PAIRS)}.")
    print("| first | second | seed | first minus second, 95% interval |\n|---|---|---|---|")
    for first, second, seed, result in orderings(Path(sys.argv[1])):
        low, high = result.interval
        print(f"| {first} | {second} | {seed} | {result.difference:+.3f} [{low:+.3f}, {high:+.3f}] |")


if __name__ == "__main__":
    main()
