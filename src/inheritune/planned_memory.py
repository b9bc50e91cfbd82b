"""What a training will take of each process's memory, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from inheritune import UserError
from inheritune.config import Distillation
from inheritune.planning import Plan, Stage
from inheritune.training.device import computes_in_bf16
from inheritune.training.memory import memory_per_process
from inheritune.training.micro_batch import fitting_step, step_of
from inheritune.training.parallel import Strategy, fitting_strategy


@dataclass(frozen=True)
class StageMemory:
    """Bytes that the tensors of a step take in each process at their peak.

    Args:
        strategy: what the training would use.
        needs: strategy -> bytes; of one process alone too.
        windows: strategy -> windows in one forward pass.
    """

    strategy: Strategy
    needs: dict[Strategy, int]
    windows: dict[Strategy, int]

    @property
    def chosen(self) -> int:
        """What the training would take."""
        return self.needs[self.strategy]

    @property
    def micro_batch(self) -> int:
        """Windows in one forward pass of the training."""
        return self.windows[self.strategy]


def plan_memory(
    plan: Plan, processes: int = 1, device: str | None = None
) -> tuple[dict[str, StageMemory], list[str]]:
    """Memory of every stage that trains, by name, and warnings about those that cannot be told.

    Raises:
        UserError: as `stage_memory`.
    """
    needs, warnings = {}, []
    for stage in plan.stages:
        try:
            need = stage_memory(stage, processes, device)
        except UserError:
            raise
        except Exception as error:  # a step of any architecture is traced, with tensors that hold nothing
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
        UserError: a number of processes that does not divide the windows of a step, or what else training refuses.
        RuntimeError: the model cannot be traced, since what it computes depends on what its tensors hold.
    """
    if processes < 1:
        raise UserError(f"{processes} processes cannot train: give 1 or more")
    work = stage.work
    if work is None:
        return None
    training = work.training
    here = "cuda" if torch.cuda.is_available() else "cpu"
    on = torch.device(training.device if training.device != "auto" else device or here)
    automatic = on.type == "cuda" or computes_in_bf16(on)
    bf16 = automatic if training.precision == "auto" else training.precision == "bf16"
    how = work.distillation and Distillation(
        alpha=work.distillation.alpha, temperature=work.distillation.temperature
    )
    step, room = (
        step_of(training, work.config, work.window, on, bf16, work.teacher, how),
        _room(on, processes),
    )
    counts: dict[Strategy, int] = {
        "single": 1,
        **({"ddp": processes, "fsdp": processes} if processes > 1 else {}),
    }
    steps = {
        strategy: fitting_step(step, training, strategy, count, room) for strategy, count in counts.items()
    }
    strategy: Strategy = "single"
    if processes > 1:
        wanted = training.parallel.strategy
        # A GPU that is not here is taken to have room for a whole model.
        strategy = fitting_strategy(stage.memory, room or 2**63) if wanted == "auto" else wanted
    return StageMemory(
        strategy,
        {each: memory_per_process(steps[each], each, count) for each, count in counts.items()},
        {each: steps[each].micro_batch for each in steps},
    )


def _room(on: torch.device, processes: int) -> int | None:
    """Bytes of the device of each process; None of a GPU that is not here. Processes on CPUs share this machine."""
    if on.type == "cpu":
        return psutil.virtual_memory().total // processes
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
