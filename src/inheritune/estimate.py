"""What a run will cost, put together for people: `inheritune plan`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inheritune import UserError
from inheritune.config import Recipe, Study, TrainRecipe
from inheritune.data.prepare import few_held_out
from inheritune.data.shards import MANIFEST, read_manifest
from inheritune.planning import Plan, Stage, StageMemory, known_rate, measured_rate, plan, plan_memory
from inheritune.quantities import count, duration, memory
from inheritune.shown import Shown

if TYPE_CHECKING:
    from inheritune.report.view import View

HEADINGS = ("stage", "layers", "params", "tokens", "epochs", "FLOPs", "memory", "time")
"""Of `Estimate.rows`; the time only where a rate is known."""


@dataclass(frozen=True)
class Estimate(Shown):
    """What a run will cost.

    Args:
        name: of the recipe.
        plan: its stages, data and notes.
        memory: of every stage that trains, by its name.
        processes: that train together.
        rate: FLOP/s to plan the time with; None where it is not known.
        rate_is: where that is from.
    """

    name: str
    plan: Plan
    memory: Mapping[str, StageMemory]
    processes: int
    rate: float | None
    rate_is: str

    @property
    def stages(self) -> list[Stage]:
        """As many as there can be; rounds end at the first that reaches parity."""
        return self.plan.stages

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages at the rate."""
        return None if self.rate is None else self.flops / self.rate

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the rows."""
        return HEADINGS if self.rate else HEADINGS[:-1]

    @property
    def rows(self) -> list[list[str]]:
        """A row of cells for each stage, and one for all of them where several train."""
        found = []
        for stage in self.stages:
            tokens = count(stage.tokens) if stage.tokens else "trained"
            epochs = f"{stage.epochs:.2f}" if stage.epochs is not None else "?"
            room = memory(self.memory[stage.name].chosen) if stage.work else "-"
            size = [str(stage.layers), count(stage.parameters)]
            found.append([stage.name, *size, tokens, epochs, *self._spent(stage.flops, room)])
        if len(self.memory) > 1:
            tokens = count(sum(stage.tokens for stage in self.stages))
            found.append(["at most", "", "", tokens, "", *self._spent(self.flops, "")])
        return found

    def _spent(self, flops: float, room: str) -> list[str]:
        time = [duration(flops / self.rate)] if self.rate else []
        return [f"{flops:.1e}".replace("e+", "e"), room, *time]

    @property
    def words(self) -> list[str]:
        """What the table does not say: memory, rate, data and disk."""
        return [
            "Rounds end at the first that reaches parity. Memory: about what a process's tensors take at the peak of "
            "a step, by a formula; the program, a GPU's context and an allocator's reserve come on top.",
            *self._memory_words(),
            *([f"Times at {self.rate:.3g} FLOP/s ({self.rate_is})."] if self.rate else []),
            *self._disk_words(),
        ]

    def _memory_words(self) -> Iterator[str]:
        """About the stage that needs most: its micro-batch, and what it would take with each strategy."""
        if not self.memory:
            return
        name = max(self.memory, key=lambda name: self.memory[name].chosen)
        largest = self.memory[name]
        yield f"Largest: {name}, with {windows(largest.micro_batch)} in one forward pass."
        if self.processes > 1:
            each = {
                strategy: f"{memory(size)} ({windows(largest.windows[strategy])})"
                for strategy, size in largest.needs.items()
            }
            yield (
                f"In each of {self.processes} processes about: ddp {each['ddp']}, fsdp {each['fsdp']}; the recipe "
                f"takes {largest.strategy}. One process alone: {each['single']}."
            )
        if largest.room is not None:
            fits = "fits this machine" if largest.chosen <= largest.room else "does not fit this machine"
            yield f"It {fits}: about {memory(largest.chosen)} of {memory(largest.room)} for each process."

    def _disk_words(self) -> Iterator[str]:
        """What is validated on, and what is written, beside the room for it here."""
        yield from (f"note: {note}" for note in self.plan.notes)
        for path, data in self.plan.validation.items():
            yield f"Validation: {windows(data.validation_windows)} of {data.window:,} tokens in {path}."
            few = few_held_out(read_manifest(path)) if (path / MANIFEST).exists() else None
            if few:
                yield f"note: {few}"
        models, checkpoints = self.plan.models_on_disk, self.plan.checkpoints_on_disk
        if models:
            free = shutil.disk_usage(".").free
            enough = "" if models + checkpoints <= free else ", which is too little"
            yield (
                f"Disk: up to {memory(models)} of models, and {memory(checkpoints)} of checkpoints while the largest "
                f"trains; here {memory(free)} are free{enough}."
            )

    def _view(self) -> View:
        from inheritune.report.table import Table
        from inheritune.report.view import View

        table = Table(self.name, [f"<{self.headings[0]}", *self.headings[1:]], self.rows)
        return View(self.words, [table])


def estimate(
    recipe: Recipe | TrainRecipe | Study,
    *,
    flops_per_second: float | None = None,
    measure: bool = False,
    processes: int = 1,
    device: str | None = None,
    without_data: bool = False,
) -> Estimate:
    """Put a plan together; arguments and errors as of `api.plan`."""
    if flops_per_second is not None and not 0 < flops_per_second < math.inf:
        raise UserError(f"flops_per_second is {flops_per_second}, but must be a positive number")
    if processes < 1:
        raise UserError(f"processes is {processes}, but must be at least 1")
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"device is {device!r}, but must be cpu or cuda")
    if measure and isinstance(recipe, Study):
        raise UserError("a rate is measured for a single recipe; give that of a study (flops_per_second)")
    planned = plan(recipe, without_data=without_data)
    needs = plan_memory(planned, processes, device)
    rate, rate_is = flops_per_second, "given"
    if measure and not isinstance(recipe, Study):
        rate, rate_is = measured_rate(recipe), "measured here"
    if rate is None and (known := known_rate(recipe, device)):
        rate, rate_is = processes * known, f"{processes} x what this kind of GPU was measured to do"
    return Estimate(recipe.name, planned, needs, processes, rate, rate_is)


def windows(count: int) -> str:
    """So many windows."""
    return f"{count} window{'' if count == 1 else 's'}"
