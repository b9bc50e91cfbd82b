"""`inheritune plan`: what a run will cost."""

from __future__ import annotations

from typing import Annotated

import typer

from inheritune.cli.options import RecipeFile, Set

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
    from inheritune.planning import plan
    from inheritune.recipe_file import load_any

    quiet()
    found = plan(
        load_any(recipe, changes or ()),
        flops_per_second=flops,
        measure=measure,
        processes=processes,
        device=device,
        without_data=without_data,
    )
    # Not `found.table()`: in a narrow terminal the names are folded, not the numbers, and nothing waits for figures.
    table = Table(title=found.name, box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(found.headings[0], overflow="fold")
    for heading in found.headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True, min_width=WIDTHS[heading])
    for cells in found.rows:
        table.add_row(*cells, style="bold" if cells[0] == "at most" else None)
    console.print(table)
    for line in found.words:
        print_line(line)
