"""What a training will take of each process's memory, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from inheritune.config import Distillation
from inheritune.planning import Plan, Stage
from inheritune.training.device import computes_in_bf16, micro_batch
from inheritune.training.memory import memory_per_process
from inheritune.training.parallel import SHARE_OF_MEMORY, Strategy
from inheritune.training.traced_step import Step


@dataclass(frozen=True)
class StageMemory:
    """Bytes that the tensors of a step take in each process at their peak.

    Args:
        strategy: what the training would use.
        needs: strategy -> bytes; of one process alone too.
        micro_batch: windows in one forward pass.
        alone: windows in one forward pass of a process that trains alone.
    """

    strategy: Strategy
    needs: dict[Strategy, int]
    micro_batch: int
    alone: int

    @property
    def chosen(self) -> int:
        """What the training would take."""
        return self.needs[self.strategy]


def plan_memory(
    plan: Plan, processes: int = 1, device: str | None = None
) -> tuple[dict[str, StageMemory], list[str]]:
    """Memory of every stage that trains, by name, and warnings about those that cannot be told.

    Raises:
        ValueError: as `stage_memory`.
    """
    needs, warnings = {}, []
    for stage in plan.stages:
        try:
            need = stage_memory(stage, processes, device)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.append(
                f"{stage.name}: memory is without activations, as a step cannot be traced ({reason})"
            )
            continue
        if need is not None:
            needs[stage.name] = need
    return needs, warnings


def stage_memory(stage: Stage, processes: int = 1, device: str | None = None) -> StageMemory | None:
    """Memory of a stage's steps; None of a model that is not trained.

    Args:
        stage: of a plan.
        processes: that train together.
        device: "cpu" or "cuda", where the recipe leaves it open; by default what is here. A GPU need not be here.

    Raises:
        ValueError: a number of processes that does not divide the windows of a step, or what else training refuses.
        RuntimeError: the model cannot be traced, since what it computes depends on what its tensors hold.
    """
    if processes < 1:
        raise ValueError(f"{processes} processes cannot train: give 1 or more")
    work = stage.work
    if work is None:
        return None
    training = work.training
    here = "cuda" if torch.cuda.is_available() else "cpu"
    on = torch.device(training.device if training.device != "auto" else device or here)
    automatic = on.type == "cuda" or computes_in_bf16(on)
    alone, step = (
        Step(
            config=work.config,
            window=work.window,
            micro_batch=(size := micro_batch(training, work.window, on, count)),
            accumulates=training.tokens_per_step > size * work.window * count,
            bf16=automatic if training.precision == "auto" else training.precision == "bf16",
            gpu=on.type == "cuda",
            checkpointing=training.activation_checkpointing,
            optimizer=training.optimizer.name,
            teacher=work.teacher,
            distillation=work.distillation
            and Distillation(alpha=work.distillation.alpha, temperature=work.distillation.temperature),
        )
        for count in (1, processes)
    )
    needs: dict[Strategy, int] = {"single": memory_per_process(alone, "single")}
    if processes == 1:
        return StageMemory("single", needs, step.micro_batch, alone.micro_batch)
    needs["ddp"] = memory_per_process(step, "ddp", processes)
    needs["fsdp"] = memory_per_process(step, "fsdp", processes)
    wanted = training.parallel.strategy
    if wanted == "auto":
        wanted = "ddp" if _fits(stage.memory, on, processes) else "fsdp"
    return StageMemory(wanted, needs, step.micro_batch, alone.micro_batch)


def _fits(size: int, on: torch.device, processes: int) -> bool:
    """Whether a whole model in training leaves room for activations, as `parallel.choose_strategy` asks.

    Of a GPU that is not here it is taken to; processes on CPUs are taken to share this machine.
    """
    if on.type == "cpu":
        return size <= SHARE_OF_MEMORY * (psutil.virtual_memory().total // processes)
    if not torch.cuda.is_available():
        return True
    return size <= SHARE_OF_MEMORY * torch.cuda.get_device_properties(0).total_memory
