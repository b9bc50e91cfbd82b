"""Parts of JSON files as pydantic models, and the one way in which such a file is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from inheritune import UserError

T = TypeVar("T")


class Record(BaseModel):
    """Part of a file that we write; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def read(kind: type[T], path: Path, what: str) -> T:
    """The value of a JSON file.

    Args:
        kind: a record, or a list or dictionary of such.
        path: the file.
        what: it should be, such as "an evaluation of format 1".

    Raises:
        UserError: it is something else, or damaged; the first thing that is wrong is named.
    """
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        reason = f"{where}: {message}" if where else message
    except ValueError as error:
        reason = f"it is damaged: {error}"
    raise UserError(f"{path} is not {what}: {reason}")
