"""The same training by one process and by several, as `inheritune train` under torchrun: tokens/s, memory, scaling.

    python benchmarks/scaling.py                                       # on the CPU, two processes
    python benchmarks/scaling.py --device cuda --processes 2 --sizes medium-24,xlarge-24 --ways alone,ddp
    python benchmarks/scaling.py --device cuda --processes 8 --sizes llama-1.5b --ways fsdp --turns 1
    python benchmarks/scaling.py --ways fsdp --set training.micro_batch=2 --constant training.parallel.GROUP=1

Each process has the tokens of a step that `gpu.py` gives one GPU, so N processes do N times the work; on the
CPU, where cores are shared, they share one step. A row's rate is the median over the log lines of the second half of
its steps. "Of linear" is the rate over N times that of one process, where `--ways` names it too (`alone`). Sizes are
those of `gpu.py`, `llama-7b` for many GPUs, `small-6` of which little has to be compiled, and `narrow` and `wide` for
a CPU.
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

from gpu import SIZES, Size, llama

_NARROW = {
    "preset": "gpt2-small",
    "n_layer": 8,
    "n_embd": 128,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 50_304,
}
PROGRAM = """
import json, sys
from importlib import import_module

from inheritune.cli.main import main

for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, constant = f"inheritune.{name}".rpartition(".")
    setattr(import_module(module), constant, value)
main()
"""
"""`inheritune` with other values of constants, which it is given first."""
SIZES = {
    **SIZES,
    "llama-7b": Size(llama(32, 4096, 11_008), 2048, 49_152),
    "small-6": Size({"preset": "gpt2-small", "n_layer": 6}, 1024, 49_152),
    "narrow": Size(_NARROW, 128, 1024),
    "wide": Size({**_NARROW, "n_embd": 256}, 128, 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sizes", default="narrow,wide")
    parser.add_argument("--ways", default="alone,ddp,fsdp")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, as of `inheritune train`")
    parser.add_argument("--constant", action="append", default=[], help="NAME=VALUE, within `inheritune`")
    options = parser.parse_args()
    count = options.processes
    print("| size | processes | tokens/s | of linear | memory of one, GiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name), options.sizes)
        for size in options.sizes.split(","):
            measured: dict[str, list[tuple[float, float]]] = {way: [] for way in options.ways.split(",")}
            for turn in range(options.turns):
                for way, turns in measured.items():
                    processes = 1 if way == "alone" else count
                    recipe = recipe_of(SIZES[size], data, options, processes, way)
                    turns.append(train(recipe, data / f"{size}-{way}-{turn}", options, processes))
            rates = {way: statistics.median(rate for rate, _ in turns) for way, turns in measured.items()}
            one = rates.get("alone")
            for way, rate in rates.items():
                processes = 1 if way == "alone" else count
                of = f"{rate / one / (processes if options.device == 'cuda' else 1):.2f}" if one else ""
                memory = max(memory for _, memory in measured[way]) / 2**30
                print(f"| {size} | {processes} {way} | {rate:,.0f} | {of} | {memory:.1f} |", flush=True)


def write_data(folder: Path, sizes: str) -> Path:
    """Random tokens that models of these sizes have, as nanoGPT lays them out."""
    tokens = min(SIZES[size].architecture.get("vocab_size", 50_257) for size in sizes.split(","))
    generator = np.random.default_rng(0)
    for file, count in (("train.bin", 10_000_000), ("val.bin", 50_000)):
        (folder / file).write_bytes(generator.integers(0, tokens, count, dtype=np.uint16).tobytes())
    return folder


def recipe_of(
    size: Size, data: Path, options: argparse.Namespace, processes: int, way: str
) -> dict[str, object]:
    cuda = options.device == "cuda"
    return {
        "name": "scaling",
        "data": {"path": str(data), "window": size.window},
        "model": {"architecture": size.architecture},
        "training": {
            "steps": options.steps,
            "tokens_per_step": size.tokens_per_step * (processes if cuda else 1),
            "device": options.device,
            "log_every": 5 if cuda else 1,
            "tracking": {"tensorboard": False},
            **({} if cuda else {"precision": "fp32"}),
            "schedule": {"warmup_steps": 5},
            "validation": {"every": options.steps, "windows": 8},
            "checkpoints": {"every": 10 * options.steps},
            "parallel": "auto" if way == "alone" else way,
        },
    }


def together(processes: int) -> list[str]:
    """What starts a program, of which the rest is to name script or module, in so many processes."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--standalone", "--nproc-per-node", str(processes)),
    ]


def train(
    recipe: dict[str, object], path: Path, options: argparse.Namespace, processes: int
) -> tuple[float, float]:
    """Tokens per second, and the memory of the first process in bytes."""
    Path(f"{path}.yaml").write_text(yaml.safe_dump(recipe))
    program = path.with_name("program.py")
    program.write_text(PROGRAM)
    constants = {name: json.loads(value) for name, value in (each.split("=") for each in options.constant)}
    command = [
        *(together(processes) if processes > 1 else [sys.executable]),
        *(str(program), json.dumps(constants), "train", f"{path}.yaml", "-o", str(path)),
        *(word for each in options.set for word in ("--set", each)),
    ]
    cores = options.processes
    threads = {} if options.device == "cuda" else {"OMP_NUM_THREADS": str(max(1, cores // processes))}
    subprocess.run(command, env={**os.environ, **threads}, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    rates = [row["tokens_per_second"] for row in steps]
    return statistics.median(rates[len(rates) // 2 :]), steps[-1]["memory_bytes"]


if __name__ == "__main__":
    main()
