"""`inheritune inherit`: the cut alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inherit_command(
    model: Annotated[str, typer.Argument(help="Hugging Face model id, or folder of a checkpoint.")],
    layers: Annotated[int, typer.Option("--layers", "-n", help="How many of the first layers to keep.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new checkpoint.")],
    dtype: Annotated[
        str,
        typer.Option(help="Type of the weights: auto (as in the checkpoint), float32, bfloat16, float16."),
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model id.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Keep a model's first layers, embeddings, final norm and head: a standard checkpoint in, one out."""
    from inheritune.cli.console import print_line, quiet
    from inheritune.config import Pretrained
    from inheritune.initialization.inherit import cut_to_folder

    quiet()
    small = cut_to_folder(Pretrained(model, revision, trust_remote_code), layers, output, dtype=dtype)
    print_line(f"{output}: {small.layers} of {small.of_layers} layers, {small.parameters:,} parameters")
