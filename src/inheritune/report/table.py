"""One kind of table, for the terminal, as Markdown and on a page; and CSV for programs.

The page's rendering is the macro `table_of` of `templates/page.html`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import rich.table
from rich.text import Text

PER_BYTE = "Bits/byte"
"""Heading of losses in bits per byte, beside those in nats per token."""

MINUS = "\N{MINUS SIGN}"  # on pages and in figures; elsewhere a hyphen, which programs read

# What neither HTML nor UTF-8 can hold, and what a terminal would obey; a model may have sampled it.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Column(NamedTuple):
    """A column: its heading, a second line of that, and whether it holds numbers, which are on the right."""

    heading: str
    detail: str = ""
    number: bool = True


class Row(NamedTuple):
    """One cell for each column; `kind` says how a page shows it, such as better, worse, chance or mean."""

    cells: Sequence[str]
    kind: str = ""


class Table:
    """A table with its title and the notes below it; without rows only the notes are shown.

    Args:
        title: above it; may be empty.
        columns: such as "Loss", "<Name" (text, on the left) and "Cache|per token" (with a detail), or `Column`.
        rows: one cell for each column.
        notes: sentences below it.
        kind: how a page shows it.
    """

    def __init__(
        self,
        title: str,
        columns: Iterable[str | Column],
        rows: Iterable[Row | Sequence[str]],
        notes: Iterable[str] = (),
        kind: str = "",
    ) -> None:
        self.title, self.notes, self.kind = title, list(notes), kind
        self.columns = [_column(column) if isinstance(column, str) else column for column in columns]
        self.rows = [row if isinstance(row, Row) else Row(row) for row in rows]

    @property
    def headings(self) -> list[str]:
        """Of all columns, without their second lines."""
        return [column.heading for column in self.columns]

    def select(self, places: Sequence[int]) -> Table:
        """Only the columns at these places, in this order."""
        rows = [Row(tuple(row.cells[i] for i in places), row.kind) for row in self.rows]
        return Table(self.title, [self.columns[i] for i in places], rows, self.notes, self.kind)

    def without(self, headings: Container[str]) -> Table:
        """All columns but these."""
        return self.select([i for i, heading in enumerate(self.headings) if heading not in headings])

    def first(self, *headings: str) -> Table:
        """These columns first, then the others."""
        front = [self.headings.index(heading) for heading in headings]
        return self.select([*front, *(i for i in range(len(self.columns)) if i not in front)])

    def terminal(self) -> rich.table.Table:
        """For the terminal, where a difference and its interval share a column and narrow columns fold."""
        table = rich.table.Table(
            title=terminal_text(self.title) if self.title else None,
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            header_style="bold",
        )
        narrow = self._with_interval()
        for column in narrow.columns:
            heading = terminal_text("\n".join(filter(None, (column.heading, column.detail))))
            table.add_column(heading, justify="right" if column.number else "left", overflow="fold")
        for row in narrow.rows:
            table.add_row(*map(terminal_text, row.cells), style="bold" if row.kind == "parity" else None)
        return table

    def markdown(self) -> str:
        """As aligned Markdown, without title and notes."""
        numbers = [column.number for column in self.columns]
        lines = [[escaped(f"{column.heading} {column.detail}".strip()) for column in self.columns]]
        # Numbers are ours and need no backslash: an interval has brackets.
        lines += [
            [cell if number else escaped(cell) for cell, number in zip(row.cells, numbers, strict=True)]
            for row in self.rows
        ]
        widths = [max(3, *map(len, cells)) for cells in zip(*lines, strict=True)]
        lines = [
            [
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(*of, strict=True)
            ]
            for of in ((line, widths, numbers) for line in lines)
        ]
        rule = ["-" * (width - 1) + "-:"[number] for width, number in zip(widths, numbers, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self.title, self.markdown() if self.rows else "", *self.notes)))

    def _repr_html_(self) -> str:
        from inheritune.report.pages import fragment

        return fragment([self])

    def _with_interval(self) -> Table:
        """The same with every 95% interval beside the difference before it, in one column."""
        if "95% interval" not in self.headings:
            return self
        at = self.headings.index("95% interval")
        rows = []
        for cells, kind in self.rows:
            # Without a space inside, a narrow terminal breaks the line before the interval.
            both = filter(None, (cells[at - 1], re.sub(r"(?<=,) |%", "", cells[at])))
            rows.append(Row([*cells[: at - 1], " ".join(dict.fromkeys(both)), *cells[at + 1 :]], kind))
        columns = [*self.columns[: at - 1], Column("Difference [95%]"), *self.columns[at + 1 :]]
        return Table(self.title, columns, rows, self.notes, self.kind)


def printable(text: str) -> str:
    """The text with a replacement character for all that cannot be shown or written; tab and newline stay."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def terminal_text(text: str) -> Text:
    """The text for rich, without markup; a word that is too long is folded."""
    return Text(printable(text), overflow="fold")


def escaped(text: str) -> str:
    """Text that Markdown takes for text of one line: no cell ends early, nothing becomes markup."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", re.sub(r"\s+", " ", text))


def minus(text: str) -> str:
    """The text with a minus sign before every negative number, which is not one inside a name."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV; what a row does not have is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return printable(text.getvalue())


def _column(text: str) -> Column:
    heading, _, detail = text.removeprefix("<").partition("|")
    return Column(heading, detail, number=not text.startswith("<"))
