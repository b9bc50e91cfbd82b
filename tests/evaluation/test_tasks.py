"""Which tasks there are, and what is asked of each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation import tiny_items
from inheritune import UserError
from inheritune.config import EvaluationSettings
from inheritune.evaluation import tasks
from inheritune.evaluation.evaluate import check_settings
from inheritune.evaluation.tasks import GROUPS, Unit, check_names, local_tasks, make_plan

OWN_TASK = """
task: colours
dataset_path: anywhere
output_type: multiple_choice
test_split: test
num_fewshot: {shots}
doc_to_text: "{{{{text}}}}"
doc_to_target: label
doc_to_choice: [red, green]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 7}}
"""


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", tiny_items.load_dataset)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_items.write_items(tmp_path_factory.mktemp("items"))


def only(name: str, data: Path | None, **options: Any) -> Unit:
    (unit,) = make_plan([name], data, **options).units
    return unit


@pytest.mark.parametrize("name", GROUPS)
def test_the_columns_of_a_table_are_metrics_of_its_tasks(name: str, folder: Path) -> None:
    plan = make_plan([name], folder)
    assert plan.groups == (name,)
    assert not plan.skipped
    units = {unit.name: unit for unit in plan.units}
    assert list(units) == list(dict.fromkeys(task for task, _ in GROUPS[name].columns))
    for task, metric in GROUPS[name].columns:
        asked, (name, *chosen) = units[task].tasks[0], metric.split(",")
        assert name in asked.aggregation()
        assert name in asked.higher_is_better()
        assert set(chosen) <= {filters["name"] for filters in asked.config.filter_list or ()}
    assert all(unit.data in unit.checksums for unit in plan.units)


def test_only_accuracies_are_averaged() -> None:
    for group in GROUPS.values():
        if group.average:
            assert {metric for _, metric in group.columns} <= {"acc", "acc_norm"}


def test_seven_tasks_are_the_five_and_two_more() -> None:
    five, seven = GROUPS["zero-shot"], GROUPS["zero-shot-7"]
    assert seven.columns == (*five.columns, ("winogrande", "acc"), ("boolq", "acc"))
    assert five.average
    assert seven.average


def test_a_task_in_two_tables_is_asked_once(folder: Path) -> None:
    plan = make_plan(["perplexity", "zero-shot", "piqa"], folder)
    names = [unit.name for unit in plan.units]
    assert names == ["wikitext", "lambada_openai", "arc_easy", "piqa", "sciq", "hellaswag"]
    assert plan.groups == ("perplexity", "zero-shot")


def test_an_unknown_task_is_told_with_the_nearest_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only test that reads the whole of the harness's index."""
    manager = tasks._manager()
    monkeypatch.setattr(tasks, "_manager", lambda only=None: manager)
    for name, sentence in (
        ("hellaswgg", "the nearest names are .*hellaswag"),
        ("zero-sht", "the nearest names are zero-shot"),
        ("qqqqqqqqqqqq", "`lm_eval ls tasks` lists them"),
    ):
        with pytest.raises(ValueError, match=f"there is no task '{name}': {sentence}"):
            check_names(["zero-shot", "boolq", name])
        with pytest.raises(ValueError, match=f"there is no task '{name}': {sentence}"):
            make_plan([name])
    check_names(["glue", "swag"])
    known = {task for group in GROUPS.values() for task, _ in group.columns} | set(local_tasks())
    assert known - set(manager.task_index) == {"lambada_generate"}, "the one that is ours"


def test_the_names_of_our_tasks_are_checked_without_the_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def index(only: Any = None) -> None:
        raise AssertionError("it takes many seconds")

    monkeypatch.setattr(tasks, "_manager", index)
    own = tmp_path / "colours.yaml"
    own.write_text(OWN_TASK.format(shots=0))
    check_names([*GROUPS, *local_tasks(), str(own)])


@pytest.mark.parametrize("names", [[], ()])
def test_no_names_at_all(names: Any) -> None:
    with pytest.raises(ValueError, match="no tasks are named"):
        make_plan(names)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="there is no folder nowhere: give the one with the evaluation data"):
        make_plan(["boolq"], Path("nowhere"))
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        check_settings(EvaluationSettings(tasks=("boolq",), data=Path("nowhere")))
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        check_settings(EvaluationSettings(validation=Path("nowhere")))


def test_tasks_without_items_are_refused_or_left_out(tmp_path: Path) -> None:
    tiny_items.write_items(tmp_path, ["boolq", "piqa"])
    with pytest.raises(ValueError, match=r"no items of sciq in .*; --skip-missing leaves such tasks out"):
        make_plan(["boolq", "sciq", "piqa"], tmp_path)
    plan = make_plan(["boolq", "sciq", "piqa", "wsc"], tmp_path, skip_missing=True)
    assert [unit.name for unit in plan.units] == ["boolq", "piqa"]
    assert list(plan.skipped) == ["sciq", "wsc"]
    assert "sciq/validation.jsonl or test.jsonl is not there" in plan.skipped["sciq"]
    with pytest.raises(ValueError, match="none of the tasks has items: there are no items of sciq in "):
        make_plan(["sciq"], tmp_path, skip_missing=True)


