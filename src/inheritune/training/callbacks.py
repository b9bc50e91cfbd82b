"""What a caller of a run or of a training is told while it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inheritune import UserError

if TYPE_CHECKING:
    from inheritune.run_directory import RoundFigures

Tell = Callable[[int, Mapping[str, Any]], object]
"""Is given a step and its figures."""


@dataclass(frozen=True)
class Callbacks:
    """Functions of the caller, each called on rank 0 only; what one raises stops the run as any exception does.

    They are called between two steps, and a step draws its random numbers from its own seed: what they compute does
    not show in the weights.
    """

    on_step: Tell | None = None
    """After a step that gets a line in `metrics.jsonl` (every `training.log_every`): the figures of that line, and as
    `training` the name of the training's directory."""
    on_validation: Tell | None = None
    """The same after a validation."""
    on_round: Callable[[RoundFigures], object] | None = None
    """After a round of a run, and at a resumed run's start after each of those that were finished before."""

    def __post_init__(self) -> None:
        for name, function in vars(self).items():
            if function is not None and not callable(function):
                raise UserError(f"{name} is {function!r}, but should be a function")

    def tell(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Pass on a line of `metrics.jsonl` of this kind."""
        call = {"train": self.on_step, "validation": self.on_validation}.get(kind)
        if call is not None:
            call(step, figures)

    def tell_round(self, figures: RoundFigures) -> None:
        """Pass on a finished round; nothing comes back, whatever the function gives."""
        if self.on_round is not None:
            self.on_round(figures)


NONE = Callbacks()
