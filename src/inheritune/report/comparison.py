"""Any runs in one table and one figure: `inheritune compare`.

`read_entries` reads the runs, `pairing` compares them with the reference over the same validation windows, and
`write_comparison` writes the result as HTML, Markdown, CSV and SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inheritune import UserError, atomic
from inheritune.report.comparison_entries import Entry, read_entries
from inheritune.report.comparison_figures import difference_figure, loss_figure
from inheritune.report.comparison_page import comparison_html
from inheritune.report.comparison_pairing import Compared, Comparison, Row, find_reference, pair
from inheritune.report.comparison_table import terminal_table, to_csv, to_markdown

__all__ = [
    "FILES",
    "Compared",
    "Comparison",
    "Entry",
    "Row",
    "compare_runs",
    "parse_run",
    "read_entries",
    "terminal_table",
    "write_comparison",
]

FILES = (
    "comparison.html",
    "comparison.md",
    "comparison.csv",
    "differences.svg",
    "loss-by-step.svg",
    "loss-by-flops.svg",
)


def compare_runs(
    runs: Sequence[str],
    reference: str | None = None,
    directory: Path = Path("comparison"),
    title: str = "Comparison of runs",
) -> Comparison:
    """Read runs, compare them with the reference, and write `FILES` into `directory`.

    Args:
        runs: directories, each `PATH` or `NAME=PATH`; several with the same name are seeds of one row.
        reference: a name, or the path of one of the runs or of another one, which is then the first.
        directory: made if need be; files of these names in it are replaced.
        title: heads the page.

    Raises:
        UserError: something the user can mend, in one sentence.
    """
    given = [parse_run(run) for run in runs]
    entries = read_entries(given)
    if reference is not None and find_reference(entries, reference) is None:
        label, path = parse_run(reference)
        if path.exists():
            entries = read_entries([(label, path), *given])
            reference = str(path)
    return write_comparison(entries, reference, directory, title)


def parse_run(text: str) -> tuple[str | None, Path]:
    """A run as users name it: PATH, or NAME=PATH unless that is itself the path of something.

    Raises:
        UserError: the name is empty.
    """
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not name or not path:
        raise UserError(f"{text} should be PATH or NAME=PATH, but one of its sides is empty")
    return name, Path(path)


def write_comparison(
    entries: Sequence[Entry], reference: str | None, directory: Path, title: str
) -> Comparison:
    """Compare entries with the reference (label or path; see `pair`) and write `FILES` into `directory`.

    A figure that has nothing to show is not written, and one of an earlier comparison is removed.

    Raises:
        UserError: the reference is none of the entries, or `directory` is a file.
    """
    comparison = pair(entries, reference, title)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"cannot write into {directory}: it is a file; give a directory")
    directory.mkdir(parents=True, exist_ok=True)
    texts = (
        comparison_html(comparison),
        to_markdown(comparison),
        to_csv(comparison),
        difference_figure(comparison, standalone=True),
        loss_figure(comparison, "step", standalone=True),
        loss_figure(comparison, "flops", standalone=True),
    )
    for name, text in zip(FILES, texts, strict=True):
        if text is None:
            (directory / name).unlink(missing_ok=True)
        else:
            atomic.write_text(directory / name, text if text.endswith("\n") else f"{text}\n")
    return comparison
