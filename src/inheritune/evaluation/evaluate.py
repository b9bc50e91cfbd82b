"""Evaluate a reference and smaller models: tasks, validation loss, speed, samples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from pydantic import TypeAdapter
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError, __version__
from inheritune.config import EvaluationSettings, Recipe
from inheritune.data.loader import window_count
from inheritune.data.shards import Split, open_split, verify
from inheritune.data.tokenizer import AUTO
from inheritune.data.tokenizer import identity as tokenizer_identity
from inheritune.evaluation.result import (
    FILE,
    Evaluation,
    ModelFigures,
    Sample,
    SpeedResult,
    save_evaluation,
)
from inheritune.evaluation.samples import PROMPTS, check_prompts, side_by_side
from inheritune.evaluation.speed import check_speed, checkpoint_bytes, joined, measure_speed, memory_bytes
from inheritune.evaluation.statistics import TaskItems, group_result, task_result, validation_result
from inheritune.evaluation.subjects import (
    Models,
    Subject,
    check_memory,
    find_subjects,
    reference_subject,
)
from inheritune.evaluation.tasks import Plan, check_names, make_plan
from inheritune.models.architecture import context_length
from inheritune.models.load import in_evaluation_mode
from inheritune.runtime import files
from inheritune.runtime.hardware import Hardware, choose_device, command_line, describe
from inheritune.runtime.progress import AGAIN, ProgressBar
from inheritune.training.checks import check_tokens
from inheritune.training.loss import NextTokenLoss
from inheritune.training.validation import WindowLosses, validate

WINDOW = 1024
DIRECTORY = "evaluation"
"""Where a run's evaluation is, in its directory."""


@dataclass(frozen=True)
class Work:
    """An evaluation that was found to be possible."""

    settings: EvaluationSettings
    plan: Plan
    text: Split | None
    window: int
    device: torch.device
    dtype: torch.dtype | str
    items: Path | None
    """Where what is finished is kept."""

    @property
    def keeps(self) -> str:
        """What becomes of the evaluation if a signal stops it."""
        if self.items is None:
            return AGAIN
        return f"what is finished is kept in {self.items}, and the same command resumes"


