"""A teacher that knows the text: the reference, trained on it before it teaches (`distillation.corrected`).

"Teacher correction" of Minitron (Sreenivas et al., 2024, arXiv 2408.11796). Under the reference as it was, 15 layers
of SmolLM2-135M end 0.014 nats above the same training without a teacher; under the corrected one 0.058 below
(`results/healing/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from inheritune.config import Pretrained, Recipe, Training
from inheritune.learning_rate import usual_rate
from inheritune.models.architecture import parameter_count
from inheritune.models.size import on_meta
from inheritune.start_depth import shortened
from inheritune.training.final_model import MODEL, saved_dtype
from inheritune.training.loop import train

if TYPE_CHECKING:
    from inheritune.algorithm import Reference, Run

LESS = 1 / 4
"""Of the rounds' learning rate: a model that lost nothing needs no repair (`results/healing/`)."""


def teacher_training(recipe: Recipe, config: PretrainedConfig) -> Training | None:
    """How the reference, of this configuration, is trained before it teaches; None if it teaches as it is."""
    settings, training = recipe.distillation, recipe.training
    if settings is None or not settings.corrected:
        return None
    steps = training.steps if settings.corrected is True else settings.corrected
    rate = training.optimizer.learning_rate
    if rate == "auto":
        rate = usual_rate(parameter_count(on_meta(config)), training.tokens_per_step)
    return shortened(training, steps).with_rate(LESS * rate)


def obtain_teacher(this: Run, reference: Reference) -> Pretrained:
    """The reference, or what it is after it was trained on the rounds' text, from the same windows as they."""
    training = teacher_training(this.recipe, reference.config)
    if training is None:
        return reference.source
    outcome = train(
        reference.load,
        this.data,
        training,
        this.folder.teacher,
        hardware=this.hardware,
        run=this.folder.path,
        dtype=saved_dtype(training, reference.config),
        trust_remote_code=reference.source.trust_remote_code,
        callbacks=this.callbacks,
        title=f"teacher, {reference.layers} layers",
    )
    this.summary.teacher_flops = outcome.flops
    return this.recipe.reference.at(this.folder.teacher / MODEL)
