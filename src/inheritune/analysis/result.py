"""What an attention analysis found, and the file it is kept in.

`analysis.json` holds one analysis, or two that were made side by side on the same sequences:

    {"format": 1, "analyses": [{"model": ..., "layers": [...], "cut": {...}, "ranks": [...], "masses": [...]}]}

Layers are counted from 1, as in the paper, and heads from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from inheritune.runtime import files
from inheritune.shown import Shown

FILE = "analysis.json"

Verdict = Literal["supported", "too deep", "undecided"]


class Record(BaseModel):
    """Part of `analysis.json`; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Spread(Record):
    """A mean over sequences, and the standard deviation from sequence to sequence (0 for a single one)."""

    mean: float
    deviation: float


class LayerFigures(Record):
    """One layer: a point of the paper's figures 1a (`max_rank`), 1b (`mean_mass`) and their kin."""

    layer: int
    """Counted from 1."""
    max_rank: Spread
    """k* of the head whose mean over sequences is the largest."""
    mean_rank: Spread
    """k*, mean over heads."""
    max_mass: Spread
    """m* of the head whose mean over sequences is the largest."""
    mean_mass: Spread
    """m*, mean over heads."""
    degenerate_heads: list[int]
    """Heads whose mean k* is at most the analysis' `degenerate`, counted from 0."""
    lazy: bool
    """Every head is degenerate."""


class Cut(Record):
    """What the lazy layers say about where to cut."""

    lazy_layers: list[int]
    half: int
    """The paper's first cut, k/2."""
    verdict: Verdict
    """`supported`: every layer that a cut at `half` drops is lazy. `too deep`: it drops layers that are not.
    `undecided`: no layer is lazy, or all are, so laziness does not tell them apart."""
    keeps_active: int
    """The smallest depth that keeps every layer that is not lazy: the last of them. 0 if every layer is lazy."""
    suggested: int
    """`keeps_active` where that saves a layer, else `half`."""
    sentence: str


class AttentionAnalysis(Record, Shown):
    """Section 2 of the paper for one model: rank and mass of every head's attention."""

    model: str
    """Path or name."""
    model_type: str
    parameters: int
    dtype: str
    data: str
    window: int
    """T, tokens of each sequence."""
    windows: list[int]
    """Which non-overlapping windows of the text were the sequences, counted from 0."""
    seed: int
    tau: float
    """Fraction of the squared singular values that k* singular values hold."""
    mass: float
    """Fraction of the squared entries that m* columns hold."""
    degenerate: float
    """A head is degenerate if its mean k* is at most this."""
    layers: list[LayerFigures]
    cut: Cut
    ranks: list[list[list[int]]]
    """k* by layer, head, sequence."""
    masses: list[list[list[int]]]
    """m* by layer, head, sequence."""

    @property
    def depth(self) -> int:
        """Layers of the model, k."""
        return len(self.layers)

    @property
    def sequences(self) -> int:
        """How many sequences were measured."""
        return len(self.windows)


class _File(Record):
    format: Literal[1] = 1
    analyses: list[AttentionAnalysis]


def save_analyses(path: Path, analyses: Sequence[AttentionAnalysis]) -> None:
    """Write `analysis.json`, at once."""
    files.write_text(path, _File(analyses=list(analyses)).model_dump_json() + "\n")


def load_analyses(path: Path) -> list[AttentionAnalysis]:
    """Read what `save_analyses` wrote.

    Raises:
        UserError: it is something else, or damaged.
    """
    return files.read_record(path, _File, "an attention analysis of format 1").analyses


def short_name(model: str) -> str:
    """What a model is called in titles: the last part of its path; a run's `reference/model` is `reference`."""
    path = Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name
