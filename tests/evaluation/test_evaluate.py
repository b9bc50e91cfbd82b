"""Models side by side, from checkpoints on the disk to `evaluation.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_data
from evaluation import tiny_items
from inheritune.algorithm import complete, run
from inheritune.config import EvaluationSettings, Recipe, Training
from inheritune.data.shards import open_split
from inheritune.evaluation import evaluate as evaluation
from inheritune.evaluation import harness, speed, subjects
from inheritune.evaluation.evaluate import default_directory, evaluate
from inheritune.evaluation.harness import Scorer, ask
from inheritune.evaluation.result import load_evaluation
from inheritune.evaluation.statistics import TaskItems
from inheritune.evaluation.subjects import find_subjects
from inheritune.evaluation.tasks import GROUPS, make_plan
from inheritune.recipe_file import parse_recipe
from inheritune.run_directory import RunDirectory
from inheritune.runtime.hardware import choose_hardware
from inheritune.training.loss import NextTokenLoss
from inheritune.training.validation import compare, validate
from tiny_models import shaken, tiny_model
from tiny_recipes import training, values

TASKS = ("boolq", "lambada_openai", "wikitext")
CPU: dict[str, Any] = {"device": "cpu"}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {*TASKS, *(task for task, _ in GROUPS["zero-shot"].columns)}
    return tiny_items.write_items(tmp_path_factory.mktemp("items"), sorted(names))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokenizer`, `large` and `small`, which bring it along, and `bare`, which does not."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_items.make_tokenizer(folder / "tokenizer")
    for name, layers, seed in (("large", 2, 18), ("small", 1, 3)):
        tiny_items.make_model(tokenizer, layers=layers, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tiny_items.make_model(tokenizer, seed=5).save_pretrained(folder / "bare")
    return folder


@pytest.fixture(scope="module")
def text(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards of the models' tokenizer."""
    folder = tiny_data.write_shards(tmp_path_factory.mktemp("text"), vocabulary=600)
    shutil.copytree(models / "tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture
def pair(models: Path) -> list[str]:
    return [str(models / "large"), str(models / "small")]


class Asked(list[tuple[str, str]]):
    """(model, task) of everything that is asked."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found, real = Asked(), harness.ask

    def recording(scorer: Any, unit: Any, *given: Any) -> TaskItems:
        found.append((scorer.name, unit.name))
        return real(scorer, unit, *given)

    monkeypatch.setattr(harness, "ask", recording)
    return found


def settings(items: Path, **changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate({"tasks": TASKS, "data": items, **changes})


def stored(directory: Path, model: str, task: str) -> TaskItems:
    return TaskItems.model_validate_json((directory / "items" / model / f"{task}.json").read_bytes())


def test_two_models_on_a_table_of_the_paper(
    pair: list[str], items: Path, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/inheritune/__main__.py", "evaluate"])
    wanted = settings(items, tasks=("zero-shot", "wikitext"))
    found = evaluate(pair, wanted, tmp_path / "out", **CPU)
    assert load_evaluation(tmp_path / "out" / "evaluation.json") == found
    assert [(model.name, model.layers, model.dtype) for model in found.models] == [
        ("large", 2, "float32"),
        ("small", 1, "float32"),
    ]
    assert found.models[0].weights != found.models[1].weights
    assert found.environment["command"] == "inheritune evaluate"
    assert found.settings["tasks"] == ["zero-shot", "wikitext"]
    names = [task for task, _ in GROUPS["zero-shot"].columns] + ["wikitext"]
    assert [task.task for task in found.tasks] == names
    assert asked == [(model, task) for model in ("large", "small") for task in names]
    for task in found.tasks:
        assert (task.items, task.shots, task.note) == (6, 0, None)
        answers = [stored(tmp_path / "out", model, task.task) for model in ("large", "small")]
        for result in task.metrics:
            one, other = (answer.metrics[result.metric] for answer in answers)
            assert result.scores == [one.score(), other.score()]
            assert result.paired == [None, other.paired(one)]
            assert result.higher_is_better == (result.metric in ("acc", "acc_norm"))
    (group,) = found.groups
    columns = [found.task(task).of(metric) for task, metric in GROUPS["zero-shot"].columns]
    assert [(cell.task, cell.metric) for cell in group.columns] == list(GROUPS["zero-shot"].columns)
    assert group.missing == []
    assert group.average is not None
    for i in (0, 1):
        assert group.average.scores[i].value == pytest.approx(np.mean([c.scores[i].value for c in columns]))
    difference = group.average.paired[1]
    assert difference is not None
    assert difference.difference == pytest.approx(
        group.average.scores[1].value - group.average.scores[0].value
    )


def test_the_figures_are_those_of_the_checkpoint_asked_directly(
    pair: list[str], items: Path, models: Path
) -> None:
    found = evaluate(pair, settings(items), **CPU)
    tokenizer = AutoTokenizer.from_pretrained(models / "tokenizer")
    for i, path in enumerate(pair):
        scorer = Scorer(AutoModelForCausalLM.from_pretrained(path).eval(), tokenizer, None, "direct")
        for unit in make_plan(TASKS, items).units:
            direct = ask(scorer, unit, {})
            for name, metric in direct.metrics.items():
                assert found.task(unit.name).of(name).scores[i] == metric.score()
    boolq, lambada = found.task("boolq"), found.task("lambada_openai")
    assert boolq.of("acc").chance == pytest.approx(0.5)
    assert lambada.of("acc").chance is lambada.of("perplexity").chance is None
    assert lambada.metric == "acc", "the one that the paper's first table shows"
    assert found.task("wikitext").metric == "word_perplexity"


def test_nothing_is_written_where_nothing_is_said(
    pair: list[str], items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(pair, settings(items, tasks=("boolq",)), **CPU)
    assert not list(tmp_path.iterdir())


def test_a_second_call_asks_nothing(
    pair: list[str], items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(pair, settings(items), tmp_path, **CPU)

    def refuse(*given: Any) -> None:
        raise AssertionError("it was asked already")

    monkeypatch.setattr(harness, "ask", refuse)
    assert evaluate(pair, settings(items), tmp_path, **CPU) == first
    turned = evaluate(pair[::-1], settings(items), tmp_path, **CPU)
    assert [model.name for model in turned.models] == ["small", "large"]
    assert turned.task("boolq").of("acc").scores == first.task("boolq").of("acc").scores[::-1]
    with pytest.raises(AssertionError, match="it was asked already"):
        evaluate(pair, settings(items, tasks=("piqa",)), tmp_path, **CPU)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"batch_size": 2}, {}),
        ({"limit": 3}, {}),
        ({"shots": 1}, {}),
        ({}, {"dtype": "bfloat16"}),
        ({}, {"dtype": torch.float16}),
    ],
)
def test_other_settings_ask_again(
    pair: list[str],
    items: Path,
    tmp_path: Path,
    asked: Asked,
    changes: dict[str, Any],
    options: dict[str, Any],
) -> None:
    evaluate(pair, settings(items, tasks=("boolq",)), tmp_path, **CPU)
    asked.clear()
    found = evaluate(pair, settings(items, tasks=("boolq",), **changes), tmp_path, **CPU, **options)
    assert asked == [("large", "boolq"), ("small", "boolq")]
    assert found.task("boolq").items == changes.get("limit", 6)
    assert found.task("boolq").shots == changes.get("shots", 0)
    dtype = str(options.get("dtype", "float32")).removeprefix("torch.")
    assert {model.dtype for model in found.models} == {dtype}


def test_other_weights_and_other_items_ask_again(
    pair: list[str], items: Path, tmp_path: Path, asked: Asked, models: Path
) -> None:
    own = shutil.copytree(pair[1], tmp_path / "small")
    output = tmp_path / "out"
    before = evaluate([pair[0], own], settings(items), output, **CPU)
    asked.clear()
    model = AutoModelForCausalLM.from_pretrained(own)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    model.save_pretrained(own)
    after = evaluate([pair[0], own], settings(items), output, **CPU)
    assert asked == [("small", task) for task in TASKS]
    assert after.models[0] == before.models[0]
    assert after.models[1].weights != before.models[1].weights
    asked.clear()
    others = shutil.copytree(items, tmp_path / "items")
    (path,) = (others / "lambada_openai").iterdir()
    tiny_items.write_lines(path, tiny_items.local_records("lambada_openai", "test", 8))
    evaluate([pair[0], own], settings(others), output, **CPU)
    assert asked == [("large", "lambada_openai"), ("small", "lambada_openai")]


def test_another_tokenizer_asks_again(models: Path, items: Path, tmp_path: Path, asked: Asked) -> None:
    tiny_items.make_tokenizer(tmp_path / "other", 400)
    wanted, output = settings(items, tasks=("boolq",)), tmp_path / "out"
    for tokenizer in (models / "tokenizer", tmp_path / "other"):
        evaluate([models / "bare"], wanted, output, tokenizer=tokenizer, **CPU)
    assert asked == [("bare", "boolq")] * 2


def test_another_text_of_a_users_own_task_asks_again(
    pair: list[str], tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"test": tiny_items.datasets.Dataset.from_list([{"text": "Grass is", "label": 1}] * 3)}
    monkeypatch.setattr("datasets.load_dataset", lambda **given: made)
    path = tmp_path / "colours.yaml"
    for text in ("{{text}}", "So {{text}}"):
        path.write_text(
            f"task: colours\ndataset_path: anywhere\noutput_type: multiple_choice\ntest_split: test\n"
            f'doc_to_text: "{text}"\ndoc_to_target: label\ndoc_to_choice: [red, green]\n'
            "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        )
        evaluate(pair[:1], EvaluationSettings(tasks=(str(path),)), tmp_path / "out", **CPU)
    assert asked == [("large", "colours")] * 2


def test_damaged_answers_are_asked_again(pair: list[str], items: Path, tmp_path: Path, asked: Asked) -> None:
    first = evaluate(pair, settings(items), tmp_path, **CPU)
    asked.clear()
    path = tmp_path / "items" / "small" / "boolq.json"
    path.write_text(path.read_text()[:-20])
    assert evaluate(pair, settings(items), tmp_path, **CPU) == first
    assert asked == [("small", "boolq")]


def test_answers_to_other_items_are_not_paired(pair: list[str], items: Path, tmp_path: Path) -> None:
    evaluate(pair, settings(items), tmp_path, **CPU)
    path = tmp_path / "items" / "small" / "boolq.json"
    record = json.loads(path.read_text())
    record["hashes"].reverse()
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"the models were not asked the same items of boolq"):
        evaluate(pair, settings(items), tmp_path, **CPU)


def test_after_a_stop_half_way_it_goes_on(
    pair: list[str], items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = harness.ask, []

    def stopping(scorer: Any, unit: Any, *given: Any) -> TaskItems:
        calls.append((scorer.name, unit.name))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(scorer, unit, *given)

    monkeypatch.setattr(harness, "ask", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pair, settings(items), tmp_path, **CPU)
    assert not (tmp_path / "evaluation.json").exists()
    assert sorted(path.stem for path in (tmp_path / "items" / "large").iterdir()) == sorted(TASKS)
    calls[:] = ["not", "that", "many", "any", "more"]
    found = evaluate(pair, settings(items), tmp_path, **CPU)
    assert calls[5:] == [("small", "lambada_openai"), ("small", "wikitext")]
    monkeypatch.setattr(harness, "ask", real)
    whole = evaluate(pair, settings(items), tmp_path / "whole", **CPU)
    assert found.tasks == whole.tasks


def test_two_models_of_one_name(models: Path, items: Path, tmp_path: Path) -> None:
    other = shutil.copytree(models / "small", tmp_path / "large")
    with pytest.raises(ValueError, match="two models are called large: name them, as in A=PATH B=PATH"):
        evaluate([models / "large", other], settings(items), **CPU)
    found = evaluate(
        [f"before={models / 'large'}", f"after={other}"], settings(items, tasks=("boolq",)), **CPU
    )
    assert [(model.name, model.source) for model in found.models] == [
        ("before", str(models / "large")),
        ("after", str(other)),
    ]


def test_names_of_models(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(models / "small", tmp_path / "run" / "reference" / "model")
    shutil.copytree(models / "small", tmp_path / "lr=3e-4")
    monkeypatch.chdir(tmp_path)
    given = ["run/reference/model", "lr=3e-4", "x=lr=3e-4", f"{models / 'large'}/"]
    found = find_subjects(given)
    assert [subject.name for subject in found] == ["reference", "lr=3e-4", "x", "large"]
    assert str(found[2].source) == "lr=3e-4"


def test_the_model_in_the_working_directory_has_a_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models / "small")
    assert [subject.name for subject in find_subjects(["."])] == ["small"]


def test_no_model_and_no_such_model(items: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model is named"):
        evaluate([], settings(items))
    with pytest.raises(ValueError, match=r"there is no model at .*nowhere: the folder does not exist"):
        evaluate([tmp_path / "nowhere"], settings(items))


def test_a_tokenizer_with_more_tokens_than_the_embedding(models: Path, items: Path, tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError,
        match="the tokenizer of other has 600 tokens, but its embedding has 97: it is another model's",
    ):
        evaluate([tmp_path / "other"], settings(items), tokenizer=models / "tokenizer")


def test_a_model_without_a_tokenizer(models: Path, items: Path, text: Path) -> None:
    bare = [models / "bare"]
    for wanted in ({"tasks": ("boolq",), "data": items}, {"samples": True}):
        with pytest.raises(ValueError, match="bare comes without a tokenizer: give one with --tokenizer"):
            evaluate(bare, EvaluationSettings.model_validate(wanted))
    with pytest.raises(ValueError, match=r"there is no tokenizer at .*items"):
        evaluate(bare, settings(items), tokenizer=items)
    found = evaluate(bare, settings(items, tasks=("boolq",)), tokenizer=models / "tokenizer", **CPU)
    assert found.task("boolq").items == 6
    losses = evaluate(bare, EvaluationSettings(validation=text), **CPU).validation
    assert losses is not None, "which needs none"


def test_too_little_memory(
    pair: list[str], items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = sum(p.numel() * 4 for p in AutoModelForCausalLM.from_pretrained(pair[0]).parameters())
    free = SimpleNamespace(available=need - 1)
    monkeypatch.setattr(subjects.psutil, "virtual_memory", lambda: free)
    with pytest.raises(
        ValueError, match=r"^the weights of large take 0\.0 GiB, but cpu has .* give a smaller"
    ):
        evaluate(pair, settings(items), tmp_path, **CPU)
    assert not list(tmp_path.iterdir())
    free.available = need
    evaluate(pair[:1], settings(items, tasks=("boolq",)), **CPU)
    with pytest.raises(ValueError, match="the weights of large and small take"):
        evaluate(pair, EvaluationSettings(samples=True), **CPU)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        "bfloat16",
    ],
)
def test_a_smaller_type_needs_less_memory(
    pair: list[str], items: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    need = sum(p.numel() * 2 for p in AutoModelForCausalLM.from_pretrained(pair[0]).parameters())
    monkeypatch.setattr(subjects.psutil, "virtual_memory", lambda: SimpleNamespace(available=need))
    found = evaluate(pair[:1], settings(items, tasks=("boolq",)), dtype=dtype, **CPU)
    assert found.models[0].dtype == "bfloat16"


def test_memory_that_runs_out_on_the_way(
    pair: list[str], items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(harness, "ask", full)
    with pytest.raises(
        ValueError, match=r"large ran out of memory on cpu with the default number of requests at once: "
    ):
        evaluate(pair, settings(items), **CPU)


def test_validation_is_that_of_training(pair: list[str], text: Path) -> None:
    found = evaluate(pair, EvaluationSettings(validation=text, window=100), **CPU).validation
    assert found is not None
    hardware = choose_hardware(Training.model_validate(training()))
    split = open_split(text, "validation")
    losses = [
        validate(NextTokenLoss(AutoModelForCausalLM.from_pretrained(path)), split, 100, hardware)
        for path in pair
    ]
    assert (found.windows, found.window, found.split) == (19, 100, "validation")
    assert [score.value for score in found.scores] == [one.mean for one in losses]
    assert [score.standard_error for score in found.scores] == [one.standard_error for one in losses]
    comparison, difference = compare(losses[1], losses[0]), found.paired[1]
    assert found.paired[0] is None
    assert difference is not None
    assert (difference.difference, difference.interval) == (comparison.difference, comparison.interval)
    low, high = comparison.interval
    expected = "better" if high < 0 else "worse" if low > 0 else "no difference seen"
    assert difference.outcome == expected, "a smaller loss is better"


def test_windows_of_validation(pair: list[str], text: Path, tmp_path: Path) -> None:
    found = evaluate(pair, EvaluationSettings(validation=text), **CPU).validation
    assert found is not None
    assert (found.window, found.windows) == (512, 3), "the context of the models"
    with pytest.raises(ValueError, match="windows of 513 tokens are longer than a model's context of 512"):
        evaluate(pair, EvaluationSettings(validation=text, window=513), **CPU)
    short = tiny_data.write_shards(tmp_path / "short", validation=50)
    with pytest.raises(ValueError, match="has 50 tokens, fewer than one window of 60"):
        evaluate(pair, EvaluationSettings(validation=short, window=60), **CPU)
    found = evaluate(pair, EvaluationSettings(validation=short), **CPU).validation
    assert found is not None
    assert (found.window, found.windows) == (49, 1)


def test_text_of_another_tokenizer_is_refused(
    pair: list[str], models: Path, text: Path, tmp_path: Path
) -> None:
    larger = tiny_data.write_shards(tmp_path / "larger", vocabulary=601)
    with pytest.raises(
        ValueError, match=r"token 600 occurs in .*larger, but the embedding of large has 600 rows"
    ):
        evaluate(pair, EvaluationSettings(validation=larger), **CPU)
    other = tiny_data.write_shards(tmp_path / "other", vocabulary=500)
    tiny_items.make_tokenizer(other / "tokenizer", 500)
    tokens = json.loads((other / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=r"the tokens of .*other are not those of large"):
        evaluate(pair, EvaluationSettings(validation=other), **CPU)


def test_damaged_text_is_refused(pair: list[str], text: Path, tmp_path: Path) -> None:
    own = shutil.copytree(text, tmp_path / "text")
    path = own / "validation-00000.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    with pytest.raises(ValueError, match=r"validation-00000\.bin"):
        evaluate(pair, EvaluationSettings(validation=own), **CPU)


def test_a_table_with_a_task_missing_has_no_average(pair: list[str], items: Path, tmp_path: Path) -> None:
    fewer = shutil.copytree(items, tmp_path / "items")
    shutil.rmtree(fewer / "sciq")
    wanted = settings(fewer, tasks=("zero-shot",))
    with pytest.raises(ValueError, match="no items of sciq"):
        evaluate(pair, wanted, **CPU)
    found = evaluate(pair, wanted.model_copy(update={"skip_missing": True}), **CPU)
    assert list(found.skipped) == ["sciq"]
    (group,) = found.groups
    assert group.missing == ["sciq"]
    assert group.average is None
    assert [cell.task for cell in group.columns] == ["arc_easy", "piqa", "hellaswag", "lambada_openai"]


def test_what_differs_from_the_harnesss_items_is_noted(models: Path, items: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "tokenizer")
    short = tmp_path / "short"
    tiny_items.make_model(tokenizer, context=20).save_pretrained(short)
    fewer = shutil.copytree(items, tmp_path / "items")
    for path in (fewer / "sciq").glob("test.jsonl*"):
        path.unlink()
    wanted = settings(fewer, tasks=("sciq", "wikitext"))
    found = evaluate(
        [models / "large", short], wanted, tmp_path / "out", tokenizer=models / "tokenizer", **CPU
    )
    cut = stored(tmp_path / "out", "short", "sciq")
    assert 0 < cut.truncated < cut.requests == 24
    assert found.task("sciq").note == (
        "the validation items, as there are no test items; "
        f"short: {cut.truncated} of 24 requests were longer than its context, and lost their beginnings"
    )
    assert found.task("wikitext").note is None, "it is read in windows"


def test_speed_and_samples(pair: list[str]) -> None:
    wanted = EvaluationSettings(speed=True, batches=(1,), samples=True, prompts=("The lamp", "Ada holds"))
    found = evaluate(pair, wanted, **CPU)
    assert [sample.prompt for sample in found.samples] == ["The lamp", "Ada holds"]
    assert all(len(sample.continuations) == 2 for sample in found.samples)
    assert found.speed is not None
    sizes = [sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) for path in pair]
    assert [model.checkpoint_bytes for model in found.speed.models] == sizes
    assert [rate.batch for rate in found.speed.models[0].rates] == [1]
    assert found.tasks == []


EVERYTHING: dict[str, Any] = {"speed": True, "batches": (1,), "samples": True, "prompts": ("The lamp",)}


@pytest.mark.parametrize("stage", ["validate", "side_by_side", "measure_speed"])
def test_what_was_finished_before_a_stop_is_not_done_again(
    stage: str, pair: list[str], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def watch(name: str, stops: bool) -> None:
        monkeypatch.setattr(speed, "TURNS", 1)
        monkeypatch.setattr(speed, "NEW_TOKENS", 2)
        real = getattr(evaluation, name)

        def recording(*given: Any, **named: Any) -> Any:
            calls.append(name)
            if stops and calls.count(name) == (2 if name == "validate" else 1):
                raise KeyboardInterrupt
            return real(*given, **named)

        monkeypatch.setattr(evaluation, name, recording)

    wanted = EvaluationSettings(validation=text, window=100, **EVERYTHING)
    stages = ["validate", "side_by_side", "measure_speed"]
    for name in stages:
        watch(name, stops=name == stage)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pair, wanted, tmp_path, **CPU)
    before = list(calls)
    calls.clear()
    monkeypatch.undo()
    for name in stages:
        watch(name, stops=False)
    found = evaluate(pair, wanted, tmp_path, **CPU)
    # Of the two models' losses the first one's were there.
    assert [*before[:-1], *calls] == ["validate", "validate", "side_by_side", "measure_speed"]
    calls.clear()
    assert evaluate(pair, wanted, tmp_path, **CPU) == found
    assert not calls
    others = wanted.model_copy(update={"window": 50, "prompts": ("Ada",), "batches": (2,)})
    again = evaluate(pair, others, tmp_path, **CPU)
    assert calls == ["validate", "validate", "side_by_side", "measure_speed"]
    assert [sample.prompt for sample in again.samples] == ["Ada"]
    calls.clear()
    evaluate(pair[::-1], wanted, tmp_path, **CPU)
    assert calls == ["side_by_side", "measure_speed"], "each model has losses of its own"


def without_cache(folder: Path, models: Path) -> None:
    tiny_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=600).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models / "tokenizer").save_pretrained(folder)


def with_short_context(folder: Path, models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "tokenizer")
    tiny_items.make_model(tokenizer, context=20).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_a_token_too_many(folder: Path, models: Path) -> None:
    shutil.copytree(models / "small", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "wanted", "sentence"),
    [
        (
            without_cache,
            {"speed": True},
            "other, of type 'mamba', keeps no keys and values of earlier tokens",
        ),
        (with_short_context, {"speed": True}, "a model's context has 20: leave speed out"),
        (
            with_a_token_too_many,
            {"samples": True, "prompts": ("Ada", "A <new> lamp")},
            "token 600 occurs in the prompt 'A <new> lamp', but the embedding of other has 600 rows",
        ),
    ],
)
def test_speed_and_samples_that_cannot_be_are_refused_before_anything_is_asked(
    make: Callable[[Path, Path], None],
    wanted: dict[str, Any],
    sentence: str,
    pair: list[str],
    items: Path,
    models: Path,
    tmp_path: Path,
    asked: Asked,
) -> None:
    make(tmp_path / "other", models)
    with pytest.raises(ValueError, match=sentence):
        evaluate([pair[0], tmp_path / "other"], settings(items, **wanted), tmp_path / "out", **CPU)
    assert not asked
    assert not (tmp_path / "out").exists()


RECIPE_TASKS = ("boolq", "wikitext")


@pytest.fixture(scope="module")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards with a tokenizer that has as many tokens as the tiny recipes' models."""
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    folder = tiny_data.write_shards(tmp_path_factory.mktemp("small"))
    words = ["[UNK]", "<end>", "no", "yes", ".", ":", *tiny_items.NOUNS, *tiny_items.NAMES]
    words += [f"word-{i}" for i in range(97 - len(words))]
    made = Tokenizer(kinds.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="<end>")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def recipe(shards: Path, /, **evaluation: Any) -> Recipe:
    shared = {"parity": {"margin": 100.0}, "samples": {"prompts": ["lamp"]}}
    return parse_recipe(values(shards, **shared, evaluation=evaluation), Recipe)


def test_a_recipe_evaluates_both_models_at_its_end(
    small_text: Path, items: Path, tmp_path: Path, asked: Asked
) -> None:
    wanted = recipe(small_text, tasks=RECIPE_TASKS, data=str(items), validation=str(small_text), window=32)
    directory = tmp_path / "run"
    run(wanted, directory)
    path = directory / "evaluation" / "evaluation.json"
    found = load_evaluation(path)
    assert [(model.name, model.layers) for model in found.models] == [("reference", 4), ("final", 2)]
    assert [task.task for task in found.tasks] == list(RECIPE_TASKS)
    assert found.validation is not None
    own = json.loads((directory / "reference" / "validation.json").read_text())
    assert found.validation.scores[0].value == pytest.approx(np.mean(own["losses"]), rel=1e-5)
    assert asked == [(model, task) for model in ("reference", "final") for task in RECIPE_TASKS]
    answers = RunDirectory(directory).read_summary().answers
    worse = any(task.of(task.metric).paired[1].outcome == "worse" for task in found.tasks)  # type: ignore[union-attr]
    assert answers is not None
    assert answers.tasks == ("does not hold" if worse else "holds")
    assert f"Tasks: {answers.tasks}." in (directory / "final/README.md").read_text()

    asked.clear()
    before = path.stat().st_mtime_ns
    run(wanted, directory)
    assert not asked
    assert path.stat().st_mtime_ns == before, "a finished run with its evaluation is left as it is"

    path.unlink()
    shutil.rmtree(directory / "evaluation" / "items" / "final")
    run(wanted, directory)
    assert asked == [("final", task) for task in RECIPE_TASKS]
    again = load_evaluation(path)
    assert (again.tasks, again.models, again.validation) == (found.tasks, found.models, found.validation)

    asked.clear()
    more = {"tasks": (*RECIPE_TASKS, "sciq"), "data": str(items), "validation": str(small_text)}
    run(recipe(small_text, **more, window=32), directory)
    assert asked == [(model, "sciq") for model in ("reference", "final")], "more in the recipe asks only that"
    assert [task.task for task in load_evaluation(path).tasks] == [*RECIPE_TASKS, "sciq"]
    assert "| sciq (acc, 0 shots) |" in (directory / "final/README.md").read_text()
    before = path.stat().st_mtime_ns
    run(wanted, directory)
    assert path.stat().st_mtime_ns == before, "less leaves it as it is"
    shifted = recipe(small_text, **more, window=16)
    run(shifted, directory)
    validation = load_evaluation(path).validation
    assert validation is not None and validation.window == 16
    assert not asked[2:] and complete(shifted, directory)

    alone = evaluate([directory], settings(items, tasks=RECIPE_TASKS), **CPU)
    assert [model.name for model in alone.models] == ["reference", "final"]
    assert alone.tasks == found.tasks
    assert default_directory([directory]) == directory / "evaluation"
    assert default_directory([directory, directory]) == default_directory(["gpt2"]) == Path("evaluation")

    (directory / "state.json").unlink()
    with pytest.raises(ValueError, match="run is not the directory of a finished run of `inheritune run`"):
        evaluate([directory], settings(items))


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        ({"tasks": ["boolq", "hellaswgg"]}, "there is no task 'hellaswgg': the nearest names are"),
        ({"tasks": ["boolq"], "data": "nowhere"}, "evaluation: there is no folder nowhere"),
        ({"validation": "nowhere"}, "evaluation: there is no folder nowhere"),
    ],
)
def test_an_evaluation_that_cannot_be_made_stops_a_recipe_before_it_trains(
    evaluation: dict[str, Any],
    sentence: str,
    small_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "inheritune.evaluation.tasks._manager",
        lambda only=None: SimpleNamespace(task_index={"hellaswag": 0}, all_tasks=["hellaswag"]),
    )
    with pytest.raises(ValueError, match=sentence):
        run(recipe(small_text, **evaluation), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_reference_cannot_do_stops_a_recipe_before_it_trains(
    small_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="a model's context has 32: leave speed out"):
        run(recipe(small_text, speed=True), tmp_path / "run")
    without = tiny_data.write_shards(tmp_path / "text")
    with pytest.raises(ValueError, match="the reference comes without a tokenizer"):
        run(recipe(without, samples=True), tmp_path / "other")
    assert not list(tmp_path.glob("*/reference/*"))


def test_an_evaluation_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match="it asks for nothing: give `tasks`, `validation`, `speed` or `samples`"
    ):
        EvaluationSettings()


def test_a_model_whose_configuration_was_changed_is_another(tmp_path: Path) -> None:
    shaken(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)).save_pretrained(tmp_path / "model")
    shards = tiny_data.write_shards(tmp_path / "shards")

    def loss(output: Path | None) -> float:
        found = evaluate([tmp_path / "model"], EvaluationSettings(validation=shards, window=32), output)
        assert found.validation is not None
        return found.validation.scores[0].value

    before = loss(tmp_path / "evaluation")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "scale_attn_by_inverse_layer_idx": False}))
    assert loss(tmp_path / "evaluation") == loss(None) != before
    path.write_text(json.dumps({**config, "transformers_version": "4.0"}))
    assert loss(tmp_path / "evaluation") == before
