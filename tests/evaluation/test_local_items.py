"""Items of tasks from a folder."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from evaluation import tiny_items
from inheritune.evaluation.tasks import ROLES, LocalTask, NoDataError, local_tasks, make_plan, read_items

BOOLQ = local_tasks()["boolq"]


def boolq(folder: Path, text: str | bytes, name: str = "validation.jsonl") -> Path:
    path = folder / "boolq" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


ITEMS = tiny_items.hub_records("boolq", "validation")


@pytest.fixture(scope="module")
def harness_tasks() -> dict[str, Any]:
    """The harness's own tasks with data sets as on the hub; of MMLU, one subject."""
    folders = sorted({task.home for task in local_tasks().values()})
    manager = TaskManager(include_defaults=False, include_path=folders)
    names = ["mmlu_anatomy" if name == "mmlu" else name for name in local_tasks()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.load_dataset", tiny_items.load_dataset)
        loaded = manager.load(names)["tasks"]
    return {"mmlu" if name == "mmlu_anatomy" else name: task for name, task in loaded.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_items.write_items(tmp_path_factory.mktemp("items"))


def test_there_are_items_for_every_task_here() -> None:
    assert set(tiny_items.LAYOUTS) == set(local_tasks())


@pytest.mark.parametrize("name", local_tasks())
def test_the_splits_are_those_that_the_harness_reads(name: str, harness_tasks: dict[str, Any]) -> None:
    config, entry = harness_tasks[name].config, local_tasks()[name]
    theirs = {role: getattr(config, role) for role in set(ROLES.values())}
    if theirs["fewshot_split"] == theirs["training_split"]:
        del theirs["fewshot_split"]
    assert {ROLES[split]: split for split in entry.splits} == {
        r: split for r, split in theirs.items() if split
    }


@pytest.mark.parametrize("name", local_tasks())
def test_every_split_is_read_from_its_file(name: str, folder: Path) -> None:
    entry = local_tasks()[name]
    items = read_items(name, entry, folder)
    assert set(items.splits) == set(entry.splits) == set(items.files)
    for split, dataset in items.splits.items():
        assert dataset.to_list() == tiny_items.local_records(name, split)
        assert (folder / items.files[split]).is_file()
    assert set(items.checksums) == set(items.files.values())
    assert all(len(checksum) == 64 for checksum in items.checksums.values())


@pytest.mark.parametrize("name", [name for name in local_tasks() if name != "mmlu"])
def test_the_fields_are_all_that_the_prompts_need(name: str, folder: Path, tmp_path: Path) -> None:
    entry = local_tasks()[name]
    for split in entry.splits:
        rows = [
            {field: record[field] for field in entry.fields}
            for record in tiny_items.local_records(name, split)
        ]
        tiny_items.write_lines(tmp_path / entry.data / f"{entry.files.get(split, split)}.jsonl", rows)
    prompts = []
    for place in (folder, tmp_path):
        (unit,) = make_plan([name], place).units
        unit.tasks[0].set_fewshot_seed(0)
        unit.tasks[0].build_all_requests()
        prompts.append([instance.args for instance in unit.tasks[0].instances])
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) >= 6


@pytest.mark.parametrize("name", local_tasks())
def test_a_missing_field_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    entry = local_tasks()[name]
    split = entry.splits[-1]
    rows = tiny_items.local_records(name, split)
    field = entry.fields[-1]
    rows[2] = {key: value for key, value in rows[2].items() if key != field}
    stem = entry.files.get(split, split)
    for other in entry.splits:
        other_stem = entry.files.get(other, other)
        path = tmp_path / entry.data / f"{other_stem}.jsonl"
        tiny_items.write_lines(path, rows if other == split else tiny_items.local_records(name, other))
    with pytest.raises(ValueError, match=rf"{stem}\.jsonl, line 3, lacks the field '{field}'; it has "):
        read_items(name, entry, tmp_path)


def test_compressed_and_plain_files_are_read_alike(tmp_path: Path) -> None:
    boolq(tmp_path / "plain", lines(ITEMS))
    boolq(tmp_path / "small", lzma.compress(lines(ITEMS).encode()), "validation.jsonl.xz")
    plain, small = (read_items("boolq", BOOLQ, tmp_path / name) for name in ("plain", "small"))
    assert plain.splits["validation"].to_list() == small.splits["validation"].to_list() == ITEMS
    assert plain.files == {"validation": "boolq/validation.jsonl"}
    assert small.files == {"validation": "boolq/validation.jsonl.xz"}
    assert plain.checksums["boolq/validation.jsonl"] != small.checksums["boolq/validation.jsonl.xz"]


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    first, *others = lines(ITEMS).splitlines(keepends=True)
    boolq(tmp_path, f"\n{first}  \n\n{''.join(others)}\n")
    assert read_items("boolq", BOOLQ, tmp_path).splits["validation"].to_list() == ITEMS


def test_lines_are_counted_with_the_blank_ones(tmp_path: Path) -> None:
    boolq(tmp_path, f"\n\n{lines(ITEMS[:1])}{{broken\n")
    with pytest.raises(ValueError, match=r"validation\.jsonl, line 4, is not valid JSON"):
        read_items("boolq", BOOLQ, tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"validation\.jsonl is empty: it should have one item a line, as JSON"),
        ("\n \n", r"validation\.jsonl is empty"),
        (lines(ITEMS[:1]) + "[1, 2]\n", r"validation\.jsonl, line 2, is not a JSON object"),
        (lines(ITEMS[:2]) + "word\n", r"validation\.jsonl, line 3, is not valid JSON"),
        (lines(ITEMS).encode()[:-9], r"validation\.jsonl, line 6, is not valid JSON"),
        (lines(ITEMS).encode() + b"\xff\xfe\n", r"validation\.jsonl is damaged after line \d"),
        (
            lines([*ITEMS, {**ITEMS[0], "label": "yes"}]),
            r"validation\.jsonl has items of different kinds in one field",
        ),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    boolq(tmp_path, text)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_items("boolq", BOOLQ, tmp_path)
    assert not isinstance(caught.value, NoDataError), "it may not be skipped as if it were not there"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [20, 0.5, -5])
