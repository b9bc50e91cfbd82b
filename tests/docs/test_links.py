"""Links between the Markdown files of the repository, and between the pages that the site makes of them."""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path

import pytest

from docs.markdown import ROOT, generate, headings, pages, prose

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
PAGES = pages()


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for target in LINK.findall(prose(text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        wanted = (page.parent / path) if path else page
        if not wanted.exists() or (anchor and anchor not in headings(_read(wanted))):
            found.append(target)
    return found


@cache
def _read(page: Path) -> str:
    return str(generate.with_sections(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, _read(page)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One `thing` at a time\n\n### Named {#own}\n")
    text = (
        "[a](other.md) [b](nowhere.md) [c](other.md#one-thing-at-a-time) [d](other.md#two)"
        " [e](other.md#own) `[f](g)`"
    )
    assert broken(page, text) == ["nowhere.md", "other.md#two"]


def test_every_page_of_the_site_is_in_its_navigation_or_below_results() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    ours = [
        path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")
    ]
    assert [path for path in ours if path not in navigation] == []


def test_links_out_of_docs_stay_links_on_the_site() -> None:
    known = frozenset({"results/low-data/README.md", "recipes/quickstart.yaml"})
    text = "[a](../../results/low-data) [b](../../recipes/quickstart.yaml) [c](method.md#x) [d](../../x.py) [e](#y)"
    assert generate.relinked(text, "docs/explanation/results.md", known) == (
        "[a](../results/low-data/README.md) [b](../recipes/quickstart.yaml) [c](method.md#x) d [e](#y)"
    )
    assert generate.relinked("![p](x.svg) [q](../../docs/index.md)", "results/low-data/README.md", known) == (
        "p [q](../../index.md)"
    )


def test_what_pages_of_docs_link_to_is_carried_to_the_site() -> None:
    """A link that the site drops is one that a reader of it lacks."""
    known = frozenset(generate.carried())
    lost = []
    for page in PAGES:
        if not page.is_relative_to(ROOT / "docs"):
            continue
        here = page.parent.relative_to(ROOT).as_posix()
        for target in LINK.findall(prose(_read(page))):
            path = posixpath.normpath(posixpath.join(here, target.partition("#")[0]))
            if "://" not in target and not path.startswith("docs") and path not in known:
                lost.append(f"{page.name}: {target}")
    assert lost == []
