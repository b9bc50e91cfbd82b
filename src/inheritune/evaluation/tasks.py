"""Which tasks there are, and making the harness's tasks ready to be asked.

A task is named as in lm-evaluation-harness. Three groups are the paper's tables.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from inheritune import UserError
from inheritune.evaluation.local_data import ROLES, LocalTask, NoDataError, local_tasks, read_items
from inheritune.runtime import files


@dataclass(frozen=True)
class Group:
    """A table of the paper: (task, metric) of each column, and whether their mean is one of its figures."""

    columns: tuple[tuple[str, str], ...]
    average: bool = False


GROUPS: Mapping[str, Group] = {
    # Table 4. Its average is over these five figures.
    "zero-shot": Group(
        (
            ("arc_easy", "acc"),
            ("piqa", "acc"),
            ("sciq", "acc"),
            ("hellaswag", "acc_norm"),
            ("lambada_openai", "acc"),
        ),
        average=True,
    ),
    # The table of the models that were trained on OpenWebText; its figure for LAMBADA may be either of these two.
    "perplexity": Group(
        (("wikitext", "word_perplexity"), ("lambada_openai", "perplexity"), ("lambada_openai", "acc"))
    ),
    # Appendix B. The printed figures of WSC are those of its 104 items, and those of TruthfulQA and LogiQA are of the
    # size of these metrics.
    "low-data": Group(
        (
            ("wsc", "acc"),
            ("piqa", "acc"),
            ("boolq", "acc"),
            ("winogrande", "acc"),
            ("logiqa", "acc_norm"),
            ("mmlu", "acc"),
            ("wnli", "acc"),
            ("qnli", "acc"),
            ("mnli", "acc"),
            ("truthfulqa_mc2", "acc"),
            ("wsc273", "acc"),
        )
    ),
}


@dataclass(frozen=True)
class Unit:
    """What is asked and told as one: a task of the harness, or a group of its tasks whose items are pooled."""

    name: str
    tasks: tuple[Any, ...]
    """lm_eval.api.task.Task, with its items loaded."""
    shots: int
    data: str
    """Where the items came from."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of local files."""
    note: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated."""

    units: tuple[Unit, ...]
    groups: tuple[str, ...]
    skipped: Mapping[str, str]
    """Task -> why there is nothing to ask."""


def make_plan(
    names: Sequence[str],
    data: Path | None = None,
    *,
    shots: int | None = None,
    skip_missing: bool = False,
) -> Plan:
    """Load the tasks of these names.

    Args:
        names: of our groups, of the harness's tasks, groups and tags, or paths of task YAMLs.
        data: folder of local items for the tasks of `tasks.yaml`; by default the harness gets its own from the hub.
        shots: worked examples before every item, for every task; by default the task's own number.
        skip_missing: leave out tasks whose items are not to be had, instead of refusing.

    Raises:
        UserError: an unknown task (the nearest names are told), no items, or a malformed file.
    """
    _need_harness()
    if data is not None and not data.is_dir():
        raise UserError(f"there is no folder {data}: give the one with the evaluation data")
    units: dict[str, Unit] = {}
    skipped: dict[str, str] = {}
    for name in _expand(names):
        if name in units:
            continue
        try:
            for unit in _load(name, data, shots):
                units.setdefault(unit.name, unit)
        except NoDataError as error:
            if not skip_missing:
                raise UserError(f"{error}; --skip-missing leaves such tasks out") from error
            skipped[name] = str(error)
    if not units:
        raise UserError(f"none of the tasks has items: {'; '.join(skipped.values())}")
    return Plan(tuple(units.values()), tuple(name for name in names if name in GROUPS), skipped)


def check_names(names: Sequence[str]) -> None:
    """Find out at once, before hours of training, whether there are such tasks.

    Raises:
        UserError: the harness is not installed, it has no task of that name, or a file is not that of a task.
    """
    _need_harness()
    for name in filter(_is_file, names):
        _check_file(name)
    unknown = [name for name in _expand(names) if name not in local_tasks() and not _is_file(name)]
    if unknown:
        manager = _manager()
        for name in unknown:
            _check_known(name, manager)


def _expand(names: Sequence[str]) -> list[str]:
    """Our groups replaced by their tasks, each task once."""
    if not names:
        raise UserError("no tasks are named")
    tasks = [[task for task, _ in GROUPS[name].columns] if name in GROUPS else [name] for name in names]
    return list(dict.fromkeys(task for group in tasks for task in group))


def _load(name: str, data: Path | None, shots: int | None) -> list[Unit]:
    """The units that a name stands for."""
    if _is_file(name):
        units = _from_harness(_manager(only=()), name, name, shots)
        return [replace(unit, checksums={name: files.sha256(Path(name))}) for unit in units]
    entry = local_tasks().get(name)
    if entry is not None:
        manager = _manager(only=(entry.harness,))
        asked = entry.shots if shots is None else shots
        return (
            _from_harness(manager, name, name, asked)
            if data is None
            else [_local(manager, name, entry, data, asked)]
        )
    manager = _manager()
    _check_known(name, manager)
    if data is not None:
        raise NoDataError(
            f"{name} cannot be read from a folder: --data has a layout for {', '.join(local_tasks())}"
        )
    return _from_harness(manager, name, name, shots)


def _local(manager: Any, name: str, entry: LocalTask, data: Path, shots: int | None) -> Unit:
    """The harness's task, or its whole group, with its items replaced."""
    items = read_items(name, entry, data)
    leaves = {name: None} if entry.select is None else _subjects(manager, name)
    spec = [{"task": leaf, **items.changes(entry, subject)} for leaf, subject in leaves.items()]
    try:
        tasks = manager.load({"group": "local", "task": spec})["tasks"].values()
    except (
        Exception
    ) as error:  # of whatever kind, as the harness and its templates meet the user's items here
        reason = f"the items of {name} in {data} are not as the harness needs them: {_first(error)}"
        raise UserError(reason) from error
    used, expected = _evaluated(items.splits), _evaluated(entry.splits)
    notes = [entry.note] if entry.note else []
    if used != expected:
        notes.append(f"the {used} items, as there are no {expected} items")
    return _unit(name, tuple(tasks), shots, items.files[used], items.checksums, "; ".join(notes) or None)


