"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Argument(help="Hugging Face model id, folder of a checkpoint, or GGUF file.")
]
RecipeFile = Annotated[Path, typer.Argument(help="Recipe file (YAML).")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a key of the recipe, such as training.steps=1000; repeat it for more.",
    ),
]
RunFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory of the run; by default runs/NAME.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if any.")]
Dtype = Annotated[
    str, typer.Option(help="Type of the weights: auto (as in the checkpoint), float32, bfloat16, float16.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model id.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model or its tokenizer.")
]
IgnoreTokenizer = Annotated[
    bool, typer.Option("--ignore-tokenizer", help="Accept shards of another tokenizer than the model's.")
]
