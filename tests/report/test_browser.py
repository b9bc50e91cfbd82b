"""Pages in a real browser: nothing is wider than the screen, nothing fails, and the table of a study sorts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from handmade_attention import handmade_model
from inheritune.analysis.analyze import Options, analyze_side_by_side
from inheritune.analysis.kept import load_kept
from inheritune.analysis.result import save_analyses
from inheritune.report import write_report
from inheritune.report.analysis_report import write_analysis
from inheritune.report.comparison import compare_runs
from inheritune.report.evaluation_report import write_evaluation
from report.synthetic_comparison import write_training
from report.synthetic_evaluation import evaluation
from report.synthetic_run import add_choices, change_summary, layer_analysis, round_summary, write_run
from tiny_data import write_shards

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGES = ("run", "study", "analysis", "evaluation")
ColorScheme = Literal["light", "dark"]
LONG = "a-name-that-no-column-of-a-phone-has-room-for"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium and no google-chrome on PATH")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, with every part that one can have."""
    folder = tmp_path_factory.mktemp("pages")
    run, data = write_run(folder / "run"), write_shards(folder / "data")
    add_choices(run)
    handmade_model([(), (), range(4), range(4)]).save_pretrained(folder / "model")
    analyzed = analyze_side_by_side([str(folder / "model")], data, Options(sequences=3, window=32), maps=True)
    save_analyses(run / "reference" / "analysis.json", [one.analysis for one in analyzed])
    write_analysis(folder, layer_analysis(load_kept(run / "round-1-4-layers/choice.json")), analyzed)

    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text(evaluation().model_dump_json())
    write_evaluation(folder, evaluation())

    cooled = {
        "step": 60,
        "loss": 3.6,
        "target": 3.43,
        "what": "grow",
        "expected": 3.5,
        "low": 3.4,
        "high": 3.6,
    }
    other = {"loss": 3.6, "difference": 0.1, "interval": (0.0, 0.2), "parity": False}
    rounds = [round_summary(1, decisions=[cooled], also={LONG: other}, predicted=3.4), round_summary(2)]
    change_summary(run, rounds=rounds)

    for seed, shift in enumerate((0.0, 0.1)):
        for name, losses in {"big": (3.0, 3.2, 2.8), "small": (2.8, 3.1, 2.7), LONG: (3.6, 3.7, 3.5)}.items():
            path = folder / f"seed-{seed}" / name
            write_training(path, [loss + shift * (name == LONG) for loss in losses], steps=90 + 20 * seed)
    seeds = [f"{name}={folder}/seed-{seed}/{name}" for name in ("big", LONG) for seed in (0, 1)]
    half = write_training(folder / "half", None)
    compare_runs([*seeds, f"small={folder}/seed-0/small", str(half)], "big", folder)
    made = write_report(run), *(folder / f"{name}.html" for name in ("comparison", "analysis", "evaluation"))
    return dict(zip(PAGES, made, strict=True))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(
    browser: Browser, path: Path, width: int = 1280, scheme: ColorScheme = "light"
) -> tuple[Page, list[str]]:
    """The page with all that is folded open, and what the browser has to complain about, now and later."""
    page, complaints = (
        browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme),
        list[str](),
    )
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_fits_the_screen_in_light_and_dark(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: ColorScheme
) -> None:
    page, complaints = opened(browser, pages[kind], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ground, ink = (
        sum(
            json.loads(
                page.evaluate(f"getComputedStyle(document.body).{of}").replace("rgb(", "[").replace(")", "]")
            )
        )
        for of in ("backgroundColor", "color")
    )
    assert (ground > ink) == (scheme == "light")
    for heading in page.locator("thead th", has_text="Difference").all():
        box = heading.bounding_box()
        assert box is not None and box["x"] + box["width"] <= width, (
            "what decides is seen before any scrolling"
        )
    assert complaints == []
    page.close()


def test_names_of_rows_stay_where_a_table_is_scrolled(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["study"], 390)
    table = page.locator(".scroll:has(table.runs)")
    name, last = table.locator("tbody th").first, table.locator("tbody tr").first.locator("td").last
    before, hidden = name.bounding_box(), last.bounding_box()
    assert before is not None and hidden is not None and hidden["x"] > 390
    table.evaluate("element => element.scrollLeft = element.scrollWidth")
    seen = last.bounding_box()
    assert name.bounding_box() == before
    assert seen is not None and seen["x"] + seen["width"] <= 390
    page.close()


def rows(page: Page, *columns: str) -> list[tuple[str, ...]]:
    """What is shown in these columns of the table of runs, row by row."""
    headings = [text.strip() for text in page.locator("table.runs thead th").all_inner_texts()]
    places = [headings.index(column) for column in columns]
    cells = [
        row.locator("th, td").all_inner_texts() for row in page.locator("table.runs tbody tr:visible").all()
    ]
    return [tuple(row[place] for place in places) for row in cells]


def test_the_table_of_a_study_is_sorted_by_mouse_and_keyboard(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page, complaints = opened(browser, pages["study"])
    given = rows(page, "Name", "Seed", "Difference")
    assert given == [
        *(("big", "2 seeds", ""), ("", "0", ""), ("", "1", "")),
        *((LONG, "2 seeds", "+0.650"), ("", "0", "+0.600"), ("", "1", "+0.700")),
        *(("small", "0", "−0.133"), ("half", "0", "")),
    ]
    big, long, (small, half) = given[:3], given[3:6], given[6:]
    heading = page.locator("th:has(button)", has_text="Difference")
    heading.locator("button").click()
    assert rows(page, "Name", "Seed", "Difference") == [small, *long, *big, half], (
        "what has no number is last"
    )
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert rows(page, "Name", "Seed", "Difference") == [long[0], long[2], long[1], small, *big, half]
    assert heading.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert [name for name, _ in rows(page, "Name", "Seed") if name] == sorted((LONG, "big", "half", "small"))
    assert page.locator("th[aria-sort=ascending]").all_inner_texts() == ["Name"]
    assert heading.get_attribute("aria-sort") == "none"
    page.locator("th button", has_text="FLOPs").click()
    flops = [text for (text,) in rows(page, "FLOPs") if text]
    assert flops == ["90 TFLOP", "110 TFLOP", "90 TFLOP", "110 TFLOP", "90 TFLOP"], (
        "seeds stay with their row"
    )
    assert complaints == []
    page.close()


def test_the_table_of_a_study_is_filtered(browser: Browser, pages: dict[str, Path]) -> None:
    page, complaints = opened(browser, pages["study"])
    box, count = page.get_by_label("Rows with"), page.locator("output")
    for typed, expected, told in (
        ("small", [("small", "0")], "1 of 8 rows"),
        ("WORSE  +0.700", [(LONG, "2 seeds"), ("", "1")], "2 of 8 rows"),
        ("-0.133", [("small", "0")], "1 of 8 rows"),
        ("<b>", [], "0 of 8 rows"),
    ):
        box.fill(typed)
        assert rows(page, "Name", "Seed") == expected
        assert count.inner_text() == told
    box.fill("")
    assert len(rows(page, "Name")) == 8 and count.inner_text() == ""
    assert complaints == []
    page.close()


def test_without_javascript_the_table_is_a_table(browser: Browser, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["study"].as_uri())
    assert len(rows(page, "Name")) == 8
    assert page.locator("button, input").count() == 0
    context.close()
