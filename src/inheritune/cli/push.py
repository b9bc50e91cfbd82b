"""`inheritune push`: a model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push_command(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL", help="Directory of a finished run or training, or folder of a model."
        ),
    ],
    repo: Annotated[
        str, typer.Option(metavar="NAME", help="Repository: OWNER/NAME, or NAME for one of yours.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody to see; by default private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their bytes; nothing is sent or asked.")
    ] = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub, in one commit.

    What the repository had from an earlier push is replaced; one that holds something else is left alone.
    """
    from inheritune.cli.console import print_line, quiet
    from inheritune.publish import push
    from inheritune.quantities import memory

    quiet()
    pushed = push(directory, repo, public=public, dry_run=dry_run)
    for name, size in pushed.files.items():
        print_line(f"{size:>15,}  {name}")
    where = pushed.url or f"nothing was sent; it would go to {pushed.repo}"
    print_line(f"{memory(sum(pushed.files.values())):>15}  in all: {where}")
