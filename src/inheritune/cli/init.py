"""`inheritune init`: a recipe to begin with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from inheritune import UserError

QUESTIONS = {
    "--model": "Model (a Hugging Face id, or a folder)",
    "--data or --text": "Text (.txt, .jsonl, .parquet; a file, folder or pattern), or a folder with token shards",
    "--budget": "Budget of the training (such as 2h, or 50M tokens)",
}


def init_command(
    model: Annotated[
        str | None, typer.Option(help="Hugging Face model id, folder of a checkpoint, or GGUF file.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with token shards of the model's tokenizer.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text to prepare instead: a file, folder or pattern.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Of the training: hours (2h), minutes (30min) or tokens (50M).")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Recipe to write.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a recipe for a model, a text and a budget; what is not given is asked for."""
    from inheritune.cli.console import print_line, quiet
    from inheritune.data.prepare import few_held_out
    from inheritune.data.shards import MANIFEST
    from inheritune.models.load import load_config
    from inheritune.new_recipe import new_recipe, parse_budget, prepared
    from inheritune.recipe_schema import schema_beside, schema_text
    from inheritune.runtime import files

    quiet()
    if output.exists():
        raise UserError(f"{output} exists already: give another file, or remove it")
    files.check_place(output.parent)
    schema = schema_beside(output, "run")
    if data is not None and text is not None:
        raise UserError("give either --data (token shards) or --text (a text)")
    model = model or ask("--model")
    load_config(model)  # what is wrong with it is an error before anything is asked or prepared
    if data is None and text is None:
        given = ask("--data or --text")
        data, text = (Path(given), None) if (Path(given) / MANIFEST).exists() else (None, given)
    limit = parse_budget(budget or ask("--budget"))
    if data is None:
        assert text is not None
        data, manifest = prepared(text, model, output)
        print_line(f"{data}: {manifest.splits['train'].tokens:,} tokens")
        if few := few_held_out(manifest):
            print_line(f"note: {few}")
    written = new_recipe(model, data, limit)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(schema, schema_text("run"))
    files.write_text(output, written)
    print_line(f"{output} is written, and {schema}, by which editors check it. Look at it, then:")
    print_line(f"  inheritune plan {output}")
    print_line(f"  inheritune run {output}")


def ask(option: str) -> str:
    """What an option lacks, from the user.

    Raises:
        UserError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UserError(f"{option} is missing: give it, or start `inheritune init` in a terminal, which asks")
    return str(typer.prompt(QUESTIONS[option]))
