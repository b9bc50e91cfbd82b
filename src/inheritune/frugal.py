"""Rounds that end when they are decided (`search: frugal`), in place of Algorithm 1's, which are paid in full.

The loss of a model that is trained at a constant learning rate falls by much when the rate decays, so it cannot be
compared with the reference before it is cooled. A round is cooled several times (see `training.schedule`):

1. after a tenth and after a quarter of the steps, or, where a long warm-up leaves the first no room for its decay,
   when it has room, and after 2.5 times as many. What was gained between the two says what to expect of the whole
   round: if even the most hopeful answer misses the target, the round ends, and the next one grows this model
   (`grow.mode: append`), so that nothing of its training is thrown away;
2. then as soon as a validation at the constant rate, less what a decay should gain, is below the target. If even the
   most hopeful answer that follows from it is not, the round ends as it is, uncooled, and the next one grows it;
3. at the end of the steps.

A validation in a decay that reaches the target is made on all windows too, and with parity it ends the round there.
The last round, which no other can follow, is given up only where it is cooled.

Where a cooled model is as good as the reference, the round ends with parity, and the model is the result. At the end
of a decay it is the same as if the training had been planned to end there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from inheritune.analysis.forecast import gain
from inheritune.config import Training
from inheritune.run_directory import Decision
from inheritune.running import Reference, Run
from inheritune.runtime import files
from inheritune.runtime.progress import say
from inheritune.training.loop import Measure
from inheritune.training.schedule import next_decay
from inheritune.training.validation import WindowLosses

DECISIONS = "decisions.json"
"""In the directory of a round."""
_LIST = TypeAdapter(list[Decision])

PLANNED = (0.1, 0.25)
"""After these shares of the steps a round is cooled in any case, or after longer ones in the same proportion."""
AGAIN = 1.15
"""Times the steps of one end that the next one has at least."""
SURE = 0.02
"""Such a part of what a decay should gain is the margin of what is decided before it. In six rounds that was off by
1 to 6% (`results/frugal/`); more margin would cost more than a miss does."""
RATIOS = (1.4, 1.0, 0.7)
"""What a doubling of the steps gains, in parts of the one before it: the most hopeful, what is expected, the least.
A model that was inherited gains more and more at first (`results/frugal/`)."""


class UntilDecided:
    """Ends a round when it is decided, as `loop.train` asks it; what was decided is written down.

    Args:
        this: the run.
        reference: what to be as good as.
        directory: of the round.
        as_good: whether parity holds for a cooled model, given its losses and what measures it on other text.
        may_grow: another round may follow.
    """

    def __init__(
        self,
        this: Run,
        reference: Reference,
        directory: Path,
        as_good: Callable[[WindowLosses, Measure], bool],
        may_grow: bool,
    ) -> None:
        self.world, self.path, self.validation = this.world, directory / DECISIONS, this.data.validation
        self.as_good, self.reference, self.margin = as_good, reference, this.recipe.parity.margin
        self.ends = list[int]()
        """Steps after which the learning rate has decayed, as far as is decided; the last step is one in any case."""
        self._remember(Round(this.recipe.training, may_grow, this.world.on_first(decisions_in, directory)))

    def __call__(self, step: int, losses: WindowLosses, measure: Measure) -> bool:
        """Whether the round ends here."""
        # A round that was killed decides again what it had decided after its checkpoint.
        self._remember(self.round.before(step))
        target = self.reference.losses.thinned(len(losses.losses)).mean + self.margin
        if step in self.ends:
            thinned = losses.thinned(self.round.training.validation.windows).mean
            as_good = self.as_good(losses, measure)
            decision: Decision | None = self.round.when_cooled(step, losses.mean, thinned, target, as_good)
        elif step > next_decay(step, self.round.training, self.ends)[0]:
            decision = self._when_cooling(step, measure) if losses.mean <= target else None
        else:
            decision = self.round.when_hot(step, losses.mean, target)
        if decision is None:
            return False
        self._remember(self.round.and_then(decision))
        if self.world.first:
            files.write_json(self.path, _LIST.dump_python(list(self.round.decisions), mode="json"))
            say(decision.sentence())
        return decision.what in ("parity", "grow", "give up")

    def _when_cooling(self, step: int, measure: Measure) -> Decision | None:
        """In a decay, where few windows have reached the target: parity if all have, and all other text."""
        losses = measure(self.validation, final=True)
        if not self.as_good(losses, partial(measure, final=True)):
            return None
        target = self.reference.losses.mean + self.margin
        return Decision(step=step, loss=losses.mean, target=target, what="parity")

    def _remember(self, known: Round) -> None:
        self.round = known
        self.ends[:] = known.ends


@dataclass(frozen=True)
class Round:
    """What a round is decided by.

    Args:
        training: its settings.
        may_grow: another round may follow.
        decisions: made so far, in the order of steps.
    """

    training: Training
    may_grow: bool
    decisions: Sequence[Decision] = ()

    @property
    def ends(self) -> list[int]:
        """After how many steps the learning rate has decayed, before the end, as far as is decided."""
        return ends_of(self.decisions, self.training)

    def before(self, step: int) -> Round:
        """The round as it was when it came to this step."""
        return replace(self, decisions=[one for one in self.decisions if one.step < step])

    def and_then(self, decision: Decision) -> Round:
        """The round after another decision."""
        return replace(self, decisions=[*self.decisions, decision])

    def when_hot(self, step: int, loss: float, target: float) -> Decision | None:
        """At a validation before a decay: whether to cool the model, to grow it as it is, or None to train on.

        Args:
            step: that was done.
            loss: on some of the validation windows, nats per token.
            target: the loss to reach on these.
        """
        training = self.training
        start, end = next_decay(step, training, self.ends)
        if step == start:
            return Decision(step=step, loss=loss, target=target, what="cool down", next=end)
        gains = [(one.step, one.gain) for one in self.decisions if one.gain is not None]
        if end != training.steps or not gains:
            return None
        end = round(step / (1 - training.schedule.decay_fraction))
        if not AGAIN * gains[-1][0] <= end <= training.steps / AGAIN:
            return None
        decision = Decision(step=step, loss=loss, target=target, what="cool down")
        gained = expected_gain(gains, end)
        if loss - (1 - SURE) * gained <= target:
            return decision.model_copy(update={"next": end})
        answer = self.in_the_end(end, loss - (1 + SURE) * gained, target)
        if self.may_grow and answer["low"] > target:
            return decision.model_copy(update={"what": "grow", **answer})
        return None

    def when_cooled(self, step: int, loss: float, thinned: float, target: float, as_good: bool) -> Decision:
        """Where the learning rate has decayed: whether the round ends.

        Args:
            step: that was done.
            loss: on all validation windows, nats per token.
            thinned: the loss on those windows that were validated when the decay began.
            target: the loss to reach on all.
            as_good: whether parity holds.
        """
        # None where one decay began with the end of another: no validation at the constant rate lies between.
        hot = [one.loss for one in self.decisions if one.what == "cool down" and one.next == step]
        decision = Decision(
            step=step,
            loss=loss,
            target=target,
            what="parity" if as_good else "train on",
            gain=hot[-1] - thinned if hot else None,
        )
        if as_good or all(one.hot for one in self.decisions):
            return decision
        answer = self.in_the_end(step, loss, target)
        hopeless = "grow" if self.may_grow else "give up"
        what = hopeless if answer["low"] > target else "train on"
        return decision.model_copy(update={**answer, "what": what})

    def in_the_end(self, step: int, loss: float, target: float) -> dict[str, float]:
        """What the loss should be after all steps, by a cooled model's after some and by the cooled one before.

        The two may be on different windows, so they are compared by their differences to the target on these.

        Returns:
            `low`, `expected` and `high`, nats per token.
        """
        last = next(one for one in reversed(self.decisions) if not one.hot)
        doubling = max(0.0, (last.loss - last.target) - (loss - target)) / math.log2(step / last.step)
        answers = (loss - doubling * gain(self.training.steps / step, ratio) for ratio in RATIOS)
        return dict(zip(("low", "expected", "high"), answers, strict=True))


def decisions_in(directory: Path) -> list[Decision]:
    """What was decided in the round of this directory, in the order of steps."""
    path = directory / DECISIONS
    return files.read_record(path, list[Decision], "a list of decisions") if path.exists() else []


def ends_of(decisions: Sequence[Decision], training: Training) -> list[int]:
    """After how many steps the learning rate has decayed, before the end, as far as is decided."""
    decided = {one.next for one in decisions if one.next is not None}
    return sorted({*planned_ends(training), *decided} - {training.steps})


def planned_ends(training: Training) -> list[int]:
    """After how many steps the model is cooled in any case, before the end.

    A decay that the warm-up cuts short would not cool it, so the first end is late enough for a whole one.
    """
    warmup, rest = training.schedule.warmup_steps, 1 - training.schedule.decay_fraction
    if warmup > rest * training.steps:
        return []
    least = max(warmup + 2, math.ceil(warmup / rest) if warmup else 0)
    longer = max(1.0, least / (PLANNED[0] * training.steps))
    found = {round(share * longer * training.steps) for share in PLANNED}
    return sorted(end for end in found if end * AGAIN <= training.steps)


def expected_gain(gains: Sequence[tuple[int, float]], end: int) -> float:
    """What a decay gains that ends after so many steps, from (end, gain) of earlier ones, which were shorter.

    A longer decay gains more: by the last two, as the logarithm of the steps.
    """
    (last, gained), earlier = gains[-1], gains[:-1]
    if not earlier:
        return gained
    before, less = earlier[-1]
    return gained + max(0.0, gained - less) * math.log(end / last) / math.log(last / before)
