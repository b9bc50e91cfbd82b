"""The Python API: what is given as objects counts like what is given as files, and results show themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import inheritune
import tiny_data
from inheritune import Recipe, UserError
from inheritune.config import Training, TrainRecipe
from inheritune.evaluation.subjects import weights_hash
from inheritune.recipe_file import load_recipe, parse_recipe
from inheritune.run_directory import RoundFigures
from inheritune.runtime import progress
from inheritune.runtime.hardware import choose_hardware
from inheritune.runtime.signals import Interrupted
from inheritune.runtime.world import World
from inheritune.training.callbacks import Callbacks
from inheritune.training.checkpoint import TrainState
from inheritune.training.metrics import Metrics
from inheritune.training.validation import WindowLosses
from tiny_checkpoints import write_checkpoint, write_tokenizer
from tiny_models import VOCABULARY, tiny_model
from tiny_recipes import ARCHITECTURE, training, values


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "large")


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    """The same in memory, in training mode, and without knowing where it is from."""
    loaded = tiny_model("llama").train()
    loaded.name_or_path = ""
    return loaded


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def documents(count: int = 60) -> list[str]:
    tokens = tiny_data.markov_tokens(40 * count, VOCABULARY - 1, seed=5).reshape(count, 40)
    return [" ".join(f"w{token}" for token in row) for row in tokens]


def run_values(data: Path, **changes: Any) -> dict[str, Any]:
    """Values of a recipe that names no reference."""
    found = values(data, grow={"max_rounds": 1}, start_layers=2, **changes)
    del found["reference"]
    return found


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_shown(result: Any, *, drawn: bool = True) -> None:
    """A result has a table in all three renderings, a figure, and a part of a page for notebooks."""
    table = result.table()
    assert table.rows and "|" in str(table) and table.terminal().row_count == len(table.rows)
    assert "<table" in table._repr_html_() and "<table" in result._repr_html_()
    assert "<html" not in result._repr_html_()
    if not drawn:
        with pytest.raises(UserError, match="there is nothing to draw"):
            result.plot()
        return
    figure = result.plot()
    assert isinstance(figure, Figure)
    assert figure._repr_svg_().startswith("<?xml") and "data:image/svg+xml" in result._repr_html_()


# The package -------------------------------------------------------------------------------------------------------


def test_the_package_waits_for_no_library() -> None:
    code = (
        "import sys, inheritune\n"
        "assert set(inheritune.__all__) <= set(dir(inheritune))\n"
        "print({'torch', 'transformers', 'matplotlib', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_no_module_takes_the_place_of_a_function() -> None:
    """An import of `inheritune.plan` would put that module where `plan` is."""
    modules = {path.stem for path in Path(inheritune.__file__).parent.iterdir()}
    names = set(inheritune.__all__) - {"__version__"}
    assert not names & modules
    assert all(callable(getattr(inheritune, name)) for name in names)


# Text and tokenizers -----------------------------------------------------------------------------------------------


def test_a_data_set_gives_the_shards_of_the_same_documents(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = documents()
    rows = Dataset.from_dict({"number": list(range(len(texts))), "text": texts})
    made = inheritune.prepare(rows, output=tmp_path / "rows", tokenizer=tokenizer, validation=0.2)
    named = inheritune.prepare([texts], tmp_path / "list", tokenizer=folder, validation=0.2)
    assert made.splits == named.splits and made.source == ["the data set"]
    assert made.tokenizer.sha256 == named.tokenizer.sha256
    stream = rows.to_iterable_dataset()
    streamed = inheritune.prepare(stream, tmp_path / "stream", tokenizer=tokenizer, validation=0.2)
    assert streamed.splits == made.splits

    tokenizer("w1 w2", truncation=True, max_length=1)  # how it was last called is no part of it
    assert inheritune.prepare(rows, tmp_path / "rows", tokenizer=tokenizer, validation=0.2) == made
    with pytest.raises(UserError, match="was made of other documents in memory: give another directory"):
        inheritune.prepare(rows.select([1, 2]), tmp_path / "rows", tokenizer=tokenizer, validation=0.2)
    with pytest.raises(UserError, match="was made of other documents in memory"):
        inheritune.prepare([texts[1:]], tmp_path / "list", tokenizer=folder, validation=0.2)
    other = write_tokenizer(tmp_path / "other", VOCABULARY + 1)
    with pytest.raises(UserError, match="was started with tokenizer = "):
        inheritune.prepare(rows, tmp_path / "rows", tokenizer=other, validation=0.2)


def test_data_sets_and_tokenizers_that_are_none(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = Dataset.from_dict({"content": documents(4), "id": [1, 2, 3, 4]})
    for wrong, sentence in (
        (rows, "there is no field 'text' in the data set: it has 'content', 'id'"),
        (DatasetDict(train=rows, test=rows), "the data set has several splits, 'train', 'test': give one"),
        (rows.rename_column("id", "text"), "in row 1 of the data set is not text but int"),
    ):
        with pytest.raises(UserError, match=sentence):
            inheritune.prepare(wrong, tmp_path / "out", tokenizer=tokenizer)
        assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(UserError, match="a int is no source of text: give files"):
        inheritune.prepare(3, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(UserError, match="a int is not a tokenizer of transformers"):
        inheritune.prepare([documents()], tmp_path / "out", tokenizer=300)  # type: ignore[arg-type]


# Models ------------------------------------------------------------------------------------------------------------


def test_a_model_in_memory_is_measured_as_its_folder_is(
    tmp_path: Path, folder: Path, model: PreTrainedModel, data: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = weights_hash(model)
    live, named = (inheritune.importance(one, data, layers=2) for one in (model, folder))
    assert (live.blocks, live.curve) == (named.blocks, named.curve)
    assert model.training and weights_hash(model) == before
    check_shown(live)
    assert live.keep(2) == [*live.keep(2)] and len(live.keep(3)) == 3
    with pytest.raises(UserError, match="no choice of 1 layers was searched for: there are those of 2 to"):
        live.keep(1)

    texts = documents()
    rows = Dataset.from_dict({"text": texts})
    of_rows = inheritune.importance(model, rows, layers=3, tokenizer=tokenizer)
    assert of_rows.measured.data == "the data set"
    assert of_rows == inheritune.importance(model, rows, layers=3, tokenizer=tokenizer)
    seen: list[int] = []
    inheritune.importance(model, data, layers=3, on_blocks=lambda blocks: seen.append(len(blocks)))
    assert seen == [4]
    with pytest.raises(
        UserError, match="the model comes without a tokenizer to read the data set with: give one"
    ):
        inheritune.importance(model, rows)


def test_attention_of_a_model_in_memory(folder: Path, model: PreTrainedModel, data: Path) -> None:
    live, named = (inheritune.analyze(one, data, sequences=2) for one in (model, folder))
    assert (live.ranks, live.masses) == (named.ranks, named.masses)
    check_shown(live)


def test_a_cut_of_a_model_in_memory_is_that_of_its_folder(
    tmp_path: Path, folder: Path, model: PreTrainedModel, data: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = Dataset.from_dict({"text": documents()})
    live = inheritune.inherit(model, 2, data=rows, tokenizer=tokenizer, output=tmp_path / "live")
    named = inheritune.inherit(folder, 2, data=rows, output=tmp_path / "named")
    assert same(weights(tmp_path / "live"), weights(tmp_path / "named"))
    assert (
        weights_hash(live)
        == weights_hash(named)
        == weights_hash(inheritune.inherit(model, 2, data=rows, tokenizer=tokenizer))
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "live").get_vocab() == tokenizer.get_vocab()
    assert "a llama model in memory" in (tmp_path / "live" / "README.md").read_text()
    with pytest.raises(UserError, match="prepare the data set, and give the shards"):
        inheritune.inherit(model, data=rows, tokenizer=tokenizer, vocabulary=50, output=tmp_path / "none")

    grown = inheritune.append(named, model, range(3), [0, 1])
    assert grown.config.num_hidden_layers == 3


def test_dropout_of_a_model_that_is_trained_is_left_out(data: Path) -> None:
    """Notebooks hold models in training mode."""
    dropout = tiny_model("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    found = []
    for mode in (False, True):
        dropout.train(mode)
        cut = inheritune.inherit(dropout, 3, hidden=16, heads=2, data=data)
        found.append(
            (weights_hash(cut), inheritune.importance(dropout, data), inheritune.analyze(dropout, data))
        )
        assert dropout.training == mode
    assert found[0] == found[1]


def test_answers_of_a_model_in_memory_are_those_of_its_folder(
    tmp_path: Path, folder: Path, model: PreTrainedModel, data: Path
) -> None:
    records = [
        inheritune.answers(one, data, tmp_path / name, window=32, tokens=640, draws=5, precision="fp32")
        for name, one in (("live", model), ("named", folder))
    ]
    assert [file.sha256 for file in records[0].files] == [file.sha256 for file in records[1].files]
    assert model.training


def encoder() -> PreTrainedModel:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", vocab_size=97, **sizes))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (encoder, "a BertForMaskedLM is not a causal language model: its tokens see those that follow"),
        (lambda: AutoModel.from_config(tiny_model("llama").config), "a LlamaModel has no head that predicts"),
        (lambda: nn.Linear(2, 2), "a Linear is not a model that is understood|is a Linear, but should be"),
    ],
)
def test_models_that_cannot_be_cut(make: Any, sentence: str, data: Path, tmp_path: Path) -> None:
    wrong = make()
    for call in (
        lambda: inheritune.inherit(wrong, 1),
        lambda: inheritune.importance(wrong, data),
        lambda: inheritune.analyze(wrong, data),
        lambda: inheritune.evaluate([wrong], validation=data),
        lambda: inheritune.run(run_values(data), tmp_path / "run", reference=wrong),
    ):
        with pytest.raises(UserError, match=sentence):
            call()
    assert list(tmp_path.iterdir()) == []


# Runs and trainings ------------------------------------------------------------------------------------------------


def test_a_run_of_a_model_in_memory(
    tmp_path: Path, folder: Path, model: PreTrainedModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = inheritune.run(run_values(data), tmp_path / "live", reference=model)
    named = inheritune.run({**run_values(data), "reference": {"pretrained": str(folder)}}, tmp_path / "named")
    assert live.verdict == named.verdict and live.summary.rounds[0].loss == named.summary.rounds[0].loss
    assert same(weights(tmp_path / "live/final"), weights(tmp_path / "named/final"))
    assert live.load().config.num_hidden_layers == 2
    check_shown(live)
    assert "rule on its own data: holds" in live._repr_html_()

    # It is resumed like any run, by this model or by its recipe alone, and by no other model.
    assert inheritune.run(run_values(data), tmp_path / "live", reference=model) == live
    assert inheritune.run(tmp_path / "live/recipe.yaml", tmp_path / "live").summary == live.summary
    monkeypatch.chdir(tmp_path / "live")
    assert inheritune.run(run_values(data), "../live", reference=model).summary == live.summary
    with pytest.raises(UserError, match="is not the reference that is given, but another model"):
        inheritune.run(run_values(data), tmp_path / "live", reference=tiny_model("llama", seed=1))

    compared = inheritune.compare({"one": live, "two": named}, output=tmp_path / "comparison")
    check_shown(compared)
    assert (tmp_path / "comparison/comparison.html").exists()
    assert inheritune.compare([live, named]).notes == compared.notes


def test_a_model_that_is_given_is_not_left_behind_by_a_mistake(
    tmp_path: Path, model: PreTrainedModel, data: Path
) -> None:
    with pytest.raises(UserError, match="there is no directory"):
        inheritune.run(run_values(tmp_path / "void"), tmp_path / "run", reference=model)
    with pytest.raises(UserError, match="the recipe names a reference, and another one is given"):
        inheritune.run(values(data), tmp_path / "run", reference=model)
    with pytest.raises(UserError, match="a Recipe names its reference already"):
        inheritune.run(parse_recipe(values(data), Recipe), tmp_path / "run", reference=model)
    assert list(tmp_path.iterdir()) == []


def test_recipes_as_values_files_and_objects(tmp_path: Path, data: Path) -> None:
    recipe = {"name": "one", "data": values(data)["data"], "training": training()}
    recipe["model"] = {"architecture": ARCHITECTURE}
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(recipe))
    given = [recipe, file, str(file), load_recipe(file, TrainRecipe)]
    results = [inheritune.train(one, tmp_path / f"run-{i}") for i, one in enumerate(given)]
    assert len({result.loss for result in results}) == 1
    check_shown(results[0])
    assert results[0].load().config.n_layer == 4
    planned = [inheritune.plan(one, flops_per_second=1e9) for one in given]
    assert planned[0].rows == planned[3].rows and planned[0].seconds == planned[0].flops / 1e9
    check_shown(planned[1], drawn=False)

    for wrong, sentence in (
        ({**recipe, "modle": 1}, "the recipe: unknown key `modle`; did you mean `model`?"),
        ([], "the recipe is not a recipe: it must be a mapping"),
        (parse_recipe(values(data), Recipe), "a Recipe is given, but this takes a TrainRecipe"),
        (
            {**recipe, "training": {"steps": 0}},
            "the recipe: `training.steps` is 0, but should be greater than 0",
        ),
    ):
        with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
            inheritune.train(wrong, tmp_path / "wrong")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="processes is 0, but must be at least 1"):
        inheritune.plan(recipe, processes=0)
    with pytest.raises(UserError, match=r"there is no recipe 'no\.yaml'"):
        inheritune.train("no.yaml")
    with pytest.raises(UserError, match="the output folder should be a path, but is of type int"):
        inheritune.train(recipe, 5)  # type: ignore[arg-type]
    for runs, sentence in (
        (5, "the runs should be directories, but are of type int"),
        ([5], "the run should be a path, but is of type int"),
        ({"a": tiny_model("gpt2")}, "the run should be a path, but is of type GPT2LMHeadModel"),
    ):
        with pytest.raises(UserError, match=sentence):
            inheritune.compare(runs)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the model should be a path, but is of type GPT2LMHeadModel"):
        inheritune.push(tiny_model("gpt2"), "me/it", dry_run=True)  # type: ignore[arg-type]
    assert not (tmp_path / "wrong").exists()


def test_a_training_starts_from_a_model_in_memory(
    tmp_path: Path, folder: Path, model: PreTrainedModel, data: Path
) -> None:
    recipe = {"data": values(data)["data"], "training": training(), "initialization": {"layers": [0, 3]}}
    before = weights_hash(model)
    live = inheritune.train(recipe, tmp_path / "live", model=model)
    named = inheritune.train({**recipe, "model": {"pretrained": str(folder)}}, tmp_path / "named")
    assert same(weights(tmp_path / "live/model"), weights(tmp_path / "named/model"))
    assert live.loss == named.loss and weights_hash(model) == before


# Callbacks ---------------------------------------------------------------------------------------------------------


def test_callbacks_see_everything_and_change_nothing(tmp_path: Path, data: Path) -> None:
    dropout = {**ARCHITECTURE, "resid_pdrop": 0.1}
    recipe = values(data, reference={"architecture": dropout}, grow={"max_rounds": 1})
    steps: list[tuple[str, int]] = []
    validations: list[tuple[int, float]] = []
    rounds: list[RoundFigures] = []

    def on_step(step: int, figures: Any) -> None:
        torch.rand(1000)  # whoever draws random numbers does not disturb the training
        torch.manual_seed(step)
        steps.append((figures["training"], step))

    told = inheritune.run(
        recipe,
        tmp_path / "told",
        on_step=on_step,
        on_validation=lambda step, figures: validations.append((step, figures["loss"])),
        on_round=rounds.append,
    )
    alone = inheritune.run(recipe, tmp_path / "alone")
    for place in ("final", "reference/model"):
        assert same(weights(tmp_path / "told" / place), weights(tmp_path / "alone" / place))
    assert rounds == told.summary.rounds and rounds[0].loss == alone.summary.rounds[0].loss
    assert steps == [(name, step) for name in ("reference", "round-1-2-layers") for step in range(2, 13, 2)]
    assert validations[-1] == (12, pytest.approx(rounds[0].loss))


def test_what_a_callback_raises_stops_the_run_and_keeps_its_checkpoint(tmp_path: Path, data: Path) -> None:
    recipe = {"data": values(data)["data"], "training": training(), "model": {"architecture": ARCHITECTURE}}

    def fail(step: int, figures: Any) -> None:
        if step == 8:
            raise ZeroDivisionError("mine")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError, match="mine"):
        inheritune.train(recipe, tmp_path / "stopped", on_step=fail)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    resumed: list[int] = []
    inheritune.train(recipe, tmp_path / "stopped", on_step=lambda step, figures: resumed.append(step))
    inheritune.train(recipe, tmp_path / "whole")
    assert resumed[0] == 8, "it began after the checkpoint of step 6"
    assert same(weights(tmp_path / "stopped/model"), weights(tmp_path / "whole/model"))
    with pytest.raises(UserError, match="on_step is 3, but should be a function"):
        inheritune.train(recipe, tmp_path / "wrong", on_step=3)  # type: ignore[arg-type]
    assert not (tmp_path / "wrong").exists()


def test_callbacks_are_called_on_rank_0_only(tmp_path: Path) -> None:
    settings = Training(tensorboard=False)
    losses, told = WindowLosses(np.array([1.0, 2.0]), 8), []
    for rank in (0, 1):
        hardware = replace(choose_hardware(settings), world=World(rank, 2, rank, 2))
        callbacks = Callbacks(
            on_validation=lambda step, figures, rank=rank: told.append((rank, step, figures["loss"]))
        )
        Metrics(tmp_path, settings, hardware, 1.0, TrainState(step=7), callbacks).validated(
            TrainState(step=7), losses
        )
    assert told == [(0, 7, 1.5)]


def test_an_interrupted_cell_leaves_a_checkpoint_and_runs_again(tmp_path: Path, data: Path) -> None:
    recipe = {"data": values(data)["data"], "training": training(), "model": {"architecture": ARCHITECTURE}}

    def interrupt(step: int, figures: Any) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after step"):
        inheritune.train(recipe, tmp_path / "cell", on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    inheritune.train(recipe, tmp_path / "cell")
    inheritune.train(recipe, tmp_path / "whole")
    assert same(weights(tmp_path / "cell/model"), weights(tmp_path / "whole/model"))


# Evaluation --------------------------------------------------------------------------------------------------------


def test_models_in_memory_are_evaluated_as_their_folders_are(
    tmp_path: Path, folder: Path, model: PreTrainedModel, data: Path
) -> None:
    small = inheritune.inherit(model, 2)
    small.save_pretrained(tmp_path / "small")
    asked: dict[str, Any] = {"validation": data, "window": 32, "device": "cpu"}
    live = inheritune.evaluate({"large": model, "small": small}, **asked)
    named = inheritune.evaluate([folder, tmp_path / "small"], tmp_path / "out", **asked)
    assert live.validation == named.validation
    assert [one.weights for one in live.models] == [one.weights for one in named.models]
    assert model.training and not small.training
    assert (tmp_path / "out/evaluation.json").exists()
    check_shown(live)
    check_shown(inheritune.evaluate(model, **asked), drawn=False)  # nothing is compared

    for wrong, sentence in (
        ({"valdation": data}, "evaluation: unknown key `valdation`; did you mean `validation`"),
        ({}, "evaluation: it asks for nothing"),
        ({"samples": True}, "comes without a tokenizer: give one"),
    ):
        with pytest.raises(UserError, match=sentence):
            inheritune.evaluate(model, **wrong)
    with pytest.raises(
        UserError, match="two models are called llama: name them, as in A=PATH B=PATH, or as the keys"
    ):
        inheritune.evaluate([model, small], **asked)


# Notebooks ---------------------------------------------------------------------------------------------------------


def test_progress_in_a_notebook_is_one_line_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not progress.in_notebook()
    fake = ModuleType("IPython")
    fake.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr(progress, "SECONDS_IN_NOTEBOOK", 0.0)
    with progress.ProgressBar("training", 100, "steps") as bar:
        bar.update(50, "loss 3.25")
        bar.update(100)
    progress.say("a sentence")
    out, err = capsys.readouterr()
    assert err == ""
    first, *lines, last = out.split("\r")[1:]
    assert first.startswith("training: 50/100 steps") and "loss 3.25" in first
    assert last.startswith("training: done") and last.endswith("\na sentence\n")
    assert len({len(line) for line in (first, *lines)}) == 1 or len(lines[-1]) >= len(first)


def test_an_escaped_page_in_a_notebook(tmp_path: Path, model: PreTrainedModel, data: Path) -> None:
    model.name_or_path = ""
    analysis = inheritune.importance(model, data, layers=3).model_copy(
        update={"sentence": "<script>alert(1)</script>"}
    )
    assert "<script>" not in analysis._repr_html_() and "&lt;script&gt;" in analysis._repr_html_()
