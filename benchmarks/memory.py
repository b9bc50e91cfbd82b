"""Memory of a training step: what `inheritune plan` says, and what the processes were seen to take.

    python benchmarks/memory.py [--cases gpt2,llama] [--strategies single,ddp,fsdp] [--processes 4] [--device cuda]
                                [--regather]

Every measurement is taken in processes of its own, one or more, with the loop's own step, `parallel.place` and
optimizer. On a CPU it is the peak of the resident memory (VmHWM) in the third step, less what the process had after
a step of a tiny model, with glibc told to hand large blocks back at once; of several processes it is the largest.
On a GPU it is `torch.cuda.max_memory_allocated`, of one process. Printed: GiB told and measured, and their ratio.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.utils import logging as transformers_logging

from inheritune.config import Distillation, Training
from inheritune.models.presets import architecture_config, from_config
from inheritune.models.size import on_meta
from inheritune.runtime.hardware import Hardware, choose_hardware
from inheritune.runtime.world import joined
from inheritune.training import micro_batch, parallel
from inheritune.training.distillation import DistillationLoss
from inheritune.training.loss import NextTokenLoss
from inheritune.training.memory import memory_per_process
from inheritune.training.micro_batch import choose_micro_batch, fitting_step, step_of
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import place
from inheritune.training.step import Stepper

GLIBC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
STEPS = 3
"""The first makes the optimizer's state, and after it DDP sorts its buckets anew."""
GPT2 = {"preset": "gpt2-small", "n_layer": 3, "n_embd": 768, "n_head": 12, "n_positions": 256}
DEEP = {**GPT2, "n_layer": 10, "n_embd": 640, "n_head": 10, "vocab_size": 4096}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}
CASES: dict[str, dict[str, Any]] = {
    "gpt2, wide vocabulary": {"model": GPT2, "window": 256, "size": 2},
    "gpt2, two micro-batches": {"model": GPT2, "window": 256, "size": 1, "count": 2},
    "gpt2, bf16": {"model": GPT2, "window": 256, "size": 2, "bf16": True},
    "gpt2, 10 layers, checkpointing": {"model": DEEP, "window": 256, "size": 6, "checkpointing": "all"},
    "gpt2, taught by twice the layers": {
        "model": GPT2,
        "window": 256,
        "size": 2,
        "teacher": {**GPT2, "n_layer": 6},
    },
    "llama": {"model": LLAMA, "window": 256, "size": 4},
    "llama, bf16": {"model": LLAMA, "window": 256, "size": 6, "bf16": True},
    "llama, bf16, checkpointing": {
        "model": LLAMA,
        "window": 512,
        "size": 6,
        "bf16": True,
        "checkpointing": "all",
    },
}
TINY = {"model": {**LLAMA, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 1}, "window": 16}


def training_of(case: dict[str, Any], device: str, strategy: str, processes: int) -> Training:
    return Training.model_validate(
        {
            "tokens_per_step": case["window"] * case.get("size", 1) * case.get("count", 1) * processes,
            "micro_batch": case.get("size", 1),
            "device": device,
            "precision": "bf16" if case.get("bf16") else "fp32",
            "compile": False,
            "parallel": strategy if strategy != "single" else "auto",
            "activation_checkpointing": case.get("checkpointing", "none"),
        }
    )


def told(case: dict[str, Any], device: str, strategy: str, processes: int) -> int:
    """What the plan says."""
    training = training_of(case, device, strategy, processes)
    model = on_meta(architecture_config(case["model"]))
    teacher = on_meta(architecture_config(case["teacher"])) if case.get("teacher") else None
    step = step_of(model, training, case["window"], torch.device(device), case.get("bf16", False), teacher)
    kind: Any = strategy
    room = psutil.virtual_memory().total // processes if device == "cpu" else None
    return memory_per_process(fitting_step(step, training, kind, processes, room), kind, processes)


