"""A teacher that is asked once: draws, the loss made from them, the folder they are kept in, and who uses it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import inheritune
import tiny_data
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.cli import main as cli
from inheritune.config import Distillation, TrainRecipe
from inheritune.data import answers as folder
from inheritune.data.answers import Answers, read_record, write_file
from inheritune.data.loader import batches, open_data, windows_read
from inheritune.data.order import Order
from inheritune.models.load import load_model, save_model
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.training import distillation
from inheritune.training.distillation import AnswersLoss, DistillationLoss, LinearDistillation
from inheritune.training.step import Stepper
from inheritune.training.teacher import draw, random_numbers
from tiny_models import tiny_model
from tiny_recipes import recipe, stop_after, training

WINDOW = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and its answers."""
    place = tmp_path_factory.mktemp("answers")
    tiny_data.write_shards(place / "data")
    teacher = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(20)  # as if it knew something
    save_model(teacher, place / "teacher")
    inheritune.answers(
        place / "teacher", place / "data", place / "answers", window=WINDOW, draws=20, device="cpu"
    )
    return place


# Draws


def counts_of(ids_nk: Tensor, vocabulary: int) -> Tensor:
    counts = torch.zeros(len(ids_nk), vocabulary)
    return counts.scatter_add_(1, ids_nk.long(), torch.ones(ids_nk.shape))


def test_a_token_is_drawn_its_share_of_times_rounded_up_or_down() -> None:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 2
    ids, entropy = draw(logits, torch.rand(200, dtype=torch.float64), 20, 1.5)
    p = (logits.double() / 1.5).softmax(-1)
    assert ids.shape == (200, 20)
    assert (ids[:, 1:] >= ids[:, :-1]).all()
    assert ((counts_of(ids, 50) - 20 * p).abs() < 1).all()
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-5)


def test_nothing_impossible_is_drawn() -> None:
    logits = torch.full((4, 10), -torch.inf)
    logits[:, 3], logits[:, 7] = 0.0, 1.0
    for random in (0.0, 0.5, np.nextafter(1, 0)):
        ids, entropy = draw(logits, torch.full((4,), random, dtype=torch.float64), 255, 1.0)
        assert set(ids.unique().tolist()) == {3, 7}
        assert entropy.isfinite().all()


def test_the_improbable_are_drawn_as_often_as_they_should() -> None:
    """A hundred thousand tokens that together have half of the probability, each 5e-6."""
    logits = torch.full((1, 100_001), -np.log(2 * 100_000).item())
    logits[0, 0] = -np.log(2).item()
    found = [
        int((draw(logits, torch.tensor([u], dtype=torch.float64), 255, 1.0)[0] > 0).sum())
        for u in np.random.Generator(np.random.PCG64(1)).random(30)
    ]
    assert np.mean(found) == pytest.approx(127.5, abs=0.5)


# The loss