def test_a_malformed_file_is_never_left_out(tmp_path: Path) -> None:
    tiny_items.write_items(tmp_path, ["boolq", "piqa"])
    path = tmp_path / "boolq" / "validation.jsonl"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(ValueError, match="line 7, is not valid JSON"):
        make_plan(["boolq", "piqa"], tmp_path, skip_missing=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("arc_easy", {"answerKey": "Z"}),
        ("arc_easy", {"choices": ["one", "two"]}),
        ("hellaswag", {"label": "none"}),
        ("logiqa", {"label": "e"}),
        ("winogrande", {"sentence": "no gap"}),
        ("wikitext", {"page": 3}),
        ("mmlu", {"choices": ["A"]}),
    ],
)
def test_items_that_the_harness_cannot_read_are_one_sentence(
    name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    tiny_items.write_items(tmp_path, [name])
    layout, split = (
        tiny_items.LAYOUTS[name],
        "test" if name in ("arc_easy", "logiqa", "wikitext", "mmlu") else "validation",
    )
    rows = [{**record, **change} for record in tiny_items.local_records(name, split)]
    tiny_items.write_lines(tmp_path / layout.folder / f"{split}.jsonl", rows)
    with pytest.raises(
        ValueError, match=f"the items of {name} in .* are not as the harness needs them: "
    ) as caught:
        make_plan([name], tmp_path)
    assert "\n" not in str(caught.value)


def test_a_task_has_the_harnesss_number_of_worked_examples_or_the_papers(folder: Path) -> None:
    own = {name: only(name, folder).shots for name in local_tasks()}
    assert own == {name: 5 if name in ("mmlu", "gsm8k") else 0 for name in own}


def test_another_number_of_worked_examples(folder: Path) -> None:
    for name, shots in (("boolq", 3), ("mmlu", 2), ("mmlu", 0), ("sciq", 0)):
        unit = only(name, folder, shots=shots)
        assert unit.shots == shots
        for task in unit.tasks[:2]:
            task.set_fewshot_seed(0)
            task.build_all_requests(limit=1)
            (prompt, _), *_ = [instance.args for instance in task.instances]
            assert prompt.count("\nAnswer:") == shots + 1


def test_a_task_whose_examples_are_in_its_prompt_keeps_them(folder: Path) -> None:
    unit = only("truthfulqa_mc2", folder, shots=5)
    assert unit.shots == 0
    unit.tasks[0].build_all_requests(limit=1)
    assert unit.tasks[0].instances[0].args[0].count("\n\nQ: ") == 6


def test_worked_examples_come_from_the_training_items(tmp_path: Path) -> None:
    tiny_items.write_items(tmp_path, ["boolq"])
    task = only("boolq", tmp_path, shots=2).tasks[0]
    task.set_fewshot_seed(0)
    task.build_all_requests()
    shown = {record["passage"] for record in tiny_items.local_records("boolq", "train")}
    asked = [record["passage"] for record in tiny_items.local_records("boolq", "validation")]
    for instance in task.instances:
        before = instance.args[0].removesuffix(instance.doc["passage"])
        assert sum(passage in before for passage in shown) == 2
        assert sum(passage in before for passage in asked) == 1


def test_without_test_items_the_validation_items_are_asked_and_that_is_said(tmp_path: Path) -> None:
    tiny_items.write_items(tmp_path, ["sciq", "wsc273"], splits=["validation", "test"])
    assert only("sciq", tmp_path).note is None
    assert only("sciq", tmp_path).data == "sciq/test.jsonl"
    (tmp_path / "sciq" / "test.jsonl").unlink()
    unit = only("sciq", tmp_path)
    assert unit.note == "the validation items, as there are no test items"
    assert unit.data == "sciq/validation.jsonl"
    assert list(unit.tasks[0].eval_docs) == tiny_items.local_records("sciq", "validation")
    assert (
        only("wsc273", tmp_path).note
        == "the options were put into the sentences beforehand, not by the harness"
    )


def test_a_folder_has_a_layout_for_the_papers_tasks_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Manager:
        task_index = ("swag",)

    monkeypatch.setattr(tasks, "_manager", lambda only=None: Manager())
    with pytest.raises(
        ValueError, match="swag cannot be read from a folder: --data has a layout for arc_easy, "
    ):
        make_plan(["swag"], folder)


def test_a_task_from_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"Number {i} is", "label": i % 2} for i in range(5)]
    made = {"test": tiny_items.datasets.Dataset.from_list(rows)}
    monkeypatch.setattr("datasets.load_dataset", lambda **given: made)
    path = tmp_path / "colours.yaml"
    path.write_text(OWN_TASK.format(shots=2))
    unit = only(str(path), None)
    assert (unit.name, unit.shots, unit.data, unit.note) == ("colours", 2, "hub", None)
    assert unit.tasks[0].VERSION == 7
    assert len(unit.tasks[0].eval_docs) == 5
    assert only(str(path), None, shots=1).shots == 1


