"""The models of an evaluation: what can be known of them before their weights are read, and reading them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.config import Pretrained, Recipe, TrainRecipe
from inheritune.data.tokenizer import AUTO
from inheritune.evaluation.result import ModelFigures
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.models.checkpoint_config import check_live
from inheritune.models.load import load_config, load_model, load_tokenizer, tokenizer_in
from inheritune.models.size import bytes_each, on_meta
from inheritune.recipe_file import load_any
from inheritune.run_directory import RunDirectory

ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys of a configuration that say where a model is from and how it is kept, not what it computes."""

Model: TypeAlias = str | os.PathLike[str] | PreTrainedModel
Models: TypeAlias = Sequence[Model] | Mapping[str, Model]


@dataclass(frozen=True)
class Subject:
    """A model that is to be evaluated."""

    name: str
    source: Pretrained
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    bos: str = AUTO
    """`data.bos` of the run that it is from: the token that it reads in front of a text."""
    live: PreTrainedModel | None = None
    """A model that is in memory already."""

    @cached_property
    def shape(self) -> PreTrainedModel:
        """The model without its weights."""
        return on_meta(self.config)

    def load(self, device: torch.device, dtype: torch.dtype | str) -> PreTrainedModel:
        """The model on its device, in evaluation mode.

        Raises:
            UserError: it is too large for the device; one in memory is on another.
        """
        if self.live is not None:
            if self.live.device != device:
                raise UserError(
                    f"{self.name} is on {self.live.device}, but is to be evaluated on {device}: move it there, or "
                    "give its device"
                )
            return self.live
        check_memory([self], device, dtype)
        return load_model(self.source, config=self.config, dtype=dtype).to(device)

    def figures(self, model: PreTrainedModel) -> ModelFigures:
        """What is recorded with the results."""
        return ModelFigures(
            name=self.name,
            source=str(self.source),
            revision=self.source.revision,
            model_type=self.config.model_type,
            layers=layer_count(self.config),
            parameters=parameter_count(model),
            dtype=str(model.dtype).removeprefix("torch."),
            weights=weights_hash(model),
        )

    def weight_bytes(self, dtype: torch.dtype | str) -> int:
        """Of the weights that are to be read, in this type; "auto" is the checkpoint's."""
        if self.live is not None:
            return 0
        each = bytes_each(dtype, self.config)
        if each is None:
            raise UserError(f"there is no type of weights {dtype!r}: give auto, float32, bfloat16 or float16")
        return parameter_count(self.shape) * each


