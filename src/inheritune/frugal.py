"""Rounds that end when they are decided (`search: frugal`), in place of Algorithm 1's, which are paid in full.

The learning rate of a round decays several times (see `training.schedule`), first after a sixteenth of the steps,
then after twice as many, and so on, so that the model is cooled long before its training is over and can be compared
with the reference as if it had been planned to end there. At each of these points:

1. it is as good as the reference: the round ends with parity, and the model is the result;
2. what the last doublings of the steps gained says that it will not be after all steps either: the round ends, and
   the next one grows this model (`grow.mode: append`), so that nothing of its training is thrown away;
3. neither: the round goes on, to twice the steps or to where parity is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from inheritune.analysis.forecast import SHRINKS, gain
from inheritune.config import Training
from inheritune.data.shards import Split
from inheritune.run_directory import Decision
from inheritune.runtime import files
from inheritune.runtime.progress import say
from inheritune.training.validation import WindowLosses

if TYPE_CHECKING:
    from inheritune.algorithm import Run

DECISIONS = "decisions.json"
"""In the directory of a round."""
_LIST = TypeAdapter(list[Decision])

FIRST = 16
"""The learning rate has decayed first after this part of the steps."""
LEAST, MOST = 1.15, 2.0
"""How many times as many steps as the last one the next decay ends after."""
SURE = 1.02
"""More steps than are expected to be needed for parity."""
GAINS = (0.5, 1.4)
"""What a doubling of the steps may gain, in parts of what the one before gained: the bounds of what is taken from the
losses so far."""
OPEN = 1.25
"""How many times more or less than that the next ones may gain: what the interval of an expected loss stands for."""

Measure = Callable[[Split], WindowLosses]


class UntilDecided:
    """Ends a round when it is decided, as `loop.train` asks it; what was decided is written down.

    Args:
        this: the run.
        directory: of the round.
        target: the loss to reach on all windows, nats per token.
        as_good: whether parity holds for a cooled model, given its losses and what measures it on other text.
    """

    def __init__(
        self, this: Run, directory: Path, target: float, as_good: Callable[[WindowLosses, Measure], bool]
    ) -> None:
        self.world, self.directory, self.target, self.as_good = this.world, directory, target, as_good
        self.training = this.recipe.training
        self.decisions: list[Decision] = this.world.on_first(decisions_in, directory)
        self.ends = [first_end(self.training)]
        """Steps after which the learning rate has decayed, as far as is decided."""
        self.ends += [one.next for one in self.decisions if one.next is not None]

    def __call__(self, step: int, losses: WindowLosses, measure: Measure) -> bool:
        """Whether the round ends here."""
        if step not in self.ends:
            return False
        # A round that was killed decides again what it had decided after its checkpoint.
        earlier = [one for one in self.decisions if one.step < step]
        cooled = [*((one.step, one.loss) for one in earlier), (step, losses.mean)]
        decision = decide(cooled, self.training.steps, self.target, self.as_good(losses, measure))
        self.decisions = [*earlier, decision]
        self.ends[:] = [end for end in self.ends if end <= step]
        if decision.next is not None:
            self.ends.append(decision.next)
        if self.world.first:
            files.write_json(self.directory / DECISIONS, _LIST.dump_python(self.decisions, mode="json"))
            say(decision.sentence())
        return decision.next is None


def decisions_in(directory: Path) -> list[Decision]:
    """What was decided in the round of this directory, in the order of steps."""
    path = directory / DECISIONS
    return _LIST.validate_json(path.read_bytes()) if path.exists() else []


def first_end(training: Training) -> int:
    """After how many steps the learning rate has decayed for the first time."""
    return min(training.steps, max(1, training.steps // FIRST, 2 * training.schedule.warmup_steps))


def decide(cooled: Sequence[tuple[int, float]], steps: int, target: float, as_good: bool) -> Decision:
    """What follows from the losses of a model that was cooled several times, the last of them now.

    Args:
        cooled: (steps, validation loss on all windows) in the order of steps.
        steps: of the whole round.
        target: the loss to reach.
        as_good: whether parity holds now.
    """
    now, loss = cooled[-1]
    decision = Decision(step=now, loss=loss, target=target, what="parity" if as_good else "train on")
    if as_good:
        return decision
    following = min(steps, round(MOST * now))
    if now >= 4 * cooled[0][0]:
        low, expected, high = (expected_loss(cooled, steps, times) for times in (OPEN, 1.0, 1 / OPEN))
        decision = decision.model_copy(update={"expected": expected, "low": low, "high": high})
        if low > target:
            return decision.model_copy(update={"what": "grow"})
        sooner = [n for n in range(now + 1, following) if expected_loss(cooled, n) <= target]
        if sooner:
            following = min(following, round(SURE * max(sooner[0], LEAST * now)))
    if following > steps / LEAST:
        following = steps
    return decision.model_copy(update={"next": following})


def expected_loss(cooled: Sequence[tuple[int, float]], steps: int, times: float = 1.0) -> float:
    """The loss after so many steps, from what the last two doublings gained.

    Args:
        cooled: as of `decide`, over at least two doublings.
        steps: more than the last of them.
        times: how many times as much as the last two say, each doubling gains relative to the one before it.
    """
    logs = np.log2([step for step, _ in cooled])
    losses = [loss for _, loss in cooled]
    before, half, now = (float(np.interp(logs[-1] - back, logs, losses)) for back in (2, 1, 0))
    last = half - now
    ratio = np.clip(last / (before - half), *GAINS) if before > half else SHRINKS
    return now - max(last, 0.0) * gain(steps / cooled[-1][0], float(ratio) * times)
