"""`inheritune inherit`: the cut alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import Dtype, ModelName, Revision, TrustRemoteCode


def inherit_command(
    model: ModelName,
    layers: Annotated[int, typer.Option("--layers", "-n", help="How many of the first layers to keep.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new checkpoint.")],
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Keep a model's first layers, embeddings, final norm and head: a standard checkpoint in, one out."""
    from inheritune.cli.console import print_line, quiet
    from inheritune.config import Pretrained
    from inheritune.initialization.inherit import cut_to_folder

    quiet()
    small = cut_to_folder(Pretrained(model, revision, trust_remote_code), layers, output, dtype=dtype)
    print_line(f"{output}: {small.layers} of {small.of_layers} layers, {small.parameters:,} parameters")
