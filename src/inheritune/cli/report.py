"""`inheritune report`: one HTML file about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune import UserError


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory that `inheritune run` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write it; RUN/report.html if not given."
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--serve", help="Show it on this machine while the run goes on; nothing is written."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where, with --serve; 0 is any free one.")
    ] = 8000,
) -> None:
    """Write one HTML file about a run: verdict, curves, rounds, layers, samples, recipe."""
    from inheritune.report import write_report

    if not live:
        return typer.echo(write_report(run, output))

    from inheritune.report.serve import serve

    if output is not None:
        raise UserError("--serve writes no file: give either --serve or --output")
    serve(run, port, typer.echo)
