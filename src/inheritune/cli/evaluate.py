"""`inheritune evaluate`: is the small model as good, and what does it save?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import Device, Dtype, IgnoreTokenizer, Revision, TrustRemoteCode


def evaluate_command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Hugging Face ids, folders of checkpoints, the directory of a finished training, or that of a "
            "finished run, which stands for its reference and its final model; as MODEL or NAME=MODEL. The others "
            "are compared with the first.",
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, task YAMLs, or zero-shot, zero-shot-7, perplexity, low-data (the "
            "paper's tables), or generation; repeat it, or separate them by commas."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the tasks' items; by default they come from the hub.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out tasks that have no items.")
    ] = False,
    shots: Annotated[int | None, typer.Option(min=0, help="Worked examples before every item.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only so many items of each task.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Requests in one forward pass; by default as fit some tokens.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Folder with token shards: loss on their validation split.")
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Tokens of each validation window.")] = None,
    ignore_tokenizer: IgnoreTokenizer = False,
    speed: Annotated[bool, typer.Option("--speed", help="Time reading and writing; count bytes.")] = False,
    batches: Annotated[str, typer.Option(help="Sequences at once when timing.")] = "1,8",
    samples: Annotated[bool, typer.Option("--samples", help="Continue a few texts.")] = False,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue; repeat it for more.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where to write; by default `evaluation` in a run's directory.",
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="For models that come without one.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Tasks, validation loss, speed and samples of models, side by side and in pairs."""
    import os

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; we show our own

    from inheritune.cli.console import print_evaluation, quiet

    quiet()

    from inheritune import api
    from inheritune.evaluation.evaluate import default_directory

    directory = output or default_directory(models)
    found = api.evaluate(
        models,
        directory,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        tasks=[name for given in tasks or () for name in given.split(",")],
        data=data,
        skip_missing=skip_missing,
        shots=shots,
        limit=limit,
        batch_size=batch_size,
        validation=val,
        window=window,
        ignore_tokenizer=ignore_tokenizer,
        speed=speed,
        batches=batches.split(","),
        samples=samples or bool(prompt),
        prompts=prompt or (),
    )
    print_evaluation(found, directory)
