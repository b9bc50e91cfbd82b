"""A teacher that knows the text: the reference, trained on it before it teaches (`distillation.corrected`).

"Teacher correction" of Minitron (Sreenivas et al., 2024, arXiv 2408.11796). Under the reference as it was, 15 layers
of SmolLM2-135M end 0.014 nats above the same training without a teacher; under the corrected one 0.058 below
(`results/healing/`).
"""

from __future__ import annotations

from transformers import PretrainedConfig

from inheritune.config import Pretrained, Recipe, Training
from inheritune.learning_rate import usual_rate
from inheritune.models.architecture import parameter_count
from inheritune.models.size import on_meta
from inheritune.running import Reference, Run, train_on
from inheritune.start_depth import shortened
from inheritune.training.final_model import MODEL

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
    less = shortened(training, steps).with_rate(LESS * rate)
    return less.model_copy(update={"checkpoints": training.checkpoints})  # it may be as long as a round


def obtain_teacher(this: Run, reference: Reference) -> Pretrained:
    """The reference, or what it is after it was trained on the rounds' text, from the same windows as they."""
    training = teacher_training(this.recipe, reference.config)
    if training is None:
        return reference.source
    this.summary.teacher_flops = train_on(this, reference, this.folder.teacher, training, "teacher").flops
    return this.recipe.reference.at(this.folder.teacher / MODEL)