def find_subjects(
    models: Models,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> list[Subject]:
    """The models that a user named.

    Args:
        models: Hugging Face ids, folders of checkpoints, or directories of finished runs, which stand for their
            reference and their final model, and of finished trainings; each may be given as NAME=MODEL. A name is a
            folder's own, else. Or models in memory. Names may also be the keys of a mapping.
        tokenizer: of all of them; by default each model's own.
        revision: branch, tag or commit of model ids.
        trust_remote_code: run code that comes with a model.

    Raises:
        UserError: no models, the same name twice, or something that is not a model.
    """
    if not models:
        raise UserError("no model is named")
    shared = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    if tokenizer is not None and shared is None:
        raise UserError(f"there is no tokenizer at {tokenizer}")
    subjects: list[Subject] = []
    for given, one in _named(models):
        if isinstance(one, PreTrainedModel):
            subjects.append(_live(given, one, shared))
            continue
        name, source = (given, one) if given else _name_and_source(one)
        if (Path(source) / "recipe.yaml").is_file():
            subjects += run_subjects(name, Path(source), shared)
            continue
        model = Pretrained(source, revision, trust_remote_code)
        # First: what is wrong with it would show in the tokenizer, in worse words.
        config = load_config(model)
        subjects.append(Subject(name, model, config, shared or load_tokenizer(model), _bos(source)))
    names = [subject.name for subject in subjects]
    for subject in subjects:
        if names.count(subject.name) > 1:
            raise UserError(
                f"two models are called {subject.name}: name them, as in A=PATH B=PATH, or as the keys of a mapping"
            )
        # The tokenizer may be smaller, and tokens may have been added to it later.
        size = subject.tokenizer.vocab_size if subject.tokenizer is not None else 0
        rows = subject.config.get_text_config().vocab_size
        if size > rows:
            raise UserError(
                f"the tokenizer of {subject.name} has {size} tokens, but its embedding has {rows}: "
                "it is another model's tokenizer"
            )
    return subjects


def _named(models: Models) -> Iterator[tuple[str | None, str | PreTrainedModel]]:
    """Each model, and its name where a mapping has one."""
    pairs = models.items() if isinstance(models, Mapping) else ((None, model) for model in models)
    for name, model in pairs:
        yield name, model if isinstance(model, PreTrainedModel) else str(Pretrained.of(_path(model)))


def _path(model: object) -> Any:
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def _live(name: str | None, model: PreTrainedModel, shared: PreTrainedTokenizerBase | None) -> Subject:
    check_live(model)
    source = model.name_or_path
    own = name or (_name_and_source(source)[0] if source else model.config.model_type)
    tokenizer = shared or (load_tokenizer(source) if source else None)
    return Subject(own, Pretrained(source or "in memory"), model.config, tokenizer, live=model)


def run_subjects(
    name: str, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Subject]:
    """The reference and the final model of a finished run; the one model of a training, which has the given name.

    Raises:
        UserError: not the directory of a finished run or training.
    """
    folder, recipe = RunDirectory(directory), load_any(directory / "recipe.yaml")
    models: dict[str, Pretrained]
    if isinstance(recipe, TrainRecipe) and (directory / "model").exists():
        models = {name: recipe.model.at(directory / "model")}
    elif isinstance(recipe, Recipe) and folder.finished:
        source = recipe.reference
        reference = source.trained or source.at(folder.reference / "model")
        models = {"reference": reference, "final": source.at(folder.final)}
    else:
        raise UserError(
            f"{directory} is not the directory of a finished run of `inheritune run` or `inheritune train`"
        )
    fallback, bos = tokenizer_in(recipe.data.path), recipe.data.bos
    return [
        Subject(each, model, load_config(model), tokenizer or load_tokenizer(model) or fallback, bos)
        for each, model in models.items()
    ]


def reference_subject(recipe: Recipe, config: PretrainedConfig) -> Subject:
    """The reference of a recipe, before it is there."""
    trained = recipe.reference.trained
    tokenizer = (trained and load_tokenizer(trained)) or tokenizer_in(recipe.data.path)
    return Subject("the reference", trained or Pretrained("."), config, tokenizer, recipe.data.bos)


def _bos(source: str) -> str:
    """`data.bos` of the run in whose directory a model is, as `final` or `reference/model`."""
    for directory in Path(source).resolve().parents[:2]:
        if (directory / "recipe.yaml").is_file():
            with suppress(UserError):  # not one of ours
                recipe = load_any(directory / "recipe.yaml")
                return recipe.data.bos if isinstance(recipe, Recipe | TrainRecipe) else AUTO
    return AUTO


def check_memory(subjects: Sequence[Subject], device: torch.device, dtype: torch.dtype | str) -> None:
    """Refuse models whose weights alone are more than what is free.

    Raises:
        UserError: they are.
    """
    needed = sum(subject.weight_bytes(dtype) for subject in subjects)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        names = " and ".join(subject.name for subject in subjects)
        raise UserError(
            f"the weights of {names} take {needed / 2**30:.1f} GiB, but {device} has {free / 2**30:.1f} GiB free: "
            "give a smaller --dtype, or another device"
        )


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over the configuration, as far as it may change what is computed, and all of the weights."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in ORIGIN}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _name_and_source(given: str) -> tuple[str, str]:
    """NAME=SOURCE, or a source whose last part is the name; a run's `reference/model` is `reference`."""
    if "=" in given and not Path(given).exists():
        name, _, source = given.partition("=")
        if not name or not source:
            raise UserError(f"{given} should be MODEL or NAME=MODEL, but one of its sides is empty")
        return name, source
    path = Path(given).resolve() if Path(given).is_dir() else Path(given)
    return (path.parent.name if path.name == "model" and path.parent.name else path.name), given
