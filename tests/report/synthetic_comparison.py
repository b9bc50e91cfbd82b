"""Synthetic directories of `inheritune train`, to be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TOKENS_PER_STEP = 4096


def validation(losses: Sequence[float], window: int = 64) -> dict[str, Any]:
    """A validation.json with these losses of single windows."""
    return {
        "loss": math.fsum(losses) / len(losses),
        "standard_error": 0.0,
        "windows": len(losses),
        "window_tokens": window,
        "losses": list(losses),
    }


def curve_rows(end: float, steps: int, flops_per_step: float, rate: float = 9.0) -> list[dict[str, Any]]:
    """Validation losses that fall to `end`, at eleven steps, between rows of other kinds."""
    rows: list[dict[str, Any]] = []
    for tenth in range(11):
        step = steps * tenth // 10
        loss = end + 4 * math.exp(-rate * tenth / 10) * (1 - tenth / 10)
        common = {"step": step, "tokens": step * TOKENS_PER_STEP, "flops": step * flops_per_step}
        rows.append({"kind": "gradients", "step": step, "query_1": 0.1})
        rows.append({"kind": "validation", **common, "loss": loss, "standard_error": 0.02})
        rows.append({"kind": "train", **common, "loss": loss + 0.05, "learning_rate": 1e-3})
    return rows


def write_training(
    path: Path,
    losses: Sequence[float] | None,
    *,
    steps: int = 100,
    flops_per_step: float = 1e12,
    seed: int = 0,
    window: int = 64,
    outcome: dict[str, Any] | None = None,
    rate: float = 9.0,
) -> Path:
    """What `inheritune train` leaves; without losses it was interrupted half-way.

    `outcome` is the content of training.json, which committed results do not have.
    """
    path.mkdir(parents=True)
    recipe = {"name": path.name, "model": {"pretrained": "x"}, "training": {"steps": steps, "seed": seed}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    end = 3.0 if losses is None else math.fsum(losses) / len(losses)
    rows = curve_rows(end, steps, flops_per_step, rate)
    if losses is None:
        rows = [row for row in rows if row["step"] <= steps // 2]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if losses is not None:
        (path / "validation.json").write_text(json.dumps(validation(losses, window)))
    if outcome is not None:
        (path / "training.json").write_text(json.dumps(outcome))
    return path
