"""What every document has to be, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inheritune import UserError

# A document is held in memory as a whole. One that is longer is a whole data set in one file.
LONGEST_DOCUMENT = 128 * 2**20

MISSING = object()
"""What `find` gives where there is no such field."""


@dataclass(frozen=True)
class RowText:
    """What of a row is its text, and what becomes of a row that has none.

    Args:
        field: name of the field; with dots a path into nested objects.
        skip_invalid: whether the text of a row is taken to be empty where it is null, missing, no string or cannot be
            encoded; else UserError says where. Empty documents are left out and counted.
    """

    field: str
    skip_invalid: bool

    def of(self, row: Mapping[str, Any], where: str) -> str:
        """The text of a row; `where` the row is, for the error."""
        text = find(row, self.field)
        if text is MISSING:
            return self._invalid(missing_field(self.field, row, where))
        return self.checked(text, where, f"the field {self.field} in ")

    def checked(self, text: Any, where: str, part: str = "") -> str:
        """A text itself. Raises UserError also for one that is too long to be one document."""
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            return self._invalid(f"{part}{where} is no text but {kind}")
        if len(text) > LONGEST_DOCUMENT:
            raise UserError(too_long(where))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return self._invalid(f"{where} has half a character (a lone surrogate) at position {error.start}")
        return text

    def _invalid(self, problem: str) -> str:
        if self.skip_invalid:
            return ""
        raise UserError(f"{problem}: mend it, or leave such rows out with --skip-invalid")


def find(row: Mapping[str, Any], path: str) -> Any:
    """The value of a field, or of one in nested objects, whose names are joined by dots; MISSING if there is none.

    A field whose own name has the dots comes before a nested one.
    """
    if path in row:
        return row[path]
    for place, character in enumerate(path):
        if character == "." and isinstance(inner := row.get(path[:place]), Mapping):
            found = find(inner, path[place + 1 :])
            if found is not MISSING:
                return found
    return MISSING


def missing_field(field: str, present: Iterable[str], where: str) -> str:
    """The sentence that says which fields there are instead."""
    return f"there is no field {field!r} in {where}: it has {', '.join(map(repr, present)) or 'none'}"


def too_long(where: str) -> str:
    """The sentence that says how to give smaller documents."""
    return (
        f"{where} is a document of more than {LONGEST_DOCUMENT} characters: "
        "cut it into smaller ones, such as one a line in a .jsonl file"
    )


def one_line(error: BaseException) -> str:
    """The message of an error of another library, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
