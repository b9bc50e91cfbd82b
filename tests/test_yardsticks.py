"""What a verdict rests on beside the recipe's own data: other text, the fair control, and which questions hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny_data
from inheritune import UserError, plain_yaml
from inheritune.algorithm import answer_tasks, run
from inheritune.config import Grow, Recipe, TrainRecipe
from inheritune.data.prepare import prepare
from inheritune.evaluation.result import Cell, GroupResult, save_evaluation
from inheritune.models.load import load_model
from inheritune.planning import plan
from inheritune.recipe_file import differences, parse_recipe, to_yaml
from inheritune.report import verdict_words, write_report
from inheritune.run_directory import RunDirectory, Summary
from inheritune.runtime import files
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.training.validation import WindowLosses
from report.synthetic_evaluation import evaluation, metric, task
from tiny_models import tiny_model
from tiny_recipes import recipe, stop_after, training, values


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of which every token is the one before it plus one."""
    return counting(tmp_path_factory.mktemp("other"))


def counting(directory: Path, tokens: int = 1_000) -> Path:
    tiny_data.write_shards(directory, validation=tokens)
    path = directory / "validation-00000.bin"
    path.write_bytes((np.arange(tokens) % 97).astype("<u2").tobytes())
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["splits"]["validation"]["files"][0]["sha256"] = files.sha256(path)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def with_text(data: Path, other: Path, margin: float, **changes: Any) -> Recipe:
    parity = {"margin": margin, "also": {"counting": str(other)}}
    return recipe(data, start_layers=1, grow={"layers": 1}, parity=parity, **changes)


