"""Shards: token files on disk, and how they are read.

    DIR/manifest.json           what is there; written last, so its presence means that the directory is finished
    DIR/train-00000.bin ...     little-endian uint16 (vocabulary of at most 65536) or uint32 token ids, no header
    DIR/validation-00000.bin ...
    DIR/tokenizer/              the tokenizer that wrote them

The tokens of a split are those of its files one after the other; each document ends with the end-of-text token.
The token that models read in front of a text (beginning-of-text) is named in the manifest and not among the tokens:
`loader.model_inputs` puts it there.
Folders made by nanoGPT (`train.bin` and `val.bin`, uint16) are read as they are.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.data.tokenizer import AUTO, NONE, bos_id, named_tokenizer, tokens_in_front
from inheritune.plain_yaml import shown
from inheritune.runtime import files

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"

SplitName = Literal["train", "validation"]

# nanoGPT's data/openwebtext/prepare.py writes GPT-2 tokens.
GPT2 = "gpt2"
_GPT2_VOCABULARY = 50257
_GPT2_END_OF_TEXT = 50256


class NoShardsError(UserError):
    """There are no finished shards in a directory."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One token file. Documents and SHA-256 are not known for nanoGPT's files."""

    name: str
    tokens: int
    documents: int | None
    sha256: str | None


class SplitRecord(_Record):
    """The files of a split, in the order of their tokens."""

    documents: int | None
    tokens: int
    files: list[FileRecord]
    text_bytes: int | None = None
    """UTF-8 bytes of its documents; None where they were not counted."""


class TokenizerRecord(_Record):
    """The tokenizer that wrote the tokens: all ids are smaller than `vocabulary`.

    `bos` is the token that models read in front of a text; None if there is none, or if the manifest does not say.
    """

    name: str
    sha256: str | None
    vocabulary: int
    end_of_text: int | None
    bos: int | None = None


class Manifest(_Record):
    """What a directory of shards holds, and the arguments it was prepared with."""

    format: Literal[1] = 1
    tokenizer: TokenizerRecord
    dtype: Literal["uint16", "uint32"]
    source: list[str]
    splits: dict[SplitName, SplitRecord]
    arguments: dict[str, Any] = {}
    rows_without_text: int = 0
    """Left out of the sources: empty ones, and with `skip_invalid` those whose text is null, missing or no text."""
    datasets: list[str] = []
    """Ids of the sources that are data sets on the Hugging Face hub."""


class DataIdentity(BaseModel):
    """Which tokens something was computed from: two splits are the same data if their `sha256` are equal.

    The sum is over the token files' own checksums and over what is read in front of and behind documents, so it does
    not depend on where the files are or which tokenizer files lie beside them. `path` is for messages.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    sha256: str
    split: SplitName
    path: str
    tokens: int | None = None
    text_bytes: int | None = None
    """Of the whole split; None where the manifest does not say how many bytes of text it is."""

    def __str__(self) -> str:
        return f"the {self.split} split of {self.path} (sha256 {self.sha256[:12]})"

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of text, the end of each document being a token without any; None where they are not known."""
        return self.text_bytes / self.tokens if self.text_bytes and self.tokens else None


def check_same_data(found: DataIdentity | None, wanted: DataIdentity | None, what: str) -> None:
    """Refuse what was computed from other data; where one side does not say, warn.

    Args:
        found: the data that `what` was computed from.
        wanted: the data that it is to be used with.
        what: such as "the losses of the reference".

    Raises:
        UserError: both are known, and differ.
    """
    if found is None or wanted is None:
        _warn_unknown(what)
    elif found.sha256 != wanted.sha256:
        raise UserError(
            f"{what} belong to other data: to {found}, but here is {wanted}; use the data they were made with, or "
            "another directory"
        )


@cache
def _warn_unknown(what: str) -> None:
    logger.warning("it is not recorded which data %s belong to; they are taken for the data at hand", what)


