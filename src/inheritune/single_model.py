"""One model, trained: what `inheritune train` does, and how a recipe's `model` becomes a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError, __version__
from inheritune.analysis.kept import CHOICE, Kept, load_kept
from inheritune.analysis.layers import choose_kept, recorded
from inheritune.analysis.sequences import text_of
from inheritune.analysis.width import keep_width, narrowed
from inheritune.card import README, train_card
from inheritune.config import MEASURED, ModelSource, Pretrained, Recipe, Training, TrainRecipe
from inheritune.data.answers import Answers, verify_answers
from inheritune.data.loader import TrainingData, open_data, open_together, windows_read
from inheritune.data.order import Order
from inheritune.initialization import choose, half_width, select
from inheritune.initialization.narrow import narrow_config, narrower, width_config
from inheritune.models.architecture import PARTS, choose_layers, layer_count
from inheritune.models.checkpoint_files import weights_digest
from inheritune.models.load import load_config, load_model, load_tokenizer
from inheritune.models.presets import architecture_config, from_config
from inheritune.models.size import flops_per_token, on_meta
from inheritune.run_directory import RunDirectory
from inheritune.runtime import files
from inheritune.runtime.hardware import Hardware, choose_hardware, command_line, describe
from inheritune.runtime.repeatable import repeatable
from inheritune.runtime.world import ALONE, World, check_same, joined
from inheritune.training.callbacks import NONE, Callbacks
from inheritune.training.checks import check_fit, check_room
from inheritune.training.distillation import check_teacher, distilled_from, learning_from
from inheritune.training.final_model import MODEL, saved_dtype
from inheritune.training.loop import train
from inheritune.training.loss import NextTokenLoss
from inheritune.training.micro_batch import windows_per_process
from inheritune.training.validation import WindowLosses


def train_model(recipe: TrainRecipe, directory: Path, *, callbacks: Callbacks = NONE) -> WindowLosses:
    """Train a single model; called again it resumes, finished it only returns the validation losses.

    Under torchrun every process calls it, and they train together.

    Raises:
        UserError: something the user can fix, in one sentence.
        Interrupted: a signal asked to stop; everything is saved.
    """
    with joined(recipe.training) as world, repeatable(recipe.training), RunDirectory(directory) as folder:
        check_same(world, recipe)
        world.on_first(check_inputs, recipe)
        hardware = choose_hardware(recipe.training, world)
        data = answered(recipe, open_together(recipe.data, world), world)
        # What cannot be made is an error before there is a directory of it.
        check_room(initial_config(recipe, data), hardware.device)
        initial = initial_model(recipe, data, directory, hardware.device)
        loss = objective(recipe, data)
        world.on_first(lambda: folder.open(recipe, environment(recipe, hardware), data.identities))
        train(
            initial,
            data,
            recipe.training,
            directory,
            hardware=hardware,
            loss=loss,
            dtype=saved_dtype(
                recipe.training, source_config(recipe.model) if recipe.model.pretrained else None
            ),
            callbacks=callbacks,
            trust_remote_code=recipe.model.trust_remote_code,
            title=recipe.name,
        )
        losses = WindowLosses.load(directory / "validation.json")
        kept = load_kept(directory / CHOICE) if (directory / CHOICE).exists() else None
        card = train_card(recipe, losses.mean, len(losses.losses), kept)
        world.on_first(files.write_text, directory / MODEL / README, card)
    return losses


def check_inputs(recipe: Recipe | TrainRecipe) -> None:
    """The data and the models that a recipe names are there, before minutes go into checksums.

    Raises:
        UserError: what is not there, or cannot be read, all of it.
    """
    settings = recipe.data.model_copy(update={"verify": False})
    trained = dict.fromkeys(trained_models(recipe).values())
    texts = recipe.parity.also if isinstance(recipe, Recipe) else {}
    errors = [
        UserError(f"parity.also.{name}: there is no folder {folder}")
        for name, folder in texts.items()
        if not folder.is_dir()
    ]
    for check in (partial(open_data, settings), *(partial(load_config, one) for one in trained)):
        try:
            check()
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else UserError("; ".join(map(str, errors)))


def trained_models(recipe: Recipe | TrainRecipe) -> dict[str, Pretrained]:
    """The models that a recipe names which are trained already, by what they are to it."""
    if isinstance(recipe, Recipe):
        sources: dict[str, ModelSource | None] = {"reference": recipe.reference}
    else:
        sources = {"model": recipe.model, "teacher": teacher_of(recipe)}
    return {name: source.trained for name, source in sources.items() if source and source.trained}


def model_digests(recipe: Recipe | TrainRecipe) -> dict[str, str]:
    """Of the models that a recipe names, as far as they are there."""
    found = {name: weights_digest(source) for name, source in trained_models(recipe).items()}
    return {name: digest for name, digest in found.items() if digest is not None}


def initial_model(
    recipe: TrainRecipe, data: TrainingData, directory: Path, device: torch.device
) -> Callable[[], PreTrainedModel]:
    """What makes the model that a recipe names, after checking that it can be made and that the data fits it.

    A choice of layers or of parts of the width that is measured is measured on the device when the model is made, and
    recorded in the directory.
    """
    source, part, seed = recipe.model, recipe.initialization, recipe.training.seed
    config = initial_config(recipe, data)
    check_source(source, config, data)
    trained = source.trained
    if trained is None:
        return lambda: from_config(config, seed)
    if part is None:
        return lambda: load_model(trained, config=config)
    if part.width is not None:
        width, divide = part.width, part.divide or "heads"
        return lambda: half_width(trained, width, divide=divide)
    depth = layer_count(source_config(source))
    layers, parts, text = part.layers, part.parts or PARTS, text_of(data.train)
    measured = isinstance(layers, str) and MEASURED.fullmatch(layers)

    def cut(layers: str | Sequence[int] | None) -> PreTrainedModel:
        return select(trained, choose(layers, depth, part.stack_to), parts=parts, seed=seed)

    if not (measured or part.sizes):
        return lambda: cut(layers)

    def chosen() -> Kept:
        if measured:
            keep, count = str(layers).split()
            kept = choose_kept(keep, int(count), depth, text, lambda: load_model(trained).to(device), seed)
        else:
            kept = Kept(keep="list", layers=choose(layers, depth), of_layers=depth)
        if not part.sizes:
            return kept
        width = narrower(source_config(source), **part.sizes)
        return keep_width(kept, cut(kept.layers).to(device), width, part.narrow or "importance", text, seed)

    def made() -> PreTrainedModel:
        kept = recorded(directory / CHOICE, chosen)
        return narrowed(cut(kept.layers), kept)

    return made


def initial_config(
    recipe: TrainRecipe,
    data: TrainingData | None,
    config_of: Callable[[ModelSource], PretrainedConfig] | None = None,
) -> PretrainedConfig:
    """Configuration of the model that a recipe names.

    Args:
        recipe: of a single training.
        data: None if it is not there yet: vocabulary and context are then the architecture's own.
        config_of: where the configuration of a pretrained model comes from, if not from the model.

    Raises:
        UserError: there is no such model, or no such part of it.
    """
    source, part = recipe.model, recipe.initialization
    if source.architecture is not None:
        return scratch_config(source, data, recipe.data.window)
    config = (config_of or source_config)(source)
    if part is None:
        return config
    if part.width is not None:
        return narrow_config(config, part.width, part.divide or "heads")
    layers = part.layers
    if isinstance(layers, str) and MEASURED.fullmatch(layers):
        layers = f"first {layers.split()[1]}"  # as many, where it is not known which
    config = choose_layers(config, choose(layers, layer_count(config), part.stack_to))
    return width_config(config, narrower(config, **part.sizes)) if part.sizes else config


def check_source(source: ModelSource, config: PretrainedConfig, data: TrainingData) -> None:
    """A model can be trained on the data, or teach on it.

    Args:
        source: the model, or what it is made from.
        config: of the model.
        data: to train on.

    Raises:
        UserError: as `check_fit`.
    """
    if source.trained is None:
        check_fit(config, data)
    else:
        check_fit(config, data, load_tokenizer(source.trained), str(source.trained))


def source_config(source: ModelSource) -> PretrainedConfig:
    """Configuration of a pretrained model."""
    assert source.trained is not None
    return load_config(source.trained)


def teacher_of(recipe: TrainRecipe) -> ModelSource | None:
    """The model that a recipe distils; none where it was asked before."""
    settings = recipe.distillation
    return None if settings is None or settings.answers is not None else settings.teacher or recipe.model


def answered(recipe: TrainRecipe, data: TrainingData, world: World = ALONE) -> TrainingData:
    """The data with the teacher's answers that a recipe names, if it does.

    Raises:
        UserError: there are none, they are damaged, or they are not to what the student reads.
    """
    settings, training = recipe.distillation, recipe.training
    if settings is None or settings.answers is None:
        return data
    if recipe.data.verify:
        world.on_first(verify_answers, settings.answers)
    answers = Answers(settings.answers)
    vocabulary = initial_config(recipe, data).get_text_config().vocab_size
    answers.check(data.train.identity, data.window, vocabulary, settings.temperature)
    answers.check_windows(wanted_windows(data, training))
    return replace(data, answers=answers)


def wanted_windows(data: TrainingData, training: Training) -> np.ndarray:
    """Numbers of the windows in the training split that a training reads, ascending."""
    per_step = windows_per_process(training, data.window)
    return windows_read(data, Order(data.windows, per_step, training.seed, data.order), training.steps)


def training_flops(
    model: PreTrainedModel, training: Training, window: int, teacher: PreTrainedModel | None = None
) -> float:
    """FLOPs of a training; of a teacher they are those of its forward passes, a third of its training."""
    per_token = flops_per_token(model, window)
    if teacher is not None:
        per_token += flops_per_token(teacher, window) / 3
    return per_token * (training.steps * training.tokens_per_step)


def affordable_steps(
    recipe: TrainRecipe,
    flops: float,
    data: TrainingData | None,
    config_of: Callable[[ModelSource], PretrainedConfig] | None = None,
) -> int:
    """For how many steps a model can be trained with so many FLOPs; arguments as of `initial_config`."""
    training, teacher = recipe.training, teacher_of(recipe)
    model = on_meta(initial_config(recipe, data, config_of))
    teacher_shape = None if teacher is None else on_meta((config_of or source_config)(teacher))
    whole = training_flops(model, training, recipe.data.window, teacher_shape)
    return max(1, round(flops / whole * training.steps))


def objective(recipe: TrainRecipe, data: TrainingData) -> Callable[[PreTrainedModel, World], NextTokenLoss]:
    """What a recipe minimises, after checking that the data fits the teacher."""
    settings, teacher = recipe.distillation, teacher_of(recipe)
    if settings is not None and data.answers is not None:
        return learning_from(data.answers, settings)
    if settings is None or teacher is None:
        return NextTokenLoss
    assert teacher.trained is not None
    config = load_config(teacher.trained)
    check_source(teacher, config, data)
    check_teacher(config, initial_config(recipe, data))
    return distilled_from(partial(load_model, teacher.trained, config=config), settings)


def scratch_config(source: ModelSource, data: TrainingData | None, window: int) -> PretrainedConfig:
    """Configuration of a model made from random weights; vocabulary and context are the data's by default.

    Raises:
        UserError: an unknown architecture or field, or one that the data does not fit.
    """
    assert source.architecture is not None
    if data is None:
        return architecture_config(source.architecture, max_position_embeddings=window)
    end_of_text, bos = data.train.end_of_text, data.train.bos
    config = architecture_config(
        source.architecture,
        vocab_size=max(data.train.vocabulary, data.validation.vocabulary),
        max_position_embeddings=window,
        bos_token_id=end_of_text if bos is None else bos,
        eos_token_id=end_of_text,
    )
    check_fit(config, data)
    return config


def environment(recipe: Recipe | TrainRecipe, hardware: Hardware) -> dict[str, Any]:
    """What is recorded with every start: versions, machine, command, and which weights the recipe's models have."""
    versions = {"inheritune": __version__, "transformers": transformers.__version__}
    machine = {**versions, **describe(hardware), "command": command_line()}
    return {**machine, "models": model_digests(recipe)}
