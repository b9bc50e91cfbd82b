"""The page of a comparison: one HTML file in the look of a run's report."""

from __future__ import annotations

import re

from markupsafe import Markup

from inheritune.report.comparison_figures import difference_figure, loss_figure
from inheritune.report.comparison_pairing import Comparison
from inheritune.report.comparison_table import HEADINGS, TEXT_COLUMNS, explanation, lines
from inheritune.report.quantities import MINUS
from inheritune.report.section import figure, render
from inheritune.report.svg import FONT, HALO, theme_css


def comparison_html(comparison: Comparison) -> str:
    """The whole page; the same comparison gives the same bytes."""
    numbers = len(HEADINGS) - 1  # all cells but the name may hold a negative number
    return str(
        render(
            "comparison.html",
            comparison=comparison,
            headings=[(heading, heading not in TEXT_COLUMNS) for heading in HEADINGS],
            lines=[
                (line.kind, line.cells[0], [_minus(cell) for cell in line.cells[-numbers:]])
                for line in lines(comparison)
            ],
            explanation=explanation(comparison),
            differences=figure(difference_figure(comparison)),
            by_step=figure(loss_figure(comparison, "step")),
            by_flops=figure(loss_figure(comparison, "flops")),
            # CSS and fonts are our own text, not the user's.
            theme=Markup(theme_css()),
            font=Markup(FONT),
            halo=Markup(HALO),
        )
    )


def _minus(cell: str) -> str:
    return re.sub(r"-(?=\d)", MINUS, cell)
