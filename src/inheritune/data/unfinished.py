"""An unfinished `prepare`: its directory, how far its files are good, and writing on after a kill."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.data.shards import MANIFEST, FileRecord, Manifest, SplitName, SplitRecord, read_manifest
from inheritune.data.tokenizer import AUTO
from inheritune.runtime import files

UNFINISHED = "unfinished"
PROGRESS = "progress.json"
_LOCK = "lock"


class Position(BaseModel):
    """A place between two documents: in which source, after how many of its documents, and a hash of these."""

    model_config = ConfigDict(frozen=True)
    source: int = 0
    documents: int = 0
    digest: str = ""


class Arguments(BaseModel):
    """What decides the shards. A directory is resumed only if these are the same."""

    model_config = ConfigDict(frozen=True)
    sources: list[str]
    tokenizer: str | None
    train_tokenizer: int | None
    end_of_text: str | None
    validation: float
    text_field: str
    split: str
    config: str | None
    seed: int
    max_documents: int | None
    shard_tokens: int
    bos: str = AUTO
    skip_invalid: bool = False
    files: dict[str, int] = {}
    """Bytes of each local file, by which most changes of a finished text are noticed; files may be gone by then."""
    in_memory: str = ""
    """Tells documents in memory from others; "" where there were none, or it is not known. Of what is unfinished the
    documents themselves are compared."""


class Saved(BaseModel):
    """progress.json: up to where the files are good."""

    arguments: Arguments
    position: Position = Position()
    source_tokens: int = 0  # taken from the source at `position`
    smallest_key: float = 1.0  # of all documents so far
    rows_without_text: int = 0  # so far
    splits: dict[SplitName, SplitRecord] = {}


def begun(output: Path) -> bool:
    """Whether a directory has shards, or some of them."""
    return (output / MANIFEST).exists() or (output / UNFINISHED / PROGRESS).exists()


def load_saved(work: Path, arguments: Arguments) -> Saved:
    """What an earlier start saved; an empty directory and the beginning if it saved nothing."""
    path = work / PROGRESS
    if path.exists():
        saved = Saved.model_validate_json(path.read_bytes())
        _check_same(saved.arguments.model_dump(), arguments, work, f"delete {work} to start over")
        return saved
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()
    return Saved(arguments=arguments)


def finished(output: Path, arguments: Arguments) -> Manifest:
    """The manifest of a finished directory. UserError if it was made with other arguments or another text."""
    manifest = read_manifest(output)
    before = {"sources": manifest.source, **manifest.arguments}
    _check_same(before, arguments, output, "give another directory")
    if manifest.arguments.get("in_memory", "") not in ("", arguments.in_memory):
        raise UserError(f"{output} was made of other documents in memory: give another directory")
    known = manifest.arguments.get("files", arguments.files)  # the first versions did not write them down
    changed = [file for file, size in arguments.files.items() if known.get(file) != size]
    if changed:
        raise UserError(f"{changed[0]} is new or has changed since {output} was made: give another directory")
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)  # left where the last move was not the last act
    return manifest


def _check_same(before: dict[str, Any], arguments: Arguments, directory: Path, advice: str) -> None:
    # An argument that was not yet there had its default.
    defaults = {name: f.default for name, f in Arguments.model_fields.items() if not f.is_required()}
    before = {**defaults, **before}
    for name, value in arguments.model_dump(exclude={"files", "in_memory"}).items():
        if name in before and before[name] != value:
            raise UserError(
                f"{directory} was started with {name} = {before[name]!r}, not {value!r}: {advice}"
            )


def check_output(output: Path) -> None:
    """UserError for a file, and for a directory of other things than finished or unfinished shards."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file, not a directory")
    # In this order: of another process that ends now, the manifest comes before the unfinished work goes.
    occupied = output.is_dir() and any(output.iterdir())
    if occupied and not (output / UNFINISHED).is_dir() and not (output / MANIFEST).exists():
        raise UserError(f"{output} is not empty, and holds no shards: give a new directory")


