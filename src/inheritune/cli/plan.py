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
    from inheritune.config import Recipe, load_recipe
    from inheritune.planning import measured_rate, plan
    from inheritune.progress import duration

    quiet()
    if flops is not None and flops <= 0:
        raise ValueError(f"--flops-per-second is {flops}, but must be positive")
    settings = load_recipe(recipe, Recipe)
    planned = plan(settings)
    rate = measured_rate(settings) if measure else flops

    headings = ["stage", "layers", "parameters", "tokens", "epochs", "FLOPs", "memory"] + ["time"] * (
        rate is not None
    )
    table = Table(*headings, title=settings.name)
    for stage in planned.stages:
        cells = [
            stage.name,
            str(stage.layers),
            f"{stage.parameters / 1e6:,.1f}M",
            f"{stage.tokens / 1e6:,.0f}M" if stage.tokens else "trained",
            f"{stage.epochs:.2f}" if stage.epochs is not None else "?",
            f"{stage.flops:.2e}",
            f"{stage.memory / 2**30:.2f} GiB",
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
