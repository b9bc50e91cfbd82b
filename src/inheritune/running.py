"""A run at work: what all its parts share, and how each of them trains.

A round, a probe of a depth and a trial of a learning rate train a small model; the reference that is corrected, and
the fair control, are the large one, trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from inheritune.analysis.forecast import FORECAST, load_forecast
from inheritune.analysis.kept import CHOICE, Kept, load_kept
from inheritune.analysis.layers import choose_kept, grown_kept
from inheritune.analysis.sequences import text_of
from inheritune.config import Pretrained, Recipe, Training
from inheritune.data.answers import Answers
from inheritune.data.loader import TrainingData
from inheritune.data.shards import Split
from inheritune.initialization import select
from inheritune.models.architecture import layer_count
from inheritune.models.load import load_model
from inheritune.run_directory import Phase, RoundFigures, RunDirectory, Summary
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.world import World
from inheritune.training.callbacks import NONE, Callbacks
from inheritune.training.checks import check_tied, tell_at_the_cut
from inheritune.training.distillation import distilled_from, learning_from
from inheritune.training.final_model import CHECKPOINTS, MODEL, Outcome, read_outcome, saved_dtype
from inheritune.training.loop import Stop, train
from inheritune.training.loss import NextTokenLoss
from inheritune.training.validation import WindowLosses


@dataclass(frozen=True)
class Run:
    """A run at work: what was asked for, where it happens, and with which other processes."""

    recipe: Recipe
    folder: RunDirectory
    data: TrainingData
    hardware: Hardware
    summary: Summary
    texts: Mapping[str, Split]
    """Other text that parity must hold on, by name."""
    callbacks: Callbacks = NONE

    @property
    def world(self) -> World:
        """The processes that run this together; the first of them writes."""
        return self.hardware.world

    def model_of(self, figures: RoundFigures) -> Path:
        """Where the model of a round is."""
        return self.folder.path / figures.directory / "model"

    def record(self, phase: Phase, number: int) -> None:
        """Say how far the run is."""
        self.world.on_first(self.folder.record, phase, number, self.summary)


@dataclass(frozen=True)
class Reference:
    """The large model, on disk: it is read only as far as it is needed."""

    source: Pretrained
    config: PretrainedConfig
    losses: WindowLosses
    also: Mapping[str, WindowLosses]
    training_flops: float | None
    teacher: Pretrained
    """What the rounds learn from, with `distillation`: itself, or itself trained on their text."""
    answers: Answers | None = None
    """The teacher's to the text of the rounds, where it was asked once (`distillation.draws`)."""

    @property
    def layers(self) -> int:
        """Its depth, k."""
        return layer_count(self.config)

    def load(self) -> PreTrainedModel:
        """The model itself, in evaluation mode on the CPU."""
        return load_model(self.source, config=self.config)

    def load_teacher(self) -> PreTrainedModel:
        """What the rounds learn from, likewise."""
        return load_model(self.teacher, config=self.config)


def never(*_: object) -> bool:
    """A training that goes on to its last step."""
    return False


def train_small(
    this: Run,
    reference: Reference,
    directory: Path,
    training: Training,
    initial: Callable[[], PreTrainedModel],
    title: str,
    stop: Stop = never,
    ends: Sequence[int] = (),
) -> Outcome:
    """Train a small model in this directory, a round's or a probe's; the arguments are those of `loop.train`."""
    pretrained = this.recipe.reference.pretrained is not None

    def first_weights() -> PreTrainedModel:
        model = initial()
        check_tied(model)
        return model

    def begins(losses: WindowLosses) -> None:
        whole = reference.losses.thinned(len(losses.losses)).mean
        tell_at_the_cut(title, losses.mean, whole, reference.config, pretrained=pretrained)

    return train(
        first_weights,
        replace(this.data, answers=reference.answers),
        training,
        directory,
        hardware=this.hardware,
        run=this.folder.path,
        loss=objective(this, reference),
        stop=stop,
        ends=ends,
        dtype=saved_dtype(training, reference.config),
        begins=begins,
        callbacks=this.callbacks,
        trust_remote_code=reference.source.trust_remote_code,
        title=title,
    )


def try_small(
    this: Run, reference: Reference, kept: Sequence[int], training: Training, name: str, title: str
) -> tuple[float, float]:
    """Train these layers of the reference for the loss alone, in the directory of this name: no model is left.

    Returns:
        The loss, nats per token, and the FLOPs of the training.
    """
    directory, world = this.folder.path / name, this.world
    if not world.on_first(is_over, directory):
        train_small(this, reference, directory, training, lambda: select(reference.source, kept), title)
        world.on_first(shutil.rmtree, directory / MODEL, ignore_errors=True)
    loss = WindowLosses.load(directory / "validation.json").mean
    return loss, read_outcome(directory, world).flops


def is_over(directory: Path) -> bool:
    """Whether a training came to its end here, and its model has been deleted."""
    return (directory / "training.json").exists() and not any(
        (directory / left).exists() for left in (CHECKPOINTS, MODEL)
    )


def train_on(
    this: Run,
    reference: Reference,
    directory: Path,
    training: Training,
    title: str,
    stop: Stop = never,
    ends: Sequence[int] = (),
) -> Outcome:
    """Train the whole reference on the recipe's text, as the rounds are."""
    return train(
        reference.load,
        this.data,
        training,
        directory,
        hardware=this.hardware,
        run=this.folder.path,
        stop=stop,
        ends=ends,
        dtype=saved_dtype(training, reference.config),
        trust_remote_code=reference.source.trust_remote_code,
        callbacks=this.callbacks,
        title=f"{title}, {reference.layers} layers",
    )


def objective(this: Run, reference: Reference) -> Callable[[PreTrainedModel, World], NextTokenLoss]:
    """What a round minimises: cross entropy, or with `distillation` also the distance to the reference's logits."""
    settings = this.recipe.distillation
    if settings is None:
        return NextTokenLoss
    if reference.answers is not None:
        return learning_from(reference.answers, settings)
    return distilled_from(reference.load_teacher, settings)


def first_choice(this: Run, reference: Reference, layers: int) -> Kept:
    """Which of the reference's layers to inherit, after those that a recipe lists the ones that are worth most."""
    keep, depth, seed = this.recipe.keep, reference.layers, this.recipe.training.seed
    assert keep != "auto", "the recipe says what it stands for"
    forecast, tried = this.folder.reference / FORECAST, this.folder.path / CHOICE
    if forecast.exists():
        return load_forecast(forecast).kept(layers)
    if tried.exists() and len((kept := load_kept(tried)).layers) == layers:
        return kept
    text, device = text_of(this.data.train), this.hardware.device
    if isinstance(keep, str) or len(keep) == layers:
        return choose_kept(keep, layers, depth, text, lambda: reference.load().to(device), seed)
    listed = choose_kept(keep, len(keep), depth, None, reference.load, seed)
    return grown_kept(listed, layers, reference.load().to(device), text, seed)
