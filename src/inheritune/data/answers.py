"""A teacher's answers, kept: draws from its distribution of every next token, so that it is asked only once.

    DIR/answers.json        what is there; written last, so its presence means that the folder is finished
    DIR/answers-00000.safetensors ...    each of W windows of T tokens, K draws for every token:
        windows    int64 [W]             their numbers in the training split; ascending, from file to file too
        entropy    float32 [W]           of the teacher's distributions, mean over the window's tokens, nats
        offsets    int64 [W + 1]         where a window begins in `ids` and `counts`, and where it ends
        distinct   uint8 [W, T]          how many different tokens were drawn
        ids        uint16 or uint32 [D]  these tokens, ascending for each position; uint16 up to 65,536 tokens
        counts     uint8 [D]             how often each of them was drawn; K for each position together

Until it is finished the folder has `unfinished.json`, with what decides the answers, and the files so far.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from inheritune import UserError
from inheritune.data.shards import DataIdentity, check_same_data
from inheritune.recipe_file import changes
from inheritune.runtime import files

RECORD = "answers.json"
UNFINISHED = "unfinished.json"

FILE_TOKENS = 2**18
"""In one file, about: what a start that is killed has to compute again."""


class NoAnswersError(UserError):
    """There are no finished answers in a directory."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Teacher(_Record):
    """Who answered: its name, for messages, and a SHA-256 over its weights' names, shapes and a sample of each."""

    name: str
    sha256: str


class AnswersFile(_Record):
    """One file, of so many windows."""

    name: str
    windows: int
    bytes: int
    sha256: str


class AnswersRecord(_Record):
    """What a directory of answers holds, and what decides it."""

    format: Literal[1] = 1
    data: DataIdentity
    window: int
    windows: int
    draws: int
    temperature: float
    seed: int
    vocabulary: int
    precision: Literal["bf16", "fp32"]
    teacher: Teacher
    flops: float
    """Of the teacher's forward passes."""
    files: list[AnswersFile] = []

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(file.bytes for file in self.files)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of token ids."""
        return np.dtype("<u2" if self.vocabulary <= 2**16 else "<u4")

    def file_of(self, number: int) -> str:
        """Name of the file of this number."""
        return f"answers-{number:05d}.safetensors"

    def parts(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The windows of each file."""
        each = max(1, FILE_TOKENS // self.window)
        return [numbers[start : start + each] for start in range(0, len(numbers), each)]

    def deciding(self) -> dict[str, Any]:
        """What decides the answers, wherever data and teacher are."""
        values = self.model_dump(exclude={"files", "flops"})
        return {**values, "data": self.data.sha256, "teacher": self.teacher.sha256}


class Answers:
    """Finished answers, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.record = directory, read_record(directory)
        opened = [_open(directory / file.name, file.bytes) for file in self.record.files]
        self._files, numbers, self._offsets = zip(*opened, strict=True)
        self.windows: npt.NDArray[np.int64] = np.concatenate(numbers)
        self._firsts = np.cumsum([0, *map(len, numbers)])

    @cached_property
    def identity(self) -> DataIdentity:
        """Which text and answers these are together."""
        deciding = [self.record.deciding(), [file.sha256 for file in self.record.files]]
        digest = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
        path = f"{self.record.data.path} with the answers in {self.directory}"
        return self.record.data.model_copy(update={"sha256": digest, "path": path})

    def read(self, numbers: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Answers to windows by their numbers in the split.

        Returns:
            The tokens that were drawn, int32 [B, T, K]; how often each was, uint8 [B, T, K], 0 behind the last one;
            the mean entropy of each window, float32 [B].
        """
        shape = (len(numbers), self.record.window, self.record.draws)
        ids_btk, counts_btk = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
        entropy_b = np.empty(len(numbers), np.float32)
        places = np.searchsorted(self.windows, numbers)
        for row, place in enumerate(places):
            index = int(np.searchsorted(self._firsts, place, side="right")) - 1
            file, inside = self._files[index], int(place - self._firsts[index])
            start, stop = map(int, self._offsets[index][inside : inside + 2])
            distinct_t = file.get_slice("distinct")[inside]
            drawn_tk = np.arange(self.record.draws) < distinct_t[:, None]
            ids_btk[row][drawn_tk] = file.get_slice("ids")[start:stop]
            counts_btk[row][drawn_tk] = file.get_slice("counts")[start:stop]
            entropy_b[row] = file.get_slice("entropy")[inside : inside + 1][0]
        return torch.from_numpy(ids_btk), torch.from_numpy(counts_btk), torch.from_numpy(entropy_b)

    def check(self, data: DataIdentity, window: int, vocabulary: int, temperature: float) -> None:
        """The answers are to what a student reads, and to what it is asked.

        Raises:
            UserError: they are of other data, windows, tokens or another temperature.
        """
        record, where = self.record, f"the answers in {self.directory}"
        check_same_data(record.data, data, where)
        if record.window != window:
            raise UserError(
                f"{where} are to windows of {record.window} tokens, and `data.window` is {window}: set it to "
                f"{record.window}, or store answers to windows of {window}"
            )
        if record.vocabulary != vocabulary:
            raise UserError(
                f"{where} are of a teacher that predicts {record.vocabulary} tokens, and the student predicts "
                f"{vocabulary}: both need the same vocabulary"
            )
        if record.temperature != temperature:
            raise UserError(
                f"{where} were drawn at temperature {record.temperature:g}, and `distillation.temperature` is "
                f"{temperature:g}: set it to {record.temperature:g}, or store answers at {temperature:g}"
            )

    def check_windows(self, wanted: np.ndarray) -> None:
        """There are answers to these windows.

        Raises:
            UserError: not to all of them.
        """
        missing = len(np.setdiff1d(wanted, self.windows, assume_unique=True))
        if missing:
            raise UserError(
                f"the answers in {self.directory} are to {len(self.windows):,} windows, and lack {missing:,} of the "
                f"{len(wanted):,} that the training reads: store more of them, or set `data.tokens` to "
                f"{len(self.windows) * self.record.window}, as they were stored with `--tokens`"
            )


def read_record(directory: Path) -> AnswersRecord:
    """What is in a directory of answers.

    Raises:
        UserError: there are no finished answers, or the record is none.
    """
    path = directory / RECORD
    if path.is_file():
        record = files.read_record(path, AnswersRecord, "a record of a teacher's answers of format 1")
        if not record.windows == sum(file.windows for file in record.files) > 0:
            raise UserError(f"{path} is damaged: it does not name files of all {record.windows} windows")
        return record
    if not directory.is_dir():
        raise NoAnswersError(f"there is no directory {directory}")
    unfinished = (directory / UNFINISHED).is_file()
    advice = "repeat `inheritune answers` to finish them" if unfinished else "`inheritune answers` makes some"
    raise NoAnswersError(
        f"{directory} holds no finished answers of a teacher ({RECORD} is missing): {advice}"
    )


def verify_answers(directory: Path) -> None:
    """Compare size and SHA-256 of every file with the record, on all cores.

    Raises:
        UserError: a damaged file.
    """

    def check(file: AnswersFile) -> None:
        path = directory / file.name
        _check_size(path, file.bytes)
        if files.sha256(path) != file.sha256:
            raise UserError(
                f"{path} is damaged: its SHA-256 is not that of {RECORD}; delete {directory} and store them again"
            )

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(check, read_record(directory).files))


