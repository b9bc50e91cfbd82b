"""A number is never compared with, or continued from, one of other data, another tokenizer or other settings."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_data
from forks import forked, run_forked
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.analysis.analyze import analyze, analyze_run
from inheritune.config import EvaluationSettings, Recipe, Study, TrainRecipe
from inheritune.data import shards
from inheritune.data.prepare import prepare
from inheritune.data.shards import DataIdentity, open_split
from inheritune.evaluation.evaluate import evaluate
from inheritune.recipe_file import deciding_settings, parse_recipe
from inheritune.report.comparison import compare_runs
from inheritune.run_directory import RunDirectory, read_starts
from inheritune.runtime import files
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.study import run_study
from inheritune.training import checkpoint
from inheritune.training.checkpoint import TrainState
from inheritune.training.validation import WindowLosses, compare
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, recipe, stop_after, training, values

EASY = {"margin": 100.0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_data.write_shards(tmp_path / "data")


def other_text(data: Path) -> None:
    """Other text at the same place."""
    shutil.rmtree(data)
    tiny_data.write_shards(data, train=24_000, validation=2_400)


def weights(run: Path) -> bytes:
    return (run / "final/model.safetensors").read_bytes()


@pytest.fixture
def stopped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped while its reference was trained."""
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(recipe(data, parity=EASY), tmp_path / "run")
    return tmp_path / "run"


# What is the same data


def test_data_are_the_same_wherever_they_are(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "elsewhere")
    (copy / "tokenizer").mkdir()
    for split in ("train", "validation"):
        assert open_split(data, split).identity.sha256 == open_split(copy, split).identity.sha256
    assert open_split(data, "train").identity.sha256 != open_split(data, "validation").identity.sha256


def test_one_token_makes_other_data(data: Path, tmp_path: Path) -> None:
    before = open_split(data, "validation").identity
    other = tiny_data.write_shards(tmp_path / "other", validation=2_001)
    assert open_split(other, "validation").identity.sha256 != before.sha256
    assert open_split(other, "train").identity.sha256 == open_split(data, "train").identity.sha256


@pytest.mark.parametrize("place", [0, 150_000, 299_999])
def test_nanogpt_files_have_an_identity_too(tmp_path: Path, place: int) -> None:
    tokens = tiny_data.markov_tokens(300_000, 97, 1)
    found = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.bin").write_bytes(tokens.tobytes())
        (folder / "val.bin").write_bytes(tokens[:1000].tobytes())
        found.append(open_split(folder, "train").identity.sha256)
        tokens[place] += 1
    assert found[0] != found[1]


# Losses


def losses(data: DataIdentity | None, shift: float = 0.0) -> WindowLosses:
    return WindowLosses(np.linspace(1, 2, 9) + shift, 8, data)


def identity(sha256: str, path: str = "data") -> DataIdentity:
    return DataIdentity(sha256=sha256, split="validation", path=path)


def test_losses_of_two_data_are_not_compared() -> None:
    one, other = identity("a" * 64), identity("b" * 64, "other")
    assert compare(losses(one, -0.5), losses(identity("a" * 64, "moved"))).difference == pytest.approx(-0.5)
    with pytest.raises(
        UserError, match=r"validation split of data \(sha256 a{12}\).*of other \(sha256 b{12}\)"
    ):
        compare(losses(one), losses(other))


def test_losses_that_do_not_say_are_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards._warn_unknown.cache_clear()  # it is said once
    losses(identity("a" * 64)).save(tmp_path / "new.json")
    record = json.loads((tmp_path / "new.json").read_text())
    del record["data"]
    (tmp_path / "old.json").write_text(json.dumps(record))
    assert WindowLosses.load(tmp_path / "new.json").data == identity("a" * 64)
    assert compare(WindowLosses.load(tmp_path / "old.json"), losses(identity("c" * 64))).difference == 0
    assert "it is not recorded which data" in caplog.text


# Runs


def test_a_run_is_not_resumed_with_other_text(stopped: Path, data: Path) -> None:
    other_text(data)
    with pytest.raises(
        UserError, match=rf"the results in {stopped} belong to other data: to the train split"
    ):
        run(recipe(data, parity=EASY), stopped)
    assert len(read_starts(stopped)) == 1


