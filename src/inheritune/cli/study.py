"""`inheritune study`: the rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import RunFolder, Set


def study_command(
    study: Annotated[Path, typer.Argument(help="Study file (YAML) with `rows`.")],
    output: RunFolder = None,
    changes: Set = None,
    row: Annotated[
        list[str] | None,
        typer.Option("--row", help="Run only this row and those it needs; may be repeated."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Rows to run at the same time.")] = 1,
) -> None:
    """Run every row of a study, and compare them. Repeat it to resume."""
    from inheritune.cli.console import print_comparison, print_line, quiet
    from inheritune.config import Study
    from inheritune.recipe_file import load_recipe
    from inheritune.study import compare_rows, run_study

    quiet()
    settings = load_recipe(study, Study, changes or ())
    directory = output or Path("runs") / settings.name
    rows = run_study(settings, directory, only=tuple(row or ()), jobs=jobs, tell=print_line)
    print_comparison(compare_rows(settings, rows, directory), directory / "comparison")
