"""One table in three renderings: what is escaped, what folds, what is aligned."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from inheritune.report.pages import Page, Section
from inheritune.report.table import Column, Row, Table, csv_text, minus

TABLE = Table(
    "title",
    ("<Name", "Loss|nats", "Difference", "95% interval", "<Outcome"),
    [
        ("a-rather-long-name", "3.25", "-0.15", "[-0.20, -0.10]", "better"),
        Row(("b", "3.40", "", "", ""), "first"),
    ],
    ("a note",),
)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(table.terminal())
    return console.file.getvalue()  # type: ignore[attr-defined]


def html(table: Table) -> str:
    return Page("kind", "title", [], [Section("s", "s", [table])], "x").html()


@pytest.mark.parametrize("width", [200, 80, 60, 44])
def test_a_terminal_folds_and_loses_nothing(width: int) -> None:
    text = printed(TABLE, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    letters = re.sub(r"\s", "", text)
    assert all(part in text for part in ("3.25", "-0.15", "[-0.20,-0.10]", "better"))
    assert letters.count("Difference[95%]") == 1 or width < 60
    assert "95% interval" not in text


def test_markdown_is_aligned_numbers_on_the_right() -> None:
    heading, rule, first, _ = TABLE.markdown().splitlines()
    assert heading == "| Name               | Loss nats | Difference |   95% interval | Outcome |"
    assert rule == "| ------------------ | --------: | ---------: | -------------: | ------- |"
    assert first == "| a-rather-long-name |      3.25 |      -0.15 | [-0.20, -0.10] | better  |"


def test_a_page_has_minus_signs_in_numbers_only() -> None:
    table = Table("", ("<Name", "Loss", "<Text"), [("a -1", "-1", "-1")])
    assert ">a -1</th>" in html(table)
    assert '<td class="number">−1</td>' in html(table)
    assert "<td>-1</td>" in html(table)
    assert minus("[-1, +2] 1e-5 a-1 x -3") == "[−1, +2] 1e-5 a-1 x −3"


def test_columns_are_chosen_and_put_first() -> None:
    assert TABLE.first("Outcome", "Loss").headings == [
        "Outcome",
        "Loss",
        "Name",
        "Difference",
        "95% interval",
    ]
    assert TABLE.first("Outcome").rows[0].cells[:2] == ("better", "a-rather-long-name")
    assert TABLE.without({"Loss", "Name"}).rows[1] == Row(("", "", ""), "first")


@given(TEXTS, TEXTS)
def test_whatever_is_in_a_cell_stays_in_it(one: str, other: str) -> None:
    table = Table("t", (Column(one, number=False), Column("n", number=False)), (Row((other, "end")),))
    for text in (html(table), printed(table, 60), csv_text(("a",), [{"a": one}])):
        text.encode("utf-8")
        assert not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]", text)
    (row,) = re.findall(r"<tbody>.*</tbody>", html(table), re.DOTALL)
    assert row.count("<") == 2 * 4  # tbody, tr, th, td
    lines = table.markdown().split("\n")
    assert len(lines) == 3
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
    assert len(list(csv.reader(io.StringIO(csv_text(("a",), [{"a": other or "x"}]))))) == 2