def test_a_task_that_cannot_be_had_is_refused_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(path: str, **given: Any) -> Any:
        if path == "aps/super_glue":
            raise ConnectionError("no network\nand more lines")
        return tiny_items.load_dataset(path, **given)

    monkeypatch.setattr("datasets.load_dataset", offline)
    sentence = "cannot load the task boolq: ConnectionError: no network; --skip-missing leaves such tasks out"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make_plan(["boolq", "piqa"])
    plan = make_plan(["boolq", "piqa"], skip_missing=True)
    assert [unit.name for unit in plan.units] == ["piqa"]
    assert plan.skipped == {"boolq": "cannot load the task boolq: ConnectionError: no network"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("test_split: test", "test_split: [unclosed"), "ParserError: while parsing a flow sequence"),
        (("output_type: multiple_choice", "output_type: guess"), ""),
        (("test_split: test", "test_split: nothing"), "KeyError: 'nothing'"),
        (("task: colours", "include: nothing.yaml"), "FileNotFoundError: "),
        (("task: colours", "tusk: colours"), ""),
        (("label", "!function nothing.at_all"), "ImportError: "),
    ],
)
def test_a_file_of_a_task_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], reason: str
) -> None:
    """It is no item that is missing, so it is not left out either."""
    made = {"test": tiny_items.datasets.Dataset.from_list([{"text": "Grass is", "label": 1}] * 3)}
    monkeypatch.setattr("datasets.load_dataset", lambda **given: made)
    path = tmp_path / "colours.yaml"
    path.write_text(OWN_TASK.format(shots=0).replace(*change))
    for skips in (False, True):
        with pytest.raises(UserError) as caught:
            make_plan([str(path)], skip_missing=skips)
        sentence = str(caught.value)
        assert sentence.startswith(f"the task {path} is not as the harness needs it: {reason}")
        assert "skip" not in sentence
        assert "\n" not in sentence


@pytest.mark.parametrize(
    "text", ["test_split: [unclosed", "task: !function nothing.at_all", "tusk: x", "", "- a"]
)
def test_a_file_that_is_no_task_is_told_before_anything_is_trained(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"own\.yaml is not as the harness needs it: "):
        check_settings(EvaluationSettings(tasks=("boolq", str(path))))


def test_a_file_whose_items_cannot_be_had_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: str, **given: Any) -> Any:
        if path == "anywhere":
            raise FileNotFoundError("Dataset 'anywhere' doesn't exist on the Hub")
        return tiny_items.load_dataset(path, **given)

    monkeypatch.setattr("datasets.load_dataset", gone)
    path = tmp_path / "colours.yaml"
    path.write_text(OWN_TASK.format(shots=0))
    with pytest.raises(UserError, match=r"cannot load the task .*; --skip-missing leaves such tasks out"):
        make_plan([str(path), "piqa"])
    assert list(make_plan([str(path), "piqa"], skip_missing=True).skipped) == [str(path)]


def test_a_group_of_the_harness_is_one_task_only_if_its_items_are_pooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    made = {"test": tiny_items.datasets.Dataset.from_list([{"text": "Grass is", "label": 1}] * 3)}
    monkeypatch.setattr("datasets.load_dataset", lambda **given: made)
    for colour in ("light", "dark"):
        text = OWN_TASK.format(shots=0).replace("task: colours", f"task: {colour}\ntag: tagged")
        (tmp_path / f"{colour}.yaml").write_text(text)
    groups = {
        "pooled": "aggregate_metric_list: [{metric: acc, weight_by_size: true}]",
        "equal": "aggregate_metric_list: [{metric: acc, weight_by_size: false}]",
        "loose": "",
    }
    for name, rule in groups.items():
        (tmp_path / f"_{name}.yaml").write_text(f"group: {name}\ntask: [light, dark]\n{rule}\n")
    manager = TaskManager(include_defaults=False, include_path=[tmp_path])
    monkeypatch.setattr(tasks, "_manager", lambda only=None: manager)
    parts = {
        name: {unit.name: [task.task_name for task in unit.tasks] for unit in make_plan([name]).units}
        for name in (*groups, "tagged")
    }
    alone = {"light": ["light"], "dark": ["dark"]}
    assert parts == {"pooled": {"pooled": ["light", "dark"]}, "equal": alone, "loose": alone, "tagged": alone}
    assert [unit.name for unit in make_plan(["light", "equal"]).units] == ["light", "dark"]


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for call in (make_plan, check_names):
        with pytest.raises(ValueError, match=r"install it with `pip install 'inheritune\[eval\]'`"):
            call(["boolq"])
