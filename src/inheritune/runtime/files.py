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
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from inheritune import UserError

T = TypeVar("T")

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r".+\.[0-9a-f]{8}\.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file with these bytes, at once."""
    temporary = temporary_name(path)
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


def read_record(path: Path, kind: type[T], what: str) -> T:
    """The record in a JSON file, or the list or dictionary.

    UserError where it is none, naming `what` it should be and the first place.
    """
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is not {what}: {where}: {message}") from error
    except ValueError as error:
        raise UserError(f"{path} is not {what}: file: invalid JSON: {error}") from error


@contextmanager
def directory(path: Path, token: str | None = None) -> Iterator[Path]:
    """Give a temporary directory to fill; it becomes `path` at once when the block ends without an exception.

    A directory that is already at `path` is replaced. With a `token` several processes can fill the same one:
    the others find it by `temporary_name`.
    """
    temporary = temporary_name(path, token)
    temporary.mkdir(parents=True, exist_ok=token is not None)
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            _sync_directory(Path(folder))
        if path.exists():
            old = temporary_name(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        full = as_disk_error(error, path)
        if full is not None:
            raise full from error
        raise
    _sync_directory(path.parent)


def remove_leftovers(parent: Path) -> None:
    """Delete the temporary files and directories that a killed writer left in `parent`."""
    for entry in filter(is_leftover, parent.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file or directory has a name that only a writer of this module gives."""
    return _TEMPORARY.fullmatch(path.name) is not None


def lock(path: Path) -> int | None:
    """Keep other processes out of a directory until the descriptor that this gives is closed, or the program ends.

    None on a file system without locks.

    Raises:
        UserError: another process has it.
    """
    import fcntl  # not everywhere: the command line says so, if it gets that far

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is running in {path}: wait until it ends, or end it") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a directory for this block; errors as of `lock`."""
    descriptor = lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def named(path: str | os.PathLike[str], what: str) -> Path:
    """The path of this name. UserError for what is no path, and for an empty one: it would be the current folder."""
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the {what} should be a path, but is of type {type(path).__name__}")
    if not str(path).strip():
        raise UserError(f"no {what} is named: the name is empty")
    return Path(path)


def check_place(path: Path) -> None:
    """A directory can be made at `path`, or written to: known before the work whose result goes there.

    Raises:
        UserError: it is read-only.
        OSError: it, or a part of its path, is a file or a link that leads nowhere.
    """
    there = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written, as {there} is read-only here; give another place")


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a large file, or where the file system has no such thing, a copy."""
    try:
        os.link(source, target)
    except OSError:  # FAT, some network file systems, a limit on links
        shutil.copyfile(source, target)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in a quota, or under a limit on the size of files."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(path: Path, token: str | None = None) -> Path:
    """A name beside `path` under which it can be written; always the same for a `token`."""
    return path.with_name(f"{path.name}.{token or uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def as_disk_error(error: BaseException, path: Path) -> OSError | None:
    """What a library that has errors of its own (safetensors, torch) should have raised on a full disk."""
    if isinstance(error, OSError):
        return None
    number = next((number for number in FULL if os.strerror(number) in str(error)), None)
    return None if number is None else OSError(number, os.strerror(number), str(path))


def _sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
