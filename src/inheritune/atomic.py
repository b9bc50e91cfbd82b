"""Files that are either whole or absent.

Everything that a later start of the program may rely on is written to a temporary name in the same
directory, flushed to the disk, and renamed. A reader therefore never sees a half-written file, whenever the
writer was killed and however full the disk was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file with these bytes, at once."""
    temporary = _temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a UTF-8 file with this text, at once."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by this value as indented JSON, at once."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def directory(path: Path) -> Iterator[Path]:
    """Give a temporary directory to fill; it becomes `path` at once when the block ends without an exception.

    A directory that already stands at `path` is replaced.
    """
    temporary = _temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            _sync_directory(Path(folder))
        if path.exists():
            old = _temporary_name(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _disk_is_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    _sync_directory(path.parent)


def remove_leftovers(parent: Path) -> None:
    """Delete the temporary files and directories that a killed writer left in `parent`."""
    for entry in parent.glob(f"*{TEMPORARY_SUFFIX}"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def _disk_is_full(error: BaseException) -> bool:
    """Whether a library that has errors of its own (safetensors) ran into a full disk."""
    return not isinstance(error, OSError) and os.strerror(errno.ENOSPC) in str(error)


def _sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