@contextmanager
def work_directory(output: Path) -> Iterator[Path]:
    """OUTPUT/unfinished, for this process alone. Removed again if nothing worth keeping was done."""
    check_output(output)
    work = output / UNFINISHED
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another `prepare` is running in {output}") from error
        for directory in (work, output):
            files.remove_leftovers(directory)
        try:
            yield work
        except BaseException:
            if work.exists() and not (work / PROGRESS).exists():
                shutil.rmtree(work)
                with suppress(OSError):  # not empty
                    output.rmdir()
            raise


def publish(work: Path, output: Path) -> None:
    """Move the finished files up, the manifest last. May be interrupted and called again."""
    for entry in sorted(work.iterdir()):
        if entry.name not in (MANIFEST, PROGRESS, _LOCK):
            entry.rename(output / entry.name)
    files.write_bytes(output / MANIFEST, (work / MANIFEST).read_bytes())
    shutil.rmtree(work)


class SplitWriter:
    """Appends documents to the files of one split; a new file starts where one would exceed `shard_tokens`.

    `sync` makes everything so far durable and gives its record. A writer that is given this record drops what was
    written after it and writes on: the files come out the same, byte for byte.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        record: SplitRecord | None = None,
    ) -> None:
        self.directory, self.name, self.shard_tokens = directory, name, shard_tokens
        self.tokens = self.documents = self._file_tokens = self._file_documents = 0
        self.text_bytes: int | None = 0
        self._full: list[FileRecord] = []
        self._file: BinaryIO | None = None  # the one after these
        kept: set[str] = set()
        if record is not None and record.files:
            kept = {file.name for file in record.files}
            self._resume(record, dtype.itemsize)
        for path in directory.glob(f"{name}-*.bin"):
            if path.name not in kept:
                path.unlink()

    def append(self, tokens: npt.NDArray[Any], text_bytes: int) -> None:
        """Write one document, end-of-text included, whose text has so many bytes."""
        if self._file is not None and self._file_tokens + len(tokens) > self.shard_tokens:
            self._full = self.sync().files
            self.close()
        if self._file is None:
            self._file = self._path().open("wb", buffering=2**20)
            self._file_tokens = self._file_documents = 0
            self._sha256 = hashlib.sha256()
        data = tokens.tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self._file_tokens += len(tokens)
        self._file_documents += 1
        self.tokens += len(tokens)
        self.documents += 1
        if self.text_bytes is not None:
            self.text_bytes += text_bytes

    def sync(self) -> SplitRecord:
        """Flush everything to the disk."""
        written = list(self._full)
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            written.append(
                FileRecord(
                    name=self._path().name,
                    tokens=self._file_tokens,
                    documents=self._file_documents,
                    sha256=self._sha256.hexdigest(),
                )
            )
        return SplitRecord(
            documents=self.documents, tokens=self.tokens, files=written, text_bytes=self.text_bytes
        )

    def close(self) -> None:
        """Close the open file. What was not synced may be lost."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _resume(self, record: SplitRecord, itemsize: int) -> None:
        *self._full, last = record.files
        assert record.documents is not None and last.documents is not None
        self.tokens, self.documents, self.text_bytes = record.tokens, record.documents, record.text_bytes
        self._file_tokens, self._file_documents = last.tokens, last.documents
        path = self._path()
        with path.open("r+b") as file:
            file.truncate(last.tokens * itemsize)
            self._sha256 = hashlib.file_digest(file, "sha256")
        if self._sha256.hexdigest() != last.sha256:
            raise UserError(f"{path} was changed or damaged: delete {self.directory} and start again")
        self._file = path.open("ab", buffering=2**20)

    def _path(self) -> Path:
        return self.directory / f"{self.name}-{len(self._full):05d}.bin"
