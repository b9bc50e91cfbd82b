"""`inheritune compare`: any runs in one table and one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Directories of `inheritune train` and `inheritune run`, as PATH or NAME=PATH; those with the "
            "same name are seeds of one row.",
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Name or path to compare with; else the reference of the first `inheritune run`, else the "
            "first RUN.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write page, tables and figures.")
    ] = Path("comparison"),
    title: Annotated[str, typer.Option(help="Heads the page.")] = "Comparison of runs",
) -> None:
    """Compare runs: losses, paired differences with intervals, cost; as HTML, Markdown, CSV and SVG."""
    from inheritune import api
    from inheritune.cli.console import print_comparison, quiet

    quiet()
    print_comparison(api.compare(runs, reference, output, title=title), output)
