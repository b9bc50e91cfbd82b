"""The paper's own tables of task results, to be shown beside ours: `paper.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

HEADING = "The paper's figures (other models, other data)"


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperColumn(_Figures):
    """A task of the paper, with the harness's name of it."""

    task: str
    printed: str
    """The paper's name."""
    metric: str | None = None
    """None where the paper does not say."""
    shots: int = 0


class PaperRow(_Figures):
    """A model of the paper."""

    model: str
    layers: int | None = None
    """None where the paper does not say."""
    recipe: str
    figures: list[Decimal]
    """As printed, one for each column."""
    average: Decimal | None = None
    """As printed."""


class PaperTable(_Figures):
    """A table of the paper."""

    source: str
    about: str
    """The models and what they were trained on."""
    notes: list[str] = []
    columns: list[PaperColumn]
    rows: list[PaperRow]


@cache
def paper_tables() -> Mapping[str, PaperTable]:
    """The paper's tables, by the name of the group of tasks that asks for the same."""
    text = resources.files("inheritune.report").joinpath("paper.yaml").read_text("utf-8")
    # The base loader leaves every figure a string, so that 34.60 stays as it was printed.
    tables = TypeAdapter(dict[str, PaperTable]).validate_python(yaml.load(text, yaml.BaseLoader))
    assert all(len(row.figures) == len(table.columns) for table in tables.values() for row in table.rows)
    return tables
