"""How results are shown, in a notebook and to those who ask for a table or a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch

from matplotlib.figure import Figure

from inheritune import UserError
from inheritune.analysis.kept import LayerAnalysis
from inheritune.analysis.result import AttentionAnalysis
from inheritune.evaluation.result import Evaluation
from inheritune.report import analysis_report, comparison, evaluation_report, layers_report
from inheritune.report.figures import Picture
from inheritune.report.pages import Figures, Paragraph, fragment
from inheritune.report.results import RunResult, TrainResult
from inheritune.report.run_report import loss_curves
from inheritune.report.runs import read_entries, read_run
from inheritune.report.table import Table
from inheritune.report.verdict import rounds_table, verdict_words

OF_SEVERAL = ("Seed", "All rounds", "Relative", "Difference", "95% interval", "Verdict")
"""Columns of a comparison that say nothing of a single training."""


@dataclass(frozen=True)
class View:
    """What there is to show of a result: the first of the tables matters most.

    `picture` draws it, which takes time; it gives None where there is nothing to draw.
    """

    words: Sequence[str]
    tables: Sequence[Table]
    picture: Callable[[], Picture | None] = lambda: None

    def figure(self) -> Figure:
        """The picture as a matplotlib figure.

        Raises:
            UserError: there is none.
        """
        picture = self.picture()
        if picture is None:
            raise UserError("there is nothing to draw of this result")
        return picture.figure

    def html(self) -> str:
        """Everything, as a part of a page."""
        picture = self.picture()
        drawn = [] if picture is None else [Figures([(picture, picture.label)])]
        return fragment([*map(Paragraph, self.words), *self.tables, *drawn])


@singledispatch
def view(result: object) -> View:
    """What there is to show of a result."""
    raise NotImplementedError(type(result).__name__)


@view.register
def _(result: LayerAnalysis) -> View:
    tables = [layers_report.block_table(result.model, result.blocks), layers_report.cut_table(result)]
    return View([result.sentence], tables, lambda: layers_report.worth_picture(result.blocks))


@view.register
def _(result: AttentionAnalysis) -> View:
    names = analysis_report.labelled([result])
    tables = [analysis_report.analysis_table(name, one) for name, one in names.items()]
    return View([result.cut.sentence], tables, lambda: analysis_report.over_depth(names, "rank"))


@view.register
def _(result: Evaluation) -> View:
    tables = [table for _, _, some in evaluation_report.parts(result) for table in some if table.rows]
    words = evaluation_report.verdict_words(result)
    return View(
        words,
        tables or evaluation_report.source_tables(result),
        lambda: evaluation_report.difference_picture(result) or evaluation_report.validation_picture(result),
    )


@view.register
def _(result: comparison.RunComparison) -> View:
    words = [result.summary, *result.notes]
    return View(words, [comparison.comparison_table(result)], lambda: comparison.difference_picture(result))


@view.register
def _(result: RunResult) -> View:
    tables = [rounds_table(result.summary, "The reference and every finished round")]
    return View(
        verdict_words(result.summary), tables, lambda: loss_curves(read_run(result.directory), "step")
    )


@view.register
def _(result: TrainResult) -> View:
    alone = comparison.pair(read_entries([(None, result.directory)]), None, "")
    table = comparison.comparison_table(alone).without(OF_SEVERAL)
    table.notes = []
    return View([result.sentence], [table], lambda: comparison.loss_picture(alone, "step"))