def test_nor_between_its_rounds(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is finished; only its losses say what they are of."""
    with monkeypatch.context() as patch:
        patch.setattr("inheritune.algorithm.one_round", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(recipe(data), tmp_path / "run")
    (tmp_path / "run/starts.jsonl").unlink()  # even so
    other_text(data)
    with pytest.raises(UserError, match="belong to other data"):
        run(recipe(data), tmp_path / "run")


def test_a_run_resumes_where_its_data_were_moved(stopped: Path, data: Path, tmp_path: Path) -> None:
    moved = data.rename(tmp_path / "moved")
    assert run(recipe(moved, parity=EASY), stopped).verdict == "parity"


def test_a_single_model_is_not_resumed_with_other_text(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse_recipe(
        {
            "data": {"path": str(data), "window": 32},
            "model": {"architecture": ARCHITECTURE},
            "training": training(),
        },
        TrainRecipe,
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            train_model(settings, tmp_path / "one")
    (tmp_path / "one/starts.jsonl").unlink()  # the checkpoints know it too
    other_text(data)
    with pytest.raises(UserError, match=r"the checkpoints in .* belong to other data"):
        train_model(settings, tmp_path / "one")


def test_analysis_of_a_run_reads_the_data_of_the_run(data: Path, tmp_path: Path) -> None:
    run(recipe(data, parity=EASY), tmp_path / "run")
    other_text(data)
    with pytest.raises(UserError, match="belong to other data"):
        analyze_run(tmp_path / "run")


def study(data: Path) -> Study:
    shared = {"data": {"path": str(data), "window": 32}, "training": training()}
    rows = {
        name: {"model": {"architecture": {**ARCHITECTURE, "n_layer": n}}} for name, n in (("a", 2), ("b", 1))
    }
    return parse_recipe({"reference": "a", "shared": shared, "rows": rows}, Study)


def test_a_study_is_not_continued_with_other_text(data: Path, tmp_path: Path) -> None:
    forked(run_forked, study(data).model_dump(), tmp_path / "study", ("a",))
    other_text(data)
    with pytest.raises(UserError, match="belong to other data"):
        run_study(study(data), tmp_path / "study")


def test_a_finished_study_needs_its_data_no_more(data: Path, tmp_path: Path) -> None:
    forked(run_forked, study(data).model_dump(), tmp_path / "study")
    shutil.rmtree(data)
    assert len(run_study(study(data), tmp_path / "study")) == 2


def test_rows_of_other_data_are_not_paired(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        row = study(data).shared | study(data).rows["a"] | {"name": name}
        train_model(parse_recipe(row, TrainRecipe), tmp_path / name)
        shutil.rmtree(data)
        tiny_data.write_shards(data, train=24_000)  # as many validation windows
        data_changed = json.loads((data / "manifest.json").read_text())
        tokens = np.fromfile(data / "validation-00000.bin", "<u2")[::-1].copy()
        tokens.tofile(data / "validation-00000.bin")
        data_changed["splits"]["validation"]["files"][0]["sha256"] = files.sha256(
            data / "validation-00000.bin"
        )
        (data / "manifest.json").write_text(json.dumps(data_changed))
    comparison = compare_runs([str(tmp_path / "one"), str(tmp_path / "two")], None, tmp_path / "out", "Two")
    assert [seed.paired for row in comparison.rows for seed in row.seeds] == [None, None]
    assert any("other data" in note for note in comparison.notes)


# Settings


@pytest.mark.parametrize(
    "changed",
    [
        {"log_every": 1},
        {"tracking": {"tensorboard": True}},
        {"checkpoints": {"every": 2, "keep": 4}},
        {"gradient_norms": True},
        {"validation": {"every": 5}},
        {"micro_batch": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_run_resumes_with_settings_that_do_not_decide_its_weights(
    stopped: Path, data: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    undisturbed = tmp_path / "undisturbed"
    same = training(micro_batch=1) if "micro_batch" in changed else training()
    run(recipe(data, parity=EASY, training=same), undisturbed)
    resumed = recipe(data, parity=EASY, training=training(**changed), name="renamed", samples={"tokens": 3})
    run(resumed, stopped)
    if "micro_batch" not in changed:  # which shows in the last bits
        assert weights(stopped) == weights(undisturbed)
    assert len(read_starts(stopped)) == 2
    assert "name: renamed" in (stopped / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"training": training(seed=1)}, "training.seed: 0 -> 1"),
        (
            {"training": training(optimizer={"learning_rate": 1e-3})},
            "training.optimizer.learning_rate: 0.003 -> 0.001",
        ),
        ({"grow": {"mode": "append"}}, "grow.mode: reinherit -> append"),
        ({"data": {"path": "DATA", "window": 16}}, "data.window: 32 -> 16"),
        (
            {"data": {"path": "DATA", "window": 32, "order": "sequential"}},
            "data.order: shuffled -> sequential",
        ),
    ],
)
def test_but_not_with_those_that_do(stopped: Path, data: Path, changed: dict[str, Any], named: str) -> None:
    changed = json.loads(json.dumps(changed).replace("DATA", str(data)))
    with pytest.raises(UserError, match="holds a run of another recipe") as refused:
        run(parse_recipe(values(data) | {"parity": EASY} | changed, Recipe), stopped)
    assert named in str(refused.value)


def test_a_setting_that_a_checkpoint_does_not_know_is_passed_over(stopped: Path, data: Path) -> None:
    folder = stopped / "reference/checkpoints"
    wanted = TrainState(settings={**deciding_settings(recipe(data).training), "training.new": "default"})
    _, state = checkpoint.newest(folder, wanted) or pytest.fail("there is one")
    assert state.settings["training.new"] == "default"
    with pytest.raises(UserError, match=r"training\.seed: 0 -> 5"):
        checkpoint.newest(folder, TrainState(settings={"training.seed": 5}))


def test_checkpoints_of_the_first_version_are_resumed_with_a_warning(
    stopped: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(recipe(data, parity=EASY), tmp_path / "undisturbed")
    for path in checkpoint.all_in(stopped / "reference/checkpoints"):
        record = json.loads((path / "training.json").read_text())
        for name in ("checksum", "settings", "data"):
            del record[name]
        record["recipe"] = "0123456789abcdef"
        (path / "training.json").write_text(json.dumps({**record, "checksum": checkpoint._checksum(record)}))
    start = read_starts(stopped)[0]
    del start["data"]
    (stopped / "environment.json").write_text(json.dumps(start))
    (stopped / "starts.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        run(recipe(data, parity=EASY), stopped)
    assert weights(stopped) == weights(tmp_path / "undisturbed")
    assert "it is not recorded which data the checkpoints in" in caplog.text
    assert len(read_starts(stopped)) == 2


# Starts


def test_each_start_adds_a_line(stopped: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/inheritune", "run", "again"])
    run(recipe(data, parity=EASY), stopped)
    first, second = read_starts(stopped)
    assert second["command"] == "inheritune run again"
    assert {"time", "torch", "transformers", "precision", "device", "data"} <= first.keys()
    assert first["data"]["train"]["sha256"] == open_split(data, "train").identity.sha256


def test_automatic_precision_does_not_change_in_mid_run(stopped: Path, data: Path) -> None:
    starts = read_starts(stopped)
    starts[-1]["precision"] = "bf16 autocast"  # as if it had been begun on a GPU
    (stopped / "starts.jsonl").write_text(json.dumps(starts[-1]) + "\n")
    automatic = training()
    del automatic["precision"]
    chosen = run_precision(recipe(data, parity=EASY, training=automatic), stopped)
    if chosen is not None:  # a CPU that computes in float32
        assert "was computed in bf16 autocast so far, and `precision: auto` is fp32 on this machine" in chosen
    assert run(recipe(data, parity=EASY), stopped).verdict == "parity", "fp32 was asked for"


def run_precision(settings: Recipe, directory: Path) -> str | None:
    folder = RunDirectory(directory)
    try:
        folder.open(settings, {"precision": "fp32"}, ())
    except UserError as error:
        return str(error)
    finally:
        folder.close()
    return None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(3))
def test_killed_while_a_run_is_opened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: str
) -> None:
    """Each write of `open` may be the last thing that a program does."""
    real, done = files.write_text, []

    def write_text(path: Path, text: str) -> None:
        done.append(path.name)
        if len(done) == number + 1:
            if when == "after":
                real(path, text)
            else:
                files.temporary_name(path).write_text(text[:3])
            raise KeyboardInterrupt
        real(path, text)

    settings, directory = recipe(data, parity=EASY), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", write_text)
        with pytest.raises(KeyboardInterrupt):
            run(settings, directory)
    assert run(settings, directory).verdict == "parity"
    assert not list(directory.rglob("*.tmp"))


def test_only_our_own_leftovers_are_removed(data: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "mine.tmp").write_text("a user's")
    with pytest.raises(UserError, match="is not empty and not a run"):
        run(recipe(data), directory)
    (directory / "mine.tmp").unlink()
    (directory / "recipe.yaml.0123abcd.tmp").write_text("half a rec")
    run(recipe(data, parity=EASY), directory)
    assert not (directory / "recipe.yaml.0123abcd.tmp").exists()


@pytest.mark.parametrize("file", ["state.json", "starts.jsonl"])
def test_a_damaged_record_is_said_plainly(stopped: Path, data: Path, file: str) -> None:
    (stopped / file).write_text("{")
    with pytest.raises(UserError, match=rf"{file} is damaged"):
        run(recipe(data, parity=EASY), stopped)


# Tokenizers

SENTENCES = [
    f"the {a} {b} saw {c} and {a} again" for a in ("cat", "dog", "owl") for b in "xyz" for c in ("it", "me")
]
OTHER = [f"un {a} {b} voit {c}" for a in ("chat", "chien", "hibou") for b in "xyz" for c in ("le", "moi")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two data sets with tokenizers of their own, as large as each other, and a model with the first one's."""
    folder = tmp_path_factory.mktemp("two")
    for name, texts in (("own", SENTENCES), ("other", OTHER)):
        prepare([texts * 6], folder / name, train_tokenizer=270, validation=0.2)
    model = tiny_model("llama", vocab_size=270)
    model.save_pretrained(folder / "model")
    for file in (folder / "own/tokenizer").iterdir():
        shutil.copy(file, folder / "model")
    return folder / "own", folder / "other", folder / "model"


def short(data: Path, **changes: Any) -> dict[str, Any]:
    short_training = training(
        steps=2, tokens_per_step=64, schedule={"warmup_steps": 1, "final_learning_rate": 1e-4}
    )
    return {"data": {"path": str(data), "window": 16, **changes}, "training": short_training}


def users(own: Path, other: Path, model: Path, out: Path) -> dict[str, Any]:
    """Everything that puts a model and data together, given the data."""
    architecture = {
        "architecture": {
            "model_type": "llama",
            "vocab_size": 270,
            "num_hidden_layers": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
        }
    }
    pretrained = {"pretrained": str(model)}

    def run_it(data: Path, **more: Any) -> None:
        run(parse_recipe({**short(data, **more), "reference": pretrained, "parity": EASY}, Recipe), out)

    def train(data: Path, **more: Any) -> None:
        train_model(parse_recipe({**short(data, **more), "model": pretrained}, TrainRecipe), out)

    def teach(data: Path, **more: Any) -> None:
        taught = {"model": architecture, "distillation": {"teacher": pretrained}}
        train_model(parse_recipe({**short(data, **more), **taught}, TrainRecipe), out)

    def evaluate_it(data: Path, **more: Any) -> None:
        evaluate([str(model)], EvaluationSettings(validation=data, window=16, **more), device="cpu")

    def analyze_it(data: Path, **more: Any) -> None:
        analyze(str(model), data, window=16, sequences=1, device="cpu", **more)

    return {"run": run_it, "train": train, "teacher": teach, "evaluate": evaluate_it, "analyze": analyze_it}


@pytest.mark.parametrize("user", ["run", "train", "teacher", "evaluate", "analyze"])
def test_tokens_of_another_tokenizer_are_refused(
    two: tuple[Path, Path, Path], tmp_path: Path, user: str
) -> None:
    own, other, model = two
    use = users(own, other, model, tmp_path / "out")[user]
    with pytest.raises(
        UserError, match=rf"the tokens of {other} are not those of .*, which has another tokenizer"
    ):
        use(other)
    use(other, ignore_tokenizer=True)
    if user not in ("evaluate", "analyze"):
        shutil.rmtree(tmp_path / "out")
    use(own)


@pytest.mark.parametrize("user", ["run", "train", "teacher", "evaluate", "analyze"])
def test_a_tokenizer_longer_than_the_embedding_counts_by_what_occurs(
    two: tuple[Path, Path, Path], tmp_path: Path, user: str
) -> None:
    """CodeLlama's has more entries than the model has rows."""
    own, other, model = two
    data, longer = tmp_path / "data", tmp_path / "model"
    shutil.copytree(own, data)
    shutil.copytree(model, longer)
    for folder in (data / "tokenizer", longer):
        file = json.loads((folder / "tokenizer.json").read_text())
        file["added_tokens"].append({**file["added_tokens"][0], "id": 270, "content": "<extra>"})
        (folder / "tokenizer.json").write_text(json.dumps(file))
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer"] |= {"vocabulary": 271, "sha256": None}
    (data / "manifest.json").write_text(json.dumps(manifest))
    users(own, other, longer, tmp_path / "out")[user](data)

    tokens = np.fromfile(data / "validation-00000.bin", "<u2")
    tokens[5] = 270
    tokens.tofile(data / "validation-00000.bin")
    manifest["splits"]["validation"]["files"][0]["sha256"] = files.sha256(data / "validation-00000.bin")
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"token 270 occurs in .*, but the embedding of .* has 270 rows"):
        users(own, other, longer, tmp_path / "second")[user](data)


