"""The Python API, on objects: what the verbs of the command line do, for scripts and notebooks.

Recipes are dictionaries, YAML files or their own classes; models are in memory, ids or folders; what is found comes
back as an object that shows itself (`shown.Shown`). `inherit`, `append`, `analyze`, `prepare` and `answers`, which
need none of this, are where their work is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel
from transformers import PreTrainedModel

from inheritune import UserError, algorithm, plain_yaml, single_model
from inheritune.analysis.kept import BlockFigures, LayerAnalysis
from inheritune.analysis.layers import analyze_layers, smallest_cut
from inheritune.analysis.result import short_name
from inheritune.config import EvaluationSettings, Pretrained, Recipe, Study, TrainRecipe, check_seed
from inheritune.cut import config_of, name_of, text_for, tokenizer_of
from inheritune.data.tokenizer import AUTO
from inheritune.evaluation.evaluate import evaluate as evaluate_models
from inheritune.evaluation.result import Evaluation
from inheritune.evaluation.subjects import Model, Models, weights_hash
from inheritune.models.architecture import layer_count
from inheritune.models.checkpoint_config import check_live
from inheritune.models.load import in_evaluation_mode, load_model, quietly, save_model
from inheritune.planning import Plan
from inheritune.planning import plan as plan_recipe
from inheritune.recipe_file import parse_any, parse_recipe
from inheritune.report.comparison import Directory, RunComparison, compare_runs
from inheritune.report.results import RunResult, TrainResult
from inheritune.runtime import files
from inheritune.runtime.hardware import choose_device
from inheritune.runtime.world import joined
from inheritune.training.callbacks import Callbacks, Tell

if TYPE_CHECKING:
    import torch
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from inheritune.data.documents import TextData
    from inheritune.run_directory import RoundFigures

R = TypeVar("R", Recipe, TrainRecipe)
Given: TypeAlias = Mapping[str, Any] | str | os.PathLike[str]
"""A recipe as plain values, or the YAML file that it is in."""


def run(
    recipe: Given | Recipe,
    output: str | Path | None = None,
    *,
    reference: PreTrainedModel | None = None,
    on_step: Tell | None = None,
    on_validation: Tell | None = None,
    on_round: Callable[[RoundFigures], object] | None = None,
) -> RunResult:
    """Algorithm 1: inherit, train, compare, grow, until the small model is as good as the reference.

    Called again it resumes where it was stopped, by whatever: an interrupted notebook cell leaves a checkpoint.
    Finished it only gives the figures. Under torchrun every process calls it.

    Args:
        recipe: a dictionary, a YAML file, or a `Recipe`.
        output: directory of the run; by default `runs/NAME`.
        reference: a model in memory, for a recipe that names none. It is saved in `OUTPUT-reference`, which the
            recipe then names, so that the run can be resumed by its recipe alone; in a call that resumes it has to
            be the same model, weight by weight.
        on_step: is called on rank 0 with (step, figures) after each step that is logged (`training.log_every`). The
            figures are those of the line in `metrics.jsonl`, and as `training` the name of the training's directory.
        on_validation: the same after each validation.
        on_round: is called with the `RoundFigures` of each finished round, in a run that resumes also of the rounds
            before. What any of the three raises stops the run, with its last checkpoint kept.

    Raises:
        UserError: something the user can fix, in one sentence.
        Interrupted: a signal asked to stop (Ctrl-C, the notebook's stop button); everything is saved.
        PeerLostError: another process ended; everything that was saved is good.
    """
    callbacks = Callbacks(on_step, on_validation, on_round)
    with quietly(), _resolved(recipe, Recipe, "reference", reference, output) as (settings, directory):
        return RunResult(directory, algorithm.run(settings, directory, callbacks=callbacks))


def train(
    recipe: Given | TrainRecipe,
    output: str | Path | None = None,
    *,
    model: PreTrainedModel | None = None,
    on_step: Tell | None = None,
    on_validation: Tell | None = None,
) -> TrainResult:
    """Train one model, from random weights or from a trained one; arguments and errors as of `run`.

    Args:
        recipe: a dictionary, a YAML file, or a `config.TrainRecipe`.
        output: directory of the training; by default `runs/NAME`.
        model: a model in memory to start from, for a recipe that names none. It is saved in `OUTPUT-model`; the model
            itself is left as it is.
        on_step: as of `run`.
        on_validation: as of `run`.
    """
    callbacks = Callbacks(on_step, on_validation)
    with quietly(), _resolved(recipe, TrainRecipe, "model", model, output) as (settings, directory):
        return TrainResult(directory, single_model.train_model(settings, directory, callbacks=callbacks))


def plan(
    recipe: Given | Recipe | TrainRecipe | Study,
    *,
    flops_per_second: float | None = None,
    measure: bool = False,
    processes: int = 1,
    device: str | None = None,
    without_data: bool = False,
) -> Plan:
    """Parameters, tokens, FLOPs, memory and hours of every stage of a run, a training or a study, before it runs.

    Args:
        recipe: a dictionary, a YAML file, or a recipe.
        flops_per_second: rate to plan the time with.
        measure: measure the rate here, in a few steps.
        processes: how many train together.
        device: "cpu" or "cuda", for whose memory to plan; by default what is here.
        without_data: plan by the recipe alone where its data is not there yet.

    Raises:
        UserError: as running it would.
    """
    with quietly():
        return plan_recipe(
            recipe if isinstance(recipe, Recipe | TrainRecipe | Study) else parse_any(*_values(recipe)),
            flops_per_second=flops_per_second,
            measure=measure,
            processes=processes,
            device=device,
            without_data=without_data,
        )


def importance(
    model: PreTrainedModel | Pretrained | str | Path,
    data: TextData,
    *,
    layers: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    bos: str = AUTO,
    ignore_tokenizer: bool = False,
    on_blocks: Callable[[Sequence[BlockFigures]], object] = lambda blocks: None,
) -> LayerAnalysis:
    """What each layer of a model is worth, which ones to keep, and what cuts cost before any training.

    Args:
        model: a causal language model, which is measured where it is and left as it is, its id, or its folder.
        data: folder of token shards (the training split is read), or a text file or a `datasets.Dataset` with a
            column `text`, which the model's own tokenizer reads.
        layers: of the smallest cut; by default half of them.
        tokenizer: of the model; by default the one that comes with its id or folder, also of a model in memory that
            was loaded from there.
        seed: of the choice of windows.
        device: where to load a model that is given by name; by default a GPU if there is one.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.
        bos: name of the token in front of every window, as in a recipe's `data.bos`.
        ignore_tokenizer: accept shards of another tokenizer than the model's.
        on_blocks: is given what each block is worth as soon as it is known; the search for cuts takes longer.

    Returns:
        An analysis, whose `keep(n)` is what `inherit` takes as `keep`.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    with quietly():
        source = (
            model if isinstance(model, PreTrainedModel) else Pretrained.of(model, revision, trust_remote_code)
        )
        config, name = config_of(source), short_name(name_of(source))
        smallest_cut(layers, layer_count(config))  # known before anything is read
        check_seed(seed)
        on = choose_device(device)
        text = text_for(source, config, data, tokenizer=tokenizer, bos=bos, ignore_tokenizer=ignore_tokenizer)
        if isinstance(source, Pretrained):
            source = load_model(source, config=config).to(on)
        with in_evaluation_mode(source):
            return analyze_layers(source, text, name=name, fewest=layers, seed=seed, show=on_blocks)


def evaluate(
    models: Model | Models,
    output: str | Path | None = None,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Evaluation:
    """Tasks, validation loss, speed and samples of models, side by side; the others are compared with the first.

    Args:
        models: one or several: models in memory, which are evaluated where they are and as they are, ids, folders of
            checkpoints, directories or results of finished runs, which stand for their reference and their final
            model, and of finished trainings. As a mapping, by name.
        output: folder for `evaluation.json`, in which a second call finds what the first has done; by default
            nothing is written.
        tokenizer: for models that come without one.
        device: by default that of a model in memory, else a GPU if there is one.
        dtype: of the weights that are read; "auto" keeps the checkpoint's.
        revision: branch, tag or commit of model ids.
        trust_remote_code: run code that comes with a model.
        **settings: what to find out, as the keys of a recipe's `evaluation`: `tasks`, `validation`, `speed`,
            `samples`, `prompts`, `limit` and so on.

    Raises:
        UserError: something the user can fix, in one sentence, as far as possible before anything is computed.
    """
    several = isinstance(models, Sequence | Mapping) and not isinstance(models, str)
    found: Any = models if several else [models]
    with quietly():
        return evaluate_models(
            found,
            parse_recipe(settings, EvaluationSettings, origin="evaluation"),
            None if output is None else files.named(output, "output folder"),
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )


def compare(
    runs: Directory | Sequence[Directory] | Mapping[str, Directory],
    reference: Directory | None = None,
    output: str | Path | None = None,
    *,
    title: str = "Comparison of runs",
) -> RunComparison:
    """Runs in one table and one figure: losses, paired differences with intervals, cost.

    Args:
        runs: one or several directories or results of runs and trainings; as a mapping, by name. As texts they may be
            `NAME=PATH`, and those with the same name are seeds of one row.
        reference: name or directory to compare with; by default the reference of the first run, else the first.
        output: folder for page, tables and figures; by default nothing is written.
        title: heads the page.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    if isinstance(runs, str | os.PathLike):
        runs = [runs]
    place = None if output is None else files.named(output, "output folder")
    return compare_runs(runs, reference, place, title)


@contextmanager
def _resolved(
    recipe: Given | R, kind: type[R], key: str, model: PreTrainedModel | None, output: str | Path | None
) -> Iterator[tuple[R, Path]]:
    """The recipe, and its directory; a model in memory is saved beside that, and named in the recipe by `key`."""
    if isinstance(recipe, kind):
        if model is not None:
            raise UserError(
                f"a {kind.__name__} names its {key} already: give a dictionary without, or no model"
            )
        yield recipe, directory_of(recipe, output)
        return
    if isinstance(recipe, BaseModel):
        raise UserError(f"a {type(recipe).__name__} is given, but this takes a {kind.__name__}")
    values, origin = _values(recipe)
    if model is None:
        settings = parse_recipe(values, kind, origin)
        yield settings, directory_of(settings, output)
        return
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{key} is a {type(model).__name__}, but should be a model of transformers: name an id or a folder in "
            f"the recipe (`{key}.pretrained`)"
        )
    check_live(model)
    own = values.get(key) if isinstance(values, Mapping) else None
    if isinstance(own, Mapping) and {"pretrained", "architecture"} & own.keys():
        raise UserError(f"{origin} names a {key}, and another one is given: leave one of them out")
    directory = directory_of(parse_recipe(_naming(values, key, Path("in memory")), kind, origin), output)
    folder = directory.resolve()  # the same from everywhere
    folder = folder.with_name(f"{folder.name}-{key}")
    settings = parse_recipe(_naming(values, key, folder), kind, origin)
    with joined(settings.training) as world:
        made = world.on_first(_save, model, folder, key)
        try:
            yield settings, directory
        finally:
            if made and world.first and not directory.exists():  # an error before there was a run
                rmtree(folder)


def _values(recipe: Given) -> tuple[Any, str]:
    """A recipe's plain values, and what to call it in errors."""
    if isinstance(recipe, str | os.PathLike):
        try:
            return plain_yaml.read(Path(recipe)), os.fspath(recipe)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError(f"there is no recipe {os.fspath(recipe)!r}") from error
    return recipe, "the recipe"


def _naming(values: Any, key: str, folder: Path) -> Any:
    own = (values.get(key) or {}) if isinstance(values, Mapping) else None
    if not isinstance(own, Mapping):
        return values  # which is refused where it is checked
    return {**values, key: {**own, "pretrained": str(folder)}}


def directory_of(recipe: Recipe | TrainRecipe, output: str | Path | None) -> Path:
    """Where a run or a training is."""
    return Path("runs") / recipe.name if output is None else files.named(output, "output folder")


def _save(model: PreTrainedModel, folder: Path, key: str) -> bool:
    """Save a model in this folder, or make sure that it is the one that is there; whether it was saved."""

    def check(there: Path) -> None:
        if weights_hash(load_model(there, dtype=model.dtype)) != weights_hash(model):
            raise UserError(
                f"{folder} is not the {key} that is given, but another model: give another output"
                if there == folder
                else f"the {key} changes when it is saved and read again: name its id or folder in the recipe"
            )

    if folder.exists():
        check(folder)
        return False
    save_model(model, folder, tokenizer=tokenizer_of(model), check=check)
    return True
