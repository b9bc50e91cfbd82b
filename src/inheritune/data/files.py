"""Documents from local files: text, JSON lines and Parquet, compressed or not."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inheritune import UserError
from inheritune.data.documents import LONGEST_DOCUMENT, check_text, missing_field, one_line, too_long

FORMATS = (".txt", ".jsonl", ".json", ".ndjson", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
EXPECTED = f"{', '.join(FORMATS)}, or one of them (Parquet excepted) with {', '.join(COMPRESSIONS)}"

# JSON may write a character with six bytes (\u00e9), and a line has other fields too.
_LONGEST_LINE = 8 * LONGEST_DOCUMENT

Bytes = io.BufferedIOBase | BinaryIO


class Files:
    """Local files, one after the other."""

    def __init__(self, name: str, paths: list[Path], text_field: str = "text") -> None:
        self.name = name
        self.tokens: int | None = None
        self.paths = paths
        self.text_field = text_field
        self.size: int | None = sum(path.stat().st_size for path in paths)
        self.read = 0

    def documents(self) -> Iterator[str]:
        """All documents from the first on."""
        before = 0
        for path in self.paths:
            read = {".txt": self._text, ".parquet": self._parquet}.get(file_format(path), self._json_lines)
            with path.open("rb") as file:
                try:
                    content = decompressed(path, file)
                    for text in read(path, content):
                        self.read = before + file.tell()
                        yield text
                except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
                    raise UserError(f"{path} is damaged: {one_line(error)}") from error
                except OSError as error:
                    if error.errno is not None:
                        raise  # not what is in the file, but reading it
                    raise UserError(f"{path} is damaged: {one_line(error)}") from error
            before += path.stat().st_size

    def _text(self, path: Path, file: Bytes) -> Iterator[str]:
        content = file.read(4 * LONGEST_DOCUMENT + 1)
        if len(content) > 4 * LONGEST_DOCUMENT:
            raise UserError(too_long(str(path)))
        try:
            # The byte order mark that some editors write is no text.
            yield check_text(content.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from error

    def _json_lines(self, path: Path, file: Bytes) -> Iterator[str]:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if line.isspace():
                continue
            where = f"line {number} of {path}"
            if len(line) == _LONGEST_LINE:
                raise UserError(too_long(where))
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8: byte {error.start} cannot be decoded") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{where} is not JSON (one object a line is expected): {error}") from error
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object but a {type(record).__name__}")
            if self.text_field not in record:
                raise UserError(missing_field(self.text_field, record, where))
            yield check_text(record[self.text_field], where, self.text_field)

    def _parquet(self, path: Path, file: Bytes) -> Iterator[str]:
        import pyarrow
        import pyarrow.parquet

        number = 0
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if self.text_field not in table.schema_arrow.names:
                raise UserError(missing_field(self.text_field, table.schema_arrow.names, str(path)))
            for rows in table.iter_batches(batch_size=256, columns=[self.text_field]):
                for text in rows.column(0).to_pylist():
                    number += 1
                    yield check_text(text, f"row {number} of {path}", self.text_field)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is damaged, or not a Parquet file: {one_line(error)}") from error


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, or "" if none does."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return ""
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


def decompressed(path: Path, file: BinaryIO) -> Bytes:
    """The content of an open file, whose name says how it is compressed."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(file)
        case ".xz":
            return lzma.open(file)
        case ".zst":
            import pyarrow

            # The zstandard package takes a truncated file for a whole one; Arrow does not.
            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd"), 2**18)
        case _:
            return file
