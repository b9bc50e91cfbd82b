"""`inheritune answers`: a teacher, asked once for any number of students."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import IgnoreTokenizer, Revision, TrustRemoteCode


def answers_command(
    teacher: Annotated[
        str, typer.Argument(help="Hugging Face model id, folder of a checkpoint, or GGUF file.")
    ],
    data: Annotated[Path, typer.Option(help="Folder with token shards; their training split is read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the answers.")],
    window: Annotated[int, typer.Option(help="Tokens of each window, as in the recipes.")] = 1024,
    tokens: Annotated[
        int | None,
        typer.Option(help="Ask only about what recipes with the same `data.tokens` train on."),
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Random draws from the distribution of every next token, 1 to 255.")
    ] = 50,
    temperature: Annotated[
        float, typer.Option(help="Which distribution: softmax(logits / temperature).")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; by default a GPU if any.")] = "auto",
    precision: Annotated[str, typer.Option(help="bf16 or fp32; by default as in recipes.")] = "auto",
    revision: Revision = None,
    bos: Annotated[
        str, typer.Option(metavar="TOKEN|none", help="Token in front of every window, as `data.bos`.")
    ] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    ignore_tokenizer: IgnoreTokenizer = False,
) -> None:
    """Store what a teacher predicts of a training text, so that students need it no more. Repeat it to resume."""
    from inheritune.cli.console import print_line, quiet
    from inheritune.quantities import memory
    from inheritune.training.teacher import answers

    quiet()
    record = answers(
        teacher,
        data,
        output,
        window=window,
        tokens=tokens,
        draws=draws,
        temperature=temperature,
        seed=seed,
        device=device,
        precision=precision,
        revision=revision,
        trust_remote_code=trust_remote_code,
        bos=bos,
        ignore_tokenizer=ignore_tokenizer,
    )
    count = record.windows * record.window
    print_line(
        f"{output}: {record.draws} draws at each of {count:,} tokens, {memory(record.bytes)}, "
        f"{record.bytes / count:.1f} bytes per token; it took {record.flops:.2g} FLOPs"
    )
