"""`inheritune analyze`: which layers are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune import UserError
from inheritune.cli.options import Device, Dtype, IgnoreTokenizer, ModelName, Revision, TrustRemoteCode


def analyze_command(
    model: ModelName,
    other: Annotated[
        str | None, typer.Argument(metavar="[MODEL_B]", help="A second model, to be shown beside the first.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with token shards; their validation split is read.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text file, read with the model's own tokenizer.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for analysis.json and the figures.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="How many random windows of the text.")] = 100,
    window: Annotated[
        int | None, typer.Option(help="Tokens of each; by default 1024, or what model and text allow.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Changes which windows are read.")] = 0,
    tau: Annotated[float, typer.Option(help="Share of the squared singular values that k* hold.")] = 0.90,
    mass: Annotated[float, typer.Option(help="Share of the squared attention that m* columns hold.")] = 0.90,
    degenerate: Annotated[float, typer.Option(help="Mean rank up to which a head is degenerate.")] = 1.5,
    heads: Annotated[
        str | None,
        typer.Option(help="Heads to draw, as L4H3,L7H0 (layers from 1, heads from 0); by default a few."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Sequences at once; by default 256 MiB of matrices a layer.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
    revision: Revision = None,
    bos: Annotated[
        str,
        typer.Option(
            metavar="TOKEN|none",
            help="Token that the model reads first in every window; `auto` is what the manifest of the shards says, "
            "or what the tokenizer adds to a text by itself.",
        ),
    ] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    ignore_tokenizer: IgnoreTokenizer = False,
) -> None:
    """Rank and mass of every attention head: which layers are lazy, and how many to keep."""
    from inheritune.analysis.analyze import Options, analyze_side_by_side
    from inheritune.analysis.maps import parse_heads
    from inheritune.cli.console import console, print_line, quiet
    from inheritune.report.analysis_report import analysis_table, labelled, write_analysis

    quiet()
    source = data or text
    if source is None or (data is not None and text is not None):
        raise UserError("give either --data (token shards) or --text (a text file)")
    if heads is not None and output is None:
        raise UserError("--heads says which attention maps to draw, so --output must say where to")
    options = Options(
        sequences,
        window,
        seed,
        tau,
        mass,
        degenerate,
        batch,
        device,
        dtype,
        revision,
        trust_remote_code,
        bos=bos,
        ignore_tokenizer=ignore_tokenizer,
    )
    analyzed = analyze_side_by_side(
        [model] if other is None else [model, other],
        source,
        options,
        heads=None if heads is None else parse_heads(heads),
        maps=output is not None,
    )
    for name, analysis in labelled([one.analysis for one in analyzed]).items():
        console.print(analysis_table(name, analysis))
        print_line(analysis.cut.sentence)
    for path in write_analysis(output, analyzed) if output else ():
        print_line(str(path))
