"""What every document has to be, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inheritune import UserError

# A document is held in memory as a whole. One that is longer is a whole data set in one file.
LONGEST_DOCUMENT = 128 * 2**20


def check_text(text: Any, where: str, field: str | None = None) -> str:
    """The text itself; UserError if it is none, cannot be encoded, or is too long to be one document."""
    if not isinstance(text, str):
        raise UserError(
            f"{f'the field {field} in ' if field else ''}{where} is no text but {type(text).__name__}"
        )
    if len(text) > LONGEST_DOCUMENT:
        raise UserError(too_long(where))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has half a character (a lone surrogate) at position {error.start}"
        ) from error
    return text


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
