"""Where documents come from: local files, memory, a Hugging Face data set, the data sets of the paper by name, or
the docstrings of the installed packages.
"""

from __future__ import annotations

import ast
import glob
import importlib.util
import json
import logging
import random
import re
import sysconfig
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune import UserError
from inheritune.data.documents import (
    EXPECTED,
    Documents,
    Files,
    Rows,
    RowText,
    Source,
    decompressed,
    file_format,
    is_dataset,
    local_files,
    one_line,
)

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 5
"""More than there are, so that reading so much text reaches a number of tokens."""

# name: (data set, configuration)
_DATASETS = {
    "openwebtext": ("Skylion007/openwebtext", None),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}

# The low-data experiments (paper, appendix B): tokens in per mille of each part of RedPajama v1.
_REDPAJAMA = "redpajama-1b"
_REDPAJAMA_DATASET = "togethercomputer/RedPajama-Data-1T"
_REDPAJAMA_FILES = "https://data.together.xyz/redpajama-data-1T/v1.0.0/urls.txt"
_REDPAJAMA_TOKENS = 1_000_000_000
_REDPAJAMA_PARTS = {
    "common_crawl": 670,
    "c4": 150,
    "github": 45,
    "book": 45,
    "wikipedia": 45,
    "arxiv": 25,
    "stackexchange": 20,
}
_FILES_PER_PART = 20
_TIMEOUT_SECONDS = 60

# The packages whose docstrings are text, beside the standard library.
_PACKAGES = ("networkx", "numpy")
_SHORTEST_DOCSTRING = 100
_SHORTEST_DOCUMENT = 500
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}


def resolve(
    source: str | Path | Iterable[str] | Dataset,
    *,
    text_field: str = "text",
    skip_invalid: bool = False,
    split: str = "train",
    config: str | None = None,
    seed: int = 0,
    output: Path | None = None,
) -> Sequence[Source]:
    """The sources that a name (preset, file, folder, glob pattern, hub id) or an iterable of documents stands for.

    A .txt file is one document; .jsonl (.json, .ndjson) has one object a line; .parquet and .arrow one row each. Text
    and JSON lines may be compressed (.gz, .xz, .zst). Files of a folder are taken in the order of their names, hidden
    ones, what `datasets` keeps beside its data, and what is below `output` left out. For `text_field` and
    `skip_invalid` see `RowText`. Raises UserError when there is nothing of that name.
    """
    row_text = RowText(text_field, skip_invalid)
    if is_dataset(source):
        return [Rows(source, row_text)]
    if not isinstance(source, str | Path):
        return [Documents(source, row_text)]
    name, path = str(source), Path(source)
    if name in _DATASETS:
        dataset, config = _DATASETS[name]
        return [_hub_dataset(dataset, RowText("text", skip_invalid), "train", config)]
    if name == _REDPAJAMA:
        return _redpajama(seed, RowText("text", skip_invalid))
    paths = local_files(source, output)
    unknown = [] if path.is_dir() else [file for file in paths if not file_format(file)]
    if unknown:
        raise UserError(f"{unknown[0]} has no known format: expected {EXPECTED}")
    if paths:
        return [Files(name, paths, row_text)]
    if path.is_dir():
        raise UserError(f"the folder {path} has no files to read: expected {EXPECTED} (none of them hidden)")
    if glob.has_magic(name):
        raise UserError(f"no file matches {name}")
    if file_format(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"there is no file or folder {name}")
    return [_hub_dataset(name, row_text, split, config)]


class Remote(Source):
    """Rows that are read over the network as they are needed."""

    def __init__(
        self,
        name: str,
        row_text: RowText,
        rows: Callable[[], Iterable[Any]],
        dataset: str,
        row: str = "row",
        tokens: int | None = None,
    ) -> None:
        super().__init__(name, row_text, tokens=tokens)
        self.rows, self.dataset, self.row = rows, dataset, row

    def documents(self) -> Iterator[str]:
        """See `Source`. OSError when the network fails, after which the same command resumes."""
        rows = iter(self.rows())
        self.read = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise OSError(
                    f"reading {self.name} failed ({one_line(error)}): the same command resumes there"
                ) from error
            self.read += 1
            yield self.row_text.of(row, f"{self.row} {self.read} of {self.name}")


