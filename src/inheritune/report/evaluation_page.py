"""The page of an evaluation: one HTML file in the look of a run's report."""

from __future__ import annotations

import json
import re

from markupsafe import Markup

from inheritune.evaluation.result import Evaluation
from inheritune.report.evaluation_cost import source_sheets
from inheritune.report.evaluation_figure import difference_figure
from inheritune.report.evaluation_sheet import Part, Sheet, printable
from inheritune.report.evaluation_table import parts, title
from inheritune.report.evaluation_words import verdict_words
from inheritune.report.quantities import MINUS
from inheritune.report.section import figure, render
from inheritune.report.svg import FONT, HALO, theme_css


def evaluation_html(evaluation: Evaluation) -> str:
    """The whole page; the same evaluation gives the same bytes."""
    evaluation = printable(evaluation)
    return str(
        render(
            "evaluation.html",
            title=title(evaluation),
            sentences=[minus(sentence) for sentence in verdict_words(evaluation)],
            parts=page_parts(evaluation),
            sources=[_with_minus(sheet) for sheet in source_sheets(evaluation)],
            samples=evaluation.samples,
            models=evaluation.models,
            differences=figure(difference_figure(evaluation)),
            first=evaluation.models[0].name,
            facts=_facts(evaluation),
            # CSS and fonts are our own text, not the user's.
            theme=Markup(theme_css()),
            font=Markup(FONT),
            halo=Markup(HALO),
        )
    )


def page_parts(evaluation: Evaluation) -> list[Part]:
    """All tables of figures, their numbers as they are written on a page."""
    return [Part(part.title, part.anchor, tuple(map(_with_minus, part.sheets))) for part in parts(evaluation)]


def minus(text: str) -> str:
    """The text with a minus sign before every negative number, which is not one inside a name."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def _with_minus(sheet: Sheet) -> Sheet:
    lines = tuple(
        line._replace(
            cells=tuple(
                minus(cell) if column.number else cell
                for cell, column in zip(line.cells, sheet.columns, strict=True)
            )
        )
        for line in sheet.lines
    )
    return Sheet(sheet.kind, sheet.title, sheet.columns, lines, sheet.notes)


def _facts(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """Settings and machine; what is not a plain value as JSON."""
    tables = {"How it was measured": evaluation.settings, "Where it ran": evaluation.environment}
    return {
        heading: {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in table.items()
        }
        for heading, table in tables.items()
        if table
    }