def stepper_of(case: dict[str, Any], training: Training, hardware: Hardware) -> Stepper:
    model = from_config(architecture_config(case["model"]), seed=0)
    loss = NextTokenLoss(model, hardware.world)
    if case.get("teacher"):
        teacher = from_config(architecture_config(case["teacher"]), seed=1)
        loss = DistillationLoss(model, teacher, Distillation(), hardware.world)
    placed = place(loss, training, hardware, case["window"])
    step = choose_micro_batch(placed, training, hardware, case["window"])
    placed = replace(placed, keeps=step.keeps)
    return Stepper(placed, make_optimizer(placed.loss.model, training.optimizer), training, hardware)


def take_steps(case: dict[str, Any], training: Training, hardware: Hardware, steps: int) -> int:
    """Bytes at the peak of the last of these steps."""
    stepper = stepper_of(case, training, hardware)
    shape = (case.get("size", 1), case["window"])
    vocabulary = case["model"].get("vocab_size", 50_304)
    for step in range(steps):
        batches = [
            torch.randint(vocabulary, shape, device=hardware.device) for _ in range(case.get("count", 1))
        ]
        if step == steps - 1:
            reset_peak(hardware)
        stepper(step, [(tokens, tokens) for tokens in batches])
    return peak(hardware)


def reset_peak(hardware: Hardware) -> None:
    if hardware.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(hardware: Hardware) -> int:
    if hardware.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure_here(name: str, device: str, strategy: str, processes: int, results: Any) -> None:
    """In one of the processes: send what it took."""
    case, training = CASES[name], training_of(CASES[name], device, strategy, processes)
    with joined(training) as world:
        hardware = choose_hardware(training, world)
        take_steps(TINY, training_of(TINY, device, strategy, processes), hardware, 2)
        before = psutil.Process().memory_info().rss if device == "cpu" else torch.cuda.memory_allocated()
        results.put(take_steps(case, training, hardware, STEPS) - before)


def measured(name: str, device: str, strategy: str, size: int) -> int:
    """What the largest of the processes took."""
    # Forked, so that torch and transformers are imported once.
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size)
        )
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        processes.append(context.Process(target=measure_here, args=(name, device, strategy, size, results)))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{name} with {strategy} failed")
    return max(results.get() for _ in processes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="parts of their names, with semicolons between them")
    parser.add_argument("--strategies", default="single,ddp,fsdp")
    parser.add_argument("--processes", type=int, default=2, help="of ddp and fsdp")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--regather", action="store_true", help="FSDP as where there is no room to keep weights"
    )
    options = parser.parse_args()
    if GLIBC.items() - os.environ.items():  # it is read when a program starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **GLIBC})
    transformers_logging.set_verbosity_error()
    parallel.GROUP = 2**26  # so that these small models have several groups of blocks
    if options.regather:
        micro_batch.FILLED_TOGETHER = 0
    torch.set_num_threads(1)
    strategies = options.strategies.split(",") if options.device == "cpu" else ["single"]
    names = [name for name in CASES if any(part in name for part in options.cases.split(";"))]
    count = {strategy: 1 if strategy == "single" else options.processes for strategy in strategies}
    seen: dict[tuple[str, str], int] = {}
    for name, strategy in itertools.product(names, strategies):
        try:
            seen[name, strategy] = measured(name, options.device, strategy, count[strategy])
        except RuntimeError as error:
            print(error, flush=True)
            continue
        print(f"{name}, {strategy}: {seen[name, strategy] / 2**30:.3f} GiB", flush=True)
    print(f"{'':36}{'strategy':10}{'told':>8}{'measured':>10}{'ratio':>8}", flush=True)
    for (
        name,
        strategy,
    ), taken in seen.items():  # only now, as a program that has used autograd cannot be forked
        ours = told(CASES[name], options.device, strategy, count[strategy])
        print(
            f"{name:36}{strategy:10}{ours / 2**30:8.3f}{taken / 2**30:10.3f}{ours / taken:8.3f}", flush=True
        )


if __name__ == "__main__":
    main()
