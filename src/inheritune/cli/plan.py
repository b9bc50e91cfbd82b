"""`inheritune plan`: what a run will cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan_command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    flops: Annotated[
        float | None, typer.Option("--flops-per-second", help="Rate to plan with, such as 1.5e14.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run a few steps here, and plan with their rate.")
    ] = False,
) -> None:
    """Parameters, tokens, FLOPs, memory and hours of every stage, before anything runs."""
    from rich.table import Table

    from inheritune.cli.console import console, print_line, quiet
    from inheritune.config import Recipe
    from inheritune.planning import measured_rate, plan
    from inheritune.progress import duration
    from inheritune.recipe_file import load_recipe
    from inheritune.report.quantities import count, memory

    quiet()
    if flops is not None and flops <= 0:
        raise ValueError(f"--flops-per-second is {flops}, but must be positive")
    settings = load_recipe(recipe, Recipe)
    planned = plan(settings)
    rate = measured_rate(settings) if measure else flops

    headings = ("stage", "layers", "params", "tokens", "epochs", "FLOPs", "memory")
    table = Table(*headings, *(("time",) if rate else ()), title=settings.name)
    for stage in planned.stages:
        cells = [
            stage.name,
            str(stage.layers),
            count(stage.parameters),
            count(stage.tokens) if stage.tokens else "trained",
            f"{stage.epochs:.2f}" if stage.epochs is not None else "?",
            f"{stage.flops:.2e}",
            memory(stage.memory),
        ]
        table.add_row(*cells, *([duration(stage.seconds(rate))] if rate else []))
    console.print(table)
    print_line(
        "A run ends at the first round that reaches parity. Memory: weights, gradients and AdamW's moments"
    )
    print_line("in float32; activations come on top.")
    if rate:
        print_line(f"Times at {rate:.3g} FLOP/s ({'measured here' if measure else 'given'}).")
    for warning in planned.warnings:
        print_line(f"note: {warning}")
