"""The learning rate of the rounds, where the recipe leaves it open (`learning_rate: auto`).

1. The first round's cut is trained for a tenth of the steps, with a schedule that ends with them: at a first guess,
   at twice and at half of it, and so on from the best, until that is better than both its neighbours.
2. The lowest point of the parabola through these three is the best rate for so few steps.
3. The best rate grows with the length of a training: the rounds take twice as much.

Of SmolLM2-135M cut to half of its layers a tenth of the steps says 1.8e-3, and of all steps 2.4e-3 and 4.8e-3 are the
best, within 0.006 nats of each other; of a GPT-2 of 185 thousand parameters a tenth says 3.2e-3, and 6e-3 and 1.2e-2
are the best, within 0.002 (`results/healing/`).
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from inheritune.analysis.kept import CHOICE, Kept
from inheritune.analysis.layers import recorded
from inheritune.initialization import select
from inheritune.models.architecture import parameter_count
from inheritune.models.size import on_meta
from inheritune.run_directory import RATES_FILE, RateTrial, TriedRates, load_rates
from inheritune.runtime import files
from inheritune.runtime.progress import say
from inheritune.start_depth import shortened, start_depth
from inheritune.training.final_model import MODEL, Outcome
from inheritune.training.step import NonFiniteError
from inheritune.training.validation import WindowLosses

if TYPE_CHECKING:
    from inheritune.algorithm import Reference, Run

logger = logging.getLogger(__name__)

SHARE = 0.1
"""Of the steps, in each of these trainings."""
GROWS = 2.0
"""Times what is best for so many is best for all."""
MOST = 6
"""Trainings; if none is better than both its neighbours by then, the best is taken."""
USUALLY = 4
"""So many are planned for: a good first guess needs three, one that is off by two four."""

USUAL = ((300e6, 2.4e-3), (3e9, 3e-4), (math.inf, 1e-4))
"""Parameters of a pretrained model up to which the learning rate is this one, at `USUAL_TOKENS` a step; with fewer
tokens it is less by the square root of their share. The first is the best of `results/healing`, the others are
convention."""
USUAL_TOKENS = 131_072


def usual_rate(parameters: int, tokens_per_step: int) -> float:
    """The learning rate for a model that is made smaller, where nothing else is known."""
    rate = next(rate for size, rate in USUAL if parameters <= size)
    return rate * math.sqrt(min(1.0, tokens_per_step / USUAL_TOKENS))


def with_learning_rate(
    this: Run,
    reference: Reference,
    train_small: Callable[..., Outcome],
    first_choice: Callable[[Run, Reference, int], Kept],
) -> Run:
    """The run with a learning rate in its recipe; how it was found is recorded in its directory and in the summary.

    Args:
        this: the run.
        reference: trained and measured.
        train_small: trains a small model as each round does.
        first_choice: which of the reference's layers a cut to so many keeps.

    Raises:
        UserError: as a round does; NaN or infinite losses even at the lowest of the rates.
    """
    if this.recipe.training.optimizer.learning_rate != "auto":
        return this
    path, world = this.folder.path / RATES_FILE, this.world
    if world.on_first(path.exists):
        found = world.on_first(load_rates, path)
    else:
        found = try_rates(this, reference, train_small, first_choice)
        world.on_first(files.write_json, path, found.model_dump(mode="json"))
        for trial in found.trials:  # its loss is what was wanted
            world.on_first(shutil.rmtree, this.folder.path / trial.directory / MODEL, ignore_errors=True)
    this.summary.learning_rate = found.learning_rate
    this.summary.probe_flops += sum(trial.flops for trial in found.trials)
    training = this.recipe.training.with_rate(found.learning_rate)
    return replace(this, recipe=this.recipe.model_copy(update={"training": training}))


def try_rates(
    this: Run,
    reference: Reference,
    train_small: Callable[..., Outcome],
    first_choice: Callable[[Run, Reference, int], Kept],
) -> TriedRates:
    """Short trainings of the first round's cut, or of half of the layers where `start_layers` is open too."""
    recipe, folder, trials = this.recipe, this.folder.path, list[RateTrial]()
    layers = start_depth(recipe.start_layers, reference.layers)
    kept = this.world.on_first(recorded, folder / CHOICE, lambda: first_choice(this, reference, layers))
    parameters = parameter_count(on_meta(reference.config))
    first = usual_rate(parameters, recipe.training.tokens_per_step) / GROWS
    while (rate := next_rate(trials, first)) is not None:
        training = shortened(recipe.training, rate_steps(recipe.training.steps)).with_rate(rate)
        directory = folder / f"rate-{rate:.1e}-{training.steps}-steps"
        title = f"learning rate {rate:.1e}, {layers} layers, {training.steps} steps"
        try:
            flops = train_small(
                this, reference, directory, training, lambda: select(reference.source, kept.layers), title
            ).flops
            loss = WindowLosses.load(directory / "validation.json").mean
        except NonFiniteError as error:
            flops, loss = 0.0, None
            logger.warning("%s: %s", title, error)
        trial = RateTrial(learning_rate=rate, loss=loss, flops=flops, directory=directory.name)
        trials.append(trial)
    taken = best_rate(trials)
    say(f"learning rate: {taken:.1e}, {GROWS:g} times what is best for {training.steps:,} steps")
    return TriedRates(layers=layers, steps=training.steps, trials=tuple(trials), learning_rate=taken)


def rate_steps(steps: int) -> int:
    """Of each short training, where the rounds have so many."""
    return max(1, round(SHARE * steps))


def next_rate(trials: Sequence[RateTrial], first: float) -> float | None:
    """What to try after these, or None if they are enough: a factor of two beside the best, higher rates first."""
    if not trials:
        return float(f"{first:.1e}")
    ordered = sorted(trials, key=lambda trial: trial.learning_rate)
    best = _best(ordered)
    if len(trials) == MOST:
        return None
    if best == len(ordered) - 1 and ordered[best].loss is not None:
        return 2 * ordered[best].learning_rate
    if best == 0:
        return ordered[0].learning_rate / 2
    return None


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The best rate for all steps, by short trainings a factor of two apart; with two digits.

    Raises:
        NonFiniteError: no training came to its end.
    """
    ordered = sorted(trials, key=lambda trial: trial.learning_rate)
    best = _best(ordered)
    rate, loss = ordered[best].learning_rate, ordered[best].loss
    if loss is None:
        raise NonFiniteError("the loss is not finite at any learning rate that was tried", 0)
    lower, higher = (
        ordered[place].loss if 0 <= place < len(ordered) else None for place in (best - 1, best + 1)
    )
    doublings = 0.0
    if lower is not None and higher is not None and lower + higher > 2 * loss:
        doublings = (lower - higher) / (2 * (lower - 2 * loss + higher))
    return float(f"{GROWS * rate * 2**doublings:.1e}")


def _best(ordered: Sequence[RateTrial]) -> int:
    """The place of the lowest loss; where all are None, 0."""
    losses = [math.inf if trial.loss is None else trial.loss for trial in ordered]
    return losses.index(min(losses))
