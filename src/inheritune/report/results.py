"""What a run and a training give their caller: the directory and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.config import Pretrained, Recipe, TrainRecipe
from inheritune.recipe_file import load_recipe
from inheritune.run_directory import Summary, Verdict
from inheritune.shown import Shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.training.validation import WindowLosses


@dataclass(frozen=True)
class RunResult(Shown):
    """A finished run. It stands for its directory wherever a path is asked for."""

    directory: Path
    summary: Summary
    """The reference, the rounds, and the verdict."""

    @property
    def verdict(self) -> Verdict | None:
        """`parity` or `no parity`."""
        return self.summary.verdict

    def load(self) -> PreTrainedModel:
        """The small model that the run ended with, in the type of its weights."""
        source = load_recipe(self.directory / "recipe.yaml", Recipe).reference
        return _load(source.at(self.directory / "final"))

    def __fspath__(self) -> str:
        return str(self.directory)


@dataclass(frozen=True)
class TrainResult(Shown):
    """A finished training. It stands for its directory wherever a path is asked for."""

    directory: Path
    losses: WindowLosses
    """On all validation windows."""

    @property
    def loss(self) -> float:
        """Their mean, nats per token."""
        return self.losses.mean

    @property
    def sentence(self) -> str:
        """The validation loss in words."""
        per_byte = self.losses.bits_per_byte
        return (
            f"validation loss {self.loss:.4f} +- {self.losses.standard_error:.4f}"
            f"{'' if per_byte is None else f' ({per_byte:.4f} bits per byte)'} over {len(self.losses.losses)} windows"
        )

    def load(self) -> PreTrainedModel:
        """The model that was trained, in the type of its weights."""
        source = load_recipe(self.directory / "recipe.yaml", TrainRecipe).model
        return _load(source.at(self.directory / "model"))

    def __fspath__(self) -> str:
        return str(self.directory)


def _load(source: Pretrained) -> PreTrainedModel:
    from inheritune.models.load import load_model

    return load_model(source, dtype="auto")
