"""Every causal language model type: exact, or refused in a sentence, and what the documentation says of it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import transformers

import sweep

TABLE = Path(__file__).parents[2] / "docs/architectures.md"


def rows() -> dict[str, str]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"\| ([\w-]+) \|", line))}


SAME_VERSION = f"transformers {transformers.__version__}," in TABLE.read_text(encoding="utf-8")
"""The table is of the pinned version; with others every type is tried, but what comes of it may differ."""


def test_the_table_is_of_the_pinned_version() -> None:
    pinned = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    version = re.search(r"^transformers==(.+)$", pinned, re.MULTILINE)
    assert version is not None
    assert f"transformers {version[1]}," in TABLE.read_text(encoding="utf-8"), (
        "write the table again: python tests/sweep.py > docs/architectures.md"
    )


@pytest.mark.skipif(not SAME_VERSION, reason="the table is of another version of transformers")
def test_the_table_has_every_type() -> None:
    assert list(rows()) == ["type", *sweep.TYPES]


@pytest.mark.parametrize("model_type", sweep.TYPES)
def test_a_type_is_cut_exactly_or_refused_in_a_sentence(model_type: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sweep.outcome(model_type, tmp_path / "large")
    row = sweep.row(model_type, found)
    if SAME_VERSION:
        assert row == rows()[model_type]