class Asked:
    """A student's last hidden states, heads of both, and the gradients of the dense loss and of that from draws."""

    def __init__(self, temperature: float = 1.0, alpha: float = 0.7) -> None:
        generator = torch.Generator().manual_seed(1)
        self.temperature, self.alpha = temperature, alpha
        self.hidden = torch.randn(24, 8, generator=generator)
        self.weight = torch.randn(40, 8, generator=generator)
        self.targets = torch.randint(40, (24,), generator=generator)
        self.teacher = torch.randn(24, 40, generator=generator) * 2

    def gradients(self, teachers: nn.Linear | None, *taught: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight = self.hidden.clone().requires_grad_(), self.weight.clone().requires_grad_()
        loss = LinearDistillation.apply(
            hidden, weight, None, self.targets, self.alpha, self.temperature, teachers, *taught
        )
        (2 * loss).backward()
        return loss.detach(), hidden.grad, weight.grad

    def dense(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head = nn.Linear(40, 40, bias=False)
        nn.init.eye_(head.weight)
        return self.gradients(head.requires_grad_(False), logits)

    def from_draws(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.gradients(None, ids, torch.ones(ids.shape, dtype=torch.uint8))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_that_are_the_distribution_give_its_loss_and_gradient(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(distillation.CHUNK, "cpu", 7)
    asked = Asked(temperature)
    p = torch.zeros(24, 40)
    p[:, [2, 5, 9, 30]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = p.log().clamp_min(-1e4) * temperature
    ids, entropy = draw(logits, torch.rand(24, dtype=torch.float64).clamp(0.01, 0.99), 10, temperature)
    loss, *found = asked.from_draws(ids)
    dense_loss, *expected = asked.dense(logits)
    assert (loss - asked.alpha * temperature**2 * entropy.mean()).item() == pytest.approx(
        dense_loss.item(), rel=1e-5
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_unbiased_and_that_of_the_top_k_is_not() -> None:
    asked, repeats, k = Asked(temperature=1.5), 1000, 4
    dense_loss, *dense = asked.dense(asked.teacher)
    seen: list[list[Tensor]] = []
    for repeat in range(repeats):
        random = torch.from_numpy(random_numbers(repeat, np.arange(1), 24)[0])
        ids, entropy = draw(asked.teacher, random, k, 1.5)
        loss, *gradients = asked.from_draws(ids)
        seen.append([loss - asked.alpha * 1.5**2 * entropy.mean(), *gradients])
    softened = (asked.teacher / 1.5).softmax(-1)
    top = softened.topk(k)
    counts = (top.values / top.values.sum(-1, keepdim=True) * 255).round().to(torch.uint8)
    _, *of_top_k = asked.gradients(None, top.indices.int(), counts)
    for index, expected in enumerate((dense_loss, *dense)):
        values = torch.stack([one[index] for one in seen])
        error = (values.mean(0) - expected).abs()
        spread = values.std(0) / repeats**0.5
        assert (error < 5 * spread + 1e-6).all()
        if index:  # a gradient: its mean is far nearer than what the top k give, each time the same
            assert error.norm() < 0.1 * (of_top_k[index - 1] - expected).norm()


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi", "gemma2"])  # the last one: no linear head
def test_a_models_loss_is_near_that_of_a_live_teacher(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(distillation.CHUNK, "cpu", 50)
    stored = Answers(place / "answers")
    student, settings = tiny_model(name, seed=5).eval(), Distillation(alpha=0.8)
    split = open_data(parse(place, {}).data).train
    ours = AnswersLoss(student, stored, settings).eval()
    theirs = DistillationLoss(student, load_model(place / "teacher"), settings).eval()
    batch = next(batches(split, np.arange(300), WINDOW, 300, torch.device("cpu"), stored))
    found, expected = ours(*batch), theirs(*batch[:2])
    assert found.item() == pytest.approx(expected.item(), abs=2e-3)
    gradients = [
        torch.autograd.grad(loss, student.get_output_embeddings().weight) for loss in (found, expected)
    ]
    ours_, theirs_ = (gradient.flatten() for (gradient,) in gradients)
    assert (ours_ - theirs_).norm() < 0.05 * theirs_.norm()


def test_flops_are_those_of_the_student_alone(place: Path) -> None:
    student = tiny_model("llama")
    alone = distillation.NextTokenLoss(student).flops_per_token(WINDOW)
    assert AnswersLoss(student, Answers(place / "answers"), Distillation()).flops_per_token(WINDOW) == alone


# The folder


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_what_is_written_is_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path, dtype: str
) -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    numbers = np.array([1, 4, 5, 9, 11])
    drawn = np.sort(generator.integers(0, 90 if dtype == "<u2" else 200_000, (5, 6, 255)), -1)
    drawn[2, 3] = 7  # all the same
    entropy = generator.random(5).astype(np.float32)
    record = read_record(place / "answers").model_copy(
        update={"window": 6, "windows": 5, "draws": 255, "vocabulary": 97 if dtype == "<u2" else 2**18}
    )
    assert record.dtype == np.dtype(dtype)
    monkeypatch.setattr(folder, "FILE_TOKENS", 12)
    parts = record.parts(numbers)
    assert list(map(len, parts)) == [2, 2, 1]
    for number, part in enumerate(parts):
        rows = np.isin(numbers, part)
        write_file(tmp_path / record.file_of(number), part, drawn[rows], entropy[rows], record.dtype)
    folder.finish(tmp_path, record, numbers)
    folder.verify_answers(tmp_path)
    found = Answers(tmp_path)
    order = np.array([4, 0, 2, 2, 1, 3])
    ids, counts, entropies = found.read(numbers[order])
    assert (ids.dtype, counts.dtype, entropies.dtype) == (torch.int32, torch.uint8, torch.float32)
    for row, index in enumerate(order):
        for t in range(6):
            seen = np.repeat(ids[row, t].numpy(), counts[row, t].numpy())
            np.testing.assert_array_equal(seen, drawn[index, t])
    np.testing.assert_array_equal(entropies.numpy(), entropy[order])


def test_answers_depend_on_the_window_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on which others are asked about, and of which file they are."""
    monkeypatch.setattr(folder, "FILE_TOKENS", 4 * WINDOW)
    options: dict[str, Any] = {"window": WINDOW, "draws": 20, "device": "cpu", "precision": "fp32"}
    inheritune.answers(place / "teacher", place / "data", tmp_path / "few", tokens=9 * WINDOW, **options)
    inheritune.answers(place / "teacher", place / "data", tmp_path / "all", **options)
    few, whole = Answers(tmp_path / "few"), Answers(tmp_path / "all")
    sample = open_data(parse(place, {"tokens": 9 * WINDOW}).data)
    np.testing.assert_array_equal(few.windows, sample.training_windows(np.arange(9)))
    assert len(few.record.files) == 3
    same = [
        torch.equal(ours, theirs)
        for ours, theirs in zip(few.read(few.windows)[:2], whole.read(few.windows)[:2], strict=True)
    ]
    assert all(same)
    other = inheritune.answers(
        place / "teacher", place / "data", tmp_path / "seed", tokens=9 * WINDOW, seed=1, **options
    )
    assert [file.sha256 for file in other.files] != [file.sha256 for file in few.record.files]


def test_finished_answers_are_not_asked_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "answers").iterdir()}
    inheritune.answers(
        place / "teacher", place / "data", place / "answers", window=WINDOW, draws=20, device="cpu"
    )
    assert before == {path: path.stat().st_mtime_ns for path in (place / "answers").iterdir()}


def test_the_windows_of_a_training_are_those_its_steps_read(place: Path) -> None:
    data = open_data(parse(place, {"tokens": 100 * WINDOW}).data)
    for steps in (3, 25, 26):
        order = Order(data.windows, 4, 7)
        read = np.concatenate([order.step(step) for step in range(steps)])
        np.testing.assert_array_equal(
            windows_read(data, order, steps), np.unique(data.training_windows(read))
        )


# Students


def values(place: Path, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "data": {"path": str(place / "data"), "window": WINDOW, **data},
        "model": {"pretrained": str(place / "teacher")},
        "initialization": {"layers": "every 2"},
        "distillation": {"answers": str(place / "answers")},
        "training": training(),
        **changes,
    }


def parse(place: Path, data: dict[str, Any], **changes: Any) -> TrainRecipe:
    return parse_recipe(values(place, data, **changes), TrainRecipe)


def curve(directory: Path) -> list[float]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_a_student_learns_what_it_would_from_the_teacher(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = train_model(parse(place, {}, distillation={}), tmp_path / "live")
    with monkeypatch.context() as patch:  # no teacher is read
        patch.setattr("inheritune.single_model.distilled_from", None)
        stored = train_model(parse(place, {}), tmp_path / "stored")
    plain = train_model(parse(place, {}, distillation=None), tmp_path / "plain")
    assert curve(tmp_path / "stored") == pytest.approx(curve(tmp_path / "live"), abs=0.02)
    assert abs(stored.mean - live.mean) < 0.2 * abs(plain.mean - live.mean)
    flops = [json.loads((tmp_path / n / "training.json").read_text())["flops"] for n in ("stored", "plain")]
    assert flops[0] == flops[1]


def weights(directory: Path) -> bytes:
    return (directory / "model/model.safetensors").read_bytes()


def test_a_student_resumes_to_the_same_weights_wherever_its_answers_are(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_model(parse(place, {}), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            train_model(parse(place, {}), tmp_path / "stopped")
    shutil.copytree(place / "answers", tmp_path / "moved")
    train_model(parse(place, {}, distillation={"answers": str(tmp_path / "moved")}), tmp_path / "stopped")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_the_micro_batch_shows_in_the_last_bits_only(place: Path, tmp_path: Path) -> None:
    for size in (1, 4):
        train_model(parse(place, {}, training=training(micro_batch=size, log_every=1)), tmp_path / str(size))
    assert curve(tmp_path / "1") == pytest.approx(curve(tmp_path / "4"), rel=1e-5)


def test_memory_that_runs_out_splits_answers_too(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse(place, {}, training=training(log_every=1))
    train_model(settings, tmp_path / "whole")
    original = Stepper._backward

    def full(self: Stepper, step: int, micro_batches: Any, gradient_norms: bool) -> Any:
        if len(micro_batches[0][0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, step, micro_batches, gradient_norms)

    monkeypatch.setattr(Stepper, "_backward", full)
    train_model(settings, tmp_path / "split")
    assert curve(tmp_path / "split") == pytest.approx(curve(tmp_path / "whole"), rel=1e-5)


def test_other_answers_do_not_continue_a_training(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inheritune.answers(
        place / "teacher", place / "data", tmp_path / "other", window=WINDOW, draws=20, seed=1, device="cpu"
    )
    other = parse(place, {}, distillation={"answers": str(tmp_path / "other")})
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            train_model(parse(place, {}), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"belong to other data: .* with the answers in .* with the answers in"
    ):
        train_model(other, tmp_path / "run")
    (tmp_path / "run/starts.jsonl").unlink()  # the checkpoints know it too
    with pytest.raises(UserError, match="belong to other data"):
        train_model(other, tmp_path / "run")
    with pytest.raises(UserError, match="distillation"):
        train_model(parse(place, {}, distillation={}), tmp_path / "run")


def test_all_rounds_and_probes_learn_from_one_asking(place: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "start_layers": "auto",
        "grow": {"layers": 1, "max_rounds": 2},
        "parity": {"margin": -100.0},
    }
    live = run(recipe(place / "data", **changes, distillation={}), tmp_path / "live")
    stored = run(recipe(place / "data", **changes, distillation={"draws": 30}), tmp_path / "stored")
    assert stored.rounds[0].loss == pytest.approx(live.rounds[0].loss, abs=0.02)
    record = read_record(tmp_path / "stored/answers")
    assert stored.answers_flops == record.flops > 0
    assert record.windows == 12 * 128 // WINDOW
    assert live.answers_flops == 0
    first = stored.rounds[0]
    spent = stored.answers_flops + stored.probe_flops + first.training_flops
    assert first.total_training_flops == pytest.approx(spent)
    planned = {stage.name: stage for stage in plan(recipe(place / "data", distillation={"draws": 30})).stages}
    assert planned["answers"].flops == pytest.approx(record.flops)
    assert planned["round 1"].flops == pytest.approx(
        plan(recipe(place / "data")).stages[1].flops
    )  # as without a teacher
    again = run(recipe(place / "data", **changes, distillation={"draws": 30}), tmp_path / "stored")
    assert again == stored
    with pytest.raises(UserError, match=r"distillation.draws: 30 -> 20"):
        run(recipe(place / "data", **changes, distillation={"draws": 20}), tmp_path / "stored")


def test_a_run_that_was_begun_before_there_were_draws_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(recipe(place / "data", distillation={}), tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert written["distillation"].pop("draws", "missing") is None
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(written))
    assert run(recipe(place / "data", distillation={}), tmp_path / "run").verdict


def test_what_a_plan_says_of_answers(place: Path) -> None:
    found, live = plan(parse(place, {})), plan(parse(place, {}, distillation={}))
    assert found.stages[0].flops < 0.7 * live.stages[0].flops
    assert "took" in found.notes[0] and "FLOPs" in found.notes[0]
    needs, of_live = found.memory, live.memory
    assert needs["training"].chosen < of_live["training"].chosen
    assert "on the disk" in plan(recipe(place / "data", distillation={"draws": 50})).notes[0]


# What users get wrong


def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["inheritune", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capfd.readouterr().err
    assert ended.value.code == 2, errors
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"window": 16}}, "windows of 32 tokens, and `data.window` is 16"),
        ({"model": {"architecture": {"model_type": "llama", "vocab_size": 99}}}, "predicts 97 tokens"),
        ({"distillation": {"temperature": 2.0}}, "at temperature 1, and `distillation.temperature` is 2"),
        ({"distillation": {"answers": "void"}}, "there is no directory void"),
        ({"distillation": {"answers": "DATA"}}, "holds no finished answers"),
        ({"distillation": {"teacher": {"pretrained": "x"}}}, "either a `teacher` or its `answers`"),
        ({"distillation": {"draws": 3}}, "unknown key `distillation.draws`"),
        ({"distillation": {"answers": "FEW"}}, "are to 9 windows, and lack 39 of the 48"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_answers_that_do_not_fit_are_refused(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    inheritune.answers(
        place / "teacher", place / "data", tmp_path / "few", window=WINDOW, tokens=9 * WINDOW, device="cpu"
    )
    places = {"DATA": str(place / "data"), "FEW": str(tmp_path / "few")}
    recipe = values(place, changes.get("data", {}))
    if "model" in changes:
        recipe |= {"model": changes["model"], "initialization": None}
    told = changes.get("distillation", {})
    recipe["distillation"] |= {
        key: places.get(value, value) if isinstance(value, str) else value for key, value in told.items()
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for verb in ("train", "plan"):
        more = ("-o", str(tmp_path / "out")) if verb == "train" else ()
        assert words in refused(capfd, monkeypatch, verb, str(tmp_path / "recipe.yaml"), *more)
    assert not (tmp_path / "out").exists()


def test_other_data_and_damage_are_refused(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    tiny_data.write_shards(moved / "data", train=24_000)
    for name in ("teacher", "answers"):
        shutil.copytree(place / name, moved / name)
    with pytest.raises(UserError, match=r"the answers in .* belong to other data"):
        train_model(parse(moved, {}), tmp_path / "out")
    shutil.rmtree(moved / "data")
    shutil.copytree(place / "data", moved / "data")
    file = moved / "answers/answers-00000.safetensors"
    damage(file)
    with pytest.raises(UserError, match=r"answers-00000.safetensors is damaged: its SHA-256"):
        train_model(parse(moved, {}), tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="is damaged: it has"):
        train_model(parse(moved, {"verify": False}), tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        train_model(parse(moved, {}), tmp_path / "out")
    record = json.loads((moved / "answers/answers.json").read_text())
    (moved / "answers/answers.json").write_text(json.dumps({**record, "files": []}))
    with pytest.raises(
        UserError, match=r"answers.json is damaged: it does not name files of all 624 windows"
    ):
        train_model(parse(moved, {}), tmp_path / "out")
    (moved / "answers/answers.json").write_text("{")
    with pytest.raises(UserError, match="is not a record of a teacher's answers"):
        train_model(parse(moved, {}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--draws", "0"], "`draws` is 0"),
        (["--draws", "256"], "`draws` is 256, but should be less than or equal to 255"),
        (["--temperature", "0"], "`temperature` is 0"),
        (["--temperature", "nan"], "`temperature` is nan"),
        (["--seed", "-1"], "`seed` is -1"),
        (["--window", "65"], "windows of 65 tokens are longer"),
        (["--window", "99999"], "fewer than one window"),
        (["--tokens", "3"], "data.tokens is 3"),
        (["--device", "tpu"], "`device` is 'tpu'"),
        (["--draws", "21"], "holds other answers (draws: 20 -> 21)"),
        (["--temperature", "2"], "holds other answers (temperature: 1.0 -> 2.0)"),
        (["-o", "DATA"], "is not empty, and holds no answers"),
        (["-o", "DATA/manifest.json"], "is a file"),
        (["--data", "TEACHER"], "holds no finished shards"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_asked_is_refused(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    options = [
        o.replace("DATA", str(place / "data")).replace("TEACHER", str(place / "teacher")) for o in options
    ]
    asked = {"--data": str(place / "data"), "-o": str(place / "answers"), "--window": str(WINDOW)}
    asked |= {"--draws": "20", "--device": "cpu"} | {options[0]: options[1]}
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    arguments = [word for pair in asked.items() for word in pair]
    assert words in refused(capfd, monkeypatch, "answers", str(place / "teacher"), *arguments)
    assert before == {path: path.stat().st_mtime_ns for path in place.rglob("*")}


def test_another_teacher_does_not_finish_a_folder(place: Path, tmp_path: Path) -> None:
    save_model(tiny_model("llama", seed=3), tmp_path / "teacher")
    options: dict[str, Any] = {"window": WINDOW, "draws": 20, "device": "cpu"}
    with pytest.raises(UserError, match=r"holds other answers \(teacher: "):
        inheritune.answers(tmp_path / "teacher", place / "data", place / "answers", **options)
    # Where it is does not matter.
    shutil.copytree(place / "teacher", tmp_path / "same")
    inheritune.answers(tmp_path / "same", place / "data", place / "answers", **options)


def test_a_teacher_of_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    from tiny_checkpoints import write_tokenizer

    folder = shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "teacher", tmp_path / "teacher")
    write_tokenizer(tmp_path / "teacher")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"] |= {"name": "gpt2", "end_of_text": 5}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the tokens of .* are not those of .*, which has another tokenizer"):
        inheritune.answers(tmp_path / "teacher", folder, tmp_path / "out", window=WINDOW, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_broken_is_not_learnt_from(place: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    save_model(model, tmp_path / "teacher")
    with pytest.raises(UserError, match="predicts in window 0 is not finite"):
        inheritune.answers(
            tmp_path / "teacher", place / "data", tmp_path / "out", window=WINDOW, device="cpu"
        )
