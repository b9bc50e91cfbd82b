"""From token shards to tensors of windows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from inheritune import UserError
from inheritune.config import Data
from inheritune.data.answers import Answers
from inheritune.data.order import Order, permute
from inheritune.data.shards import DataIdentity, Split, open_split, verify
from inheritune.runtime.world import World

T = TypeVar("T")
Batch = tuple[Tensor, ...]
"""Inputs and targets, int64 [B, T] each; behind them a teacher's answers, if there are any (`Answers.read`)."""


@dataclass(frozen=True)
class TrainingData:
    """The splits of prepared text, and how they are cut into windows."""

    path: Path
    train: Split
    validation: Split
    window: int
    order: Literal["shuffled", "sequential"]
    sample: np.ndarray | None = None
    """Numbers of the windows to train on, int64, in the order of the text; all of them if None."""
    ignore_tokenizer: bool = False
    """Whether the tokens may be those of another tokenizer than the model's."""
    answers: Answers | None = None
    """A teacher's, to the training windows."""

    @property
    def windows(self) -> int:
        """Training windows in one epoch."""
        return window_count(self.train, self.window) if self.sample is None else len(self.sample)

    def training_windows(self, numbers: np.ndarray) -> np.ndarray:
        """Where the windows that an epoch counts as `numbers` are in the training split."""
        return numbers if self.sample is None else self.sample[numbers]

    @property
    def identities(self) -> tuple[DataIdentity, DataIdentity]:
        """Which data are trained on, and which are validated on."""
        train = self.train.identity if self.answers is None else self.answers.identity
        return train, self.validation.identity

    @property
    def validation_windows(self) -> int:
        """Windows of the validation split."""
        return window_count(self.validation, self.window)


def open_data(settings: Data) -> TrainingData:
    """Open the shards that a recipe names.

    Raises:
        UserError: no shards there, a damaged file, or a split shorter than one window.
    """
    if settings.verify:
        verify(settings.path)
    train = open_split(settings.path, "train", settings.bos)
    validation = open_split(settings.path, "validation", settings.bos)
    window_count(validation, settings.window)
    sample = _sample(settings, train)
    return TrainingData(
        settings.path, train, validation, settings.window, settings.order, sample, settings.ignore_tokenizer
    )


def open_together(settings: Data, world: World) -> TrainingData:
    """Open the shards in every process; checksums are compared once.

    Raises:
        UserError: as `open_data`.
    """
    world.on_first(lambda: open_data(settings) and None)
    return open_data(settings.model_copy(update={"verify": False}))


def _sample(settings: Data, split: Split) -> np.ndarray | None:
    """The same windows for the same number of tokens, and more tokens only add windows."""
    tokens, window = settings.tokens, settings.window
    available = window_count(split, window)
    if tokens is None:
        return None
    count = tokens // window
    if not 1 <= count <= available:
        raise UserError(
            f"data.tokens is {tokens}, but should be at least one window ({window}) and at most what the training "
            f"split has ({available * window})"
        )
    return np.sort(permute(np.arange(count), available, seed=0, epoch=0))


def window_count(split: Split, window: int) -> int:
    """How many non-overlapping windows a split has; the last needs one token more, for its target.

    Raises:
        UserError: there is not one.
    """
    count = (split.tokens - 1) // window
    if count < 1:
        has = f"{split.tokens} tokens, fewer than one window of {window}"
        raise UserError(f"the {split.name} split of {split.directory} has {has}")
    return count


def read_windows(split: Split, numbers: np.ndarray, window: int) -> Tensor:
    """Tokens of windows by their numbers: int64 [len(numbers), window + 1]. Column t + 1 is column t's target."""
    rows = [split.read(int(n) * window, (int(n) + 1) * window + 1) for n in numbers]
    return torch.from_numpy(np.stack(rows))


def model_inputs(tokens_nt: Tensor, bos: int | None, end_of_text: int | None) -> Tensor:
    """What a model reads of windows: their tokens, int64 [N, T], with beginning-of-text where a text begins.

    The model saw `bos` in front of every text, so it is at the first position of every window, and in place of
    every end-of-text. The targets stay as they are: nothing that was predicted is lost, end-of-text included.
    """
    if bos is None:
        return tokens_nt
    inputs_nt = tokens_nt.clone()
    if end_of_text is not None:
        inputs_nt.masked_fill_(inputs_nt == end_of_text, bos)
    inputs_nt[:, 0] = bos
    return inputs_nt


def batches(
    split: Split,
    numbers: np.ndarray,
    window: int,
    size: int,
    device: torch.device,
    answers: Answers | None = None,
) -> Iterator[Batch]:
    """Inputs and targets of these windows, int64 [at most `size`, window] each, and any answers, on the device."""

    def sent(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    for start in range(0, len(numbers), size):
        chosen = numbers[start : start + size]
        windows = sent(read_windows(split, chosen, window))
        inputs_bt = model_inputs(windows[:, :-1], split.bos, split.end_of_text)
        taught = () if answers is None else map(sent, answers.read(chosen))
        yield inputs_bt.contiguous(), windows[:, 1:].contiguous(), *taught


def training_steps(
    data: TrainingData,
    order: Order,
    steps: range,
    size: int,
    device: torch.device,
    *,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[list[Batch]]:
    """For each of these steps, the micro-batches of `size` windows that the process of this rank works on."""
    for step in steps:
        windows = data.training_windows(order.share(step, rank, processes))
        yield list(batches(data.train, windows, data.window, size, device, data.answers))


def windows_read(data: TrainingData, order: Order, steps: int) -> np.ndarray:
    """Numbers of the windows in the training split that so many steps read, ascending."""
    count = min(steps * order.per_step, data.windows)
    # The first epoch's beginning; a longer training reads all.
    return np.sort(data.training_windows(replace(order, per_step=count).step(0)))


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each of them made in a thread while the one before is being used."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