@contextmanager
def folder_to_fill(directory: Path, record: AnswersRecord) -> Iterator[None]:
    """A folder for these answers and no others, in which this process alone may write.

    Raises:
        UserError: it holds something else, or another process works in it.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; give another directory")
    for name in (RECORD, UNFINISHED):
        if (directory / name).exists():
            before = files.read_record(directory / name, AnswersRecord, "a record of a teacher's answers")
            changed = changes(before.deciding(), record.deciding())
            if changed:
                raise UserError(
                    f"{directory} holds other answers ({'; '.join(changed)}); give another directory"
                )
            break
    else:
        if directory.is_dir() and not all(files.is_leftover(entry) for entry in directory.iterdir()):
            raise UserError(f"{directory} is not empty, and holds no answers; give another directory")
        directory.mkdir(parents=True, exist_ok=True)
    with files.locked(directory):
        files.remove_leftovers(directory)
        if not (directory / RECORD).exists():
            files.write_text(directory / UNFINISHED, record.model_dump_json(indent=2))
        yield


def missing_files(directory: Path, record: AnswersRecord, numbers: np.ndarray) -> list[int]:
    """Numbers of the files that answers to these windows still lack.

    Raises:
        UserError: a file that is there is of other windows.
    """
    if (directory / RECORD).exists():
        return []
    missing = []
    for number, part in enumerate(record.parts(numbers)):
        path = directory / record.file_of(number)
        if not path.exists():
            missing.append(number)
        elif not np.array_equal(_open(path)[1], part):
            raise UserError(f"{path} holds answers to other windows; give another directory")
    return missing


def write_file(
    path: Path, windows: np.ndarray, drawn_wtk: np.ndarray, entropy_w: np.ndarray, dtype: np.dtype[Any]
) -> None:
    """Write the answers to some windows: the tokens that were drawn, ascending for each position [W, T, K]."""
    count, window, draws = drawn_wtk.shape
    new = np.ones((count * window, draws), bool)
    drawn_nk = drawn_wtk.reshape(new.shape)
    new[:, 1:] = drawn_nk[:, 1:] != drawn_nk[:, :-1]
    starts = np.flatnonzero(new)
    distinct_wt = new.sum(1).reshape(count, window)
    tensors = {
        "windows": windows.astype(np.int64),
        "entropy": entropy_w.astype(np.float32),
        "offsets": np.cumsum([0, *distinct_wt.sum(1)]),
        "distinct": distinct_wt.astype(np.uint8),
        "ids": drawn_nk.ravel()[starts].astype(dtype),
        "counts": np.diff(starts, append=new.size).astype(np.uint8),
    }
    files.write_bytes(path, save(tensors))


def finish(directory: Path, record: AnswersRecord, numbers: np.ndarray) -> AnswersRecord:
    """Write the record of a folder that has all its files; what it says if it is finished already."""
    if (directory / RECORD).exists():
        record = read_record(directory)
    else:
        written = []
        for number, part in enumerate(record.parts(numbers)):
            path = directory / record.file_of(number)
            size, digest = path.stat().st_size, files.sha256(path)
            written.append(AnswersFile(name=path.name, windows=len(part), bytes=size, sha256=digest))
        record = record.model_copy(update={"files": written})
        files.write_text(directory / RECORD, record.model_dump_json(indent=2))
    (directory / UNFINISHED).unlink(missing_ok=True)
    return record


def bytes_per_token(draws: int, vocabulary: int) -> float:
    """About what a token takes on the disk: of K draws some K ** 0.78 are distinct (SmolLM2-135M on web text)."""
    return 1 + (3 if vocabulary <= 2**16 else 5) * draws**0.78


def _open(path: Path, size: int | None = None) -> tuple[Any, np.ndarray, np.ndarray]:
    """A file, its `windows` and its `offsets`."""
    if size is not None:
        _check_size(path, size)
    try:
        file = safe_open(path, framework="np")
        return file, file.get_tensor("windows"), file.get_tensor("offsets")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if path.stat().st_size != size:
        raise UserError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}")
