"""Two processes of one thread against one process of two: tokens/s of the same training on two cores.

    python benchmarks/scaling.py [--steps 30] [--turns 3]

The same recipe (a GPT-2 of 8 layers, hidden size 128 or 256) is trained in turn by one process with two threads
and by two under torchrun, DDP and FSDP, one thread each. Told is the median rate of the second half of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

VOCABULARY = 50_304
WAYS = {"1 process x 2 threads": (1, "auto"), "2 x 1, ddp": (2, "ddp"), "2 x 1, fsdp": (2, "fsdp")}


def train(folder: Path, way: str, hidden: int, steps: int, turn: int) -> float:
    processes, strategy = WAYS[way]
    recipe = {
        "name": "scaling",
        "data": {"path": str(folder), "window": 128},
        "model": {
            "architecture": {
                "preset": "gpt2-small",
                **{"n_layer": 8, "n_embd": hidden, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY},
            }
        },
        "training": {
            **{
                "steps": steps,
                "tokens_per_step": 1024,
                "log_every": 1,
                "tensorboard": False,
                "precision": "fp32",
            },
            "schedule": {"warmup_steps": 5},
            "validation": {"every": steps, "windows": 8},
            "checkpoints": {"every": 10 * steps},
            "parallel": strategy,
        },
    }
    path = folder / f"{hidden}-{processes}-{strategy}-{turn}"
    path.with_suffix(".yaml").write_text(yaml.safe_dump(recipe))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        *(launch if processes > 1 else []),
        "-m",
        "inheritune",
        "train",
        f"{path}.yaml",
        "-o",
        str(path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}
    subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rates = [row["tokens_per_second"] for row in rows if row["kind"] == "train"]
    return statistics.median(rates[len(rates) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(0)
        for file, count in (("train.bin", 1_000_000), ("val.bin", 10_000)):
            (folder / file).write_bytes(generator.integers(0, 50_257, count, dtype=np.uint16).tobytes())
        print(
            "| hidden size | " + " | ".join(WAYS) + " | ddp / one | fsdp / one |\n|---|---|---|---|---|---|"
        )
        for hidden in (128, 256):
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(options.turns):
                for way in WAYS:
                    rates[way].append(train(folder, way, hidden, options.steps, turn))
            one, ddp, fsdp = (statistics.median(values) for values in rates.values())
            print(
                f"| {hidden} | {one:,.0f} | {ddp:,.0f} | {fsdp:,.0f} | {ddp / one:.2f} | {fsdp / one:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
