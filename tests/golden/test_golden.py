"""Losses of a quickstart-sized run, compared with those on record.

They guard against changes that nobody meant: in the order of the data, the initialization, the optimizer, the
schedule, the loss, the cut. After a change that is meant to move them, record them again and say why:

    python tests/golden/test_golden.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_data
from inheritune.algorithm import run
from inheritune.config import Recipe
from inheritune.quickstart import quickstart_recipe
from inheritune.recipe_file import parse_recipe
from inheritune.training import metrics

RECORD = Path(__file__).with_name("losses.json")
STEPS = 10


def losses(work: Path) -> dict[str, list[float]]:
    """Training and validation losses of the quickstart's recipe, shortened, in float32, on made-up tokens."""
    data = tiny_data.write_shards(work / "data", vocabulary=4096, train=60_000, validation=4_000)
    values = quickstart_recipe(data).model_dump(mode="json", exclude={"reference": {"training"}})
    values["training"] |= {
        "steps": STEPS,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 2,
        "tracking": {"tensorboard": False},
    }
    values["training"]["schedule"]["warmup_steps"] = 3
    summary = run(parse_recipe(values, Recipe), work / "run")
    found = {}
    for name in ("reference", summary.rounds[0].directory):
        rows = metrics.read(work / "run" / name / "metrics.jsonl")
        found[name] = [row["loss"] for row in rows if row["kind"] != "final"]
    return found


def test_losses_are_those_on_record(tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text())
    measured = losses(tmp_path)
    assert measured.keys() == recorded.keys()
    for name, values in recorded.items():
        # Other processors round otherwise; a change of method moves the third digit.
        assert measured[name] == pytest.approx(values, rel=2e-4), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        RECORD.write_text(json.dumps(losses(Path(folder)), indent=2) + "\n")