def test_gpt2_tokens_of_nanogpt_are_not_any_models(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    own, other, model = two
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        np.arange(200, dtype="<u2").tofile(folder / name)
    with pytest.raises(UserError, match=r"the tokens of .*nanogpt are not those of"):
        users(own, other, model, tmp_path / "out")["run"](folder)


def test_what_stands_in_front_of_a_text_is_part_of_the_data(two: tuple[Path, Path, Path]) -> None:
    own = two[0]
    plain, with_bos = (open_split(own, "validation", bos).identity for bos in ("auto", "<|endoftext|>"))
    assert plain.sha256 != with_bos.sha256
    assert plain.sha256 == open_split(own, "validation", "none").identity.sha256


@pytest.mark.parametrize("kind", ["run", "teacher", "model"])
def test_a_model_that_got_other_weights_is_not_taken_for_the_one_before(
    data: Path, tmp_path: Path, kind: str
) -> None:
    """Stopped or finished: what is in the directory was made of the weights as they were."""
    large = tmp_path / "large"
    tiny_model("llama").save_pretrained(large)
    if kind == "run":
        asked: Any = recipe(data, reference={"pretrained": str(large)}, grow={"max_rounds": 1})
        start: Any = run
    else:
        model = {"pretrained": str(large)} if kind == "model" else {"architecture": ARCHITECTURE}
        taught = {"distillation": {"teacher": {"pretrained": str(large)}}} if kind == "teacher" else {}
        values = {"data": {"path": str(data), "window": 32}, "model": model, "training": training(), **taught}
        asked, start = parse_recipe(values, TrainRecipe), train_model
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 5)
        start(asked, tmp_path / "run")
    whole = (large / "model.safetensors").read_bytes()
    other = tiny_model("llama", seed=1)
    other.save_pretrained(large)
    with pytest.raises(
        UserError, match=r"has other weights than when .*run was made with it: put those back"
    ):
        start(asked, tmp_path / "run")
    (large / "model.safetensors").write_bytes(whole)
    start(asked, tmp_path / "run")
    other.save_pretrained(large)
    with pytest.raises(UserError, match="has other weights"):
        start(asked, tmp_path / "run")
    shutil.rmtree(large)
    if kind == "run":
        assert start(asked, tmp_path / "run").rounds, "figures are there without the reference"