def _from_harness(manager: Any, name: str, spec: str, shots: int | None) -> list[Unit]:
    """The harness's task with its own data. A group that pools its items is one unit, any other one a unit a task."""
    try:
        loaded = manager.load([spec])
    except Exception as error:  # of whatever kind: the hub, a data set that is gone, the task's own file
        if not _lacks_items(error):
            raise UserError(f"the task {name} is not as the harness needs it: {_first(error)}") from error
        raise NoDataError(f"cannot load the task {name}: {_first(error)}") from error
    tasks, group = loaded["tasks"], loaded.get("groups", {}).get(name)
    rules = (group and group.aggregate_metric_list) or []
    if rules and all(rule.weight_by_size for rule in rules):  # its items are pooled
        return [_unit(name, tuple(tasks.values()), shots, "hub", {}, None)]
    return [_unit(task, (made,), shots, "hub", {}, None) for task, made in tasks.items()]


def _lacks_items(error: Exception) -> bool:
    """Whether the harness failed where it gets a task's items, and not at what the task says."""
    frames = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return "download" in frames and not isinstance(error, TypeError | AttributeError)


def _unit(
    name: str,
    tasks: tuple[Any, ...],
    shots: int | None,
    data: str,
    checksums: Mapping[str, str],
    note: str | None,
) -> Unit:
    """With the number of worked examples set, as the harness's own command does it."""
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (
            shots is not None and own != 0
        ):  # a task that says 0 has its examples in the prompt
            task.set_config(key="num_fewshot", value=shots or 0)
    return Unit(name, tasks, tasks[0].get_config("num_fewshot"), data, checksums, note)


def _subjects(manager: Any, name: str) -> dict[str, str]:
    """The harness's tasks of a group that differ in the subject of their items -> that subject."""
    prefix = f"{name}_"
    entries = {leaf: manager.task_index[leaf].cfg for leaf in manager.all_subtasks if leaf.startswith(prefix)}
    return {leaf: cfg["dataset_name"] for leaf, cfg in entries.items() if cfg and "dataset_name" in cfg}


def _evaluated(splits: Iterable[str]) -> str:
    """The split that the harness asks: the test items where there are some, else the validation items."""
    by_role = {ROLES[split]: split for split in splits}
    return by_role.get("test_split") or by_role["validation_split"]


def _manager(only: Sequence[str] | None = None) -> Any:
    """The harness's index of tasks; reading all of its 14,000 takes many seconds, reading a folder none."""
    from lm_eval import tasks
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if only is None:
        return TaskManager()
    root = Path(tasks.__file__).parent
    return TaskManager(include_defaults=False, include_path=[root / folder for folder in only] or None)


def _check_known(name: str, manager: Any) -> None:
    if name not in manager.task_index:
        known = [*GROUPS, *manager.all_tasks]
        near = get_close_matches(name, known, n=5, cutoff=0.6)
        hint = f"the nearest names are {', '.join(near)}" if near else "`lm_eval ls tasks` lists them"
        raise UserError(f"there is no task {name!r}: {hint}")


def _check_file(name: str) -> None:
    """A task's file can be read, and says what it is of; its items are not looked for."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        keys = load_yaml(name).keys()
    except Exception as error:  # of whatever kind, as it may name functions of the user's
        raise UserError(f"the task {name} is not as the harness needs it: {_first(error)}") from error
    if not keys & {"task", "group"}:
        raise UserError(f"the task {name} is not as the harness needs it: it has neither `task` nor `group`")


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _need_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError(
            "evaluation tasks need lm-evaluation-harness: install it with `pip install 'inheritune[eval]'`"
        ) from None


def _first(error: Exception) -> str:
    """The first line; of a YAML error all, as it says where."""
    text = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else str(error)
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
