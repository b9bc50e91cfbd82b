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
    from inheritune import api
    from inheritune.cli.console import print_line, quiet
    from inheritune.config import TrainRecipe
    from inheritune.recipe_file import load_recipe
    from inheritune.runtime.signals import first_process

    quiet()
    result = api.train(load_recipe(recipe, TrainRecipe, changes or ()), output)
    if first_process():
        print_line(result.sentence)
        print_line(f"model: {result.directory / 'model'}")
