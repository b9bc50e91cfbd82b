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


def test_the_table_has_every_type_of_its_version() -> None:
    assert f"transformers {transformers.__version__}," in TABLE.read_text(encoding="utf-8"), (
        "write the table again: python tests/sweep.py > docs/architectures.md"
    )
    assert list(rows()) == ["type", *sweep.TYPES]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sweep.TYPES)
def test_a_type_is_cut_exactly_or_refused_in_a_sentence(model_type: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sweep.outcome(model_type, tmp_path / "large")
    assert sweep.row(model_type, found) == rows()[model_type]
