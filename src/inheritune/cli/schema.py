"""`inheritune schema`: what editors check recipes with."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def schema_command(
    kind: Annotated[
        Literal["run", "train", "study"], typer.Argument(help="The verb that the recipes are for.")
    ] = "run",
) -> None:
    """Print the JSON Schema of recipes: every key, its values and its meaning, for editors and other programs."""
    from inheritune.recipe_schema import schema_text

    typer.echo(schema_text(kind), nl=False)
