"""How the verbs print."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from inheritune.evaluation.result import Evaluation
    from inheritune.report.comparison import RunComparison
    from inheritune.report.results import RunResult

console = Console(highlight=False)


def print_line(text: str) -> None:
    """One line for the user, without markup."""
    console.print(text, markup=False, soft_wrap=True)


def print_result(result: RunResult) -> None:
    """How a run ended: table, verdict, and where model and report are; writes the report."""
    from inheritune.report import terminal_rounds, verdict_words, write_report
    from inheritune.report.layers_report import choices_of, kept_table

    summary, directory = result.summary, result.directory
    console.print(terminal_rounds(summary))
    if choices := choices_of(directory):
        console.print(kept_table(choices).terminal())
    for words in verdict_words(summary):
        print_line(words)
    print_line(f"model:  {directory / 'final'}")
    print_line(f"report: {write_report(directory)}")


def print_comparison(comparison: RunComparison, directory: Path) -> None:
    """Runs side by side: the table, what it says, and where page, tables and figures are."""
    from inheritune.report.comparison import FILES, terminal_table

    console.print(terminal_table(comparison))
    print_line(comparison.summary)
    for note in comparison.notes:
        print_line(f"note: {note}")
    for name in FILES:
        if (directory / name).exists():
            print_line(str(directory / name))


def print_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Models side by side: tables, what they say, and where everything is."""
    from inheritune.report.evaluation_report import terminal_tables, verdict_words, write_evaluation

    for table in terminal_tables(evaluation):
        console.print(table)
    for words in verdict_words(evaluation):
        print_line(words)
    for task, why in evaluation.skipped.items():
        print_line(f"skipped {task}: {why}")
    for path in write_evaluation(directory, evaluation):
        print_line(str(path))


def quiet() -> None:
    """Leave progress and warnings to us."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # after the import, which sets it
