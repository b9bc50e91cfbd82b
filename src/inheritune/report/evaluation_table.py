"""An evaluation as tables: for the terminal, as Markdown, and for programs as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from rich.table import Table
from rich.text import Text

from inheritune.evaluation.result import Evaluation
from inheritune.report.evaluation_cost import source_sheets, speed_part, validation_part
from inheritune.report.evaluation_csv import to_csv
from inheritune.report.evaluation_groups import task_parts
from inheritune.report.evaluation_sheet import Column, Part, Sheet, printable
from inheritune.report.evaluation_words import verdict_words

__all__ = ["escaped", "parts", "terminal_tables", "title", "to_csv", "to_markdown"]

TERMINAL_COLUMNS = 4  # of figures by model, side by side
# Of tables that have more than a terminal holds: what can be done without, or is told elsewhere.
NOT_IN_TERMINAL = {"tasks": {"Metric", "Items", "Shots", "Chance", "p"}, "cost": {"Memory"}}


def parts(evaluation: Evaluation) -> list[Part]:
    """All tables of figures under their headings."""
    others = (validation_part(evaluation), speed_part(evaluation))
    return [*task_parts(evaluation), *(part for part in others if part is not None)]


def title(evaluation: Evaluation) -> str:
    """What was evaluated, in a line."""
    first, *others = (model.name for model in evaluation.models)
    if not others:
        return f"Evaluation of {first}"
    return f"Evaluation of {others[0] if len(others) == 1 else f'{len(others)} models'} against {first}"


def terminal_tables(evaluation: Evaluation) -> list[Table]:
    """The tables in less than 80 characters: of many columns several blocks, without the paper's and the sources."""
    evaluation = printable(evaluation)
    sheets = [sheet for part in parts(evaluation) for sheet in part.sheets if sheet.kind != "paper"]
    if evaluation.speed is None:
        sheets = [_without(source_sheets(evaluation)[0], {"Source", "Revision", "Weights, SHA-256"}), *sheets]
    tables: list[Table] = []
    told: set[str] = set()
    for sheet in map(_narrowed, sheets):
        if sheet.lines:
            tables += map(_terminal_table, _blocks(sheet))
        # On a page every table has its notes below it; here they would be most of what is seen.
        if new := [note for note in sheet.notes if note not in told]:
            tables.append(_notes(new))
            told.update(new)
    return [*tables, *_sample_tables(evaluation)]


def to_markdown(evaluation: Evaluation) -> str:
    """Everything but settings and machine as Markdown."""
    evaluation = printable(evaluation)
    texts = [f"# {escaped(title(evaluation))}"]
    texts += [escaped(line) for line in verdict_words(evaluation)]
    for part in parts(evaluation):
        texts.append(f"## {escaped(part.title)}")
        for sheet in part.sheets:
            texts += _markdown_sheet(sheet)
    if evaluation.samples:
        texts.append("## Samples")
        texts += _markdown_samples(evaluation)
    texts.append("## What was measured")
    for sheet in source_sheets(evaluation):
        texts += _markdown_sheet(sheet)
    return "\n\n".join(texts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown takes for text of one line: no cell ends early, nothing becomes markup."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", re.sub(r"\s+", " ", text))


def _markdown_sheet(sheet: Sheet) -> Iterator[str]:
    yield f"### {escaped(sheet.title)}" if sheet.kind == "paper" else f"**{escaped(sheet.title)}**"
    if sheet.lines:
        yield _markdown_table(sheet)
    if sheet.notes:
        yield "\n".join(f"- {escaped(note)}" for note in sheet.notes)


