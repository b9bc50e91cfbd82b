"""The whole paper in small: a few minutes on two CPU cores, nothing to download.

Trains a tokenizer and a reference of eight layers on real text, runs Algorithm 1 on it, and looks at the
attention matrices of both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inheritune.analysis.analyze import analyze_run
from inheritune.config import Recipe, parse_recipe
from inheritune.data.docstrings import docstring_documents
from inheritune.data.prepare import prepare
from inheritune.recipe import run
from inheritune.run_directory import Summary

VOCABULARY = 4096
VALIDATION_SHARE = 0.01


def quickstart(directory: Path, text: Sequence[str] = (), *, command: str = "") -> Summary:
    """Prepare text, train a reference, and find the smallest model as good as it.

    Args:
        directory: gets `data/` and is the run's directory itself.
        text: files to train on; by default the docstrings of the installed packages.
        command: what the user typed, for the record.

    Raises:
        ValueError: text that is missing or too short, in one sentence.
    """
    data = directory.parent / f"{directory.name}-data"
    prepare(
        list(text) or [list(docstring_documents())],
        data,
        train_tokenizer=VOCABULARY,
        validation=VALIDATION_SHARE,
    )
    summary = run(quickstart_recipe(data), directory, command=command)
    analyze_run(directory)
    return summary


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
            "steps": 400,
            "tokens_per_step": 2048,
            "optimizer": {"learning_rate": 2e-3},
            "schedule": {"warmup_steps": 40, "final_learning_rate": 2e-4},
            "validation": {"every": 40, "windows": 48},
        },
    }
    return parse_recipe(values, Recipe)
