"""The directory of an unfinished `prepare`: made, gone on with, refused, published."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.data.pipeline import Position
from inheritune.data.shards import MANIFEST, Manifest, SplitName, SplitRecord, read_manifest
from inheritune.data.tokenizer import AUTO
from inheritune.runtime import files

UNFINISHED = "unfinished"
PROGRESS = "progress.json"
_LOCK = "lock"


class Arguments(BaseModel):
    """What decides the shards. A directory is gone on with only if these are the same."""

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


class Saved(BaseModel):
    """progress.json: up to where the files are good."""

    arguments: Arguments
    position: Position = Position()
    source_tokens: int = 0  # taken from the source at `position`
    smallest_key: float = 1.0  # of all documents so far
    rows_without_text: int = 0  # so far
    splits: dict[SplitName, SplitRecord] = {}


def load_saved(work: Path, arguments: Arguments) -> Saved:
    """What an earlier start saved; an empty directory and the beginning if it saved nothing."""
    path = work / PROGRESS
    if path.exists():
        saved = Saved.model_validate_json(path.read_bytes())
        _check_same(saved.arguments.model_dump(), arguments, work, f"delete {work} to begin anew")
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
    _check_same(
        {"sources": manifest.source, **manifest.arguments}, arguments, output, "give another directory"
    )
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
    for name, value in arguments.model_dump(exclude={"files"}).items():
        if name in before and before[name] != value:
            raise UserError(f"{directory} was begun with {name} = {before[name]!r}, not {value!r}: {advice}")


@contextmanager
def work_directory(output: Path) -> Iterator[Path]:
    """OUTPUT/unfinished, for this process alone. Goes away again if nothing worth keeping was done."""
    work = output / UNFINISHED
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file, not a directory")
    if output.is_dir() and not work.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty, and holds no shards: give a new directory")
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another `prepare` is at work in {output}") from error
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
