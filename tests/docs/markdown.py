"""The Markdown files of the repository: their code, their links and their headings."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
NOT_OURS = (".venv", "build", "dist", "site", "node_modules", "runs", "data")
"""Folders at the top of a clone that are not part of the repository."""

FENCE = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load_generate() -> ModuleType:
    """`docs/generate.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()


@dataclass(frozen=True)
class Block:
    """Fenced code: its language, its title if it has one, its lines, and where it begins."""

    language: str
    title: str | None
    text: str
    line: int


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    found = sorted(ROOT.rglob("*.md"))
    return [path for path in found if not _is_foreign(path.relative_to(ROOT))]


def _is_foreign(path: Path) -> bool:
    return path.parts[0] in NOT_OURS or any(part.startswith(".") for part in path.parts)


def blocks(text: str) -> Iterator[Block]:
    """The fenced code of a page."""
    for found in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', found[2])
        line = text.count("\n", 0, found.start()) + 2
        yield Block(found[1], title and title[1], found[3], line)


def prose(text: str) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"(?m)^(?: {4}|\t).*$", "", FENCE.sub("", text)))


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub and mkdocs both make them; or as a heading names its own."""
    anchors = set()
    for title in re.findall(r"(?m)^#+ +(.+?) *$", FENCE.sub("", text)):
        own = re.search(r"\{#([^}]+)\}$", title)
        anchors.add(own[1] if own else _slug(title))
    return anchors


def _slug(title: str) -> str:
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*\\]", r"\1", title)
    kept = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", plain)).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)
