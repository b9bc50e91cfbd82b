"""A shape for a size: how deep and how wide a small model of at most so many parameters, or bytes, is best.

1. `shapes` lists for every depth the widest model that fits: with fewer MLP channels; where fewer than half of them
   would be left, with fewer heads too; and where that is too little, with a smaller hidden state, which costs most.
2. Each is cut (measured layers, width by importance), and its loss measured as it is.
3. The loss of a cut as it is makes narrow layers look worse than they are: SmolLM2-135M with 30 layers and a third of
   the MLP is 0.60 nats above 15 whole layers, and 0.09 after 25 steps. So the best of the deep ones, of the shallow
   ones and of those between are trained for a moment, and the one with the lowest loss on held-out windows is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.analysis.importance import ChoiceLosses
from inheritune.analysis.kept import Kept, Trial
from inheritune.analysis.layers import FEW, losses_on, searched, window_length, windows_at
from inheritune.analysis.sequences import Text
from inheritune.analysis.width import keep_width, narrowed
from inheritune.config import Optimizer, Schedule, Training
from inheritune.initialization.assemble import assemble
from inheritune.initialization.narrow import Width, head_group, narrower, width_config, width_of
from inheritune.models.architecture import choose_layers, context_length, layer_count, parameter_count
from inheritune.models.size import on_meta
from inheritune.quantities import count, memory
from inheritune.runtime.hardware import Hardware, computes_in_bf16
from inheritune.runtime.progress import ProgressBar
from inheritune.training.loss import NextTokenLoss
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import place
from inheritune.training.step import Stepper

STEP = 64
"""MLP channels and hidden dimensions are multiples of it, or of an eighth of the model's where that is less."""

NARROWEST = 4
"""No part of the width is cut to less than one in so many."""

ENOUGH = 1 / 2
"""Heads stay where so much of the MLP does. Of SmolLM2-135M at 81M parameters the loss with 30 layers is 6.14 with
all heads and a third of the MLP, 5.62 with two thirds of the heads; with 24 layers and half of the MLP it is 5.39,
and not less with fewer heads."""

TRIED = 3
"""So many shapes are trained, each for so many steps of so many windows, and measured on so many others."""
STEPS, PER_STEP, HELD_OUT = 48, 8, 32

RATE = 3e-4
"""Learning rate of these trainings."""


@dataclass(frozen=True)
class Target:
    """At most so many parameters, tied ones once, or so many bytes of weights as they are saved."""

    parameters: int | None = None
    memory: int | None = None
    bytes_each: int = 2
    """Of a parameter as it is saved."""
    vocabulary: int | None = None
    """Tokens that the result has, where they are fewer."""

    @property
    def most(self) -> int:
        """What a model may have of `size`."""
        return self.parameters or self.memory or 0

    def without_weights(
        self, config: PretrainedConfig, layers: Sequence[int], width: Width
    ) -> PreTrainedModel:
        """The result of a choice, shapes only."""
        cut = width_config(choose_layers(config, layers), width)
        if self.vocabulary is not None:
            cut = copy.deepcopy(cut)
            cut.vocab_size, cut.pad_token_id = self.vocabulary, None  # which may be beyond it
        return on_meta(cut)

    def size(self, model: PreTrainedModel) -> int:
        """Of a model, with weights or without."""
        if self.parameters is not None:
            return parameter_count(model)
        return self.bytes_each * sum(parameter.numel() for parameter in model.parameters())

    def shown(self, size: int) -> str:
        """In words."""
        return f"{count(size)} parameters" if self.parameters is not None else f"{memory(size)} of weights"


@dataclass(frozen=True)
class Shape:
    """Depth and width."""

    layers: int
    width: Width


