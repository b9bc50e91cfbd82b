"""`inheritune report`: one HTML file about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory that `inheritune run` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write it; RUN/report.html if not given."
        ),
    ] = None,
) -> None:
    """Write one HTML file about a run: verdict, curves, rounds, samples, recipe."""
    from inheritune.report import write_report

    typer.echo(write_report(run, output))
