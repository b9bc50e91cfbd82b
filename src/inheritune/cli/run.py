"""`inheritune run`: Algorithm 1."""

from __future__ import annotations

from inheritune.cli.options import RecipeFile, RunFolder, Set


def run_command(
    recipe: RecipeFile,
    output: RunFolder = None,
    changes: Set = None,
) -> None:
    """Inherit, train, compare, grow, until the small model is as good as the large one. Repeat it to resume."""
    from inheritune import api
    from inheritune.algorithm import complete
    from inheritune.cli.console import print_line, print_result, quiet
    from inheritune.config import Recipe
    from inheritune.recipe_file import load_recipe
    from inheritune.runtime.signals import first_process

    quiet()
    settings = load_recipe(recipe, Recipe, changes or ())
    was_complete = complete(settings, api.directory_of(settings, output))
    result = api.run(settings, output)
    if not first_process():
        return
    if was_complete:
        print_line(f"{result.directory} is finished; nothing was changed.")
    print_result(result)
