"""Peak memory and time of the distillation loss: in chunks, and with both models' logits held whole.

    python benchmarks/distillation.py [--layers 6 12 --hidden 768 --windows 8]

Forward and backward pass of a GPT-2 student under a teacher, vocabulary 50,304, windows of 1,024 tokens. Each form is
measured in a process of its own: on a GPU the most that was allocated, on a CPU the most that the process held, in
both cases less what the models themselves take. Medians of the steps after the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import psutil
import torch

from inheritune.config import Distillation, Training
from inheritune.models.presets import architecture_config, from_config
from inheritune.runtime.hardware import choose_hardware
from inheritune.training.distillation import DistillationLoss, summed_loss
from inheritune.training.loss import NextTokenLoss

FORMS = ("cross entropy alone", "in chunks", "held whole")


class Whole(DistillationLoss):
    """The same loss, written down as it stands in the paper."""

    def forward(self, inputs_bt: torch.Tensor, targets_bt: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            taught = self.teacher.logits(inputs_bt).flatten(0, 1)
        logits = self.logits(inputs_bt).flatten(0, 1)
        return summed_loss(logits, taught, targets_bt.flatten(), 0.6, 1.0) / targets_bt.numel()


def measure(form: str, options: argparse.Namespace) -> dict[str, float]:
    """Bytes beyond the models and their gradients, seconds a step, and the loss, of one form."""
    hardware = choose_hardware(Training(compile=False))
    size = {"preset": "gpt2-small", "n_embd": options.hidden, "n_head": options.hidden // 64}
    student, teacher = (
        from_config(architecture_config({**size, "n_layer": layers}), seed).to(hardware.device)
        for seed, layers in enumerate(options.layers)
    )
    if form == "cross entropy alone":
        loss: NextTokenLoss = NextTokenLoss(student)
    else:
        loss = (DistillationLoss if form == "in chunks" else Whole)(student, teacher, Distillation())
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.randint(50_257, (options.windows, 1025), device=hardware.device)
    cuda = hardware.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else psutil.Process().memory_info().rss
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        with hardware.autocast():
            value = loss(tokens[:, :-1], tokens[:, 1:].contiguous())
        value.backward()
        last = value.item()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"bytes": peak - before, "seconds": statistics.median(seconds[1:]), "loss": last}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs=2, default=(6, 12), help="of student and teacher")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--form", choices=FORMS, help="measure this one only, and print it as JSON")
    options = parser.parse_args()
    if options.form:
        torch.manual_seed(0)
        print(json.dumps(measure(options.form, options)))
        return
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads"
    )
    logits = options.windows * 1024 * 50_304 * 4 / 2**30
    print(f"torch {torch.__version__}, {where}; one tensor of float32 logits would be {logits:.2f} GiB")
    for form in FORMS:
        command = [sys.executable, __file__, *sys.argv[1:], "--form", form]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size, time_ms = result["bytes"] / 2**30, 1000 * result["seconds"]
        print(f"{form:22} {size:8.2f} GiB {time_ms:9.0f} ms   loss {result['loss']:.6f}")


if __name__ == "__main__":
    main()