def _hub_dataset(name: str, row_text: RowText, split: str, config: str | None) -> Remote:
    """One split of a data set.

    Raises UserError at once if the data set cannot be reached, or has no such configuration, split or text field.
    """
    import datasets

    try:
        try:
            rows = datasets.load_dataset(name, config, split=split, streaming=True)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # The data set is a program, which `datasets` 4 no longer runs. The hub keeps a Parquet copy of its rows.
            copy = "refs/convert/parquet"
            rows = datasets.load_dataset(name, config, split=split, streaming=True, revision=copy)
        first = next(iter(rows), None)
    except Exception as error:  # each kind of trouble has its own class, in four libraries
        raise UserError(
            f"there is no file or folder {name}, and no such data set can be read from the Hugging Face hub: "
            f"{one_line(error)}"
        ) from error
    if first is None:
        raise UserError(f"the split {split!r} of {name} has no rows")
    if not any(map(row_text.is_in, first)):  # what is nested may be null in one row and not in the next
        raise UserError(row_text.missing(first, name))
    return Remote(name, row_text, lambda: rows, name)


def _redpajama(seed: int, row_text: RowText) -> list[Remote]:
    """A sample of each part of RedPajama v1. Raises UserError if its list of files cannot be reached."""
    try:
        with urllib.request.urlopen(_REDPAJAMA_FILES, timeout=_TIMEOUT_SECONDS) as response:
            files = response.read().decode().split()
    except Exception as error:
        raise UserError(f"RedPajama v1 cannot be read from {_REDPAJAMA_FILES}: {one_line(error)}") from error
    folder = _REDPAJAMA_FILES.rpartition("/")[0]
    urls = {part: [url for url in files if url.startswith(f"{folder}/{part}/")] for part in _REDPAJAMA_PARTS}
    present = {part: share for part, share in _REDPAJAMA_PARTS.items() if urls[part]}
    if not present:
        raise UserError(
            f"RedPajama v1 cannot be read from {_REDPAJAMA_FILES}: its list of files names none of its parts"
        )
    if missing := [part for part in urls if part not in present]:
        # The books were withdrawn for reasons of copyright. The other parts keep their proportions.
        logger.warning("RedPajama v1 is served without %s: the other parts are scaled up", ", ".join(missing))
    whole = sum(present.values())
    return [
        _redpajama_part(part, urls[part], _REDPAJAMA_TOKENS * share // whole, seed, row_text)
        for part, share in present.items()
    ]


def _redpajama_part(part: str, urls: list[str], tokens: int, seed: int, row_text: RowText) -> Remote:
    """A part's files in a random order, and of each file the beginning.

    How much of each file is read spreads the sample over up to twenty of them.
    """
    shuffled = random.Random(f"{seed}/{part}").sample(urls, len(urls))
    characters_per_file = CHARACTERS_PER_TOKEN * tokens // min(len(urls), _FILES_PER_PART)

    def rows() -> Iterator[Any]:
        for url in shuffled:
            characters = 0
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                for line in decompressed(Path(url), response):
                    row = json.loads(line)
                    yield row
                    characters += len(str(row.get(row_text.field)))
                    if characters >= characters_per_file:
                        break

    return Remote(f"{_REDPAJAMA}/{part}", row_text, rows, _REDPAJAMA_DATASET, "document", tokens)


def docstring_documents() -> Iterator[str]:
    """Several megabytes of technical English that every installation has: the docstrings of its packages.

    One document for each module of the standard library and a few packages, of at least 500 characters, in an order
    that depends on nothing but their names; short docstrings and repeated ones are left out. The quickstart trains on
    them: nothing is downloaded, and for given versions of the packages the text is always the same.
    """
    specs = filter(None, map(importlib.util.find_spec, _PACKAGES))
    roots = [Path(place) for spec in specs for place in spec.submodule_search_locations or []]
    seen: set[str] = set()
    for root in (*roots, Path(sysconfig.get_path("stdlib"))):
        paths = (path for path in root.rglob("*.py") if not _SKIPPED & set(path.relative_to(root).parts))
        for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
            texts = [text for text in dict.fromkeys(_docstrings(path)) if text not in seen]
            seen.update(texts)
            document = "\n\n".join(texts)
            if len(document) >= _SHORTEST_DOCUMENT:
                yield document


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
            if text and len(text) >= _SHORTEST_DOCSTRING:
                yield text