@pytest.fixture(scope="module")
def measured(data: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A run with other text in whose every round parity fails: rounds of 1, 2 and 3 layers."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    return directory, run(with_text(data, other, -100.0), directory)


def test_every_model_is_measured_on_every_text(measured: tuple[Path, Summary], other: Path) -> None:
    directory, summary = measured
    assert summary.reference is not None
    tokens = torch.from_numpy((np.arange(1_000) % 97).astype(np.int64))[:993].unfold(0, 33, 32)
    places = {"reference": summary.reference.also["counting"]}
    places |= {entry.directory: entry.also["counting"].loss for entry in summary.rounds}
    assert len(places) == 4
    for place, told in places.items():
        losses = WindowLosses.load(directory / place / "validation-counting.json")
        model = load_model(directory / place / "model")
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits
        expected = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").mean(1)
        assert losses.losses == pytest.approx(expected.numpy(), rel=1e-5)
        assert losses.mean == told
    reference = WindowLosses.load(directory / "reference/validation-counting.json")
    for entry in summary.rounds:
        own = WindowLosses.load(directory / entry.directory / "validation-counting.json")
        found = entry.also["counting"]
        assert found.difference == pytest.approx((own.losses - reference.losses).mean())
        assert found.interval[0] < found.difference < found.interval[1]
        assert not found.parity


def test_growth_ends_only_when_parity_holds_on_every_text(
    measured: tuple[Path, Summary], data: Path, other: Path, tmp_path: Path
) -> None:
    """Between the two differences of the first round lies a margin with which one of them holds alone."""
    first = measured[1].rounds[0]
    differences_ = first.difference, first.also["counting"].difference
    assert differences_[0] < differences_[1], "otherwise the other text decides nothing here"
    margin = sum(differences_) / 2
    both = run(with_text(data, other, margin), tmp_path / "both")
    assert both.rounds[0].parity and both.rounds[0].worse_on == ["counting"]
    assert len(both.rounds) > 1 or both.verdict == "no parity"
    assert all(not entry.as_good for entry in both.rounds[:-1])
    assert both.rounds[-1].as_good == (both.verdict == "parity")

    once = Grow(layers=1, max_rounds=1)
    ended = run(with_text(data, other, margin).model_copy(update={"grow": once}), tmp_path / "end")
    assert ended.verdict == "no parity"
    assert ended.answers is not None
    assert (ended.answers.own, ended.answers.texts) == ("holds", "does not hold")
    sentence, answers = verdict_words(ended)
    assert "on its own data after round 1, but not on counting" in sentence
    assert "Other text: does not hold (counting +" in answers


def test_a_round_does_not_stop_before_every_text_holds(
    measured: tuple[Path, Summary], data: Path, other: Path, tmp_path: Path
) -> None:
    settings = training(validation={"every": 4, "windows": 20})
    for name, margin, steps in (("all", 100.0, 4), ("none", -100.0, 12)):
        parity = {"margin": margin, "stop_at_parity": True, "also": {"counting": str(other)}}
        once = {"max_rounds": 1}
        found = run(recipe(data, training=settings, grow=once, parity=parity), tmp_path / name)
        assert found.rounds[0].steps == steps
    first = measured[1].rounds[0]
    between = (first.difference + first.also["counting"].difference) / 2
    parity = {"margin": between, "stop_at_parity": True, "also": {"counting": str(other)}}
    late = run(
        recipe(data, training=settings, start_layers=1, grow={"max_rounds": 1}, parity=parity), tmp_path / "x"
    )
    assert late.rounds[0].steps == 12
    assert late.rounds[0].worse_on


def test_a_run_with_other_text_resumes_where_it_stopped(
    measured: tuple[Path, Summary], data: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, summary = measured
    shutil.copytree(other, tmp_path / "moved")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(with_text(data, other, -100.0), tmp_path / "run")
    again = run(with_text(data, tmp_path / "moved", -100.0), tmp_path / "run")
    assert [entry.also for entry in again.rounds] == [entry.also for entry in summary.rounds]
    for name, value in weights(directory / "final").items():
        assert torch.equal(value, weights(tmp_path / "run/final")[name]), name
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    assert run(with_text(data, other, -100.0), directory) == summary
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match=r"another recipe \(parity.also.counting: given -> None\)"):
        run(recipe(data, start_layers=1, grow={"layers": 1}, parity={"margin": -100.0}), directory)


def test_other_text_at_the_same_place_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = counting(tmp_path / "text")
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    settings = with_text(data, text, -100.0, reference={"pretrained": str(tmp_path / "llama")})
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            run(settings, tmp_path / "run")
    shutil.rmtree(text)
    counting(text, 1_100)
    with pytest.raises(UserError, match=r"validation-counting\.json belong to other data"):
        run(settings, tmp_path / "run")


@pytest.mark.parametrize(
    ("also", "sentence"),
    [
        ({"x": "nowhere"}, "parity.also.x: there is no folder nowhere"),
        ({"x": "SHORT"}, "20 tokens, fewer than one window of 32"),
        ({"x": "LARGE"}, r"token \d+ occurs in .*large, but the embedding of .* has 97 rows"),
        ({"x": "DAMAGED"}, r"validation-00000\.bin is damaged"),
    ],
)
def test_text_that_cannot_be_read_is_refused_before_anything_is_trained(
    also: dict[str, str], sentence: str, data: Path, tmp_path: Path
) -> None:
    tiny_data.write_shards(tmp_path / "short", validation=20)
    tiny_data.write_shards(tmp_path / "large", vocabulary=200)
    damaged = tiny_data.write_shards(tmp_path / "damaged") / "validation-00000.bin"
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    made = {
        name: str(tmp_path / folder.lower()) if folder.isupper() else folder for name, folder in also.items()
    }
    with pytest.raises(UserError, match=sentence):
        run(recipe(data, parity={"also": made}), tmp_path / "run")
    assert not list(tmp_path.glob("run/reference/*"))


def test_text_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    for name, word in (("own", "cat"), ("other", "chien")):
        texts = [f"the {word} saw {other} and {word} again" for other in ("me", "it", "them")]
        prepare([texts * 20], tmp_path / name, train_tokenizer=270, validation=0.2)
    model = tiny_model("llama", vocab_size=270)
    model.save_pretrained(tmp_path / "model")
    for file in (tmp_path / "own/tokenizer").iterdir():
        shutil.copy(file, tmp_path / "model")
    shutil.copytree(tmp_path / "own", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/tokenizer")
    architecture = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16}
    scratch = {"architecture": {**architecture, "num_attention_heads": 2}}
    for reference in ({"pretrained": str(tmp_path / "model")}, scratch):
        settings = values(
            tmp_path / "own", reference=reference, parity={"also": {"x": str(tmp_path / "other")}}
        )
        settings["data"]["window"] = 16
        with pytest.raises(UserError, match=r"the tokens of .*other are not those of .*another tokenizer"):
            run(parse_recipe(settings, Recipe), tmp_path / "run")
    assert not list(tmp_path.glob("run/reference/*"))


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65, "a b", "ü"])
def test_names_of_texts_can_be_names_of_files(data: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=r"parity.also: the name .* of a text should be up to 64 letters"
    ) as caught:
        recipe(data, parity={"also": {name: "data/x"}})
    assert "\n" not in str(caught.value)


