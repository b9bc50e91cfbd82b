"""inheritune prepare: text to token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import TrustRemoteCode


def prepare_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="openwebtext, fineweb-edu, redpajama-1b, a Hugging Face data set, or local files, folders or "
            "patterns: .txt (one document each), .jsonl, .parquet, .arrow; text may be .gz, .xz or .zst.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the shards.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer: a Hugging Face model id, or a folder.")
    ] = None,
    train_tokenizer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Train a byte-level BPE of N tokens on the sources instead."),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the documents to hold out; by default 0.005, of a small text up to 0.1."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Encoding threads; one a core by default.")] = None,
    text_field: Annotated[
        str, typer.Option(help="Field or column that holds the text; `data.text` if it is nested.")
    ] = "text",
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Configuration of a Hugging Face data set.")] = None,
    seed: Annotated[int, typer.Option(help="Changes which documents are held out.")] = 0,
    max_documents: Annotated[int | None, typer.Option(help="Stop after this many documents.")] = None,
    end_of_text: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="End-of-text token, where the tokenizer names none.")
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            metavar="TOKEN|none",
            help="Token that models read in front of a text; `auto` is what the tokenizer adds by itself.",
        ),
    ] = "auto",
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid",
            help="Leave out rows whose text is null, missing or no text, instead of stopping.",
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Tokenize text into shards. Repeat it to resume."""
    from inheritune.cli.console import print_line, quiet
    from inheritune.data.prepare import few_held_out, prepare, rows_left_out
    from inheritune.data.shards import MANIFEST

    quiet()
    already = (output / MANIFEST).exists()
    manifest = prepare(
        sources,
        output,
        tokenizer=tokenizer,
        train_tokenizer=train_tokenizer,
        validation=validation,
        workers=workers,
        text_field=text_field,
        split=split,
        config=config,
        seed=seed,
        max_documents=max_documents,
        end_of_text=end_of_text,
        bos=bos,
        skip_invalid=skip_invalid,
        trust_remote_code=trust_remote_code,
    )
    print_line(f"{output} {'was finished already; nothing is changed' if already else 'is finished'}")
    for name, split_record in manifest.splits.items():
        size = split_record.text_bytes
        rate = "" if size is None else f", {size / split_record.tokens:.2f} bytes per token"
        print_line(f"  {name}: {split_record.documents:,} documents, {split_record.tokens:,} tokens{rate}")
    if manifest.rows_without_text:
        print_line(f"  {rows_left_out(manifest.rows_without_text)}")
    if warning := few_held_out(manifest):
        print_line(f"note: {warning}")
