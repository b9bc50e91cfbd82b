"""The learning rate of the rounds, where the recipe leaves it open (`learning_rate: auto`).

1. The first round's cut is trained for a tenth of the steps, with a schedule that ends with them: at a first guess,
   at twice of it, and so on from the best, until that is better than both its neighbours.
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
from collections.abc import Sequence
from dataclasses import replace

from inheritune import UserError
from inheritune.analysis.kept import CHOICE, Kept
from inheritune.analysis.layers import recorded
from inheritune.models.architecture import cut_config, parameter_count
from inheritune.models.size import on_meta
from inheritune.run_directory import RATES_FILE, RateTrial, TriedRates, load_rates
from inheritune.running import Reference, Run, first_choice, try_small
from inheritune.runtime import files
from inheritune.runtime.progress import say
from inheritune.single_model import training_flops
from inheritune.start_depth import begun_forecast, shortened, start_depth
from inheritune.training.final_model import CHECKPOINTS
from inheritune.training.step import NonFiniteError
from inheritune.training.validation import NonFiniteLossesError

logger = logging.getLogger(__name__)

SHARE = 0.1
"""Of the steps, in each of these trainings."""
GROWS = 2.0
"""Times what is best for so many is best for all."""
MOST = 6
"""Trainings; if none is better than both its neighbours by then, the best is taken. Usually three are enough."""

USUAL = ((300e6, 2.4e-3), (3e9, 3e-4), (math.inf, 1e-4))
"""Parameters of a pretrained model up to which the learning rate is this one, at `USUAL_TOKENS` a step; with fewer
tokens it is less by the square root of their share. The first is the best of `results/healing`, the others are
convention."""
USUAL_TOKENS = 131_072


def usual_rate(parameters: int, tokens_per_step: int) -> float:
    """The learning rate for a model that is made smaller, where nothing else is known."""
    rate = next(rate for size, rate in USUAL if parameters <= size)
    return rate * math.sqrt(min(1.0, tokens_per_step / USUAL_TOKENS))


def with_learning_rate(this: Run, reference: Reference) -> Run:
    """The run with a learning rate in its recipe; how it was found is recorded in its directory and in the summary.

    Raises:
        UserError: as a round does; no rate has a finite loss.
    """
    if this.recipe.training.optimizer.learning_rate != "auto":
        return this
    path, world = this.folder.path / RATES_FILE, this.world
    if world.on_first(path.exists):
        found = world.on_first(load_rates, path)
    else:
        layers = start_depth(this.recipe, reference.layers)
        if this.recipe.start_layers == "auto":  # whose curve has this choice, too
            world.on_first(begun_forecast, this, reference)
        choice = this.folder.path / CHOICE
        kept = world.on_first(recorded, choice, lambda: first_choice(this, reference, layers))
        found = try_rates(this, reference, kept)
        world.on_first(files.write_json, path, found.model_dump(mode="json"))
    for trial in found.trials:
        if trial.loss is None:  # it did not come to its end
            world.on_first(
                shutil.rmtree, this.folder.path / trial.directory / CHECKPOINTS, ignore_errors=True
            )
    this.summary.learning_rate = found.learning_rate
    this.summary.probe_flops += sum(trial.flops for trial in found.trials)
    training = this.recipe.training.with_rate(found.learning_rate)
    return replace(this, recipe=this.recipe.model_copy(update={"training": training}))


def try_rates(this: Run, reference: Reference, kept: Kept) -> TriedRates:
    """Short trainings of a cut: the first round's, or half of the layers where `start_layers` is open too."""
    recipe, trials, layers = this.recipe, list[RateTrial](), len(kept.layers)
    shape = on_meta(reference.config)
    first = usual_rate(parameter_count(shape), recipe.training.tokens_per_step) / GROWS
    while (rate := next_rate(trials, first)) is not None:
        training = shortened(recipe.training, rate_steps(recipe.training.steps)).with_rate(rate)
        name = f"rate-{rate:.1e}-{training.steps}-steps"
        title = f"learning rate {rate:.1e}, {layers} layers, {training.steps} steps"
        loss: float | None = None
        try:
            loss, flops = try_small(this, reference, kept.layers, training, name, title)
        except (NonFiniteError, NonFiniteLossesError) as error:
            done = error.step + 1 if isinstance(error, NonFiniteError) else training.steps
            teacher = recipe.distillation is not None and reference.answers is None
            small = on_meta(cut_config(reference.config, layers))
            whole = training_flops(small, training, this.data.window, shape if teacher else None)
            flops = whole * done / training.steps
            logger.warning("%s: the loss after %d steps is not finite, so lower rates are tried", title, done)
        trials.append(RateTrial(learning_rate=rate, loss=loss, flops=flops, directory=name))
    taken = best_rate(trials)
    if min(trials, key=_loss) is max(trials, key=lambda one: one.learning_rate):
        logger.warning(
            "the highest of %d learning rates is the best, so a still higher one may be better: set "
            "`optimizer.learning_rate`, for which %.1e is taken now",
            *(len(trials), taken),
        )
    say(f"learning rate: {taken:.1e}, by {len(trials)} trainings of {training.steps:,} steps")
    return TriedRates(layers=layers, steps=training.steps, trials=tuple(trials), learning_rate=taken)


def rate_steps(steps: int) -> int:
    """Of each short training, where the rounds have so many."""
    return max(1, round(SHARE * steps))


def next_rate(trials: Sequence[RateTrial], first: float) -> float | None:
    """What to try after these, or None if they are enough: a factor of two beside the best, higher rates first.

    After two steps in one direction that both helped, the next one is of a factor of four.
    """
    if not trials:
        return float(f"{first:.1e}")
    start = trials[0].learning_rate
    losses = {round(math.log2(one.learning_rate / start)): _loss(one) for one in trials}
    best = min(losses, key=lambda power: (losses[power], power))
    if len(trials) == MOST:
        return None
    for way in (1, -1):
        if best + way in losses or (way == 1 and losses[best] == math.inf):
            continue
        far = best - way in losses and best - 2 * way in losses and best + 2 * way not in losses
        return start * 2.0 ** (best + (2 * way if far else way))
    return None


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The best rate for all steps, by short trainings a factor of two apart; with two digits.

    It is below every rate at which the loss was not finite. Where the best trial has no neighbour, as no more were
    tried, its own rate stands for the lowest point of the parabola.

    Raises:
        UserError: no training came to its end.
    """
    best = min(trials, key=lambda one: (_loss(one), one.learning_rate))
    rate, loss = best.learning_rate, _loss(best)
    if loss == math.inf:
        raise UserError(
            f"the loss is not finite at any learning rate that was tried, down to {rate:.1e}: give "
            "`optimizer.learning_rate` a number, or look at the data"
        )
    near = {round(math.log2(one.learning_rate / rate)): _loss(one) for one in trials}
    lower, higher = near.get(-1, math.inf), near.get(1, math.inf)
    doublings = 0.0
    if loss < max(lower, higher) < math.inf:
        doublings = (lower - higher) / (2 * (lower - 2 * loss + higher))
    taken = GROWS * rate * 2**doublings
    if taken >= min((one.learning_rate for one in trials if one.loss is None), default=math.inf):
        taken = rate
    return float(f"{taken:.1e}")


def _loss(trial: RateTrial) -> float:
    return math.inf if trial.loss is None else trial.loss