def test_a_compressed_file_that_was_cut_off(tmp_path: Path, keep: float) -> None:
    whole = lzma.compress(lines(tiny_items.hub_records("boolq", "validation", 200)).encode())
    cut = whole[: int(len(whole) * keep) if 0 < keep < 1 else int(keep)]
    boolq(tmp_path, cut, "validation.jsonl.xz")
    with pytest.raises(ValueError, match=r"validation\.jsonl\.xz is damaged after line \d+: ") as caught:
        read_items("boolq", BOOLQ, tmp_path)
    assert not isinstance(caught.value, NoDataError)


def test_a_file_that_is_compressed_in_name_only(tmp_path: Path) -> None:
    boolq(tmp_path, lines(ITEMS), "validation.jsonl.xz")
    with pytest.raises(ValueError, match=r"validation\.jsonl\.xz is damaged after line 0"):
        read_items("boolq", BOOLQ, tmp_path)


@pytest.mark.parametrize("name", local_tasks())
def test_a_task_without_items_to_ask_is_told_apart(name: str, tmp_path: Path) -> None:
    entry = local_tasks()[name]
    for split in entry.splits:
        if ROLES[split] not in ("validation_split", "test_split"):  # worked examples alone are not enough
            tiny_items.write_lines(tmp_path / entry.data / f"{split}.jsonl", [{}])
    with pytest.raises(
        NoDataError, match=rf"there are no items of {name} in .*{entry.data}/.*\.jsonl is not"
    ):
        read_items(name, entry, tmp_path)


def test_a_split_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    boolq(tmp_path, lines(ITEMS))
    items = read_items("boolq", BOOLQ, tmp_path)
    changes = items.changes(BOOLQ)
    assert (changes["training_split"], changes["validation_split"]) == (None, "validation")
    assert set(changes["custom_dataset"](anything=1)) == {"validation"}


def test_subjects_share_a_file(folder: Path) -> None:
    entry = local_tasks()["mmlu"]
    items = read_items("mmlu", entry, folder)
    for subject in tiny_items.SUBJECTS:
        splits = items.changes(entry, subject)["custom_dataset"]()
        assert {split: set(dataset["subject"]) for split, dataset in splits.items()} == {
            "test": {subject},
            "dev": {subject},
        }
        assert len(splits["test"]) == 6
    with pytest.raises(NoDataError, match="no items with subject 'alchemy'"):
        items.changes(entry, "alchemy")


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    boolq(tmp_path, lines(ITEMS))
    read_items("boolq", BOOLQ, tmp_path)
    boolq(tmp_path, lines(ITEMS[:2]))
    assert len(read_items("boolq", BOOLQ, tmp_path).splits["validation"]) == 2


def test_an_entry_with_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValueError, match="feilds"):
        LocalTask.model_validate({**BOOLQ.model_dump(), "feilds": ()})
