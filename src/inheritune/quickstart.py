"""The whole paper in small: a few minutes on two CPU cores, nothing to download.

Trains a tokenizer and a reference of eight layers on real text, runs Algorithm 1 on it, and looks at the
attention matrices of both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inheritune import UserError
from inheritune.algorithm import run
from inheritune.analysis.analyze import analyze_run
from inheritune.config import Recipe
from inheritune.data.prepare import prepare
from inheritune.data.shards import MANIFEST
from inheritune.data.sources import docstring_documents
from inheritune.recipe_file import parse_recipe
from inheritune.run_directory import RunDirectory, Summary

VOCABULARY = 4096
VALIDATION_SHARE = 0.02
OWN_VALIDATION_SHARE = 0.05
PIECE = 2_000
LEAST_TEXT = 100_000


def quickstart(directory: Path, text: Sequence[str] = ()) -> Summary:
    """Prepare text, train a reference, and find the smallest model as good as it.

    Args:
        directory: gets `data/` and is the run's directory itself.
        text: files, folders or patterns to train on; by default the docstrings of the installed packages.

    Raises:
        UserError: text that is missing or too short, in one sentence.
    """
    RunDirectory(directory).check_place()
    data = directory.parent / f"{directory.name}-data"
    if text or not (data / MANIFEST).exists():  # newer packages have other docstrings
        prepare(
            own_text(text) or [list(docstring_documents())],
            data,
            train_tokenizer=VOCABULARY,
            validation=OWN_VALIDATION_SHARE if text else VALIDATION_SHARE,
        )
    summary = run(quickstart_recipe(data), directory)
    analyze_run(directory)
    return summary


def own_text(names: Sequence[str]) -> list[Path | list[str]]:
    """The user's files as sources of documents.

    Raises:
        UserError: plain text files that are together too short to learn anything from.
    """
    sources = [pieces(Path(name)) for name in names]
    pieced = [source for source in sources if isinstance(source, list)]
    if names and len(pieced) == len(sources):
        characters = sum(len(document) for source in pieced for document in source)
        if characters < LEAST_TEXT:
            raise UserError(
                f"{', '.join(names)}: {characters:,} characters are too little text for the quickstart; "
                f"give at least {LEAST_TEXT:,}"
            )
    return sources


def pieces(source: Path) -> Path | list[str]:
    """A plain text file as documents of about `PIECE` characters, cut at line ends; other sources as they are.

    Somebody's notes are often one long file, and a validation split needs documents to choose from.
    """
    if source.suffix != ".txt" or not source.is_file():
        return source
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return source  # `prepare` says what is wrong with it
    documents: list[list[str]] = [[]]
    length = 0
    for line in text.splitlines(keepends=True):
        if length >= PIECE:
            documents.append([])
            length = 0
        documents[-1].append(line)
        length += len(line)
    return ["".join(lines) for lines in documents]


def quickstart_recipe(data: Path) -> Recipe:
    """The recipe that the quickstart runs: small enough for a laptop, otherwise the paper's."""
    values = {
        "name": "quickstart",
        "data": {"path": str(data), "window": 128},
        "reference": {
            "architecture": {
                "model_type": "gpt2",
                "n_layer": 8,
                "n_embd": 128,
                "n_head": 4,
                "activation_function": "gelu_pytorch_tanh",
                "scale_attn_by_inverse_layer_idx": True,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "frozen_biases": True,
            }
        },
        "training": {
            "steps": 320,
            "tokens_per_step": 2048,
            "optimizer": {"learning_rate": 2e-3},
            "schedule": {"warmup_steps": 32, "final_learning_rate": 2e-4},
            "validation": {"every": 32, "windows": 48},
        },
    }
    return parse_recipe(values, Recipe)
