"""`inheritune inherit`: the cut alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from inheritune import UserError
from inheritune.cli.options import Dtype, ModelName, Revision, TrustRemoteCode

if TYPE_CHECKING:
    from inheritune.config import Narrow


def inherit_command(
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new checkpoint.")],
    layers: Annotated[
        int | None,
        typer.Option("--layers", "-n", help="How many layers to keep; needless if --keep lists them."),
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden size to come to.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads to keep in each layer.")] = None,
    mlp: Annotated[int | None, typer.Option(help="Channels to keep in each layer's MLP.")] = None,
    narrow: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="Which dimensions, heads and channels: those of most `importance`, by the size of their activations "
            "on the text, or the `first`.",
        ),
    ] = "importance",
    parameters: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="In place of a shape, how many parameters at most, such as 80M: depths and widths are compared on "
            "the text.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="The same by the size of the weights as they are saved, such as 200MB."
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="Which layers: first, last, ends, spread, contiguous, measured, or block numbers from 0 as 0,1,2,9. "
            "`auto` is measured where --data or --text is given, else first, as in the paper.",
        ),
    ] = "auto",
    data: Annotated[
        Path | None, typer.Option(help="Token shards to measure on; their training split is read.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text file to measure on.")] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="N|used",
            help="Keep so many tokens, those that occur most in --data or --text, or all that are used there; with "
            "either, all bytes and special tokens.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Changes which windows are measured on.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Where to measure: cpu, cuda, cuda:1; by default a GPU if any.")
    ] = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Keep some of a model's layers, its embeddings, final norm and head: a standard checkpoint in, one out.

    Of its vocabulary all is kept, unless --vocabulary says otherwise.
    """
    from inheritune.cli.console import console, print_line, quiet
    from inheritune.config import Pretrained
    from inheritune.cut import Measuring, Parts, cut_to_folder
    from inheritune.quantities import parse_count, parse_memory
    from inheritune.report.layers_report import shape_table

    quiet()
    if data is not None and text is not None:
        raise UserError("give either --data (token shards) or --text (a text file)")
    parts = Parts(
        layers=layers,
        keep=parse_keep(keep),
        hidden=hidden,
        heads=heads,
        mlp=mlp,
        narrow=cast("Narrow", narrow),
        parameters=parse_count(parameters) if parameters else None,
        memory=parse_memory(memory) if memory else None,
        vocabulary=parse_vocabulary(vocabulary),
    )
    source = Pretrained(model, revision, trust_remote_code)
    cut = cut_to_folder(source, parts, output, Measuring(data or text, seed, device), dtype=dtype)
    kept = cut.kept
    if kept.trials:
        console.print(shape_table(kept.trials).terminal())
    print_line(f"{output}: {len(kept.layers)} of {kept.of_layers} layers, {cut.parameters:,} parameters")
    if (width := kept.width) is not None:
        print_line(f"hidden size {width.hidden}, {width.heads} heads, MLP {width.mlp} by {width.narrow}")
    if (of := kept.vocabulary) is not None:
        print_line(
            f"{of.tokens:,} of {of.of_tokens:,} tokens: {of.bytes_per_token:.3f} bytes per token of held-out text, "
            f"{of.bytes_per_token_before:.3f} with all of them"
        )
    if kept.loss is not None:
        blocks = ", ".join(map(str, kept.layers))
        whole = "" if kept.whole is None else f", the whole model's {kept.whole:.3f}"
        print_line(f"kept {blocks}: loss {kept.loss:.3f} as they are{whole}")


def parse_keep(keep: str) -> str | list[int]:
    """A rule, or block numbers.

    Raises:
        UserError: neither.
    """
    from inheritune.analysis.layers import RULES

    if keep in ("auto", *RULES):
        return keep
    try:
        return [int(block) for block in keep.split(",")]
    except ValueError:
        raise UserError(
            f"--keep is {keep!r}, but should be {', '.join(RULES)}, or block numbers such as 0,1,2,9"
        ) from None


def parse_vocabulary(vocabulary: str | None) -> int | Literal["used"] | None:
    """How many tokens.

    Raises:
        UserError: neither a number nor `used`.
    """
    if vocabulary is None or vocabulary == "used":
        return vocabulary  # type: ignore[return-value]
    if not vocabulary.isdecimal():
        raise UserError(f"--vocabulary is {vocabulary!r}, but should be a number of tokens, or `used`")
    return int(vocabulary)
