"""Synthetic run directories, in every state a report may meet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from inheritune.analysis.forecast import Forecast, Prediction, Probe
from inheritune.analysis.kept import BlockFigures, Kept, LayerAnalysis, Measurement, Point, save

LAYERS = {1: 4, 2: 6}
PARAMETERS = {"reference": 3_200_000, 1: 1_650_000, 2: 1_952_000}
FLOPS_PER_STEP = {"reference": 4.0e12, 1: 2.35e12, 2: 3.57e12}
STEPS = 600
TOKENS_PER_STEP = 4096
FINAL_LOSS = {"reference": 3.430, 1: 3.512, 2: 3.412}


def metrics_rows(key: str | int, start: float, end: float, steps: int = STEPS) -> list[dict[str, Any]]:
    """A loss that falls from `start` to `end`, one train row every 5 steps, validation every 50."""
    rows: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 5):
        fraction = step / STEPS
        loss = end + (start - end) * math.exp(-9 * fraction) * (1 - fraction)
        common = {"step": step, "tokens": step * TOKENS_PER_STEP, "flops": step * FLOPS_PER_STEP[key]}
        rows.append(
            {
                "kind": "train",
                **common,
                "loss": loss + 0.08 * math.sin(1.7 * step) - 0.02,
                "learning_rate": 6e-4
                * min(1.0, (step + 1) / 50)
                * (0.55 + 0.45 * math.cos(math.pi * fraction)),
                "gradient_norm": 0.4 + 3 * math.exp(-20 * fraction) + 0.1 * math.cos(step),
                "tokens_per_second": 21_000.0 if step else 900.0,
                "flops_per_second": 2.05e10 if step else 9e8,
                "memory_bytes": 734_003_200,
                "seconds": step * 0.2,
            }
        )
        if step % 50 == 0:
            rows.append({"kind": "validation", **common, "loss": loss, "standard_error": 0.02})
    return rows


def round_summary(number: int, **changes: Any) -> dict[str, Any]:
    """What summary.json says of a round, with these changes."""
    difference = FINAL_LOSS[number] - FINAL_LOSS["reference"]
    training = STEPS * FLOPS_PER_STEP[number]
    total = sum(STEPS * FLOPS_PER_STEP[earlier] for earlier in range(1, number + 1))
    return {
        "round": number,
        "layers": LAYERS[number],
        "parameters": PARAMETERS[number],
        "loss": FINAL_LOSS[number],
        "difference": difference,
        "standard_error": 0.0036,
        "interval": [difference - 0.007, difference + 0.007],
        "parity": difference <= 0,
        "training_flops": training,
        "total_training_flops": total,
        "cost_to_parity": total / (STEPS * FLOPS_PER_STEP["reference"]),
        "steps": STEPS,
        "seconds": 62.0 * number,
        "directory": f"round-{number}-{LAYERS[number]}-layers",
    } | changes


def reference_summary(**changes: Any) -> dict[str, Any]:
    """What summary.json says of the reference, with these changes."""
    return {
        "layers": 8,
        "parameters": PARAMETERS["reference"],
        "loss": FINAL_LOSS["reference"],
        "windows": 512,
        "training_flops": STEPS * FLOPS_PER_STEP["reference"],
        "steps": STEPS,
    } | changes


def run_summary(**changes: Any) -> dict[str, Any]:
    """A summary.json: parity after the second round, with these changes."""
    return {
        "name": "tiny stories",
        "verdict": "parity",
        "margin": 0.0,
        "reference": reference_summary(),
        "rounds": [round_summary(1), round_summary(2)],
    } | changes


def write_metrics(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl into `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(path: Path) -> Path:
    """A complete run directory: parity after the second round."""
    path.mkdir()
    (path / "recipe.yaml").write_text(
        "name: tiny stories\nseed: 7\ntrain:\n  steps: 600\n  learning_rate: 0.0006\n"
    )
    environment = {
        "inheritune": "0.1.0",
        "python": "3.12.4",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "platform": "Linux x86_64",
        "processor": "AMD EPYC 9R14",
        "cores": 8,
        "device": "cpu",
        "precision": "float32",
        "command": "inheritune run recipes/tiny.yaml -o runs/tiny",
        "started": "2026-05-04T10:11:12Z",
    }
    (path / "starts.jsonl").write_text(json.dumps(environment) + "\n")
    (path / "state.json").write_text(json.dumps({"phase": "finished", "round": 2, "verdict": "parity"}))
    (path / "summary.json").write_text(json.dumps(run_summary()))
    write_metrics(path / "reference", metrics_rows("reference", 8.3, FINAL_LOSS["reference"]))
    validation = {
        "loss": FINAL_LOSS["reference"],
        "standard_error": 0.02,
        "windows": 512,
        "window_tokens": 256,
        "losses": [FINAL_LOSS["reference"]] * 512,
    }
    (path / "reference" / "validation.json").write_text(json.dumps(validation))
    write_metrics(path / "round-1-4-layers", metrics_rows(1, 5.1, FINAL_LOSS[1]))
    write_metrics(path / "round-2-6-layers", metrics_rows(2, 4.6, FINAL_LOSS[2]))
    samples = [
        {
            "prompt": "Once upon a time there was a little fox",
            "reference": " who lived in the wood. She had a red coat\nand no friends.",
            "target": " who liked to run. One day she found a map\nunder a stone.",
        },
        {"prompt": "The old clock", "reference": " stopped at noon.", "target": " rang, and nobody came."},
    ]
    (path / "samples.json").write_text(json.dumps(samples))
    return path


def change_summary(path: Path, **changes: Any) -> None:
    """Write the run's summary.json with these changes."""
    (path / "summary.json").write_text(json.dumps(run_summary(**changes)))


