"""Documents from local files: text and JSON lines, compressed or not, Parquet and Arrow."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from inheritune import UserError
from inheritune.data.documents import (
    LONGEST_DOCUMENT,
    MISSING,
    RowText,
    find,
    missing_field,
    one_line,
    too_long,
)

TABLES = (".parquet", ".arrow")  # compressed inside
FORMATS = (".txt", ".jsonl", ".json", ".ndjson", *TABLES)
COMPRESSIONS = (".gz", ".xz", ".zst")
EXPECTED = f"{', '.join(FORMATS)}, or one of the first four with {', '.join(COMPRESSIONS)}"

_ROWS_AT_ONCE = 256

# JSON may write a character with six bytes (\u00e9), and a line has other fields too.
_LONGEST_LINE = 8 * LONGEST_DOCUMENT

Bytes = io.BufferedIOBase | BinaryIO


class Files:
    """Local files, one after the other."""

    def __init__(self, name: str, paths: list[Path], row_text: RowText) -> None:
        self.name = name
        self.tokens: int | None = None
        self.paths = paths
        self.row_text = row_text
        self.size: int | None = sum(path.stat().st_size for path in paths)
        self.read = 0

    def documents(self) -> Iterator[str]:
        """All documents from the first on."""
        before = 0
        for path in self.paths:
            kind = file_format(path)
            read = self._text if kind == ".txt" else self._table if kind in TABLES else self._json_lines
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
            yield self.row_text.checked(content.decode("utf-8-sig"), str(path))
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
                raise UserError(
                    f"{where} is not JSON (one object a line is expected): {one_line(error)}; "
                    "if this file is no part of the text, name those that are instead of their folder"
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object but a {type(record).__name__}")
            yield self.row_text.of(record, where)

    def _table(self, path: Path, file: Bytes) -> Iterator[str]:
        import pyarrow

        batches = _parquet if file_format(path) == ".parquet" else _arrow
        number = 0
        try:
            for batch in batches(path, file, self.row_text.field):
                for start in range(0, len(batch), _ROWS_AT_ONCE):
                    for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                        number += 1
                        yield self.row_text.of(row, f"row {number} of {path}")
        except pyarrow.ArrowException as error:
            kind = "a Parquet" if batches is _parquet else "an Arrow"
            raise UserError(f"{path} is damaged, or not {kind} file: {one_line(error)}") from error


def _parquet(path: Path, file: Bytes, text_field: str) -> Iterator[Any]:
    """The rows of a Parquet file, as record batches with the column of the text."""
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    _check_column(path, table.schema_arrow, text_field)
    yield from table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[text_field])


def _arrow(path: Path, file: Bytes, text_field: str) -> Iterator[Any]:
    """The rows of a file of Arrow's: a stream, which `datasets` saves, or one with an index at its end (Feather)."""
    from pyarrow import ipc

    with_index = file.read(6) == b"ARROW1"
    file.seek(0)
    reader = ipc.open_file(file) if with_index else ipc.open_stream(file)
    _check_column(path, reader.schema, text_field)
    columns = [name for name in reader.schema.names if f"{text_field}.".startswith(f"{name}.")]
    batches = map(reader.get_batch, range(reader.num_record_batches)) if with_index else reader
    for batch in batches:
        yield batch.select(columns)


def _check_column(path: Path, schema: Any, text_field: str) -> None:
    if find(_names(schema), text_field) is MISSING:
        raise UserError(missing_field(text_field, schema.names, str(path)))


def _names(fields: Any) -> dict[str, Any]:
    """The names in a schema, as a row would have them; nested ones where a column is a struct."""
    from pyarrow.types import is_struct

    return {field.name: _names(field.type) if is_struct(field.type) else None for field in fields}


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, or "" if none does."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        if suffixes and suffixes[-1] in TABLES:
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
