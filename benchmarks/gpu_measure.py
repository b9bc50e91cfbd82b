"""What all contestants of the GPU benchmark are measured with: model, data, time, and what a profile shows."""

from __future__ import annotations

import fcntl
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpu import Size

WARM_UP = 3
WATCHED = 3
WARM_PRODUCTS = 1000  # about 1.5 s of an H100's time
ATTENTION = ("flash", "fmha", "attention", "sdpa", "mha")
Step = Callable[[], Any]


def matmul_rate(device: torch.device, times: int) -> tuple[int, float]:
    """Rows of two square bf16 matrices of random numbers, and FLOP/s of their product; median of the later ones."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [_elapsed(lambda: a @ b, device) for _ in range(times)]
    return size, 2 * size**3 / statistics.median(seconds[len(seconds) // 3 :])


def training_of(size: Size, spec: dict[str, Any]) -> Any:
    import gpu_variants
    from inheritune.config import Training

    own = {"steps": 100_000, "tokens_per_step": size.tokens_per_step, "device": spec["device"]}
    changed = gpu_variants.recipe(gpu_variants.parse(spec["contestant"]))
    return Training.model_validate({**own, "tracking": {"tensorboard": False}, **changed})


def model_of(size: Size) -> Any:
    from inheritune.models.presets import architecture_config, from_config

    return from_config(architecture_config({**size.architecture, "use_cache": False}), seed=0)


def data_of(folder: Path, size: Size) -> Any:
    import numpy as np

    from inheritune.config import Data
    from inheritune.data.loader import open_data

    generator = np.random.default_rng(0)
    vocabulary = _model_vocabulary(size)
    for name, count in (("train.bin", 200 * size.tokens_per_step), ("val.bin", 10 * size.window)):
        (folder / name).write_bytes(generator.integers(0, vocabulary, count, dtype=np.uint16).tobytes())
    return open_data(Data(path=folder, window=size.window))


def micro_batch_of(model: Any, training: Any, hardware: Any, size: Size) -> int:
    """Windows in a forward pass that our training would take on this GPU; the others take as many."""
    from inheritune.training.micro_batch import fitting_step, step_of
    from inheritune.training.parallel import device_memory

    step = step_of(model, training, size.window, hardware.device, hardware.bf16)
    return fitting_step(step, training, "single", room=device_memory(hardware)).micro_batch


def _model_vocabulary(size: Size) -> int:
    from inheritune.models.presets import architecture_config

    return int(architecture_config(size.architecture).vocab_size)


def random_batches(
    data: Any, window: int, size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    import numpy as np

    from inheritune.data.loader import batches

    generator = np.random.default_rng(0)
    while True:
        yield from batches(data.train, generator.integers(0, data.windows, size), window, size, device)


def time_steps(step: Step, spec: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Median seconds of a step over the rounds; peak memory; kernels of one more step."""
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    warm = time.perf_counter() - started
    rounds = []
    with alone_on_gpu():
        for _ in range(spec["rounds"]):
            started = time.perf_counter()
            for _ in range(spec["steps"]):
                step()
            synchronize(device)
            rounds.append((time.perf_counter() - started) / spec["steps"])
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        measured = {"rounds": rounds, "memory_bytes": memory, "warm_up_seconds": warm}
        if device.type == "cuda":
            measured["matmul_when_warm"] = matmul_rate(device, WARM_PRODUCTS)[1]
        return {**measured, **profile_of(step, device)}


@contextmanager
def alone_on_gpu() -> Iterator[None]:
    """No other contestant that was given the same `GPU_LOCK`, a file, is timed meanwhile."""
    if "GPU_LOCK" not in os.environ:
        yield
        return
    with Path(os.environ["GPU_LOCK"]).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def rates_of(row: dict[str, Any], size: Size) -> dict[str, Any]:
    seconds = statistics.median(row["rounds"])
    return {"seconds_per_step": seconds, "tokens_per_second": size.tokens_per_step / seconds}


def profile_of(step: Step, device: torch.device) -> dict[str, Any]:
    """Names of the kernels that attend, and milliseconds of the kernels that take longest, in one step."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        synchronize(device)
    times: dict[str, float] = {}
    for event in profile.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device == (device.type == "cuda"):
            own = event.self_device_time_total if on_device else event.self_cpu_time_total
            times[event.key] = times.get(event.key, 0.0) + own / 1e3
    longest = sorted(times.items(), key=lambda item: -item[1])
    attending = [name for name, _ in longest if any(word in name.lower() for word in ATTENTION)]
    return {
        "attention_kernels": [name[:100] for name in attending[:4]],
        "kernels": [(name[:140], round(ms, 3)) for name, ms in longest[:25]],
        "kernel_milliseconds": sum(times.values()),
    }


def synchronizations(step: Step, device: torch.device) -> list[str]:
    """Where a few steps make the host wait for the GPU, as torch warns of it."""
    if device.type != "cuda":
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(WATCHED):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen = [warning for warning in seen if "synchroniz" in str(warning.message)]
    return [f"{'/'.join(Path(each.filename).parts[-3:])}:{each.lineno}" for each in seen]


def _elapsed(action: Step, device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        action()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
