"""What a table of an evaluation is, before it is written for the terminal, as Markdown or as HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from inheritune.evaluation.result import Evaluation

# A model may have sampled them, and a terminal would obey them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Column(NamedTuple):
    """A column: its heading, a second line of that, and whether it holds numbers."""

    heading: str
    detail: str = ""
    number: bool = True


class Line(NamedTuple):
    """A line; `kind` is for its style: first, chance, better, worse, or nothing."""

    kind: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """A table, or where nothing was measured only its notes.

    `scores` are figures by model, of which there may be too many columns for the terminal; `source` and `paper` are
    left out there.
    """

    kind: Literal["scores", "paired", "tasks", "validation", "paper", "cost", "source"]
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Tables that stand under one heading; `anchor` is its id on a page."""

    title: str
    anchor: str
    sheets: tuple[Sheet, ...]


def printable(evaluation: Evaluation) -> Evaluation:
    """The same with a replacement character for every control character but tab and newline."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        if isinstance(value, dict):
            return {clean(key): clean(one) for key, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    return Evaluation.model_validate(clean(evaluation.model_dump()))
