"""The report's section on an evaluation, and the files that `inheritune evaluate` leaves for people."""

from __future__ import annotations

from pathlib import Path

from inheritune import UserError, atomic
from inheritune.evaluation.result import Evaluation
from inheritune.report.evaluation_figure import difference_figure
from inheritune.report.evaluation_page import evaluation_html, minus, page_parts
from inheritune.report.evaluation_sheet import printable
from inheritune.report.evaluation_table import terminal_tables, to_csv, to_markdown
from inheritune.report.evaluation_words import verdict_words
from inheritune.report.run_directory import Run
from inheritune.report.section import Section, figure, render

__all__ = [
    "FILES",
    "evaluation_section",
    "terminal_tables",
    "to_csv",
    "to_markdown",
    "verdict_words",
    "write_evaluation",
]

FILES = ("evaluation.md", "evaluation.csv", "evaluation.html", "differences.svg")


def evaluation_section(run: Run) -> Section | None:
    """What `inheritune evaluate` found of the run's models; the pairs and the paper's figures are folded away."""
    if run.evaluation is None:
        return None
    evaluation = printable(run.evaluation)
    body = render(
        "evaluation_section.html",
        sentences=[minus(sentence) for sentence in verdict_words(evaluation)],
        parts=page_parts(evaluation),
        samples=evaluation.samples,
        models=evaluation.models,
        first=evaluation.models[0].name,
        differences=figure(difference_figure(evaluation)),
    )
    return Section("Evaluation", "evaluation", body)


def write_evaluation(directory: Path, evaluation: Evaluation) -> list[Path]:
    """Write `FILES` into a directory, which is made if need be, and return the paths of those that were written.

    Without anything paired there is no figure, and one of an earlier evaluation is removed.

    Raises:
        UserError: `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"cannot write into {directory}: it is a file; give a directory")
    directory.mkdir(parents=True, exist_ok=True)
    texts = (
        to_markdown(evaluation),
        to_csv(evaluation),
        evaluation_html(evaluation),
        difference_figure(printable(evaluation), standalone=True),
    )
    written = []
    for name, text in zip(FILES, texts, strict=True):
        path = directory / name
        if text is None:
            path.unlink(missing_ok=True)
        else:
            atomic.write_text(path, text if text.endswith("\n") else f"{text}\n")
            written.append(path)
    return written