def _markdown_table(sheet: Sheet) -> str:
    headings = [escaped(_heading(column, " ")) for column in sheet.columns]
    # Numbers are ours and need no backslash: an interval has brackets.
    cells = [
        [
            cell if column.number else escaped(cell)
            for cell, column in zip(line.cells, sheet.columns, strict=True)
        ]
        for line in sheet.lines
    ]
    table = [headings, *cells]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(headings))]

    def row(texts: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if column.number else text.ljust(width)
            for text, width, column in zip(texts, widths, sheet.columns, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if column.number else "-" * width
        for width, column in zip(widths, sheet.columns, strict=True)
    ]
    return "\n".join([row(headings), f"| {' | '.join(rule)} |", *map(row, cells)])


def _markdown_samples(evaluation: Evaluation) -> Iterator[str]:
    for place, sample in enumerate(evaluation.samples, 1):
        yield f"Prompt {place}:"
        yield _fenced(sample.prompt)
        for model, continuation in zip(evaluation.models, sample.continuations, strict=True):
            yield f"{escaped(model.name)}:"
            yield _fenced(continuation)


def _fenced(text: str) -> str:
    """A block in which nothing is markup: its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _heading(column: Column, between: str) -> str:
    return f"{column.heading}{between}{column.detail}" if column.detail else column.heading


def _without(sheet: Sheet, headings: set[str]) -> Sheet:
    kept = [i for i, column in enumerate(sheet.columns) if column.heading not in headings]
    return _chosen(sheet, kept)


def _chosen(sheet: Sheet, kept: Sequence[int]) -> Sheet:
    """Only these columns."""
    lines = tuple(line._replace(cells=tuple(line.cells[i] for i in kept)) for line in sheet.lines)
    return replace(sheet, columns=tuple(sheet.columns[i] for i in kept), lines=lines)


def _narrowed(sheet: Sheet) -> Sheet:
    """Without what is least needed, and with the interval beside its difference in one column."""
    sheet = _without(sheet, NOT_IN_TERMINAL.get(sheet.kind, set()))
    headings = [column.heading for column in sheet.columns]
    if "Difference" not in headings:
        return sheet
    at = headings.index("Difference")
    lines = []
    for line in sheet.lines:
        cells = list(line.cells)
        interval = re.sub("[ %]", "", cells.pop(at + 1))
        cells[at] = f"{cells[at]} {interval}".strip() if cells[at] != interval else interval
        lines.append(line._replace(cells=tuple(cells)))
    columns = list(sheet.columns)
    del columns[at + 1]
    columns[at] = Column("Difference", "[95% interval]")
    return replace(sheet, columns=tuple(columns), lines=tuple(lines))


def _notes(notes: Sequence[str]) -> Table:
    """Notes as a table of their own, which may be wider than the one above them."""
    table = Table.grid()
    table.add_column(overflow="fold")
    for note in notes:
        table.add_row(Text(note))
    return table


def _blocks(sheet: Sheet) -> list[Sheet]:
    """Figures by model in tables of a few columns each, as even as can be."""
    figures = len(sheet.columns) - 1
    if sheet.kind != "scores" or figures <= TERMINAL_COLUMNS:
        return [sheet]
    number = -(-figures // TERMINAL_COLUMNS)
    edges = [1 + round(i * figures / number) for i in range(number + 1)]
    return [_chosen(sheet, [0, *range(start, stop)]) for start, stop in pairwise(edges)]


def _terminal_table(sheet: Sheet) -> Table:
    table = Table(
        title=Text(sheet.title),
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="bold",
    )
    for column in sheet.columns:
        table.add_column(
            Text(_heading(column, "\n")), justify="right" if column.number else "left", overflow="fold"
        )
    for line in sheet.lines:
        table.add_row(*map(Text, line.cells))
    return table


def _sample_tables(evaluation: Evaluation) -> Iterator[Table]:
    for place, sample in enumerate(evaluation.samples, 1):
        table = Table(
            title=Text(f"Prompt {place}: {sample.prompt}"),
            title_justify="left",
            show_header=False,
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
        )
        table.add_column("Model", overflow="fold", max_width=20)
        table.add_column("Text", overflow="fold")
        for model, continuation in zip(evaluation.models, sample.continuations, strict=True):
            table.add_row(Text(model.name), Text(continuation))
        yield table
