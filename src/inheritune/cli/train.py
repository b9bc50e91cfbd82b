"""`inheritune train`: a single model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import RunFolder, Set


def train_command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML) with `model` and `training`.")],
    output: RunFolder = None,
    changes: Set = None,
) -> None:
    """Train one model, from random weights or from a checkpoint. Repeat it to resume."""
    from inheritune.cli.console import command_line, print_line, quiet
    from inheritune.config import TrainRecipe
    from inheritune.recipe_file import load_recipe
    from inheritune.runtime.progress import first_process
    from inheritune.single_model import train_model

    quiet()
    settings = load_recipe(recipe, TrainRecipe, changes or ())
    directory = output or Path("runs") / settings.name
    losses = train_model(settings, directory, command=command_line())
    if not first_process():
        return
    per_byte = "" if losses.bits_per_byte is None else f" ({losses.bits_per_byte:.4f} bits per byte)"
    print_line(
        f"validation loss {losses.mean:.4f} +- {losses.standard_error:.4f}{per_byte} over {len(losses.losses)} "
        "windows"
    )
    print_line(f"model: {directory / 'model'}")
