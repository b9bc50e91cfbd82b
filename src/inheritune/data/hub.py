"""Documents from Hugging Face data sets, streamed, and the data sets of the paper by name."""

from __future__ import annotations

import json
import logging
import random
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inheritune import UserError
from inheritune.data.documents import RowText, missing_field, one_line
from inheritune.data.files import decompressed

logger = logging.getLogger(__name__)

# name: (data set, configuration)
_DATASETS = {
    "openwebtext": ("Skylion007/openwebtext", None),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}

# The low-data experiments (paper, appendix B): tokens in per mille of each part of RedPajama v1.
_REDPAJAMA = "redpajama-1b"
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
_CHARACTERS_PER_TOKEN = 5  # more than there are, so that the tokens are reached
_TIMEOUT_SECONDS = 60

PRESETS = (*_DATASETS, _REDPAJAMA)


class HubDataset:
    """One split of a data set, read over the network as it is needed.

    Raises UserError at once if the data set cannot be reached, or has no such configuration, split or text field.
    """

    def __init__(
        self, name: str, row_text: RowText, *, split: str = "train", config: str | None = None
    ) -> None:
        self.name = name
        self.tokens: int | None = None
        self.size: int | None = None
        self.read = 0
        self.row_text = row_text
        try:
            self._rows = _load(name, config, split)
            first = next(iter(self._rows), None)
        except Exception as error:  # each kind of trouble has its own class, in four libraries
            raise UserError(
                f"there is no file or folder {name}, and the Hugging Face hub does not give such a data set: "
                f"{one_line(error)}"
            ) from error
        if first is None:
            raise UserError(f"the split {split!r} of {name} has no rows")
        # What is nested may be null in one row and not in the next.
        if not any(f"{row_text.field}.".startswith(f"{column}.") for column in first):
            raise UserError(missing_field(row_text.field, first, name))

    def documents(self) -> Iterator[str]:
        """All documents from the first on."""
        for number, row in enumerate(_reading(self._rows, self.name), start=1):
            self.read = number
            yield self.row_text.of(row, f"row {number} of {self.name}")


class RedPajamaPart:
    """A sample of one part of RedPajama v1: its files in a random order, and of each file the beginning.

    How much of each file is read spreads the sample over up to twenty of them.
    """

    def __init__(self, part: str, files: list[str], tokens: int, seed: int, row_text: RowText) -> None:
        self.row_text = row_text
        self.name = f"{_REDPAJAMA}/{part}"
        self.tokens: int | None = tokens
        self.size: int | None = None
        self.read = 0
        self._files = random.Random(f"{seed}/{part}").sample(files, len(files))
        self._characters_per_file = _CHARACTERS_PER_TOKEN * tokens // min(len(files), _FILES_PER_PART)

    def documents(self) -> Iterator[str]:
        """All documents of the sample, from the first on."""
        self.read = 0
        for row in _reading(self._sample(), self.name):
            self.read += 1
            yield self.row_text.of(row, f"document {self.read} of {self.name}")

    def _sample(self) -> Iterator[Any]:
        for url in self._files:
            characters = 0
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                for line in decompressed(Path(url), response):
                    row = json.loads(line)
                    yield row
                    characters += len(str(row.get(self.row_text.field)))
                    if characters >= self._characters_per_file:
                        break


def preset(name: str, seed: int, skip_invalid: bool) -> list[HubDataset] | list[RedPajamaPart]:
    """The sources of a preset. Raises UserError if they cannot be reached."""
    row_text = RowText("text", skip_invalid)
    if name in _DATASETS:
        dataset, config = _DATASETS[name]
        return [HubDataset(dataset, row_text, config=config)]
    assert name == _REDPAJAMA
    try:
        with urllib.request.urlopen(_REDPAJAMA_FILES, timeout=_TIMEOUT_SECONDS) as response:
            files = response.read().decode().split()
        prefix = _REDPAJAMA_FILES.rpartition("/")[0] + "/"
        by_part = {
            part: [url for url in files if url.startswith(f"{prefix}{part}/")] for part in _REDPAJAMA_PARTS
        }
        missing = [part for part, urls in by_part.items() if not urls]
        if missing:
            # The books were withdrawn for reasons of copyright. The other parts keep their proportions.
            logger.warning(
                "RedPajama v1 is served without %s: the other parts are scaled up", ", ".join(missing)
            )
        present = {part: share for part, share in _REDPAJAMA_PARTS.items() if by_part[part]}
        if not present:
            raise UserError("its list of files names none of its parts")
        return [
            RedPajamaPart(
                part, by_part[part], _REDPAJAMA_TOKENS * share // sum(present.values()), seed, row_text
            )
            for part, share in present.items()
        ]
    except Exception as error:
        raise UserError(f"RedPajama v1 cannot be read from {_REDPAJAMA_FILES}: {one_line(error)}") from error


def _load(name: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        # The data set is a program, which `datasets` 4 no longer runs. The hub keeps a Parquet copy of its rows.
        return datasets.load_dataset(
            name, config, split=split, streaming=True, revision="refs/convert/parquet"
        )


def _reading(rows: Iterable[Any], name: str) -> Iterator[Any]:
    """The rows; an OSError when the network fails, after which the same command goes on from where it stopped."""
    try:
        yield from rows
    except Exception as error:
        raise OSError(
            f"reading {name} broke off ({one_line(error)}): the same command goes on from there"
        ) from error