def test_new_keys_leave_old_recipes_as_they_are(data: Path) -> None:
    old = recipe(data)
    plain = to_yaml(old)
    assert "  also: {}\n  control: false\n" in plain
    before = parse_recipe(json.loads(old.model_dump_json(exclude={"parity": {"also", "control"}})), Recipe)
    assert differences(before, old) == []
    assert differences(old, recipe(data, parity={"control": True})) == [], "it decides no weights"
    added = recipe(data, parity={"also": {"x": "data/x"}})
    assert differences(old, added) == ["parity.also.x: None -> given"]
    assert differences(added, recipe(data, parity={"also": {"x": "elsewhere"}})) == []
    assert parse_recipe(plain_yaml.parse(to_yaml(added)), Recipe) == added


# The fair control


@pytest.fixture(scope="module")
def controlled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    directory = tmp_path_factory.mktemp("runs") / "run"
    return directory, run(recipe(data, parity={"margin": 0.5, "control": True}), directory)


def test_the_control_is_the_reference_trained_like_any_model(
    controlled: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    """Its weights are those of `inheritune train` with the reference as model."""
    directory, summary = controlled
    same = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(directory / "reference/model")},
        "training": training(),
    }
    losses = train_model(parse_recipe(same, TrainRecipe), tmp_path / "control")
    for name, value in weights(directory / "control/model").items():
        assert torch.equal(value, weights(tmp_path / "control/model")[name]), name
    control, entry = summary.control, summary.reported
    assert control is not None and entry is not None and summary.reference is not None
    small = WindowLosses.load(directory / entry.directory / "validation.json")
    reference = WindowLosses.load(directory / "reference/validation.json")
    assert control.to_control.difference == pytest.approx((small.losses - losses.losses).mean())
    assert control.to_reference.difference == pytest.approx((losses.losses - reference.losses).mean())
    assert control.to_reference.loss == losses.mean < summary.reference.loss  # type: ignore[operator]
    assert control.steps == entry.steps


