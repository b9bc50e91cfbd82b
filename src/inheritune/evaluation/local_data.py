"""Items of evaluation tasks from local JSON lines, instead of from the hub.

`tasks.yaml` beside this file says where each task's items are and what fields they have.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any

import datasets
import yaml
from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.runtime import files

SUFFIXES = (".jsonl", ".jsonl.xz")
ROLES = {
    "train": "training_split",
    "validation": "validation_split",
    "validation_matched": "validation_split",
    "test": "test_split",
    "dev": "fewshot_split",
}
"""What a split is for, in the harness's words."""
EVALUATED = ("validation_split", "test_split")


class LocalTask(BaseModel):
    """An entry of `tasks.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    harness: str
    """Folder of the harness in which the task is defined."""
    data: str
    """Folder of the items, below the one that the user gives."""
    splits: tuple[str, ...]
    """What the harness's task reads, by its names."""
    fields: tuple[str, ...]
    """What every item has."""
    files: dict[str, str] = {}
    """Split -> name of its file without suffix, where that is not the split's own name."""
    shots: int | None = None
    """Worked examples before every item, where the paper's number is not the harness's."""
    select: str | None = None
    """A field that tells the harness's tasks apart which share a file."""
    changes: dict[str, Any] = {}
    """Settings of the harness's task that go with a layout of items which is not the hub's."""
    note: str | None = None


class NoDataError(UserError):
    """There are no items for a task, so that it may be skipped."""


@dataclass(frozen=True)
class Items:
    """What takes the place of a harness task's data."""

    splits: Mapping[str, datasets.Dataset]
    files: Mapping[str, str]
    """Their names below the user's folder, by split."""
    checksums: Mapping[str, str]
    """SHA-256 of the files, by name."""

    def changes(self, task: LocalTask, subject: str | None = None) -> dict[str, Any]:
        """Settings of the harness's task that make it read these items; of one `subject` where files are shared."""
        splits = {
            split: dataset if subject is None else _of(dataset, task.select, subject)
            for split, dataset in self.splits.items()
        }

        def custom_dataset(**_: Any) -> dict[str, datasets.Dataset]:
            return splits

        roles = {ROLES[split]: split if split in splits else None for split in task.splits}
        return {**task.changes, **roles, "custom_dataset": custom_dataset}


@cache
def local_tasks() -> Mapping[str, LocalTask]:
    """The tasks of `tasks.yaml` by the harness's names."""
    table = yaml.safe_load((resources.files(__package__) / "tasks.yaml").read_text(encoding="utf-8"))
    return {name: LocalTask.model_validate(entry) for name, entry in table.items()}


def read_items(name: str, task: LocalTask, folder: Path) -> Items:
    """The items of a task from the folder that the user gave.

    Raises:
        NoDataError: there is none to evaluate.
        UserError: a file is empty or malformed; file and line are named.
    """
    found = {split: path for split in task.splits if (path := _file(folder / task.data, task, split))}
    wanted = [split for split in task.splits if ROLES[split] in EVALUATED]
    if not any(split in found for split in wanted):
        names = " or ".join(f"{task.files.get(split, split)}.jsonl" for split in wanted)
        raise NoDataError(f"there are no items of {name} in {folder}: {task.data}/{names} is not there")
    paths = {split: path.relative_to(folder).as_posix() for split, path in found.items()}
    checksums = {paths[split]: files.sha256(path) for split, path in found.items()}
    splits = {split: _read(path, task.fields, checksums[paths[split]]) for split, path in found.items()}
    return Items(splits, paths, checksums)


def _of(dataset: datasets.Dataset, field: str | None, value: str) -> datasets.Dataset:
    assert field is not None
    rows = [row for row, found in enumerate(dataset[field]) if found == value]
    if not rows:
        raise NoDataError(f"there are no items with {field} {value!r}")
    return dataset.select(rows)


def _file(folder: Path, task: LocalTask, split: str) -> Path | None:
    candidates = [folder / f"{task.files.get(split, split)}{suffix}" for suffix in SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


@cache
def _read(path: Path, fields: tuple[str, ...], checksum: str) -> datasets.Dataset:
    """Read once, as long as the file is the same."""
    records: list[dict[str, Any]] = []
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    records.append(_parse(path, number, line, fields))
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged after line {len(records)}: {error}") from None
    if not records:
        raise UserError(f"{path} is empty: it should have one item a line, as JSON")
    try:
        return datasets.Dataset.from_list(records)
    except (TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors and TypeErrors
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} has items of different kinds in one field: {reason}") from None


def _open(path: Path) -> IO[str]:
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def _parse(path: Path, number: int, line: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}, is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}, is not a JSON object")
    lacking = [field for field in fields if field not in record]
    if lacking:
        raise UserError(f"{path}, line {number}, lacks the field {lacking[0]!r}; it has {', '.join(record)}")
    return record
