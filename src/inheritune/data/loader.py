"""From token shards to tensors of windows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from inheritune import UserError
from inheritune.config import Data
from inheritune.data.order import Order, permute
from inheritune.data.shards import DataIdentity, Split, open_split, verify

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 [B, T] each."""


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
        return self.train.identity, self.validation.identity

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
    split: Split, numbers: np.ndarray, window: int, size: int, device: torch.device
) -> Iterator[Batch]:
    """Inputs and targets of these windows, int64 [at most `size`, window] each, on the device."""
    for start in range(0, len(numbers), size):
        windows = read_windows(split, numbers[start : start + size], window)
        if device.type == "cuda":
            windows = windows.pin_memory().to(device, non_blocking=True)
        inputs_bt = model_inputs(windows[:, :-1], split.bos, split.end_of_text)
        yield inputs_bt.contiguous(), windows[:, 1:].contiguous()


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
        yield list(batches(data.train, windows, data.window, size, device))


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each of them made in a thread while the one before is being used."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
