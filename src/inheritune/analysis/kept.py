"""What is known of a model's layers, and which were kept: the records and their files.

`layers.json` holds what each block is worth and what cuts cost (`inheritune analyze`). `choice.json`, beside weights
that were cut, says which layers they have and why. Blocks are counted from 0, as in recipes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from inheritune.analysis.result import Record
from inheritune.data.shards import DataIdentity
from inheritune.runtime import files

LAYERS_FILE = "layers.json"
CHOICE = "choice.json"


class Measurement(Record):
    """What losses were measured on: windows of the training split, so that held-out text stays so."""

    data: str
    identity: DataIdentity | None
    """None of a text file."""
    windows: int
    window: int
    """Tokens of each."""
    seed: int
    """Of the choice of windows."""


class Kept(Record):
    """Which layers were kept, by which rule."""

    keep: str
    """The rule: a word of a recipe's `keep`, or `list`."""
    layers: list[int]
    of_layers: int
    loss: float | None = None
    """Nats per token with these blocks as they are; None if it was not measured."""
    whole: float | None = None
    """The same with all blocks."""
    path: tuple[tuple[int, ...], ...] = ()
    """The best choice found of each smaller cut on the way to this one."""
    path_losses: tuple[float, ...] = ()
    """Theirs; none in files of versions that did not record them."""
    measured: Measurement | None = None


class BlockFigures(Record):
    """What one block is worth."""

    block: int
    added: float
    """Loss without it minus the loss with it, nats per token."""
    low: float
    high: float
    """Paired 95% interval of that, over windows."""
    influence: float
    """1 - cosine of the hidden states before and after it."""


class Point(Record):
    """Loss of one choice before any training, nats per token."""

    keep: str
    layers: list[int]
    loss: float


class LayerAnalysis(Record):
    """What each block is worth, and what cuts cost."""

    format: Literal[1] = 1
    model: str
    parameters: int
    of_layers: int
    measured: Measurement
    loss: float
    """Of the whole model, on all windows."""
    blocks: list[BlockFigures]
    angles: list[float]
    """For n = 1, 2, ... the angular distance over the n consecutive blocks that turn the hidden state least."""
    curve: list[Point]
    """For each depth, from deep to shallow, the measured choice and the others."""
    sentence: str


def save(path: Path, record: Record) -> None:
    """Write a record, at once."""
    files.write_text(path, record.model_dump_json(indent=1) + "\n")


def load_kept(path: Path) -> Kept:
    """Read a `choice.json`.

    Raises:
        UserError: it is something else, or damaged.
    """
    return files.read_record(path, Kept, "a choice of layers")


def load_layers(path: Path) -> LayerAnalysis:
    """Read a `layers.json`.

    Raises:
        UserError: it is something else, or damaged.
    """
    return files.read_record(path, LayerAnalysis, "an analysis of layers of format 1")
