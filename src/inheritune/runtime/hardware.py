"""What a machine can do: device, precision, compilation, memory; and the processes that share it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from inheritune import UserError
from inheritune.config import Training
from inheritune.runtime.progress import in_notebook
from inheritune.runtime.world import ALONE, World, check_gpus


@dataclass(frozen=True)
class Hardware:
    """The choices that `auto` stands for, made for this machine, and the processes that train together."""

    device: torch.device
    bf16: bool
    compile: bool
    world: World = ALONE

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass computes: bfloat16, or float32 as it is."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def memory_bytes(self) -> int:
        """Peak memory of the GPU so far; on a CPU the memory the process holds now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return psutil.Process().memory_info().rss


def choose_hardware(training: Training, world: World = ALONE) -> Hardware:
    """Device, precision and compilation for a training in this process.

    Raises:
        UserError: the recipe asks for what the machine does not have.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "the recipe asks for `device: cuda`, but torch sees no CUDA GPU here; use `auto` or `cpu`"
        )
    use_cuda = torch.cuda.is_available() if training.device == "auto" else training.device == "cuda"
    if use_cuda:
        check_gpus(world)
    device = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    bf16 = computes_in_bf16(device) if training.precision == "auto" else training.precision == "bf16"
    compiled = use_cuda if training.compile == "auto" else training.compile
    return Hardware(device, bf16, compiled, world)


def choose_device(wanted: str | torch.device | None) -> torch.device:
    """A device by its name; by default a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"there is no device {wanted!r}: give cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA GPU here: give the device cpu")
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def describe(hardware: Hardware) -> dict[str, str | int]:
    """The machine in words, recorded with every result."""
    on_gpu = hardware.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(hardware.device) if on_gpu else "cpu",
        "precision": "bf16 autocast" if hardware.bf16 else "fp32",
        "compile": "yes" if hardware.compile else "no",
        **({"processes": hardware.world.size} if hardware.world.size > 1 else {}),
    }


def command_line() -> str:
    """What started this program, for the record."""
    if in_notebook():
        return "a notebook"
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a file one would write to
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()
