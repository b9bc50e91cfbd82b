"""What `gpu.py` starts as a program of its own: one contestant, timed; see there.

python benchmarks/gpu_contestants.py '{"size": "tiny", "contestant": "ours", "device": "cpu", ...}' RESULT.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gpu import SIZES
from gpu_measure import (
    WATCHED,
    data_of,
    matmul_rate,
    micro_batch_of,
    model_of,
    random_batches,
    rates_of,
    synchronizations,
    time_steps,
    training_of,
)


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


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    """Steps as `training.loop.train` makes them: order, reading, schedule, clip, metrics."""
    import gpu_variants
    from inheritune.data.loader import ahead, training_steps
    from inheritune.data.order import Order
    from inheritune.runtime.hardware import choose_hardware
    from inheritune.runtime.repeatable import repeatable
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
    with repeatable(training), tempfile.TemporaryDirectory() as folder:
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
        row["synchronized_at"] = synchronizations(step, hardware.device)
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
