"""Several megabytes of technical English that every installation has: the docstrings of its packages.

The quickstart trains on them when it is given no other text: nothing is downloaded, and nothing that others
wrote is copied into this project. For given versions of the packages the text is always the same.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("networkx", "numpy", "torch")
SHORTEST_DOCSTRING = 100
SHORTEST_DOCUMENT = 500
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}


def docstring_documents() -> Iterator[str]:
    """One document for each module of the standard library and `PACKAGES`: its docstrings, in characters >= 500.

    Short docstrings, repeated ones, and modules with little text are left out.
    """
    seen: set[str] = set()
    for path in _modules():
        document = "\n\n".join(text for text in _docstrings(path) if _is_new(text, seen))
        if len(document) >= SHORTEST_DOCUMENT:
            yield document


def _modules() -> Iterator[Path]:
    """Source files in an order that depends on nothing but their names."""
    roots = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        roots += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    roots.append(Path(sysconfig.get_path("stdlib")))
    for root in roots:
        files = (path for path in root.rglob("*.py") if not _SKIPPED & set(path.relative_to(root).parts))
        yield from sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST_DOCSTRING:
                yield text


def _is_new(text: str, seen: set[str]) -> bool:
    new = text not in seen
    seen.add(text)
    return new