class Split:
    """The tokens of one split, memory-mapped, and the token that models read in front of a text (`bos`)."""

    def __init__(self, directory: Path, name: SplitName, manifest: Manifest, bos: str = AUTO) -> None:
        record, tokenizer = manifest.splits[name], manifest.tokenizer
        self.directory, self.name, self.tokens, self._record = directory, name, record.tokens, record
        self.tokenizer, self._tokenizer = tokenizer.name, tokenizer
        self.end_of_text, self.bos = tokenizer.end_of_text, _bos(directory, manifest, bos)
        self._starts = list(itertools.accumulate((file.tokens for file in record.files), initial=0))
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        paths = [_whole(directory, file, dtype.itemsize) for file in record.files]
        self._files: list[npt.NDArray[Any]] = [np.asarray(np.memmap(path, dtype, mode="r")) for path in paths]

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `stop` (exclusive) of the split, across the boundaries of files, as int64."""
        assert 0 <= start <= stop <= self.tokens, f"no tokens {start}:{stop} among {self.tokens}"
        parts = [np.empty(0, np.int64)]
        index = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = self._starts[index], min(stop, self._starts[index + 1])
            parts.append(self._files[index][start - first : end - first])
            start, index = end, index + 1
        return np.concatenate(parts, dtype=np.int64)

    @cached_property
    def identity(self) -> DataIdentity:
        """Which data this is."""
        sums = [
            [file.sha256 or _sampled_sha256(self.directory / file.name), file.tokens]
            for file in self._record.files
        ]
        whole = json.dumps([self.name, sums, self.end_of_text, self.bos])
        digest = hashlib.sha256(whole.encode()).hexdigest()
        size = (
            {}
            if self._record.text_bytes is None
            else {"tokens": self.tokens, "text_bytes": self._record.text_bytes}
        )
        return DataIdentity(sha256=digest, split=self.name, path=str(self.directory), **size)

    @cached_property
    def vocabulary(self) -> int:
        """All ids are smaller: as the tokenizer says, and as the tokens do where it is only assumed (nanoGPT's)."""
        said = self._tokenizer.vocabulary
        return said if self._tokenizer.sha256 is not None else max(said, 1 + self.largest_token)

    @cached_property
    def largest_token(self) -> int:
        """The largest token id that occurs; reads all of them."""
        return max(int(part.max()) for part in self._files if len(part))


def read_manifest(directory: Path | str) -> Manifest:
    """What is in a directory of shards (or of nanoGPT's `train.bin` and `val.bin`).

    Raises UserError where there are no finished shards and for a manifest that is not one.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if path.is_file():
        return files.read_record(path, Manifest, "a manifest of format 1")
    if (directory / "train.bin").is_file():
        return _nanogpt_manifest(directory)
    if not directory.is_dir():
        raise NoShardsError(f"there is no directory {directory}")
    raise NoShardsError(
        f"{directory} holds no finished shards ({MANIFEST} is missing): run `inheritune prepare` on it to the end"
    )


def open_split(directory: Path | str, name: SplitName, bos: str = AUTO) -> Split:
    """Memory-map one split. Raises UserError for a split that is not there and for a file of the wrong size.

    `bos`: the token that models read in front of a text, by its name; `auto` is what the manifest says, which is
    worth a warning where it says nothing and the tokenizer adds one; `none` is none.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if name not in manifest.splits or manifest.splits[name].tokens == 0:
        raise UserError(f"{directory} has no {name} split")
    return Split(directory, name, manifest, bos)


def verify(directory: Path | str) -> None:
    """Compare size and SHA-256 of every file with the manifest, on all cores.

    Raises UserError naming the first damaged file. nanoGPT's files carry no checksum: only their size is checked.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    itemsize = np.dtype(manifest.dtype).itemsize
    records = [file for split in manifest.splits.values() for file in split.files]

    def check(file: FileRecord) -> None:
        path = _whole(directory, file, itemsize)
        _check_sum(path, file.sha256, files.sha256)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(check, records))
    _check_sum(directory / TOKENIZER, manifest.tokenizer.sha256, sha256_of_directory)


def sha256_of_directory(directory: Path) -> str:
    """One SHA-256 for the names and contents of all files under a directory."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{files.sha256(path)}\n".encode())
    return digest.hexdigest()


def _sampled_sha256(path: Path, blocks: int = 64, size: int = 2**16) -> str:
    """Of a file without a checksum, however large: over its size and blocks spread evenly over it."""
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        for block in range(blocks + 1):
            file.seek(max(0, length - size) * block // blocks)
            digest.update(file.read(size))
    return digest.hexdigest()


def _bos(directory: Path, manifest: Manifest, bos: str) -> int | None:
    if bos == AUTO:
        if "bos" not in manifest.tokenizer.model_fields_set and (directory / TOKENIZER).is_dir():
            _warn_of_bos(directory)
        return manifest.tokenizer.bos
    if bos == NONE:
        return None
    if not (directory / TOKENIZER).is_dir():
        raise UserError(
            f"{directory} has no tokenizer in which the beginning-of-text token {shown(bos)} could be looked up"
        )
    return bos_id(named_tokenizer(str(directory / TOKENIZER)), bos)


@cache
def _warn_of_bos(directory: Path) -> None:
    """Say once that a manifest does not name the token which its tokenizer adds."""
    try:
        tokenizer = named_tokenizer(str(directory / TOKENIZER))
        front = tokens_in_front(tokenizer)
    except UserError:  # such as a tokenizer that comes with code: nothing is known of it
        return
    if front:
        logger.warning(
            "the tokenizer of %s puts %s in front of a text, but the manifest does not say so, and models read the "
            "text without it: where they were trained with it, prepare the text again in another directory, or name "
            "the token as `data.bos` in the recipe",
            directory,
            " ".join(tokenizer.convert_ids_to_tokens(front)),
        )


def _whole(directory: Path, file: FileRecord, itemsize: int) -> Path:
    path, size = directory / file.name, file.tokens * itemsize
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if path.stat().st_size != size:
        raise UserError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}")
    return path


def _check_sum(path: Path, expected: str | None, sha256: Callable[[Path], str]) -> None:
    if expected is not None and sha256(path) != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is not that of the manifest")


def _nanogpt_manifest(directory: Path) -> Manifest:
    splits: dict[SplitName, SplitRecord] = {}
    names: list[tuple[SplitName, str]] = [("train", "train.bin"), ("validation", "val.bin")]
    for split, name in names:
        path = directory / name
        if path.is_file():
            size = path.stat().st_size
            if size == 0 or size % 2:
                raise UserError(f"{path} is not a file of uint16 tokens: it has {size} bytes")
            file = FileRecord(name=name, tokens=size // 2, documents=None, sha256=None)
            splits[split] = SplitRecord(documents=None, tokens=file.tokens, files=[file])
    tokenizer = TokenizerRecord(
        name=GPT2, sha256=None, vocabulary=_GPT2_VOCABULARY, end_of_text=_GPT2_END_OF_TEXT, bos=None
    )
    if (directory / "meta.pkl").exists():
        # nanoGPT's character-level data. The pickle is not loaded (it could run code): the ids tell the size.
        largest = max(
            int(np.memmap(directory / split.files[0].name, "<u2", "r").max()) for split in splits.values()
        )
        changes = {"name": "characters", "vocabulary": 1 + largest, "end_of_text": None}
        tokenizer = tokenizer.model_copy(update=changes)
    source = [f"nanoGPT: {directory.name}"]
    return Manifest(tokenizer=tokenizer, dtype="uint16", source=source, splits=splits)