def add_choices(run: Path) -> None:
    """What `keep: measured` and `start_layers: auto` leave in a run, of which the second round was predicted."""
    measured = Measurement(data="data", identity=None, windows=32, window=256, seed=0)
    path = (*((0, 1, 2, 3, 4, 5, 7), (0, 1, 2, 3, 5, 7), (0, 1, 2, 5, 7)), (0, 1, 2, 7))
    cut = {7: 3.61, 6: 3.82, 5: 4.27, 4: 5.13}

    added = (4.7, 0.3, 0.2, 0.1, 0.05, 0.1, -0.02, 0.4)
    blocks = tuple(
        BlockFigures(block=i, added=value, low=value - 0.1, high=value + 0.1, influence=value / 10)
        for i, value in enumerate(added)
    )
    rules = tuple(
        Point(keep=keep, layers=list(path[7 - n]), loss=cut[n] + extra * (8 - n))
        for n in cut
        for keep, extra in (("measured", 0.0), ("first", 1.5), ("ends", 0.2))
    )

    def kept(layers: int) -> Kept:
        return Kept(
            keep="measured",
            layers=list(path[7 - layers]),
            of_layers=8,
            loss=cut[layers],
            whole=3.5,
            path=path[: 8 - layers],
            measured=measured,
            blocks=blocks if layers == 4 else (),
            curve=rules if layers == 4 else (),
        )

    save(run / "round-1-4-layers/choice.json", kept(4))
    save(run / "round-2-6-layers/choice.json", kept(6))
    probes = tuple(
        Probe(layers=n, steps=s, loss=3.9, flops=1e13, directory=f"probe-{n}-layers-{s}-steps")
        for n, s in ((4, 30), (4, 60), (4, 120), (6, 30), (6, 60))
    )
    depths = tuple(
        Prediction(layers=n, loss=3.6 - 0.05 * n, low=3.5 - 0.05 * n, high=3.7 - 0.05 * n)
        for n in range(4, 8)
    )
    curve = [kept(layers) for layers in range(4, 8)]
    forecast = Forecast(curve=curve, steps=600, target=3.43, probes=probes, depths=depths, start=4)
    save(run / "reference/forecast.json", forecast)
    rounds = [round_summary(1, predicted=3.4), round_summary(2, predicted=3.3)]
    change_summary(run, rounds=rounds, probe_flops=5e13)


def layer_analysis(kept: Kept) -> LayerAnalysis:
    """What `inheritune analyze` would have found, by what a choice knows."""
    assert kept.measured is not None and kept.whole is not None
    return LayerAnalysis(
        model="tiny",
        parameters=PARAMETERS["reference"],
        of_layers=kept.of_layers,
        measured=kept.measured,
        loss=kept.whole,
        blocks=list(kept.blocks),
        angles=[],
        curve=list(kept.curve),
        sentence="Keep the measured ones.",
    )
