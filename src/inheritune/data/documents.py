"""Documents, as strings: what of a row is its text, and reading them from local files or from memory.

Text and JSON lines may be compressed; Parquet and Arrow are compressed inside. Where a text cannot be read, UserError
says so in one sentence that names the place.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from inheritune import UserError
from inheritune.runtime import files

if TYPE_CHECKING:
    from datasets import Dataset

    TextData: TypeAlias = str | Path | Dataset

TABLES = (".parquet", ".arrow")  # compressed inside
FORMATS = (".txt", ".jsonl", ".json", ".ndjson", *TABLES)
COMPRESSIONS = (".gz", ".xz", ".zst")
EXPECTED = f"{', '.join(FORMATS)}, or one of the first four with {', '.join(COMPRESSIONS)}"

IN_MEMORY = "documents in memory"
DATA_SET = "the data set"
"""What a `datasets.Dataset` is called."""

# A document is held in memory as a whole. One that is longer is a whole data set in one file.
LONGEST_DOCUMENT = 128 * 2**20
# JSON may write a character with six bytes (\u00e9), and a line has other fields too.
_LONGEST_LINE = 8 * LONGEST_DOCUMENT
_ROWS_AT_ONCE = 256

# What `datasets` and macOS write beside the data. Files of these names never hold documents.
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_CACHES = "cache-*.arrow"  # of what was computed from a data set
_MACOS = "__MACOSX"

_MISSING = object()
Bytes = io.BufferedIOBase | BinaryIO


@dataclass(frozen=True)
class RowText:
    """What of a row is its text, and what becomes of a row that has none.

    Args:
        field: name of the field; with dots a path into nested objects.
        skip_invalid: whether the text of a row is taken to be empty where it is null, missing, no string, or cannot
            be read or encoded; else UserError says where. Empty documents are left out and counted.
    """

    field: str
    skip_invalid: bool

    def of(self, row: Mapping[str, Any], where: str) -> str:
        """The text of a row; `where` the row is, for the error."""
        text = _find(row, self.field)
        if text is _MISSING:
            return self.invalid(self.missing(row, where))
        return self.checked(text, where, f"the field {self.field} in ")

    def checked(self, text: Any, where: str, part: str = "") -> str:
        """A text itself. Raises UserError also for one that is too long to be one document."""
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            return self.invalid(f"{part}{where} is not text but {kind}")
        if len(text) > LONGEST_DOCUMENT:
            raise _too_long(where)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return self.invalid(f"{where} has half a character (a lone surrogate) at position {error.start}")
        return text

    def check_columns(self, columns: Mapping[str, Any], where: str) -> None:
        """UserError if a table with these columns (nested ones in a mapping) has no such field."""
        if _find(columns, self.field) is _MISSING:
            raise UserError(self.missing(columns, where))

    def is_in(self, column: str) -> bool:
        """Whether the field is a column of a table, or may be nested in it."""
        return f"{self.field}.".startswith(f"{column}.")

    def missing(self, present: Iterable[str], where: str) -> str:
        """The sentence that says which fields there are instead."""
        return (
            f"there is no field {self.field!r} in {where}: it has {', '.join(map(repr, present)) or 'none'}"
        )

    def invalid(self, problem: str) -> str:
        """What a row with this problem stands for."""
        if self.skip_invalid:
            return ""
        raise UserError(f"{problem}: fix it, or leave such rows out with --skip-invalid")


def _find(row: Mapping[str, Any], path: str) -> Any:
    """The value of a field, or of one in nested objects, whose names are joined by dots; _MISSING if there is none.

    A field whose own name has the dots comes before a nested one.
    """
    if path in row:
        return row[path]
    for place, character in enumerate(path):
        if character == "." and isinstance(inner := row.get(path[:place]), Mapping):
            found = _find(inner, path[place + 1 :])
            if found is not _MISSING:
                return found
    return _MISSING


class Source:
    """Something to read documents from, in an order that is the same every time.

    Args:
        name: for messages.
        row_text: what of a row is its text.
        size: what `read` will be at the end, where that is known.
        tokens: how many to take from this source; all of them if None.
    """

    once = False
    """Whether the documents can be read only once."""

    def __init__(
        self, name: str, row_text: RowText, size: int | None = None, tokens: int | None = None
    ) -> None:
        self.name, self.row_text, self.size, self.tokens = name, row_text, size, tokens
        self.read = 0
        """How much the newest iterator has read, in the unit of `size`; else in documents."""

    def documents(self) -> Iterator[str]:
        """All documents from the first on, each time it is called. An empty one stands for a row without text."""
        raise NotImplementedError


class Documents(Source):
    """Documents that are in memory already."""

    def __init__(self, documents: Iterable[str], row_text: RowText) -> None:
        super().__init__(IN_MEMORY, row_text, len(documents) if isinstance(documents, Sized) else None)
        self.once = iter(documents) is documents  # a generator
        self._documents = documents

    def documents(self) -> Iterator[str]:
        """See `Source`."""
        for number, text in enumerate(self._documents, start=1):
            self.read = number
            yield self.row_text.checked(text, f"document {number}")


class Rows(Source):
    """Rows of a data set of the library `datasets`.

    Raises:
        UserError: it has no column of this name.
    """

    def __init__(self, rows: Any, row_text: RowText) -> None:
        super().__init__(DATA_SET, row_text, len(rows) if isinstance(rows, Sized) else None)
        columns = rows.column_names
        if columns:  # a stream may not know
            wanted = [column for column in columns if row_text.is_in(column)]
            if not wanted:
                raise UserError(row_text.missing(columns, DATA_SET))
            rows = rows.select_columns(wanted)
        self.rows = rows

    def documents(self) -> Iterator[str]:
        """See `Source`."""
        self.read = 0
        try:
            for row in self.rows:
                self.read += 1
                yield self.row_text.of(row, f"row {self.read} of {self.name}")
        except UnicodeDecodeError as error:  # after which the library gives no more rows
            raise UserError(
                f"row {self.read + 1} of {self.name} cannot be read: {one_line(error)}"
            ) from error


def is_dataset(value: object) -> bool:
    """Whether it is a data set of the library `datasets`, of one split.

    Raises:
        UserError: it is one of several splits.
    """
    library = sys.modules.get("datasets")  # nothing can be one before it is imported
    if library is None:
        return False
    if isinstance(value, library.DatasetDict | library.IterableDatasetDict):
        splits = ", ".join(map(repr, value))
        raise UserError(f"the data set has several splits, {splits}: give one, as in data_set['train']")
    return isinstance(value, library.Dataset | library.IterableDataset)


class Files(Source):
    """Local files, one after the other."""

    def __init__(self, name: str, paths: list[Path], row_text: RowText) -> None:
        super().__init__(name, row_text, sum(path.stat().st_size for path in paths))
        self.paths = paths

    def documents(self) -> Iterator[str]:
        """See `Source`."""
        before = 0
        for path in self.paths:
            kind = file_format(path)
            read = self._text if kind == ".txt" else self._table if kind in TABLES else self._json_lines
            with path.open("rb") as file:
                try:
                    for text in read(path, decompressed(path, file)):
                        self.read = before + file.tell()
                        yield text
                except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise  # not what is in the file, but reading it
                    raise UserError(f"{path} is damaged: {one_line(error)}") from error
            before += path.stat().st_size

    def _text(self, path: Path, file: Bytes) -> Iterator[str]:
        content = file.read(4 * LONGEST_DOCUMENT + 1)
        if len(content) > 4 * LONGEST_DOCUMENT:
            raise _too_long(str(path))
        try:
            # The byte order mark that some editors write is no text.
            yield self.row_text.checked(content.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from error

    def _json_lines(self, path: Path, file: Bytes) -> Iterator[str]:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if line.isspace():
                continue
            where = f"line {number} of {path}"
            if len(line) == _LONGEST_LINE:
                raise _too_long(where)
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8: byte {error.start} cannot be decoded") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(
                    f"{where} is not JSON (one object a line is expected): {one_line(error)}; "
                    "if this file is no part of the text, name those that are instead of their folder"
                ) from error
            except ValueError:  # Python's own limit
                most = sys.get_int_max_str_digits()
                yield self.row_text.invalid(f"{where} has an integer of more than {most:,} digits")
                continue
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object but a {type(record).__name__}")
            yield self.row_text.of(record, where)

    def _table(self, path: Path, file: Bytes) -> Iterator[str]:
        import pyarrow

        is_parquet = file_format(path) == ".parquet"
        number = 0
        try:
            for batch in self._parquet(path, file) if is_parquet else self._arrow(path, file):
                for start in range(0, len(batch), _ROWS_AT_ONCE):
                    for row in _rows(batch.slice(start, _ROWS_AT_ONCE)):
                        number += 1
                        where = f"row {number} of {path}"
                        if isinstance(row, Exception):
                            yield self.row_text.invalid(f"{where} cannot be read: {one_line(row)}")
                        else:
                            yield self.row_text.of(row, where)
        except pyarrow.ArrowException as error:
            kind = "a Parquet" if is_parquet else "an Arrow"
            raise UserError(f"{path} is damaged, or not {kind} file: {one_line(error)}") from error

    def _parquet(self, path: Path, file: Bytes) -> Iterator[Any]:
        """The rows of a Parquet file, as record batches with the column of the text."""
        from pyarrow.parquet import ParquetFile

        table = ParquetFile(file)
        self.row_text.check_columns(_columns(table.schema_arrow), str(path))
        yield from table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[self.row_text.field])

    def _arrow(self, path: Path, file: Bytes) -> Iterator[Any]:
        """The same of Arrow's: a stream, which `datasets` saves, or a file with an index at its end (Feather)."""
        from pyarrow import ipc

        with_index = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = ipc.open_file(file) if with_index else ipc.open_stream(file)
        self.row_text.check_columns(_columns(reader.schema), str(path))
        columns = [name for name in reader.schema.names if self.row_text.is_in(name)]
        batches = map(reader.get_batch, range(reader.num_record_batches)) if with_index else reader
        yield from (batch.select(columns) for batch in batches)


