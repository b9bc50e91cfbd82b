"""`inheritune analyze`: what each layer is worth, and which are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune import UserError
from inheritune.cli.options import Device, Dtype, IgnoreTokenizer, ModelName, Revision, TrustRemoteCode

if TYPE_CHECKING:
    from inheritune.analysis.analyze import Options

ATTENTION = ("sequences", "window", "tau", "mass", "degenerate", "batch", "dtype")
"""Options that say nothing of what layers are worth."""


def analyze_command(
    model: ModelName,
    other: Annotated[
        str | None, typer.Argument(metavar="[MODEL_B]", help="A second model, to be shown beside the first.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with token shards.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text file, read with the model's own tokenizer.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results, their pictures and a page.")
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Rank and mass of every attention head too, as in the paper.")
    ] = False,
    fewest: Annotated[
        int | None, typer.Option("--layers", "-n", help="Layers of the smallest cut; by default half.")
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            help="Of the attention: how many random windows of the text (paper: 100); by default until the mean rank "
            "of each layer is known to a tenth of it, or of the mean over layers."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens of each; by default 512 (paper: 1024), or what model and text allow."),
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
    """What each layer is worth, which ones to keep, and what cuts cost; on demand, which layers are lazy."""
    from inheritune import api
    from inheritune.analysis.analyze import Analyzed, Options, analyze_side_by_side, check_analysis
    from inheritune.analysis.layers import disagreement
    from inheritune.analysis.maps import parse_heads
    from inheritune.analysis.result import short_name
    from inheritune.cli.console import console, print_line, quiet
    from inheritune.report.analysis_report import analysis_table, labelled, write_analysis
    from inheritune.report.layers_report import block_table, cut_table, write_layers
    from inheritune.runtime import files

    quiet()
    source = data or text
    if source is None or (data is not None and text is not None):
        raise UserError("give either --data (token shards) or --text (a text file)")
    if heads is not None and output is None:
        raise UserError("--heads says which attention maps to draw, so --output must say where to")
    if output is not None:
        files.check_place(output)
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
    parsed = None if heads is None else parse_heads(heads)
    models = [model] if other is None else [model, other]
    attention = attention or heads is not None or other is not None
    if other is not None and fewest is not None:
        raise UserError("--layers is about the cuts of one model, and two are given: leave it out")
    if attention:
        check_analysis(models, source, options, parsed)
    else:
        check_unused(options, Options(dtype="float32"))
    worth, analyzed = None, list[Analyzed]()
    if other is None:
        name = short_name(model)
        worth = api.importance(
            model,
            source,
            layers=fewest,
            seed=seed,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            bos=bos,
            ignore_tokenizer=ignore_tokenizer,
            on_blocks=lambda blocks: console.print(block_table(name, blocks).terminal()),
        )
        console.print(cut_table(worth).terminal())
        print_line(worth.sentence)
        for path in write_layers(output, worth) if output else ():
            print_line(str(path))
    if attention:
        analyzed = analyze_side_by_side(models, source, options, heads=parsed, maps=output is not None)
    for name, analysis in labelled([one.analysis for one in analyzed]).items():
        console.print(analysis_table(name, analysis).terminal())
        print_line(analysis.cut.sentence)
        lazy = [layer - 1 for layer in analysis.cut.lazy_layers]
        if worth is not None and (sentence := disagreement(worth.blocks, lazy)):
            print_line(sentence)
    for path in write_analysis(output, worth, analyzed) if output else ():
        print_line(str(path))


def check_unused(options: Options, usual: Options) -> None:
    """UserError for an option of the attention, where that is not analyzed."""
    for name in ATTENTION:
        if getattr(options, name) != getattr(usual, name):
            raise UserError(
                f"--{name} is about attention, which is not analyzed: give --attention too, or leave it out"
            )
