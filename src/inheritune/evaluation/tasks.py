"""Which tasks there are, and making the harness's tasks ready to be asked, with items of its own or local ones.

A task is named as in lm-evaluation-harness. Four groups are the paper's tables; a fifth has the model write.
`tasks.yaml` beside this file says where the local items of a task are, as JSON lines, and what fields they have;
`own_tasks` has the definition of the task that is not the harness's.
"""

from __future__ import annotations

import json
import logging
import lzma
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.data.documents import one_line
from inheritune.runtime import files

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".jsonl", ".jsonl.xz")
OWN_TASKS = Path(__file__).parent / "own_tasks"
ROLES = {
    "train": "training_split",
    "validation": "validation_split",
    "validation_matched": "validation_split",
    "test": "test_split",
    "dev": "fewshot_split",
}
"""What a split is for, in the harness's words."""
EVALUATED = ("test_split", "validation_split")
"""The harness asks the first of these that has items."""


@dataclass(frozen=True)
class Group:
    """A table: (task, metric) of each column, and whether their mean is one of its figures."""

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
    # The same table in the paper's latest version, with its average.
    "zero-shot-7": Group(
        (
            ("arc_easy", "acc"),
            ("piqa", "acc"),
            ("sciq", "acc"),
            ("hellaswag", "acc_norm"),
            ("lambada_openai", "acc"),
            ("winogrande", "acc"),
            ("boolq", "acc"),
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
    # What a model writes: what a cut loses first and training brings back last (arXiv 2602.01997).
    "generation": Group((("gsm8k", "exact_match,strict-match"), ("lambada_generate", "exact_match"))),
}


@dataclass(frozen=True)
class Unit:
    """What is asked and reported as one: a task of the harness, or a group of its tasks whose items are pooled."""

    name: str
    tasks: tuple[Any, ...]
    """lm_eval.api.task.Task, with its items loaded."""
    shots: int
    data: str = "hub"
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
        skip_missing: leave out tasks whose items are unavailable, instead of refusing.

    Raises:
        UserError: an unknown task (the message has the nearest names), no items, or a malformed file.
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
    others = [name for name in _expand(names) if name not in local_tasks() and not _is_file(name)]
    manager = _manager() if others else None
    for name in others:
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
        units = _from_harness(_manager(only=()), name, shots)
        return [replace(unit, checksums={name: files.sha256(Path(name))}) for unit in units]
    entry = local_tasks().get(name)
    if entry is not None:
        manager = _manager(only=(entry.home,))
        asked = entry.shots if shots is None else shots
        return (
            _from_harness(manager, name, asked)
            if data is None
            else [_local(manager, name, entry, data, asked)]
        )
    manager = _manager()
    _check_known(name, manager)
    if data is not None:
        raise NoDataError(
            f"{name} cannot be read from a folder: --data has a layout for {', '.join(local_tasks())}"
        )
    return _from_harness(manager, name, shots)


def _local(manager: Any, name: str, entry: LocalTask, data: Path, shots: int | None) -> Unit:
    """The harness's task, or its whole group, with its items replaced."""
    items = read_items(name, entry, data)
    leaves = {name: None} if entry.select is None else _subjects(manager, name)
    spec = [{"task": leaf, **items.changes(entry, subject)} for leaf, subject in leaves.items()]
    try:
        tasks = manager.load({"group": "local", "task": spec})["tasks"].values()
    except Exception as error:  # of whatever kind: the harness and its templates meet the user's items here
        reason = f"the items of {name} in {data} are not as the harness needs them: {_first(error)}"
        raise UserError(reason) from error
    used, expected = _evaluated(items.splits), _evaluated(entry.splits)
    notes = [entry.note] if entry.note else []
    if used != expected:
        notes.append(f"the {used} items, as there are no {expected} items")
    unit = _unit(name, tasks, shots)
    return replace(unit, data=items.files[used], checksums=items.checksums, note="; ".join(notes) or None)


def _from_harness(manager: Any, name: str, shots: int | None) -> list[Unit]:
    """The harness's task with its own data. A group that pools its items is one unit, any other one a unit a task."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # of whatever kind: the hub, a data set that is gone, the task's own file
        if not _lacks_items(error):
            raise UserError(f"the task {name} is not as the harness needs it: {_first(error)}") from error
        raise NoDataError(f"cannot load the task {name}: {_first(error)}") from error
    tasks, group = loaded["tasks"], loaded.get("groups", {}).get(name)
    rules = (group and group.aggregate_metric_list) or []
    if rules and all(rule.weight_by_size for rule in rules):  # its items are pooled
        return [_unit(name, tasks.values(), shots)]
    return [_unit(task, [made], shots) for task, made in tasks.items()]


def _lacks_items(error: Exception) -> bool:
    """Whether the harness failed where it gets a task's items, and not at what the task says."""
    frames = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return "download" in frames and not isinstance(error, TypeError | AttributeError)


def _unit(name: str, tasks: Iterable[Any], shots: int | None) -> Unit:
    """With the number of worked examples set, as the harness's own command does it."""
    made = tuple(tasks)
    for task in made:
        own = task.get_config("num_fewshot")  # a task that says 0 has its examples in the prompt
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
    return Unit(name, made, made[0].get_config("num_fewshot"))


def _subjects(manager: Any, name: str) -> dict[str, str]:
    """The harness's tasks of a group that differ in the subject of their items -> that subject."""
    prefix = f"{name}_"
    entries = {leaf: manager.task_index[leaf].cfg for leaf in manager.all_subtasks if leaf.startswith(prefix)}
    return {leaf: cfg["dataset_name"] for leaf, cfg in entries.items() if cfg and "dataset_name" in cfg}


def _evaluated(splits: Iterable[str]) -> str:
    """The split that the harness asks: the test items where there are some, else the validation items."""
    by_role = {ROLES[split]: split for split in splits}
    return next(by_role[role] for role in EVALUATED if role in by_role)


def _manager(only: Sequence[Path] | None = None) -> Any:
    """The harness's index of tasks; reading all of its 14,000 takes many seconds, reading a folder none."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if only is None:
        return TaskManager()
    return TaskManager(include_defaults=False, include_path=list(only) or None)


def _check_known(name: str, manager: Any) -> None:
    if name not in manager.task_index:
        known = [*GROUPS, *local_tasks(), *manager.all_tasks]
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
    text = one_line(error) if isinstance(error, yaml.YAMLError) else str(error)
    return ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])


class LocalTask(BaseModel):
    """An entry of `tasks.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    harness: str | None = None
    """Folder of the harness in which the task is defined; none where it is ours."""
    data: str
    """Folder of the items, below the one that the user gives."""
    splits: tuple[str, ...]
    """What the harness's task reads, by its names."""
    fields: tuple[str, ...]
    """What every item has."""
    files: dict[str, str] = {}
    """Split -> name of its file without suffix, where that is not the split's own name."""
    shots: int | None = None
    """Worked examples before every item, where the paper's number is not the harness's."""
    select: str | None = None
    """The field by which the harness's tasks that share a file are distinguished."""
    changes: dict[str, Any] = {}
    """Settings of the harness's task that go with a layout of items which is not the hub's."""
    note: str | None = None

    @property
    def home(self) -> Path:
        """The folder with the task's definition."""
        from lm_eval import tasks

        return OWN_TASKS if self.harness is None else Path(tasks.__file__).parent / self.harness


class NoDataError(UserError):
    """There are no items for a task, so that it may be skipped."""


@dataclass(frozen=True)
class Items:
    """What takes the place of a harness task's data."""

    splits: Mapping[str, datasets.Dataset]
    files: Mapping[str, str]
    """Their names below the user's folder, by split."""
    checksums: Mapping[str, str]
    """SHA-256 of the files, by name."""

    def changes(self, task: LocalTask, subject: str | None = None) -> dict[str, Any]:
        """Settings of the harness's task that make it read these items; of one `subject` where files are shared."""
        splits = {
            split: dataset if subject is None else _of(dataset, task.select, subject)
            for split, dataset in self.splits.items()
        }
        roles = {ROLES[split]: split if split in splits else None for split in task.splits}
        return {**task.changes, **roles, "custom_dataset": lambda **_: splits}


@cache
def local_tasks() -> Mapping[str, LocalTask]:
    """The tasks of `tasks.yaml` by the harness's names."""
    table = yaml.safe_load((resources.files(__package__) / "tasks.yaml").read_text(encoding="utf-8"))
    return {name: LocalTask.model_validate(entry) for name, entry in table.items()}


def read_items(name: str, task: LocalTask, folder: Path) -> Items:
    """The items of a task from the folder that the user gave.

    Raises:
        NoDataError: there is none to evaluate.
        UserError: a file is empty or malformed; file and line are named.
    """
    stems = {split: task.files.get(split, split) for split in task.splits}
    candidates = {
        split: [f"{task.data}/{stem}{suffix}" for suffix in SUFFIXES] for split, stem in stems.items()
    }
    paths = {split: path for split in stems for path in candidates[split][::-1] if (folder / path).is_file()}
    wanted = [split for split in stems if ROLES[split] in EVALUATED]
    if not paths.keys() & set(wanted):
        names = " or ".join(f"{stems[split]}.jsonl" for split in wanted)
        raise NoDataError(f"there are no items of {name} in {folder}: {task.data}/{names} is not there")
    checksums = {path: files.sha256(folder / path) for path in paths.values()}
    splits = {split: _read(folder / path, task.fields, checksums[path]) for split, path in paths.items()}
    return Items(splits, paths, checksums)


def _of(dataset: datasets.Dataset, field: str | None, value: str) -> datasets.Dataset:
    assert field is not None
    rows = [row for row, found in enumerate(dataset[field]) if found == value]
    if not rows:
        raise NoDataError(f"there are no items with {field} {value!r}")
    return dataset.select(rows)


@cache
def _read(path: Path, fields: tuple[str, ...], checksum: str) -> datasets.Dataset:
    """Read once, as long as the file is the same."""
    import datasets  # takes a second, which all that only plans or trains need not wait

    records: list[dict[str, Any]] = []
    open_ = lzma.open if path.suffix == ".xz" else open
    try:
        with open_(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    records.append(_parse(line, f"{path}, line {number},", fields))
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged after line {len(records)}: {error}") from None
    if not records:
        raise UserError(f"{path} is empty: it should have one item a line, as JSON")
    try:
        return datasets.Dataset.from_list(records)
    except (TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors and TypeErrors
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} has items of different kinds in one field: {reason}") from None


def _parse(line: str, where: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object")
    lacking = [field for field in fields if field not in record]
    if lacking:
        raise UserError(f"{where} lacks the field {lacking[0]!r}; it has {', '.join(record)}")
    return record
