"""`inheritune quickstart`: the whole paper in small."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart_command(
    text: Annotated[
        list[str] | None,
        typer.Option(help="Train on this text (.txt, .jsonl, .parquet; a file, folder or glob; repeatable)."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run directory.")] = Path("runs/quickstart"),
) -> None:
    """Train a small reference on the docstrings of the installed packages, or on --text, and shrink it."""
    from inheritune.cli.console import print_line, print_result, quiet
    from inheritune.quickstart import quickstart
    from inheritune.report.results import RunResult
    from inheritune.run_directory import RunDirectory

    quiet()
    if RunDirectory(output).finished:
        print_line(f"{output} is finished; nothing was changed. Remove it to run again.")
    print_result(RunResult(output, quickstart(output, text or ())))
