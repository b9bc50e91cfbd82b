"""One model, trained: what `inheritune train` does, and how a recipe's `model` becomes a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import __version__
from inheritune.config import ModelSource, TrainRecipe
from inheritune.data.loader import TrainingData, open_data
from inheritune.evaluation.validation import WindowLosses, validator
from inheritune.initialization import select
from inheritune.models.architecture import choose_layers
from inheritune.models.presets import architecture_config, from_config
from inheritune.models.pretrained import load_config, load_model
from inheritune.run_directory import RunDirectory
from inheritune.training.checks import check_fit
from inheritune.training.device import Hardware, choose_hardware, describe
from inheritune.training.loop import train


def train_model(recipe: TrainRecipe, directory: Path, *, command: str = "") -> WindowLosses:
    """Train a single model; called again it goes on, finished it only returns the validation losses.

    Raises:
        ValueError: something the user can mend, in one sentence.
        Interrupted: a signal asked to stop; everything is saved.
    """
    hardware = choose_hardware(recipe.training)
    RunDirectory(directory).open(recipe, environment(hardware, command))
    data = open_data(recipe.data)
    train(
        initial_model(recipe, data),
        data,
        recipe.training,
        directory,
        hardware=hardware,
        validate=validator(data, hardware),
        trust_remote_code=recipe.model.trust_remote_code,
        title=recipe.name,
    )
    return WindowLosses.load(directory / "validation.json")


def initial_model(recipe: TrainRecipe, data: TrainingData) -> Callable[[], PreTrainedModel]:
    """What makes the model that a recipe names, after checking that the data fits it."""
    source, part, seed = recipe.model, recipe.initialization, recipe.training.seed
    if source.architecture is not None:
        config = scratch_config(source, data)
        return lambda: from_config(config, seed)
    assert source.pretrained is not None
    name, revision, trust = source.pretrained, source.revision, source.trust_remote_code
    config = load_config(name, revision=revision, trust_remote_code=trust)
    check_fit(config, data)
    if part is None:
        return lambda: load_model(name, config=config, revision=revision, trust_remote_code=trust)
    choose_layers(config, part.layers)  # a layer that is not there is told before anything is read
    return lambda: select(
        name,
        part.layers,
        random_blocks=part.random_blocks,
        seed=seed,
        revision=revision,
        trust_remote_code=trust,
    )


def scratch_config(source: ModelSource, data: TrainingData) -> PretrainedConfig:
    """Configuration of a model made from random weights; vocabulary and context are the data's by default.

    Raises:
        ValueError: an unknown architecture or field, or one that the data does not fit.
    """
    assert source.architecture is not None
    end_of_text = data.train.end_of_text
    config = architecture_config(
        source.architecture,
        vocab_size=data.train.vocabulary,
        max_position_embeddings=data.window,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    check_fit(config, data)
    return config


def environment(hardware: Hardware, command: str) -> dict[str, str | int]:
    """What stands beside every result: versions, machine, command."""
    versions = {"inheritune": __version__, "transformers": transformers.__version__}
    return {**versions, **describe(hardware), "command": command}
