"""Writing the token files of a split so that a killed writer can be followed by another one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from inheritune import UserError
from inheritune.data.shards import FileRecord, SplitRecord


class SplitWriter:
    """Appends documents to the files of one split; a new file starts where one would exceed `shard_tokens`.

    `sync` makes everything so far durable and gives its record. A writer that is given this record drops what was
    written after it and goes on: the files come out the same, byte for byte.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        record: SplitRecord | None = None,
    ) -> None:
        self.directory = directory
        self.name = name
        self.itemsize = dtype.itemsize
        self.shard_tokens = shard_tokens
        self.tokens = self.documents = 0
        self._closed: list[FileRecord] = []
        self._file: BinaryIO | None = None
        self._file_tokens = self._file_documents = 0
        self._sha256 = hashlib.sha256()
        if record is not None and record.files:
            self._go_on(record)
        kept = len(self._closed) + (self._file is not None)
        for path in sorted(directory.glob(f"{name}-*.bin"))[kept:]:
            path.unlink()

    def append(self, tokens: npt.NDArray[Any]) -> None:
        """Write one document, end-of-text included."""
        if self._file is not None and self._file_tokens + len(tokens) > self.shard_tokens:
            self._close_file()
        if self._file is None:
            self._file = self._path(len(self._closed)).open("wb", buffering=2**20)
        data = tokens.tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self._file_tokens += len(tokens)
        self._file_documents += 1
        self.tokens += len(tokens)
        self.documents += 1

    def sync(self) -> SplitRecord:
        """Flush everything to the disk."""
        files = list(self._closed)
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            files.append(self._open_record())
        return SplitRecord(documents=self.documents, tokens=self.tokens, files=files)

    def close(self) -> None:
        """Let go of the open file. What was not synced may be lost."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _close_file(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._closed.append(self._open_record())
        self._file = None
        self._file_tokens = self._file_documents = 0
        self._sha256 = hashlib.sha256()

    def _open_record(self) -> FileRecord:
        return FileRecord(
            name=self._path(len(self._closed)).name,
            tokens=self._file_tokens,
            documents=self._file_documents,
            sha256=self._sha256.hexdigest(),
        )

    def _go_on(self, record: SplitRecord) -> None:
        *self._closed, last = record.files
        assert record.documents is not None and last.documents is not None
        self.tokens, self.documents = record.tokens, record.documents
        self._file_tokens, self._file_documents = last.tokens, last.documents
        path = self._path(len(self._closed))
        with path.open("r+b") as file:
            file.truncate(last.tokens * self.itemsize)
            while block := file.read(2**22):
                self._sha256.update(block)
        if self._sha256.hexdigest() != last.sha256:
            raise UserError(f"{path} was changed or damaged: delete {self.directory} and start again")
        self._file = path.open("ab", buffering=2**20)

    def _path(self, number: int) -> Path:
        return self.directory / f"{self.name}-{number:05d}.bin"
