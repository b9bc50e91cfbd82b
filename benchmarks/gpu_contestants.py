"""What `gpu.py` starts as a program of its own: one contestant, timed; see there.

python benchmarks/gpu_contestants.py '{"size": "tiny", "contestant": "ours", "device": "cpu", ...}' RESULT.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gpu import SIZES, Size

WARM_UP = 3
WATCHED = 3
WARM_PRODUCTS = 1000  # about 1.5 s of an H100's time
ATTENTION = ("flash", "fmha", "attention", "sdpa", "mha")
Step = Callable[[], Any]


def main() -> None:
    spec, result = json.loads(sys.argv[1]), Path(sys.argv[2])
    if spec["device"] == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU here")
    name = spec["contestant"].split("+")[0]
    row = CONTESTANTS[name](spec)
    result.write_text(json.dumps(row), encoding="utf-8")


def machine(spec: dict[str, Any]) -> dict[str, Any]:
    """Versions, the device's name, and how fast it multiplies matrices."""
    device = torch.device(spec["device"])
    size, rate = matmul_rate(device, 30 if device.type == "cuda" else 5)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "transformers": version("transformers")}
    return {
        "contestant": "machine",
        "device": name,
        "described": {"device": name, **versions, "cuda": torch.version.cuda or "no"},
        "shape": f"bf16 {size} x {size} x {size}",
        "matmul": rate,
    }


def matmul_rate(device: torch.device, times: int) -> tuple[int, float]:
    """Rows of two square bf16 matrices of random numbers, and FLOP/s of their product; median of the later ones."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [_elapsed(lambda: a @ b, device) for _ in range(times)]
    return size, 2 * size**3 / statistics.median(seconds[len(seconds) // 3 :])


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    """Steps as `training.loop.train` makes them: order, reading, schedule, clip, metrics."""
    import gpu_variants
    from inheritune.data.loader import ahead, training_steps
    from inheritune.data.order import Order
    from inheritune.runtime.hardware import choose_hardware
    from inheritune.training.checkpoint import TrainState
    from inheritune.training.metrics import Metrics
    from inheritune.training.optimizer import make_optimizer
    from inheritune.training.step import Stepper

    settings = gpu_variants.parse(spec["contestant"])
    if settings.get("loss") == "fused" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return {"skipped": f"torch {torch.__version__} has no linear_cross_entropy"}
    size = SIZES[spec["size"]]
    training = training_of(size, spec)
    hardware = choose_hardware(training)
    model = model_of(size)
    placed = gpu_variants.placed(model, training, hardware, size.window, settings)
    optimizer = make_optimizer(model, training.optimizer)
    stepper = Stepper(placed, optimizer, training, hardware)
    flops = placed.loss.flops_per_token(size.window)
    batch = micro_batch_of(model, training, hardware, size)
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(Path(folder), size)
        order = Order(data.windows, training.tokens_per_step // size.window, training.seed)
        state = TrainState()
        metrics = Metrics(Path(folder), training, hardware, flops * training.tokens_per_step, state)
        steps = ahead(training_steps(data, order, range(training.steps), batch, hardware.device))

        def step() -> None:
            began = time.perf_counter()
            result = stepper(state.step, next(steps))
            state.step += 1
            state.seconds += time.perf_counter() - began
            metrics.stepped(state, result)

        row = time_steps(step, spec, hardware.device)
        row["synchronized_at"] = _synchronizations(step, hardware.device)
        row["synchronizations"], row["watched_steps"] = len(row["synchronized_at"]), WATCHED
        stepper.check_last()
        steps.close()
        metrics.close()
    return {**row, "flops_per_token": flops, "micro_batch": batch, **rates_of(row, size)}


def plain(spec: dict[str, Any]) -> dict[str, Any]:
    """What one would write by hand: the model compiled with its logits and cross entropy, clip, fused AdamW."""
    import torch.nn.functional as F

    from inheritune.models.size import flops_per_token
    from inheritune.runtime.hardware import choose_hardware
    from inheritune.training.optimizer import make_optimizer

    size = SIZES[spec["size"]]
    training = training_of(size, spec)
    hardware = choose_hardware(training)
    model = model_of(size).to(hardware.device)
    optimizer = make_optimizer(model, training.optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = micro_batch_of(model, training, hardware, size)
    count = training.tokens_per_step // size.window // batch

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=inputs, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    compiled = torch.compile(forward) if hardware.compile else forward
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(Path(folder), size)
        micro_batches = random_batches(data, size.window, batch, hardware.device)
        model.train()

        def step() -> None:
            for _ in range(count):
                inputs, targets = next(micro_batches)
                with hardware.autocast():
                    loss = compiled(inputs, targets) / count
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        row = time_steps(step, spec, hardware.device)
    flops = flops_per_token(model, size.window)
    return {**row, "flops_per_token": flops, "micro_batch": batch, **rates_of(row, size)}


def training_of(size: Size, spec: dict[str, Any]) -> Any:
    import gpu_variants
    from inheritune.config import Training

    own = {"steps": 100_000, "tokens_per_step": size.tokens_per_step, "device": spec["device"]}
    changed = gpu_variants.recipe(gpu_variants.parse(spec["contestant"]))
    return Training.model_validate({**own, "tensorboard": False, **changed})


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


def _synchronizations(step: Step, device: torch.device) -> list[str]:
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


def _other(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def contestant(spec: dict[str, Any]) -> dict[str, Any]:
        import gpu_others

        return getattr(gpu_others, name)(spec)

    return contestant


CONTESTANTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "machine": machine,
    "ours": ours,
    "plain": plain,
    "trainer": _other("trainer"),
    "litgpt": _other("litgpt"),
}

if __name__ == "__main__":
    main()
