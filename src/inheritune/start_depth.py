"""How many layers to begin with, where the recipe leaves it open (`start_layers: auto`).

1. The curve: which layers a cut to each depth keeps, and its loss as it is, before any training.
2. Probes: cuts to two depths, half and about three quarters of the reference's, are trained for 5% and for 10% of the
   steps, and the shallow one for 20% too, each with a schedule that ends with it.
3. The loss of each depth after all steps is predicted from these (`predict`), and the smallest depth that should
   reach the reference's is the start.

The forecast is written when the curve is known, and again in the end, so a run that is killed resumes in its probe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.analysis.forecast import (
    EASES,
    FORECAST,
    Forecast,
    Prediction,
    Probe,
    gain,
    load_forecast,
    ratio,
)
from inheritune.analysis.kept import Kept, save
from inheritune.analysis.layers import kept_at
from inheritune.analysis.sequences import text_of
from inheritune.config import Recipe, Training
from inheritune.models.blockwise import Blockwise
from inheritune.run_directory import RoundFigures
from inheritune.running import Reference, Run, try_small
from inheritune.runtime.progress import say
from inheritune.training.validation import WindowLosses, interval_of, standard_error

logger = logging.getLogger(__name__)

SHARE = 0.05
"""Of the steps in the shortest probe of a depth; each further one has twice as many."""


def start_depth(recipe: Recipe, depth: int) -> int:
    """Layers of the first round, of which `auto` has at least half, for a reference of this depth.

    Raises:
        UserError: as many as the reference has, or more.
    """
    start = recipe.start_layers if isinstance(recipe.keep, str) else len(recipe.keep)
    layers = half(depth) if isinstance(start, str) else start
    if layers >= depth:
        raise UserError(
            f"start_layers is {layers}, but the reference has {depth} layers: nothing would be saved"
        )
    return layers


def half(depth: int) -> int:
    """The paper's k/2."""
    return max(1, depth // 2)


def check_measurable(recipe: Recipe, load: Callable[[], PreTrainedModel]) -> None:
    """Cuts of the reference can be measured without making them, if the recipe needs that for the first round.

    Raises:
        UserError: they cannot.
    """
    if recipe.start_layers == "auto" or recipe.keep in ("measured", "contiguous"):
        Blockwise(load())


def first_depth(this: Run, reference: Reference) -> int:
    """Layers of the first round; a forecast is recorded beside the reference's files, and in the summary.

    Raises:
        UserError: nothing would be saved, or the model's blocks cannot be run apart.
    """
    recipe, world, path = this.recipe, this.world, this.folder.reference / FORECAST
    if recipe.start_layers != "auto":
        return start_depth(recipe, reference.layers)
    begun: int | None = world.on_first(lambda: None if path.exists() else this.folder.first_round)
    if begun is not None:  # by a version that made no forecasts
        return begun

    def train_probe(layers: int, training: Training) -> Probe:
        steps, kept = training.steps, forecast.kept(layers).layers
        name, title = f"probe-{layers}-layers-{steps}-steps", f"probe, {layers} layers, {steps} steps"
        loss, flops = try_small(this, reference, kept, training, name, title)
        return Probe(layers=layers, steps=steps, loss=loss, flops=flops, directory=name)

    forecast: Forecast = world.on_first(begun_forecast, this, reference)
    if forecast.start is None:
        probes = [train_probe(*probe) for probe in probe_trainings(reference.layers, recipe.training)]
        forecast = world.on_first(conclude, path, forecast, probes)
    this.summary.probe_flops += sum(probe.flops for probe in forecast.probes)
    assert forecast.start is not None, "it was concluded"
    # Layers that are put back between trained ones have had more training than was predicted.
    told = [one for one in forecast.depths if recipe.grow.mode == "reinherit" or one.layers == forecast.start]
    this.summary.predicted = {one.layers: one.loss for one in told}
    return forecast.start


def begun_forecast(this: Run, reference: Reference) -> Forecast:
    """The forecast as far as it is recorded; a new one is of the curve alone."""
    path = this.folder.reference / FORECAST
    if not path.exists():
        target = reference.losses.mean + this.recipe.parity.margin
        begun = Forecast(curve=curve(this, reference), steps=this.recipe.training.steps, target=target)
        save(path, begun)
    return load_forecast(path)


def curve(this: Run, reference: Reference) -> list[Kept]:
    """The choice of each depth by the recipe's rule, from half the reference's depth to one less, with its loss."""
    sizes = range(half(reference.layers), reference.layers)
    model, text = reference.load().to(this.hardware.device), text_of(this.data.train)
    return kept_at(str(this.recipe.keep), sizes, reference.layers, text, model, this.recipe.training.seed)


def probe_trainings(depth: int, training: Training) -> list[tuple[int, Training]]:
    """Layers and settings of the probes for a reference of this depth; none where half is the only cut there is."""
    shallow = half(depth)
    deep = max(shallow + 1, 3 * depth // 4)
    short = max(1, round(SHARE * training.steps))
    if deep >= depth:
        return []
    lengths = [(shallow, 1), (shallow, 2), (shallow, 4), (deep, 1), (deep, 2)]
    return [(layers, shortened(training, times * short)) for layers, times in lengths]


def shortened(training: Training, steps: int) -> Training:
    """The same training in fewer steps: its warm-up is as much shorter, and it is validated in the end only."""
    warmup, saves = training.schedule.warmup_steps * steps // training.steps, training.checkpoints.every
    quarter = -(-steps // 4)
    saves = quarter if saves == "auto" else min(saves, quarter)
    changes = {
        "schedule": training.schedule.model_copy(update={"warmup_steps": warmup}),
        "validation": training.validation.model_copy(update={"every": steps}),
        "checkpoints": training.checkpoints.model_copy(update={"every": saves}),
    }
    return training.model_copy(update={"steps": steps, **changes})


def conclude(path: Path, forecast: Forecast, probes: Sequence[Probe]) -> Forecast:
    """Predict, choose, and write it down; the directories of the probes are beside that of the forecast."""
    run, depths, start = path.parent.parent, list[Prediction](), len(forecast.curve[0].layers)
    if probes:
        losses = [WindowLosses.load(run / probe.directory / "validation.json").losses for probe in probes]
        depths = predict(forecast, probes, losses)
        good = [one.layers for one in depths if one.loss <= forecast.target]
        start = good[0] if good else depths[-1].layers
        if not good:
            logger.warning(
                "no depth is expected to reach a loss of %.3f in %d steps, so the run starts with %d layers, for "
                "which %.3f is expected: train for longer, allow a `parity.margin`, or set `start_layers`",
                *(forecast.target, forecast.steps, start, depths[-1].loss),
            )
    done = forecast.model_copy(update={"probes": tuple(probes), "depths": tuple(depths), "start": start})
    save(path, done)
    return done


def predict(forecast: Forecast, probes: Sequence[Probe], losses: Sequence[np.ndarray]) -> list[Prediction]:
    """The loss of each depth after a whole training.

    The shallow depth's is extrapolated from its three lengths: r is what the second doubling gained in parts of what
    the first did, and every doubling after it gains c r times what the one before it gained (`EASES` has c). The
    second doubling of the deep depth, which is not trained, is taken to gain r times what its first did; from there
    on it goes as the shallow one. The other depths are on the straight line through both in the loss before training:
    on SmolLM2-135M, cut to 15, 20 and 24 of 30 layers, the gap to the reference after training is 0.224 times the gap
    before it, to two digits at all three (`results/real-model/`).

    Args:
        forecast: with its curve.
        probes: five, as `probe_trainings` lists them.
        losses: of each probe, on the same validation windows, float64 [windows].
    """
    cuts = {len(kept.layers): kept.loss for kept in forecast.curve if kept.loss is not None}
    shallow, deep = probes[0].layers, probes[-1].layers
    apart = cuts[shallow] - cuts[deep]
    shares = [(cut - cuts[deep]) / apart if apart else 0.0 for cut in cuts.values()]
    first, second, first_deep = (gained(losses[i], losses[i + 1]) for i in (0, 1, 3))
    shrinks = ratio(float(first.mean()), float(second.mean()))

    def after(eases: float) -> np.ndarray:
        """[depths, windows]."""
        more = gain(forecast.steps / probes[2].steps, eases * shrinks)
        end, end_deep = losses[2] - more * second, losses[4] - (1 + more) * shrinks * first_deep
        return np.stack([end_deep + share * (end - end_deep) for share in shares])

    found = []
    for layers, rows in zip(cuts, zip(*map(after, EASES), strict=True), strict=True):
        lows, highs = zip(
            *(interval_of(float(row.mean()), standard_error(row), len(row)) for row in rows), strict=True
        )
        loss = float(rows[1].mean())
        found.append(Prediction(layers=layers, loss=loss, low=min(lows), high=max(highs)))
    return found


def gained(shorter: np.ndarray, longer: np.ndarray) -> np.ndarray:
    """By twice the steps, on each window; 0 where the mean loss rose, which more steps are not taken to repeat."""
    difference = shorter - longer
    return difference if difference.mean() > 0 else np.zeros_like(difference)


def tell_how_far_off(figures: RoundFigures) -> None:
    """After a round: what was predicted, and what came."""
    if figures.predicted is not None:
        say(
            f"round {figures.round}: a loss of {figures.predicted:.3f} was predicted for {figures.layers} layers, "
            f"{figures.loss:.3f} was found: off by {figures.predicted - figures.loss:+.3f}"
        )