def shapes(config: PretrainedConfig, target: Target) -> list[Shape]:
    """For each depth from half the layers on the widest model that comes closest below a target, deep ones first.

    Depths at which even the full width is below it are left out, except for the greatest.

    Raises:
        UserError: the model is not larger than the target, no shape is as small, or its width cannot be chosen.
    """
    depth, have = layer_count(config), width_of(config)

    @cache
    def sizes(width: Width) -> tuple[int, int]:
        """Of one layer with everything around it, and of each further one."""
        one, two = (target.size(target.without_weights(config, range(n), width)) for n in (1, min(2, depth)))
        return one, two - one

    def size(shape: Shape) -> int:
        first, more = sizes(shape.width)
        return first + (shape.layers - 1) * more

    whole = size(Shape(depth, have))
    if target.most >= whole:
        raise UserError(
            f"the model has {target.shown(whole)}, so there is nothing to cut to {target.shown(target.most)}"
        )
    rows = [list(row) for _, row in groupby(_widths(config, have), key=lambda widths: widths[0].hidden)]

    def widest(layers: int) -> Width | None:
        """That fits: with the most hidden dimensions, then with most left of what is cut most, then of the heads."""

        def fits(width: Width) -> bool:
            return size(Shape(layers, width)) <= target.most

        for row in rows:
            fitting = [next(filter(fits, widths)) for widths in row if fits(widths[-1])]
            if fitting:
                return max(fitting, key=lambda w: min(w.heads / have.heads, w.mlp / have.mlp, ENOUGH))
        return None

    found, smallest = list[Shape](), whole
    for layers in range(depth, max(1, depth // 2) - 1, -1):
        width = widest(layers)
        if width is None:
            smallest = size(Shape(layers, rows[-1][-1][-1]))
            continue
        found.append(Shape(layers, width))
        if width == have:
            break
    if not found:
        raise UserError(
            f"no shape of this model has at most {target.shown(target.most)}: with half of its layers and a quarter "
            f"of its width it has {target.shown(smallest)}"
        )
    return found


def _widths(config: PretrainedConfig, have: Width) -> Iterator[list[Width]]:
    """Rows of widths with ever fewer heads, then hidden dimensions; in each row ever fewer MLP channels."""
    channels = [have.mlp, *_below(have.mlp)]
    for hidden in (have.hidden, *_below(have.hidden)):
        for heads in range(have.heads, 0, -head_group(config)):
            if heads * NARROWEST < have.heads:
                break
            try:
                width_config(config, narrower(config, hidden, heads))
            except UserError:  # not these together
                continue
            yield [Width(hidden, heads, mlp) for mlp in channels]


def _below(size: int) -> range:
    step = min(STEP, max(1, size // 8))
    return range((size - 1) // step * step, -(-size // NARROWEST) - 1, -step)


def choose_shape(model: PreTrainedModel, target: Target, text: Text, seed: int) -> Kept:
    """Layers and width of a small model of at most a certain size.

    Args:
        model: the large one, float32, in evaluation mode, on the device to compute on.
        target: how large it may be.
        text: to measure and to train on.
        seed: of the windows and the trainings.

    Raises:
        UserError: as `shapes`, `losses_on` and `narrow`.
    """
    candidates = shapes(model.config, target)
    losses, measured = losses_on(model, text, seed)
    depth, fewest = len(losses.whole), candidates[-1].layers
    best = {depth: losses.whole}
    if fewest < depth:
        angles = losses.similarities(FEW)[1]
        best |= searched(losses, angles, fewest, f"choosing {fewest} to {depth} layers")
    cuts, at_cut = list[Kept](), list[float]()
    with ProgressBar("cuts to this size", len(candidates), "shapes") as bar:
        for shape in candidates:
            chosen = best[shape.layers]
            kept = Kept(
                keep="measured",
                layers=list(chosen),
                of_layers=depth,
                loss=losses.mean(chosen),
                whole=losses.mean(losses.whole),
                measured=measured,
            )
            kept = keep_width(kept, assemble(model, chosen), shape.width, "importance", text, seed)
            assert kept.loss is not None
            cuts.append(kept)
            at_cut.append(kept.loss)
            bar.update(len(cuts))
    thirds = [list(third) for third in np.array_split(np.arange(len(cuts)), TRIED) if len(third)]
    tried = [min(third, key=at_cut.__getitem__) for third in thirds]
    trained: dict[int, float] = {}
    if len(tried) > 1:
        with ProgressBar("trying shapes", len(tried) * STEPS, "steps") as bar:
            for place in tried:
                small = narrowed(assemble(model, cuts[place].layers), cuts[place])
                trained[place] = loss_after_training(small, text, seed, lambda: bar.update(bar.done + 1))
    taken = min(tried, key=lambda place: trained.get(place, 0.0))
    trials = tuple(
        Trial(
            layers=shape.layers,
            **asdict(shape.width),
            parameters=parameter_count(target.without_weights(model.config, cut.layers, shape.width)),
            loss=at_cut[place],
            trained=trained.get(place),
        )
        for place, (shape, cut) in enumerate(zip(candidates, cuts, strict=True))
    )
    return cuts[taken].model_copy(update={"trials": trials})


def loss_after_training(
    model: PreTrainedModel, text: Text, seed: int, tell: Callable[[], None] = lambda: None
) -> float:
    """Loss on held-out windows of a text after a few steps on others, nats per token.

    Args:
        model: trained in place, on its device.
        text: to train on.
        seed: of the windows.
        tell: is called after each step.
    """
    length, device = window_length(text, context_length(model.config)), model.device
    available = (text.size - 1) // length
    order = np.random.Generator(np.random.PCG64(seed)).permutation(available)
    held_out = min(HELD_OUT, available // 4)
    training = Training(
        steps=STEPS,
        tokens_per_step=PER_STEP * length,
        seed=seed,
        optimizer=Optimizer(learning_rate=RATE),
        schedule=Schedule(warmup_steps=STEPS // 8),
    )
    hardware = Hardware(device, computes_in_bf16(device), False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        placed = place(NextTokenLoss(model), training, hardware, length)
        stepper = Stepper(placed, make_optimizer(model, training.optimizer), training, hardware)
        for step in range(STEPS):
            places = np.arange(step * PER_STEP, (step + 1) * PER_STEP) % (available - held_out)
            stepper(step, windows_at(text, order[held_out:][places], length).batches(0, PER_STEP, device))
            tell()
        stepper.check_last()
    measured = ChoiceLosses(model.eval(), windows_at(text, order[:held_out], length))
    return measured.mean(measured.whole)
