"""Make the tables and pictures of studies anew from their files: python results/publish.py [STUDY...]

From `table.csv`, `windows.parquet` and `curves.parquet`: the comparison in `table.csv`, `table.md` and the pictures
of losses. From every `evaluation.json` below it: `evaluation.md`, `evaluation.csv` and `differences.svg`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tables

from inheritune import UserError
from inheritune.evaluation.result import load_evaluation
from inheritune.report import evaluation_report
from inheritune.report.comparison import difference_picture, loss_picture, to_markdown
from inheritune.runtime import files


def publish(folder: Path) -> None:
    """Write every table and picture of a study.

    Raises:
        UserError: a file that they are made from is missing or damaged.
    """
    study = tables.read_study(folder)
    tables.write_table(folder, study)
    for name, text in rendered(folder):
        files.write_text(folder / name, text if text.endswith("\n") else f"{text}\n")


def rendered(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every table and picture of a study; those that have nothing to show are left out."""
    comparison = tables.read_study(folder).comparison
    yield "table.md", to_markdown(comparison)
    pictures = {
        "loss-differences.svg": difference_picture(comparison),
        "loss-by-step.svg": loss_picture(comparison, "step"),
        "loss-by-flops.svg": loss_picture(comparison, "flops"),
    }
    for path in sorted(folder.rglob("evaluation.json")):
        evaluation, place = load_evaluation(path), path.parent.relative_to(folder)
        yield str(place / "evaluation.md"), evaluation_report.to_markdown(evaluation)
        yield str(place / "evaluation.csv"), evaluation_report.to_csv(evaluation)
        pictures[str(place / "differences.svg")] = evaluation_report.difference_picture(evaluation)
    for name, picture in pictures.items():
        if picture is not None:
            yield name, smaller(picture.svg)


def smaller(svg: str) -> str:
    """The same picture with the corners of its lines to a tenth of a unit, and no spaces between them."""

    def rounded(path: re.Match[str]) -> str:
        tenths = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path[0])
        return re.sub(r"\s*([MLz])\s*", r"\1", tenths)

    return re.sub(r'\bd="[MLz\d.\s-]*"', rounded, svg)


def main() -> None:
    """Publish the folders of the command line; without any, every study beside this file."""
    named = [Path(argument) for argument in sys.argv[1:]]
    for folder in named or sorted(path.parent for path in Path(__file__).parent.glob(f"*/{tables.TABLE}")):
        try:
            publish(folder)
        except UserError as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