def _rows(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a record batch; for one that Python cannot hold, such as bytes that are not UTF-8, the error."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            yield error
        else:
            for row in range(len(batch)):
                yield from _rows(batch.slice(row, 1))


def _columns(fields: Any) -> dict[str, Any]:
    """The names in a schema, as a row would have them; nested ones where a column is a struct."""
    from pyarrow.types import is_struct

    return {field.name: _columns(field.type) if is_struct(field.type) else None for field in fields}


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, or "" if none does."""
    *before, last = [suffix.lower() for suffix in path.suffixes] or [""]
    if last in COMPRESSIONS:
        last = before[-1] if before and before[-1] not in TABLES else ""
    return last if last in FORMATS else ""


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


def local_files(source: str | Path, output: Path | None = None) -> list[Path]:
    """The files that a file, a folder or a glob pattern stands for, in order; none for anything else.

    What is below `output` is no text of a folder or a pattern.
    """
    path, name = files.named(source, "source"), str(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [
            file for file in path.rglob("*") if file_format(file) and not _is_hidden(file.relative_to(path))
        ]
    elif glob.has_magic(name):  # wildcards leave hidden names out by themselves
        found = [Path(file) for file in glob.glob(name, recursive=True)]  # noqa: PTH207 (absolute patterns)
    else:
        return []
    if output is not None:
        written = output.resolve()
        found = [file for file in found if not file.resolve().is_relative_to(written)]
    return sorted(
        file for file in found if file.is_file() and (file.name == path.name or not _is_metadata(file))
    )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == _MACOS for part in path.parts)


def _is_metadata(path: Path) -> bool:
    return path.name in _METADATA or fnmatch(path.name, _CACHES)


def _too_long(where: str) -> UserError:
    return UserError(
        f"{where} is a document of more than {LONGEST_DOCUMENT} characters: "
        "cut it into smaller ones, such as one a line in a .jsonl file"
    )


def one_line(error: BaseException) -> str:
    """The message of an error of another library, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