def evaluate(
    models: Models,
    settings: EvaluationSettings,
    directory: Path | None = None,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Evaluate models one after the other; the first is the one that the others are compared with, item by item.

    Args:
        models: Hugging Face ids, folders of checkpoints, or directories of finished runs, which stand for their
            reference and their final model, and of finished trainings; each may be given as NAME=MODEL. Or models in
            memory, which are evaluated where they are and as they are. Names may also be the keys of a mapping.
        settings: what to find out.
        directory: where to write `evaluation.json`, and in `items` each thing that is finished: a second call
            resumes with what is there.
        tokenizer: for models that come without one.
        device: by default that of a model in memory, else a GPU if there is one.
        dtype: of the weights that are read; "auto" keeps the checkpoint's.
        revision: branch, tag or commit of model ids.
        trust_remote_code: run code that comes with a model.

    Raises:
        UserError: something the user can fix, in one sentence, as far as possible before anything is computed.
    """
    subjects = find_subjects(
        models, tokenizer=tokenizer, revision=revision, trust_remote_code=trust_remote_code
    )
    live = [subject.live for subject in subjects if subject.live is not None]
    chosen = live[0].device if live and device is None else choose_device(device)
    work = _prepare(subjects, settings, directory, chosen, dtype)
    with in_evaluation_mode(*live):
        figures, answers, losses = zip(*(_measure(work, subject) for subject in subjects), strict=True)
        speed, samples = _side_by_side(work, subjects, figures)
    names = [subject.name for subject in subjects]
    tasks = [task_result(unit, names, [one[unit.name] for one in answers]) for unit in work.plan.units]
    evaluation = Evaluation(
        models=list(figures),
        tasks=tasks,
        groups=[group_result(name, tasks) for name in work.plan.groups],
        skipped=dict(work.plan.skipped),
        validation=validation_result(work.text, work.window, losses) if work.text else None,
        speed=speed,
        samples=samples,
        settings=settings.model_dump(mode="json"),
        environment=_environment(work),
    )
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        save_evaluation(directory / FILE, evaluation)
    return evaluation


def default_directory(models: Sequence[str | Path]) -> Path:
    """Where an evaluation goes if nothing is said: into the directory of the run that it is of."""
    only = Path(models[0]) if len(models) == 1 else None
    return only / DIRECTORY if only is not None and (only / "recipe.yaml").is_file() else Path(DIRECTORY)


def check_settings(settings: EvaluationSettings) -> None:
    """Find out before hours of training whether the evaluation at their end can be made.

    Raises:
        UserError: no harness, an unknown task, or a folder that is not there.
    """
    if settings.tasks:
        check_names(settings.tasks)
    for folder in (settings.data, settings.validation):
        if folder is not None and not folder.is_dir():
            raise UserError(f"evaluation: there is no folder {folder}")


def check_reference(recipe: Recipe, config: PretrainedConfig) -> None:
    """The same, once the configuration of a recipe's reference is known.

    Raises:
        UserError: as `check_subjects`.
    """
    if recipe.evaluation is not None:
        check_subjects([reference_subject(recipe, config)], recipe.evaluation)


def check_subjects(subjects: Sequence[Subject], settings: EvaluationSettings) -> tuple[Split | None, int]:
    """What can be known without weights and items: these models can be evaluated so. Gives the text and its window.

    Raises:
        UserError: a model without tokenizer, context or cache for what is asked, or text that it does not read.
    """
    for subject in subjects:
        if subject.tokenizer is None and (settings.tasks or settings.samples):
            raise UserError(f"{subject.name} comes without a tokenizer: give one with --tokenizer")
        if settings.samples and subject.tokenizer is not None:
            check_prompts(subject.tokenizer, settings.prompts or PROMPTS, subject.config, subject.name)
    if settings.speed:
        check_speed([subject.shape for subject in subjects], [subject.name for subject in subjects])
    return (None, 0) if settings.validation is None else _text(subjects, settings, settings.validation)


def _text(subjects: Sequence[Subject], settings: EvaluationSettings, folder: Path) -> tuple[Split, int]:
    """The validation text as the models' runs read it, and the tokens of a window; every model can read them."""
    said = {subject.bos: subject.name for subject in subjects if subject.bos != AUTO}
    if len(said) > 1:
        each = ", ".join(f"{name} with {bos!r}" for bos, name in said.items())
        raise UserError(
            f"the models were trained with different tokens in front of a text ({each}): their losses on one text "
            "cannot be compared; evaluate them one by one"
        )
    text = open_split(folder, "validation", *said)
    contexts = [c for subject in subjects if (c := context_length(subject.config)) is not None]
    window = settings.window or min([WINDOW, *contexts, max(1, text.tokens - 1)])
    if contexts and window > min(contexts):
        raise UserError(f"windows of {window} tokens are longer than a model's context of {min(contexts)}")
    window_count(text, window)
    ignore = settings.ignore_tokenizer
    for subject in subjects:
        check_tokens(text, subject.config, subject.tokenizer, subject.name, ignore_tokenizer=ignore)
    return text, window


def _prepare(
    subjects: Sequence[Subject],
    settings: EvaluationSettings,
    directory: Path | None,
    device: torch.device,
    dtype: torch.dtype | str,
) -> Work:
    """Everything that can be refused before a model is loaded."""
    if directory is not None:
        files.check_place(directory)
    together = [subjects] if settings.speed or settings.samples else []
    for at_once in (*([subject] for subject in subjects), *together):
        check_memory(at_once, device, dtype)
    if settings.validation is not None:
        verify(settings.validation)
    text, window = check_subjects(subjects, settings)
    plan = Plan((), (), {})
    if settings.tasks:
        plan = make_plan(
            settings.tasks, settings.data, shots=settings.shots, skip_missing=settings.skip_missing
        )
    items = None if directory is None else directory / "items"
    return Work(settings, plan, text, window, device, dtype, items)


def _measure(work: Work, subject: Subject) -> tuple[ModelFigures, dict[str, TaskItems], WindowLosses | None]:
    """One model's figures, its answers by task, and its losses on the text."""
    model = subject.load(work.device, work.dtype)
    figures = subject.figures(model)
    folder = None if work.items is None else work.items / _slug(subject.name)
    losses = None
    try:
        answers = _answers(work, subject, model, figures, folder)
        if work.text is not None:
            losses = _losses(work, subject.name, model, figures, folder)
    except torch.OutOfMemoryError as error:
        at_once = work.settings.batch_size or "the default number of"
        raise UserError(
            f"{subject.name} ran out of memory on {work.device} with {at_once} requests at once: "
            "give a smaller --batch-size"
        ) from error
    return figures, answers, losses


def _losses(
    work: Work, name: str, model: PreTrainedModel, figures: ModelFigures, folder: Path | None
) -> WindowLosses:
    """A model's losses on the text: those that are in the folder, or new ones."""
    assert work.text is not None
    hardware = Hardware(work.device, bf16=False, compile=False)
    key = {
        "weights": figures.weights,
        "dtype": figures.dtype,
        "text": work.text.identity.model_dump(mode="json"),
        "window": work.window,
        "device": work.device.type,
    }
    path = _kept_at(folder, "validation", key)
    if path is not None and path.is_file():
        return WindowLosses.load(path)
    with ProgressBar(f"{name}: validation loss", None, "windows", keeps=work.keeps) as bar:
        losses = validate(
            NextTokenLoss(model),
            work.text,
            work.window,
            hardware,
            tell=lambda done, total: bar.update(done, total=total),
        )
    if path is not None:
        losses.save(path)
    return losses


def _side_by_side(
    work: Work, subjects: Sequence[Subject], figures: Sequence[ModelFigures]
) -> tuple[SpeedResult | None, list[Sample]]:
    """What needs all models at once: what is kept of it, or new."""
    settings, prompts = work.settings, list(work.settings.prompts or PROMPTS)
    models = cache(lambda: [subject.load(work.device, work.dtype) for subject in subjects])
    tokenizers = [subject.tokenizer for subject in subjects if subject.tokenizer is not None]
    key = {
        "models": [(one.weights, one.dtype) for one in figures],
        "where": describe(Hardware(work.device, bf16=False, compile=False)),
    }

    def write() -> list[Sample]:
        with ProgressBar("samples", len(subjects) * len(prompts), "texts", keeps=work.keeps) as bar:
            return side_by_side(models(), tokenizers, prompts, tell=lambda: bar.update(bar.done + 1))

    def time(batch: int) -> SpeedResult:
        pairs = zip(subjects, models(), strict=True)
        sizes = [(s.live is None and checkpoint_bytes(s.source)) or memory_bytes(m) for s, m in pairs]
        return measure_speed(models(), sizes, batch, work.keeps)

    speed, samples = None, []
    if settings.samples:
        said = {**key, "prompts": prompts, "tokenizers": [tokenizer_identity(one) for one in tokenizers]}
        samples = _keep(_kept_at(work.items, "samples", said), TypeAdapter(list[Sample]), write)
    if settings.speed:
        kept = [_kept_at(work.items, "speed", {**key, "batches": [batch]}) for batch in settings.batches]
        found = zip(kept, settings.batches, strict=True)
        speed = joined([_keep(path, TypeAdapter(SpeedResult), partial(time, batch)) for path, batch in found])
    return speed, samples


def _kept_at(folder: Path | None, name: str, key: Mapping[str, Any]) -> Path | None:
    """Where something is kept, by everything that it depends on."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return None if folder is None else folder / f"{name}-{digest}.json"


Result = TypeVar("Result")


def _keep(path: Path | None, kind: TypeAdapter[Result], make: Callable[[], Result]) -> Result:
    """What is in the file, or what is made now and written there."""
    if path is not None and path.is_file():
        return kind.validate_json(path.read_bytes())
    made = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, kind.dump_json(made).decode() + "\n")
    return made


def _answers(
    work: Work, subject: Subject, model: PreTrainedModel, figures: ModelFigures, folder: Path | None
) -> dict[str, TaskItems]:
    """A model's answers to every task: those that are in the folder, and the others."""
    if not work.plan.units:
        return {}
    from inheritune.evaluation.harness import Scorer, ask  # only where the harness is needed

    assert subject.tokenizer is not None, "checked before"
    scorer = Scorer(model, subject.tokenizer, work.settings.batch_size, subject.name, work.keeps)
    answers = {}
    for unit in work.plan.units:
        key = {
            "weights": figures.weights,
            "dtype": figures.dtype,
            "tokenizer": tokenizer_identity(subject.tokenizer),
            "task": unit.name,
            "shots": unit.shots,
            "limit": work.settings.limit,
            "data": {"from": unit.data, **unit.checksums},
            "harness": version("lm_eval"),
            "device": work.device.type,
            "batch_size": work.settings.batch_size,
            "logits": "float32",  # in which they are summed up; earlier answers are of the weights' type
        }
        path = None if folder is None else folder / f"{_slug(unit.name)}.json"
        known = None if path is None else TaskItems.load(path, key)
        if known is None:
            known = ask(scorer, unit, key, work.settings.limit)
            if path is not None:
                known.save(path)
        answers[unit.name] = known
    return answers


def _environment(work: Work) -> dict[str, Any]:
    versions = {"inheritune": __version__, "transformers": transformers.__version__}
    if work.plan.units:
        versions["lm_eval"] = version("lm_eval")
    return {
        **versions,
        **describe(Hardware(work.device, bf16=False, compile=False)),
        "command": command_line(),
    }


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