def test_the_control_decides_nothing_and_costs_nothing(
    controlled: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    directory, summary = controlled
    plain = run(recipe(data, parity={"margin": 0.5}), tmp_path / "run")
    assert plain.rounds == [
        entry.model_copy(update={"seconds": other.seconds})
        for entry, other in zip(summary.rounds, plain.rounds, strict=True)
    ]
    for name, value in weights(directory / "final").items():
        assert torch.equal(value, weights(tmp_path / "run/final")[name]), name
    assert plain.control is None
    assert plain.answers is not None and plain.answers.control == "not asked"
    again = run(recipe(data, parity={"margin": 0.5, "control": True}), tmp_path / "run")
    for part in ("to_control", "to_reference", "steps"):  # it had none, and gets the same
        assert getattr(again.control, part) == getattr(summary.control, part)
    assert again.rounds == plain.rounds
    before = (tmp_path / "run/final/model.safetensors").stat().st_mtime_ns
    assert run(recipe(data, parity={"margin": 0.5}), tmp_path / "run") == again, "and is left alone"
    assert (tmp_path / "run/final/model.safetensors").stat().st_mtime_ns == before


def test_every_place_says_which_questions_hold(controlled: tuple[Path, Summary]) -> None:
    directory, summary = controlled
    assert summary.answers is not None and summary.control is not None
    assert summary.answers.own == "holds"
    assert summary.answers.control == (
        "holds" if summary.control.to_control.difference <= 0.5 else "does not hold"
    )
    words = summary.answers_sentence()
    for part in ("Paper's rule on its own data: holds.", "Tasks: not asked.", "Other text: not asked."):
        assert part in words
    assert f"Fair control: {summary.answers.control} (" in words
    assert words in verdict_words(summary)
    assert words in (directory / "final/README.md").read_text()
    page = write_report(directory).read_text()
    assert "Fair control:" in page and "ctrl." in page
    saved = json.loads((directory / "summary.json").read_text())
    assert saved["answers"] == summary.answers.model_dump()
    assert RunDirectory(directory).read_summary() == summary


def test_a_control_that_was_stopped_ends_with_the_same_weights(
    controlled: tuple[Path, Summary], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(data, parity={"margin": 0.5, "control": True})
    shutil.copytree(controlled[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/control")
    files.write_json(tmp_path / "run/state.json", {"phase": "control", "round": 1, "verdict": "parity"})
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(settings, tmp_path / "run")
    half = RunDirectory(tmp_path / "run").read_summary()
    assert half.answers is not None and half.answers.control == "not known yet"
    assert "Running or interrupted in the control" in write_report(tmp_path / "run").read_text()
    again = run(settings, tmp_path / "run")
    assert again.control is not None and controlled[1].control is not None
    assert again.control.to_control == controlled[1].control.to_control
    for name, value in weights(controlled[0] / "control/model").items():
        assert torch.equal(value, weights(tmp_path / "run/control/model")[name]), name


def test_the_control_gets_no_more_than_the_round(data: Path, tmp_path: Path) -> None:
    settings = training(validation={"every": 4, "windows": 20})
    parity = {"margin": 100.0, "stop_at_parity": True, "control": True}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("inheritune.algorithm.control_figures", lambda *_: 1 / 0)
        run(recipe(data, training=settings, parity=parity), tmp_path / "run")
    other = {**settings, "validation": {"every": 5, "windows": 20}}  # which may be changed in between
    summary = run(recipe(data, training=other, parity=parity), tmp_path / "run")
    assert summary.control is not None
    assert summary.control.steps == summary.rounds[0].steps == 4


def test_a_plan_has_the_control(data: Path) -> None:
    stages = plan(recipe(data, parity={"control": True})).stages
    plain = plan(recipe(data)).stages
    assert [stage.name for stage in stages] == [*(stage.name for stage in plain), "control"]
    assert stages[-1].flops == stages[0].flops, "the tiny reference is trained as a round is"


def test_tasks_hold_if_none_is_worse_beyond_chance() -> None:
    values = {"better": [0.5, 0.6], "alike": [0.5, 0.51], "worse": [0.5, 0.4]}
    tasks = {name: task(name, metric("acc", value)) for name, value in values.items()}
    some = evaluation(tasks=[tasks["better"], tasks["alike"]], groups=[], skipped={})
    assert some.none_worse() is True
    assert evaluation(tasks=list(tasks.values()), groups=[]).none_worse() is False
    assert evaluation(tasks=[], groups=[], skipped={}).none_worse() is None


def test_every_figure_that_is_shown_counts_and_what_was_not_compared_is_named() -> None:
    lambada = task("lambada_openai", metric("acc", (0.5, 0.5)), metric("perplexity", (30.0, 60.0), p=None))
    shown = GroupResult(name="perplexity", columns=[Cell(task="lambada_openai", metric="perplexity")])
    assert evaluation(tasks=[lambada], groups=[shown]).none_worse() is False
    assert evaluation(tasks=[lambada], groups=[], skipped={}).none_worse() is True, "acc is shown, alone"
    average = metric("acc", (0.5, 0.4), p=None)
    assert (
        evaluation(tasks=[], groups=[GroupResult(name="x", columns=[], average=average)]).none_worse()
        is False
    )

    alike, f1 = task("boolq", metric("acc", (0.5, 0.5))), metric("f1", (0.9, 0.05), p=None)
    unpaired = task("squadv2", f1.model_copy(update={"paired": [None, None]}))
    some = evaluation(tasks=[alike, unpaired], groups=[], skipped={"piqa": "no items"})
    assert some.none_worse() is None
    assert some.not_compared() == ["squadv2", "piqa"]
    worse = evaluation(
        tasks=[task("boolq", metric("acc", (0.5, 0.4)))], groups=[], skipped={"piqa": "no items"}
    )
    assert worse.none_worse() is False


def test_an_evaluation_that_could_not_compare_all_is_not_said_to_hold(
    controlled: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    shutil.copytree(controlled[0], tmp_path / "run")
    folder = RunDirectory(tmp_path / "run")
    asked = recipe(data, parity={"margin": 0.5, "control": True}, evaluation={"tasks": ["boolq", "piqa"]})
    alike = task("boolq", metric("acc", (0.5, 0.5)))
    (tmp_path / "run/evaluation").mkdir()
    found = evaluation(tasks=[alike], groups=[], skipped={"piqa": "no items"})
    save_evaluation(tmp_path / "run/evaluation/evaluation.json", found)
    answer_tasks(asked, folder, folder.read_summary())
    summary = folder.read_summary()
    assert summary.answers is not None and summary.answers.tasks == "not known"
    words = "Tasks: not known (piqa could not be compared)."
    assert words in summary.answers_sentence()
    assert words in (tmp_path / "run/final/README.md").read_text()


def test_summaries_of_before_still_open() -> None:
    old = {
        "verdict": "parity",
        "reference": {"layers": 8, "parameters": 10, "loss": 3.0},
        "rounds": [
            {
                "round": 1,
                "layers": 4,
                "parameters": 5,
                "loss": 2.9,
                "difference": -0.1,
                "standard_error": 0.01,
                "interval": [-0.12, -0.08],
                "parity": True,
                "training_flops": 1.0,
                "total_training_flops": 1.0,
                "steps": 3,
                "seconds": 1.0,
                "directory": "round-1-4-layers",
            }
        ],
    }
    summary = Summary.model_validate(old)
    assert summary.answers is not None
    assert summary.answers.model_dump() == {
        "own": "holds",
        "control": "not asked",
        "tasks": "not asked",
        "texts": "not asked",
    }
