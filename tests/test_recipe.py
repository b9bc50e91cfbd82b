"""Algorithm 1 from end to end on tiny models: growth, parity, resuming, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny_data
from inheritune.algorithm import run, start_depth
from inheritune.config import Recipe, TrainRecipe
from inheritune.data.shards import open_split
from inheritune.models.load import load_model
from inheritune.models.size import flops_per_token
from inheritune.recipe_file import parse_recipe
from inheritune.run_directory import RunDirectory, Summary, read_starts
from inheritune.single_model import train_model
from inheritune.training import metrics
from inheritune.training.checks import tell_at_the_cut
from inheritune.training.step import NonFiniteError
from inheritune.training.validation import WindowLosses, t95
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, recipe, training, values

NEVER = {"margin": -100.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A run of a four-layer reference that never reaches parity: rounds of 1, 2 and 3 layers."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    settings = recipe(data, parity=NEVER, start_layers=1, grow={"layers": 1})
    return directory, run(settings, directory)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_rounds_grow_until_only_the_reference_is_deeper(finished: tuple[Path, Summary]) -> None:
    _, summary = finished
    assert [entry.layers for entry in summary.rounds] == [1, 2, 3]
    assert summary.verdict == "no parity"
    assert summary.reference is not None
    assert summary.reference.layers == 4
    parameters = [entry.parameters for entry in summary.rounds]
    block = 12 * 32 * 32 + 2 * 32  # attention and MLP matrices, two norms' weights; biases are frozen
    assert parameters == [97 * 32 + 32 * 32 + n * block + 32 for n in (1, 2, 3)]


def test_figures_are_those_of_the_windows(finished: tuple[Path, Summary]) -> None:
    directory, summary = finished
    reference = WindowLosses.load(directory / "reference/validation.json")
    total = 0.0
    for entry in summary.rounds:
        losses = WindowLosses.load(directory / entry.directory / "validation.json")
        differences = losses.losses - reference.losses
        assert entry.difference == pytest.approx(differences.mean())
        error = differences.std(ddof=1) / math.sqrt(len(differences))
        half = t95(len(differences) - 1) * error
        assert entry.interval == pytest.approx((entry.difference - half, entry.difference + half))
        model = load_model(directory / entry.directory / "model")
        assert entry.training_flops == flops_per_token(model, 32) * 12 * 128
        total += entry.training_flops
        assert entry.total_training_flops == total
        assert summary.reference is not None
        assert entry.cost_to_parity == pytest.approx(total / summary.reference.training_flops)  # type: ignore[operator]


def test_training_teaches_something(finished: tuple[Path, Summary]) -> None:
    directory, _ = finished
    rows = metrics.read(directory / "reference/metrics.jsonl")
    validations = [row for row in rows if row["kind"] == "validation"]
    assert validations[0]["step"] == 0
    assert validations[0]["loss"] == pytest.approx(math.log(97), abs=0.2)
    assert validations[-1]["loss"] < validations[0]["loss"] - 0.1
    final = WindowLosses.load(directory / "reference/validation.json")
    assert (rows[-1]["kind"], rows[-1]["loss"], rows[-1]["windows"]) == (
        "final",
        final.mean,
        len(final.losses),
    )
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_a_round_starts_from_the_references_first_layers(finished: tuple[Path, Summary], data: Path) -> None:
    """Round 1 starts far better than chance, because it starts with what the reference learnt."""
    directory, summary = finished
    rows = metrics.read(directory / summary.rounds[-1].directory / "metrics.jsonl")
    first = next(row for row in rows if row["kind"] == "validation")
    reference = WindowLosses.load(directory / "reference/validation.json").mean
    assert first["step"] == 0
    assert first["loss"] < reference + 0.3


def test_the_result_is_a_standard_checkpoint(finished: tuple[Path, Summary], data: Path) -> None:
    directory, summary = finished
    model = AutoModelForCausalLM.from_pretrained(directory / "final").eval()
    split = open_split(data, "validation")
    window = torch.from_numpy(split.read(0, 33))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(window[None, :-1]).logits[0], window[1:])
    losses = WindowLosses.load(directory / summary.rounds[-1].directory / "validation.json")
    assert loss.item() == pytest.approx(float(losses.losses[0]), rel=1e-5)
    assert "arXiv 2404.08634" in (directory / "final/README.md").read_text()


def test_biases_stay_zero(finished: tuple[Path, Summary]) -> None:
    directory, _ = finished
    biases = {name: value for name, value in weights(directory / "final").items() if name.endswith("bias")}
    assert biases
    assert all(not value.any() for value in biases.values())


def test_a_finished_run_is_left_alone(finished: tuple[Path, Summary], data: Path) -> None:
    directory, summary = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    again = run(recipe(data, parity=NEVER, start_layers=1, grow={"layers": 1}), directory)
    assert again == summary
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before


def test_another_recipe_is_refused_with_the_difference(finished: tuple[Path, Summary], data: Path) -> None:
    directory, _ = finished
    other = recipe(data, parity=NEVER, start_layers=2, grow={"layers": 1})
    with pytest.raises(ValueError, match=r"run of another recipe \(start_layers: 1 -> 2\)"):
        run(other, directory)


def test_a_mistake_found_at_once_does_not_lock_the_directory(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start_layers is 4, but the reference has 4 layers"):
        run(recipe(data, start_layers=4), tmp_path / "run")
    assert not (tmp_path / "run/reference").exists(), "nothing was trained before the mistake was told"
    with pytest.raises(ValueError, match="must be a multiple of the window"):
        run(recipe(data, training=training(tokens_per_step=100)), tmp_path / "run")
    assert run(recipe(data, parity={"margin": 100.0}), tmp_path / "run").verdict == "parity"


def test_an_architecture_that_does_not_fit_together(data: Path, tmp_path: Path) -> None:
    odd = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 3, "num_hidden_layers": 4}
    with pytest.raises(ValueError, match=r"this 'llama' architecture does not fit together: .*multiple"):
        run(recipe(data, reference={"architecture": odd}), tmp_path / "run")


def test_a_directory_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and not a run"):
        run(recipe(data), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_same_recipe_gives_the_same_weights(
    finished: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    directory, summary = finished
    again = run(recipe(data, parity=NEVER, start_layers=1, grow={"layers": 1}), tmp_path / "again")
    assert [entry.loss for entry in again.rounds] == [entry.loss for entry in summary.rounds]
    for name, value in weights(directory / "final").items():
        assert torch.equal(value, weights(tmp_path / "again/final")[name]), name


def test_parity_ends_the_run(data: Path, tmp_path: Path) -> None:
    summary = run(recipe(data, parity={"margin": 100.0}), tmp_path / "run")
    assert summary.verdict == "parity"
    assert [entry.layers for entry in summary.rounds] == [2]
    assert RunDirectory(tmp_path / "run").finished


def test_a_round_can_stop_at_parity(data: Path, tmp_path: Path) -> None:
    settings = training(validation={"every": 4, "windows": 20})
    summary = run(
        recipe(data, training=settings, parity={"margin": 100.0, "stop_at_parity": True}), tmp_path / "run"
    )
    assert summary.rounds[0].steps == 4
    assert summary.reference is not None
    assert summary.reference.steps == 12


def test_appending_keeps_the_trained_layers(data: Path, tmp_path: Path) -> None:
    """With a learning rate that changes nothing, the grown model shows where its weights came from."""
    still = training(steps=3, optimizer={"learning_rate": 1e-30, "weight_decay": 0.0})
    still["schedule"] = {"warmup_steps": 1, "final_learning_rate": 0.0}
    trained = training(steps=4)
    settings: dict[str, Any] = {
        "training": still,
        "reference": {"architecture": ARCHITECTURE, "training": trained},
        "parity": NEVER,
        "start_layers": 1,
    }
    run(recipe(data, grow={"mode": "append", "layers": 1}, **settings), tmp_path / "run")
    reference = weights(tmp_path / "run/reference/model")
    for layers in (1, 2, 3):
        grown = weights(tmp_path / f"run/round-{layers}-{layers}-layers/model")
        assert sum(".mlp.c_fc.weight" in name for name in grown) == layers
        for name, value in grown.items():
            assert torch.equal(value, reference[name]), name


def test_rounds_are_limited(data: Path, tmp_path: Path) -> None:
    settings = recipe(data, parity=NEVER, start_layers=1, grow={"layers": 1, "max_rounds": 2})
    assert [entry.layers for entry in run(settings, tmp_path / "run").rounds] == [1, 2]


@pytest.mark.parametrize(
    ("start", "depth", "expected"), [("half", 24, 12), ("half", 9, 4), ("half", 2, 1), (5, 8, 5)]
)
def test_the_first_cut(start: Any, depth: int, expected: int) -> None:
    assert start_depth(parsed({"start_layers": start}), depth) == expected


def test_a_list_of_layers_is_the_first_cut() -> None:
    assert start_depth(parsed({"keep": [0, 1, 2, 5, 7]}), 8) == 5


def test_a_first_cut_that_saves_nothing() -> None:
    with pytest.raises(
        ValueError, match="start_layers is 8, but the reference has 8 layers: nothing would be saved"
    ):
        start_depth(parsed({"start_layers": 8}), 8)


def parsed(values: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"data": {"path": "data"}, "reference": {"pretrained": "large"}, **values})


def test_a_pretrained_reference_of_another_architecture(data: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    source = {"pretrained": str(tmp_path / "llama"), "training_tokens": 1_000_000}
    summary = run(recipe(data, reference=source, parity={"margin": 100.0}), tmp_path / "run")
    assert summary.reference is not None
    assert summary.reference.steps is None
    model = tiny_model("llama")
    assert summary.reference.training_flops == flops_per_token(model, 32) * 1_000_000
    assert not (tmp_path / "run/reference/model").exists(), "a pretrained reference is not copied"


def test_an_untrained_reference_raises_an_alarm(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    run(recipe(data, reference={"pretrained": str(tmp_path / "llama")}), tmp_path / "run")
    assert "near or above chance (ln of the vocabulary, 4.57), and so is the reference's, 4." in caplog.text
    assert "is the text of the kind and language it was trained on?" in caplog.text


@pytest.mark.parametrize(
    ("loss", "reference", "words"),
    [
        (4.4, 2.0, "so it is the cut and not the text"),
        (4.4, 4.4, "is the text of the kind"),
        (3.0, 2.0, None),
    ],
)
def test_a_cut_that_knows_nothing_is_not_blamed_on_the_text(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    loss: float,
    reference: float,
    words: str | None,
) -> None:
    config = tiny_model("llama").config
    tell_at_the_cut("round 1, 2 layers", loss, reference, config, pretrained=True)
    told = f"round 1, 2 layers: before training its loss is {loss:.2f}, the reference's {reference:.2f} on the same"
    assert told in capsys.readouterr().err
    assert (caplog.text == "") if words is None else (words in caplog.text)


def test_a_reference_trained_here_for_a_moment_raises_none(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(recipe(data, training=training(steps=3)), tmp_path / "run")
    assert "chance" not in caplog.text


def test_data_that_does_not_fit_the_model(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    big = tiny_data.write_shards(tmp_path / "big", vocabulary=200)
    source = {"pretrained": str(tmp_path / "llama")}
    with pytest.raises(
        ValueError, match=r"token 1\d\d occurs in .*big, but the embedding of .*llama has 97 rows"
    ):
        run(recipe(big, reference=source), tmp_path / "run")
    fitting = tiny_data.write_shards(tmp_path / "fitting")
    window = {"path": str(fitting), "window": 128}
    long = parse_recipe({**values(fitting, reference=source), "data": window}, Recipe)
    with pytest.raises(ValueError, match="windows of 128 tokens are longer than the model's context of 64"):
        run(long, tmp_path / "run2")


def test_a_flipped_byte_in_the_shards_is_noticed(tmp_path: Path) -> None:
    data = tiny_data.write_shards(tmp_path / "data")
    path = data / "train-00001.bin"
    flipped = bytearray(path.read_bytes())
    flipped[777] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"train-00001\.bin is damaged"):
        run(recipe(data), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    wild = training(optimizer={"learning_rate": 1e9, "gradient_clip": 1e9}, checkpoints={"every": 1})
    with pytest.raises(NonFiniteError) as caught:
        run(recipe(data, training=wild), tmp_path / "run")
    sentence = str(caught.value)
    assert "is not finite (windows " in sentence
    assert "the last good checkpoint is" in sentence
    last = Path(sentence.split("the last good checkpoint is ")[1].split(";", maxsplit=1)[0])
    assert all(torch.isfinite(value).all() for value in weights(last).values())


def test_a_single_model_is_trained_and_gone_on_with(data: Path, tmp_path: Path) -> None:
    single = {
        "data": {"path": str(data), "window": 32},
        "model": {"architecture": ARCHITECTURE},
        "training": training(),
    }
    settings = parse_recipe(single, TrainRecipe)
    losses = train_model(settings, tmp_path / "one")
    assert losses.mean < math.log(97) - 0.1
    before = (tmp_path / "one/model/model.safetensors").stat().st_mtime_ns
    assert train_model(settings, tmp_path / "one").mean == losses.mean
    assert (tmp_path / "one/model/model.safetensors").stat().st_mtime_ns == before


def test_the_environment_stands_beside_the_results(finished: tuple[Path, Summary]) -> None:
    (environment,) = read_starts(finished[0])
    assert environment["torch"] == torch.__version__
    assert environment["precision"] == "fp32"
    assert {"inheritune", "transformers", "processor", "cores", "command"} <= environment.keys()
    recipe_file = finished[0] / "recipe.yaml"
    assert "weight_decay: 0.1" in recipe_file.read_text(), "defaults are filled in"
    assert Recipe.model_fields.keys() == {
        line.split(":")[0] for line in recipe_file.read_text().splitlines() if line[0].isalpha()
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"initialization": {"layers": "first 3", "stack_to": 8}}, "cannot stack 3 layers to 8"),
        ({"initialization": {"width": 0.3}}, "cannot make a model of 3/10 the width"),
        ({"initialization": {"layers": [0, 9]}}, "there is no layer 9: the model has 4, 0 to 3"),
        ({"initialization": {"layers": "first 9"}}, "'first 9' are more than the 4"),
        ({"distillation": {"teacher": {"pretrained": "./nothing"}}}, "there is no model at ./nothing"),
        (
            {"distillation": {"teacher": {"pretrained": "./other"}}},
            "the teacher predicts 120 tokens and the student 97",
        ),
    ],
)
def test_a_single_model_that_cannot_be_made_leaves_no_directory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("llama")
    tiny_model("llama", vocab_size=120).save_pretrained("other")
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": "llama"},
        "training": training(),
    }
    with pytest.raises(ValueError, match=sentence):
        train_model(parse_recipe({**values, **changes}, TrainRecipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()
