"""One kind of table, for the terminal, as Markdown and on a page; and CSV for programs.

The page's rendering is the macro `table` of `templates/page.html`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import rich.table
from rich.text import Text

MINUS = "\N{MINUS SIGN}"  # on pages and in figures; elsewhere a hyphen, which programs read

# What neither HTML nor UTF-8 can hold, and what a terminal would obey; a model may have sampled it.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Column:
    """A column: its heading, a second line of that, and whether it holds numbers, which stand on the right."""

    heading: str
    detail: str = ""
    number: bool = True


@dataclass(frozen=True)
class Row:
    """One cell for each column; `kind` says how a page shows it, such as better, worse, chance or mean."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title and the notes below it; without rows only the notes are shown."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    kind: str = ""

    @classmethod
    def of(
        cls,
        title: str,
        columns: Iterable[str | Column],
        rows: Iterable[Row | Sequence[str]],
        notes: Iterable[str] = (),
        kind: str = "",
    ) -> Table:
        """A table of columns such as "Loss", "<Name" (text, on the left) and "Cache|per token" (with a detail)."""
        made = tuple(_column(column) if isinstance(column, str) else column for column in columns)
        filled = tuple(row if isinstance(row, Row) else Row(tuple(row)) for row in rows)
        return cls(title, made, filled, tuple(notes), kind)

    @property
    def headings(self) -> list[str]:
        """Of all columns, without their second lines."""
        return [column.heading for column in self.columns]

    def select(self, places: Sequence[int]) -> Table:
        """Only the columns at these places, in this order."""
        rows = tuple(replace(row, cells=tuple(row.cells[i] for i in places)) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in places), rows=rows)

    def without(self, headings: Container[str]) -> Table:
        """All columns but these."""
        return self.select([i for i, heading in enumerate(self.headings) if heading not in headings])

    def first(self, *headings: str) -> Table:
        """These columns first, then the others."""
        front = [self.headings.index(heading) for heading in headings]
        return self.select([*front, *(i for i in range(len(self.columns)) if i not in front)])

    def terminal(self) -> rich.table.Table:
        """For the terminal, where a difference and its interval share a column and narrow columns fold."""
        narrow = _with_interval(self)
        table = rich.table.Table(
            title=_text(self.title) if self.title else None,
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            header_style="bold",
        )
        for column in narrow.columns:
            heading = "\n".join(filter(None, (column.heading, column.detail)))
            table.add_column(_text(heading), justify="right" if column.number else "left", overflow="fold")
        for row in narrow.rows:
            table.add_row(*map(_text, row.cells), style="bold" if row.kind == "parity" else None)
        return table

    def markdown(self) -> str:
        """As aligned Markdown, without title and notes."""
        headings = [" ".join(filter(None, (column.heading, column.detail))) for column in self.columns]
        # Numbers are ours and need no backslash: an interval has brackets.
        lines = [
            [
                cell if column.number else escaped(cell)
                for cell, column in zip(row.cells, self.columns, strict=True)
            ]
            for row in self.rows
        ]
        lines.insert(0, [escaped(heading) for heading in headings])
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headings))]
        number = [column.number for column in self.columns]
        lines.insert(
            1,
            [
                "-" * (width - 1) + (":" if right else "-")
                for width, right in zip(widths, number, strict=True)
            ],
        )
        return "\n".join(
            "| {} |".format(
                " | ".join(
                    cell.rjust(width) if right else cell.ljust(width)
                    for cell, width, right in zip(line, widths, number, strict=True)
                )
            )
            for line in lines
        )


def printable(text: str) -> str:
    """The text with a replacement character for all that cannot be shown or written; tab and newline stay."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


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


def _with_interval(table: Table) -> Table:
    """The same with every 95% interval beside its difference, in one column."""
    if not {"Difference", "95% interval"} <= set(table.headings):
        return table
    at, interval = table.headings.index("Difference"), table.headings.index("95% interval")
    rows = []
    for row in table.rows:
        cells = list(row.cells)
        # Without a space inside, a narrow terminal breaks the line before the interval.
        ends = re.sub(r"(?<=,) |%", "", cells[interval])
        cells[at] = " ".join(dict.fromkeys(filter(None, (cells[at], ends))))
        rows.append(replace(row, cells=tuple(cells)))
    columns = list(table.columns)
    columns[at] = Column("Difference [95%]")
    joined = replace(table, columns=tuple(columns), rows=tuple(rows))
    return joined.select([i for i in range(len(columns)) if i != interval])


def _text(value: str) -> Text:
    return Text(printable(value))
