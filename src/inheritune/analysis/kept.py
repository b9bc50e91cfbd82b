"""What is known of a model's layers, and which were kept: the records and their files.

`layers.json` holds what each block is worth and what cuts cost (`inheritune analyze`). `choice.json`, beside weights
that were cut, says which layers they have and why. Blocks are counted from 0, as in recipes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from inheritune import UserError
from inheritune.analysis.result import Record
from inheritune.config import Narrow
from inheritune.data.shards import DataIdentity
from inheritune.runtime import files
from inheritune.shown import Shown

LAYERS_FILE = "layers.json"
CHOICE = "choice.json"
TELLING = 6
"""So many depths of a curve have all rules."""


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


Bits = Annotated[str, Field(pattern="^([0-9a-f]{2})+$")]
"""Which of some parts are kept: a bit for each, the first one's first, in hexadecimal digits."""


class KeptWidth(Record):
    """How wide the layers still are, and which parts of them were kept."""

    narrow: Narrow
    """The rule, as a recipe's `narrow`."""
    hidden: int
    """Hidden size."""
    heads: int
    """Attention (query) heads of each block."""
    mlp: int
    """Channels of each block's MLP."""
    hidden_taken: Bits
    heads_taken: tuple[Bits, ...]
    """Of each kept block; heads that share a key/value head are one part."""
    mlp_taken: tuple[Bits, ...]
    """Of each kept block."""


class Trial(Record):
    """One of the shapes of a small model that were compared."""

    layers: int
    hidden: int
    heads: int
    mlp: int
    parameters: int
    loss: float
    """Of the cut as it is, nats per token."""
    trained: float | None = None
    """After a short training, on held-out windows; None of those that were not trained."""


class KeptTokens(Record):
    """Which part of a vocabulary was kept: the tokens that a text uses most."""

    tokens: int
    of_tokens: int
    data: str
    identity: DataIdentity | None
    """Of what the tokens were counted in; None of a text file."""
    bytes_per_token: float
    """UTF-8 bytes, of held-out text."""
    bytes_per_token_before: float
    """The same with all tokens."""


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


def telling(depths: Iterable[int]) -> list[int]:
    """A few depths, from the deepest to the shallowest: at these all rules are measured and shown."""
    found = sorted(depths, reverse=True)
    last, count = len(found) - 1, min(TELLING, len(found))
    return [found[round(place * last / max(count - 1, 1))] for place in range(count)]


class Kept(Record):
    """Which layers were kept, by which rule, and if they are narrower, what of their width."""

    keep: str
    """The rule: a word of a recipe's `keep`, or `list`."""
    layers: list[int]
    of_layers: int
    loss: float | None = None
    """Nats per token with what was kept as it is; None if it was not measured."""
    whole: float | None = None
    """The same with all blocks, in their full width."""
    path: tuple[tuple[int, ...], ...] = ()
    """The best choice found of each smaller cut on the way to this one."""
    blocks: tuple[BlockFigures, ...] = ()
    """What each block of the whole model is worth, where the choice was searched for."""
    curve: tuple[Point, ...] = ()
    """Of each cut on the way, the choice that was found and those of the other rules."""
    measured: Measurement | None = None
    width: KeptWidth | None = None
    """None where it is the model's."""
    trials: tuple[Trial, ...] = ()
    """The shapes that were compared, where a size was asked for."""
    vocabulary: KeptTokens | None = None
    """None where all tokens were kept."""


class LayerAnalysis(Record, Shown):
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

    def keep(self, layers: int) -> list[int]:
        """The blocks of the best choice of so many that was found, as `inherit` takes them.

        Raises:
            UserError: there was none of this size.
        """
        found = {len(point.layers): point.layers for point in self.curve if point.keep == "measured"}
        if layers not in found:
            raise UserError(
                f"no choice of {layers} layers was searched for: there are those of {min(found)} to {max(found)}"
            )
        return found[layers]


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
