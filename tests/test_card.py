"""Model cards of what was not made by a run, and results in the formats of the hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from huggingface_hub import ModelCard
from huggingface_hub import parse_eval_result_entries as parse_entries
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tiny_data
from inheritune import inherit
from inheritune.analysis.kept import Kept
from inheritune.card import _reproduce, benchmark_results, cut_card, escaped, run_card, train_card
from inheritune.cli.inherit import inherit_command
from inheritune.config import Pretrained, Recipe, Schedule, Training, TrainRecipe, merge
from inheritune.cut import Measuring
from inheritune.data.shards import read_manifest
from inheritune.evaluation.result import Evaluation, MetricResult, Score, TaskResult
from inheritune.recipe_file import parse_any, parse_recipe
from inheritune.run_directory import Answers, ReferenceFigures, RoundFigures, Summary
from inheritune.runtime import files
from inheritune.single_model import train_model
from small_tokenizers import byte_level
from tiny_models import shaken, tiny_model
from tiny_recipes import training


def task(name: str, note: str | None = None) -> TaskResult:
    scores = [Score(value=0.31, standard_error=None), Score(value=0.254321, standard_error=None)]
    metric = MetricResult(metric="acc", higher_is_better=True, scores=scores, paired=[None, None])
    return TaskResult(
        task=name, metric="acc", items=9, shots=5, version="1", data="x", note=note, metrics=[metric]
    )


def test_only_benchmarks_of_the_hub_that_were_asked_in_full_are_results_there() -> None:
    tasks = [task("gsm8k"), task("arc_easy"), task("gpqa_diamond_zeroshot", "other items")]
    found = benchmark_results(Evaluation(models=[], tasks=tasks))
    assert list(found) == ["gsm8k.yaml"]
    (entry,) = parse_entries(yaml.safe_load(found["gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 0.2543)
    assert entry.notes is not None and "5 shots" in entry.notes
    assert benchmark_results(Evaluation(models=[], tasks=tasks, settings={"limit": 10})) == {}


def test_the_card_of_a_run_has_its_tasks_and_data_sets(tmp_path: Path) -> None:
    data = tiny_data.write_shards(tmp_path / "data")
    manifest = read_manifest(data).model_copy(update={"datasets": ["some-lab/text"]})
    files.write_text(data / "manifest.json", manifest.model_dump_json())
    values: dict[str, Any] = {"data": {"path": str(data)}, "reference": {"pretrained": "some-lab/large"}}
    figures = RoundFigures(
        round=1,
        layers=2,
        parameters=9,
        loss=3.0,
        difference=-0.5,
        standard_error=0.1,
        interval=(-0.7, -0.3),
        parity=True,
        training_flops=1.0,
        total_training_flops=1.0,
        steps=5,
        seconds=1.0,
        directory="round-1-2-layers",
        kept=[0, 3],
    )
    reference = ReferenceFigures(layers=4, parameters=18, loss=3.5, windows=7, bytes_per_token=4.0)
    summary = Summary(name="small", verdict="parity", reference=reference, rounds=[figures], tasks="holds")
    text = run_card(
        parse_recipe(values, Recipe), summary, "float32", Evaluation(models=[], tasks=[task("a|b")])
    )
    card = ModelCard(text)
    assert card.data.datasets == ["some-lab/text"]
    results = [(one.dataset_type, one.metric_type, one.metric_value) for one in card.data.eval_results]
    assert results == [
        ("some-lab/text", "loss", 3.0),
        ("some-lab/text", "bits_per_byte", 1.082),
        ("a|b", "acc", 0.2543),
    ]
    assert r"| a\|b (acc, 5 shots) | 0.3100 | 0.2543 |" in card.text
    assert summary.answers == Answers(own="holds", control="not asked", tasks="holds", texts="not asked")
    assert "Layers 0, 3 of 4 layers" in card.text and "Tasks: holds." in card.text


@pytest.mark.parametrize(
    "card",
    [
        "no front matter",
        "---\nlicense: [1]\nlanguage: no\n---\n",
        "---\n: : :\n---\n",
        b"\xff\xfe",
        "---\n- a\n---\n",
    ],
)
def test_a_card_that_says_nothing_is_done_without(tmp_path: Path, card: str | bytes) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    (tmp_path / "large/README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    inherit(tmp_path / "large", 2, output=tmp_path / "small")
    own = ModelCard.load(tmp_path / "small/README.md")
    assert not {"license", "language", "base_model"} & own.data.to_dict().keys()
    assert "inheritune inherit large --keep 0,1 -o small" in own.text


def test_what_a_single_training_leaves_has_a_card(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    values = {
        "name": "one",
        "data": {"path": str(tiny_data.write_shards(tmp_path / "data")), "window": 32},
        "model": {"pretrained": str(tmp_path / "large")},
        "training": training(steps=2, schedule={"warmup_steps": 0}),
    }
    losses = train_model(parse_recipe(values, TrainRecipe), tmp_path / "run")
    card = ModelCard.load(tmp_path / "run/model/README.md")
    assert card.data.eval_results[0].metric_value == round(losses.mean, 4)
    assert "Trained from large for 2 steps" in card.text and "inheritune train recipe.yaml" in card.text


LARGE: dict[str, Any] = {"pretrained": "some-lab/large"}
LONG: dict[str, Any] = {"architecture": {"model_type": "gpt2"}, "training": {"steps": 100_000}}


@pytest.mark.parametrize("steps", [5_000, Training().steps])
@pytest.mark.parametrize("warmup", [100, Schedule().warmup_steps])
@pytest.mark.parametrize(
    "more",
    [
        {"reference": LARGE, "keep": "first"},
        {"reference": LARGE, "search": "frugal"},
        {"reference": LARGE, "search": "frugal", "grow": {"mode": "reinherit"}},
        {"reference": LONG, "training": {"optimizer": {"name": "muon"}, "schedule": {"kind": "cosine"}}},
        {"reference": {**LONG, "training": Training().model_dump(mode="json")}},
        {"reference": LONG, "search": "frugal", "training": {"schedule": {"decay_fraction": 0.2}}},
        {"model": LARGE, "initialization": {"layers": [0, 2]}, "distillation": {}},
    ],
)
def test_the_recipe_of_a_card_is_the_recipe(steps: int, warmup: int, more: dict[str, Any]) -> None:
    shared: dict[str, Any] = {
        "data": {"path": "data/mine"},
        "training": {"steps": steps, "schedule": {"warmup_steps": warmup}},
    }
    recipe = parse_any(merge(shared, more))
    assert isinstance(recipe, Recipe | TrainRecipe)
    again = parse_any(yaml.safe_load(recipe_on_card(recipe)))
    assert again == recipe


def test_a_card_names_folders_without_their_places() -> None:
    values = {
        "data": {"path": "/home/me/text"},
        "reference": {"pretrained": "/home/me/large"},
        "parity": {"also": {"code": "/home/me/code", "there": "../there"}},
        "evaluation": {"tasks": ["/home/me/own.yaml", "arc_easy"], "prompts": ["/home/me says"]},
        "samples": {"prompts": ["/usr/bin/env is"]},
    }
    found = yaml.safe_load(recipe_on_card(parse_recipe(values, Recipe)))
    assert (found["data"]["path"], found["reference"]["pretrained"]) == ("text", "large")
    assert found["parity"]["also"] == {"code": "code", "there": "../there"}
    assert found["evaluation"] == {"tasks": ["own.yaml", "arc_easy"], "prompts": ["/home/me says"]}
    assert found["samples"]["prompts"] == ["/usr/bin/env is"]


def recipe_on_card(recipe: Recipe | TrainRecipe) -> str:
    return re.findall(r"```yaml\n(.*?)```", _reproduce(["run"], recipe), re.DOTALL)[0]


def test_text_of_others_shows_as_it_is() -> None:
    assert escaped("a *b* <c> [d](e) | `f` #g & \\") == (r"a \*b\* &lt;c&gt; \[d\](e) \| \`f\` \#g &amp; \\")


def test_a_cut_is_made_again_from_the_same_revision() -> None:
    kept = Kept(layers=(0, 1), of_layers=4, keep="first")
    source = Pretrained("org/model", revision="step1000", trust_remote_code=True)
    options = "--keep 0,1 --revision step1000 --trust-remote-code -o small"
    card = cut_card("org/model", source, kept, None, Measuring())
    assert f"inheritune inherit org/model {options}" in card


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_the_command_on_a_card_makes_the_same_model(
    tmp_path: Path, text: bool, in_memory: bool, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_level()
    shaken(tiny_model("llama", vocab_size=len(tokenizer))).to(torch.bfloat16).save_pretrained("large")
    if text:
        tokenizer.save_pretrained("large")
        Path("DATA").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(9000)), "utf-8")
    else:
        tiny_data.write_shards(Path("DATA"))
    large: Any = "large"
    if in_memory:
        large = AutoModelForCausalLM.from_pretrained("large", dtype=torch.float32)
    # Its dimensions are the ones that the windows of this seed choose.
    inherit(large, 2, mlp=20, data="DATA", seed=3, dtype="float32", output="small")
    command = re.search(
        r"^inheritune inherit (.*)$", Path("small/README.md").read_text("utf-8"), re.MULTILINE
    )
    assert command is not None and "--seed 3" in command[1] and "--dtype float32" in command[1]
    assert ("--text TEXT" in command[1]) == text
    app = typer.Typer()
    app.command()(inherit_command)
    words = shlex.split(command[1].replace("--text TEXT", "--text DATA").replace("-o small", "-o again"))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.exception
    made = [load_file(f"{name}/model.safetensors") for name in ("small", "again")]
    assert made[0].keys() == made[1].keys()
    for name, value in made[0].items():
        assert value.dtype == torch.float32 and torch.equal(value, made[1][name]), name


@pytest.mark.parametrize(
    ("initialization", "said"),
    [
        ({"layers": "first 2"}, "large (of it: layers first 2) for"),
        ({"layers": [0, 2], "stack_to": 4}, "large (of it: layers 0, 2; stack to 4) for"),
        ({"layers": "measured 2", "mlp": 20}, "large (of it: layers 1, 3; mlp 20) for"),
        ({"parts": "attention+head"}, "large (of it: parts attention, head) for"),
        (None, "large for"),
    ],
)
def test_the_card_of_a_training_says_what_it_began_with(initialization: Any, said: str) -> None:
    values = {"data": {"path": "d"}, "model": {"pretrained": "large"}, "initialization": initialization}
    measured = initialization is not None and "measured 2" in initialization.values()
    kept = Kept(keep="measured", layers=[1, 3], of_layers=4) if measured else None
    assert f"Trained from {said}" in train_card(parse_recipe(values, TrainRecipe), 3.0, 9, kept)
