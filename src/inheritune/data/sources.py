"""Where documents come from: local files, a Hugging Face data set, or memory.

A source gives its documents, as strings, in an order that is the same every time. It raises UserError with one
sentence that names the place where its text cannot be read.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from inheritune import UserError
from inheritune.data import hub
from inheritune.data.documents import RowText
from inheritune.data.files import EXPECTED, Files, file_format

IN_MEMORY = "documents in memory"

# What `datasets` and macOS write beside the data. Files of these names never hold documents.
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_CACHES = "cache-*.arrow"  # of what was computed from a data set
_MACOS = "__MACOSX"


class Source(Protocol):
    """Something to read documents from. An empty document stands for a row without text."""

    name: str
    tokens: int | None  # how many tokens to take from this source; all of them if None
    size: int | None  # what `read` will be at the end, where that is known
    read: int  # how much the newest iterator has read, in the unit of `size`

    def documents(self) -> Iterator[str]:
        """All documents from the first on, each time it is called."""
        ...


def resolve(
    source: str | Path | Iterable[str],
    *,
    text_field: str = "text",
    skip_invalid: bool = False,
    split: str = "train",
    config: str | None = None,
    seed: int = 0,
) -> Sequence[Source]:
    """The sources that a name (preset, file, folder, glob pattern, hub id) or an iterable of documents stands for.

    A .txt file is one document; .jsonl (.json, .ndjson) has one object a line; .parquet and .arrow one row each. Text
    and JSON lines may be compressed (.gz, .xz, .zst). Files of a folder are taken in the order of their names, hidden
    ones and what `datasets` keeps beside its data left out. For `text_field` and `skip_invalid` see `RowText`.
    Raises UserError when there is nothing of that name.
    """
    row_text = RowText(text_field, skip_invalid)
    if not isinstance(source, str | Path):
        return [Documents(source, row_text)]
    name = str(source)
    if name in hub.PRESETS:
        return hub.preset(name, seed, skip_invalid)
    path = Path(source)
    if path.is_file():
        if not file_format(path):
            raise UserError(f"{path} has no known format: expected {EXPECTED}")
        return [Files(name, [path], row_text)]
    paths = local_files(source)
    if path.is_dir():
        if not paths:
            raise UserError(
                f"the folder {path} has no files to read: expected {EXPECTED} (none of them hidden)"
            )
        return [Files(name, paths, row_text)]
    if glob.has_magic(name):
        if not paths:
            raise UserError(f"no file matches {name}")
        for path in paths:
            if not file_format(path):
                raise UserError(f"{path} has no known format: expected {EXPECTED}")
        return [Files(name, paths, row_text)]
    if file_format(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"there is no file or folder {name}")
    return [hub.HubDataset(name, row_text, split=split, config=config)]


def local_files(source: str | Path) -> list[Path]:
    """The files that a file, a folder or a glob pattern stands for, in order; none for anything else."""
    path, name = Path(source), str(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and file_format(file)
            and not _is_hidden(file.relative_to(path))
            and not _is_metadata(file)
        )
    if glob.has_magic(name):
        # Wildcards leave hidden names out by themselves.
        files = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207 (absolute patterns)
        return sorted(
            file for file in files if file.is_file() and (file.name == path.name or not _is_metadata(file))
        )
    return []


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == _MACOS for part in path.parts)


def _is_metadata(path: Path) -> bool:
    return path.name in _METADATA or fnmatch(path.name, _CACHES)


class Documents:
    """Documents that are in memory already."""

    def __init__(self, documents: Iterable[str], row_text: RowText) -> None:
        self.row_text = row_text
        self.name = IN_MEMORY
        self.tokens: int | None = None
        self.size: int | None = len(documents) if isinstance(documents, Sized) else None
        self.read = 0
        self.once = iter(documents) is documents  # a generator: it cannot be read a second time
        self._documents = documents

    def documents(self) -> Iterator[str]:
        """All documents from the first on."""
        self.read = 0
        for number, text in enumerate(self._documents, start=1):
            self.read = number
            yield self.row_text.checked(text, f"document {number}")
