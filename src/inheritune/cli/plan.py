"""`inheritune plan`: what a run will cost."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune import UserError
from inheritune.cli.options import RecipeFile, Set

if TYPE_CHECKING:
    from inheritune.planning import Plan, StageMemory

WIDTHS = {"layers": 6, "params": 6, "tokens": 7, "epochs": 6, "FLOPs": 6, "memory": 8, "time": 11}
"""Least columns of a terminal for each figure: in a narrow one the names are folded, not the numbers."""


def plan_command(
    recipe: RecipeFile,
    flops: Annotated[
        float | None, typer.Option("--flops-per-second", help="Rate to plan with, such as 1.5e14.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run a few steps here, and plan with their rate.")
    ] = False,
    processes: Annotated[
        int, typer.Option("--processes", help="How many processes train together (torchrun's).")
    ] = 1,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu or cuda: for whose memory to plan; by default what is here."),
    ] = None,
    without_data: Annotated[
        bool, typer.Option("--without-data", help="Plan by the recipe alone where its data is not there yet.")
    ] = False,
    changes: Set = None,
) -> None:
    """Parameters, tokens, FLOPs, memory and hours of every stage, before anything runs."""
    from rich.table import Table

    from inheritune.cli.console import console, print_line, quiet
    from inheritune.config import Study
    from inheritune.planning import known_rate, measured_rate, plan, plan_memory
    from inheritune.quantities import count, duration, memory
    from inheritune.recipe_file import load_any

    quiet()
    if flops is not None and not 0 < flops < math.inf:
        raise UserError(f"--flops-per-second is {flops}, but must be a positive number")
    if processes < 1:
        raise UserError(f"--processes is {processes}, but must be at least 1")
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device is {device!r}, but must be cpu or cuda")
    settings = load_any(recipe, changes or ())
    planned = plan(settings, without_data=without_data)
    needs = plan_memory(planned, processes, device)
    if measure and isinstance(settings, Study):
        raise UserError("--measure is for a single recipe; give a study's rate with --flops-per-second")
    whence = "measured here" if measure else "given"
    rate = measured_rate(settings) if measure and not isinstance(settings, Study) else flops
    if rate is None and (known := known_rate(settings, device)):
        rate, whence = processes * known, f"{processes} x what this kind of GPU was measured to do"

    table = Table(title=settings.name, box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("stage", overflow="fold")
    for heading in WIDTHS if rate else tuple(WIDTHS)[:-1]:
        table.add_column(heading, justify="right", no_wrap=True, min_width=WIDTHS[heading])
    for stage in planned.stages:
        cells = [
            stage.name,
            str(stage.layers),
            count(stage.parameters),
            count(stage.tokens) if stage.tokens else "trained",
            f"{stage.epochs:.2f}" if stage.epochs is not None else "?",
            f"{stage.flops:.1e}".replace("e+", "e"),
            memory(needs[stage.name].chosen) if stage.work else "-",
        ]
        table.add_row(*cells, *([duration(stage.seconds(rate))] if rate else []))
    if len(needs) > 1:
        tokens, spent = (
            sum(getattr(stage, name) for stage in planned.stages) for name in ("tokens", "flops")
        )
        total = ["at most", "", "", count(tokens), "", f"{spent:.1e}".replace("e+", "e"), ""]
        table.add_row(*total, *([duration(spent / rate)] if rate else []), style="bold")
    console.print(table)
    print_line(
        "Rounds end at the first that reaches parity. Memory: about what a process's tensors take at the peak"
    )
    print_line(
        "of a step, by a formula; the program, a GPU's context and an allocator's reserve come on top."
    )
    for line in memory_lines(needs, processes):
        print_line(line)
    if rate:
        print_line(f"Times at {rate:.3g} FLOP/s ({whence}).")
    for line in disk_lines(planned):
        print_line(line)


def memory_lines(needs: dict[str, StageMemory], processes: int) -> list[str]:
    """About the stage that needs most: its micro-batch, and what it would take with each strategy."""
    from inheritune.quantities import memory

    if not needs:
        return []
    name = max(needs, key=lambda name: needs[name].chosen)
    largest = needs[name]
    lines = [f"Largest: {name}, with {windows(largest.micro_batch)} in one forward pass."]
    if processes > 1:
        each = {
            strategy: f"{memory(size)} ({windows(largest.windows[strategy])})"
            for strategy, size in largest.needs.items()
        }
        lines.append(
            f"In each of {processes} processes about: ddp {each['ddp']}, fsdp {each['fsdp']}; the recipe takes "
            f"{largest.strategy}. One process alone: {each['single']}."
        )
    if largest.room is not None:
        fits = "fits this machine" if largest.chosen <= largest.room else "does not fit this machine"
        lines.append(f"It {fits}: about {memory(largest.chosen)} of {memory(largest.room)} for each process.")
    return lines


def disk_lines(planned: Plan) -> list[str]:
    """What is validated on, and what is written, beside the room for it here."""
    from inheritune.data.prepare import few_held_out
    from inheritune.data.shards import MANIFEST, read_manifest
    from inheritune.quantities import memory

    lines = [f"note: {note}" for note in planned.notes]
    for path, data in planned.validation.items():
        lines.append(f"Validation: {windows(data.validation_windows)} of {data.window:,} tokens in {path}.")
        few = few_held_out(read_manifest(path)) if (path / MANIFEST).exists() else None
        lines += [f"note: {few}"] if few else []
    models, checkpoints = planned.models_on_disk, planned.checkpoints_on_disk
    if models:
        free = shutil.disk_usage(".").free
        enough = "" if models + checkpoints <= free else ", which is too little"
        lines.append(
            f"Disk: up to {memory(models)} of models, and {memory(checkpoints)} of checkpoints while the largest "
            f"trains; here {memory(free)} are free{enough}."
        )
    return lines


def windows(count: int) -> str:
    """So many windows."""
    return f"{count} window{'' if count == 1 else 's'}"
