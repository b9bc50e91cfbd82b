"""Memory that runs out in a training: fewer windows at once, the same weights; or a sentence with what to set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_data
from inheritune import UserError
from inheritune.algorithm import run as run_recipe
from inheritune.config import TrainRecipe
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.signals import Interrupted
from inheritune.single_model import train_model
from inheritune.training.distillation import DistillationLoss
from inheritune.training.loss import NextTokenLoss
from inheritune.training.micro_batch import FILE, remembered, smaller
from tiny_models import tiny_model
from tiny_recipes import recipe as tiny_recipe
from tiny_recipes import stop_after, training

WINDOWS = 12
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, which is to be the same when a step is done again."""
    folder = tmp_path_factory.mktemp("model") / "gpt2"
    tiny_model("gpt2", n_layer=2, resid_pdrop=0.1, embd_pdrop=0.0, attn_pdrop=0.0).save_pretrained(folder)
    return folder


def recipe(data: Path, model: Path, **changes: Any) -> TrainRecipe:
    """Steps of twelve windows."""
    more = {"distillation": changes.pop("distillation")} if "distillation" in changes else {}
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(model)},
        "training": training(steps=4, tokens_per_step=32 * WINDOWS, log_every=1, **changes),
        **more,
    }
    return parse_recipe(values, TrainRecipe)


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(FULL)


def with_room_for(
    monkeypatch: pytest.MonkeyPatch,
    windows: int,
    *,
    backward: bool = False,
    call: int = 1,
    kind: type = NextTokenLoss,
) -> list[int]:
    """Let forward passes (or their backward passes) on more windows fail, from the so-and-so-many-th on."""
    original: Callable[..., Tensor] = kind.forward
    sizes: list[int] = []

    def forward(self: NextTokenLoss, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        sizes.append(len(inputs_bt))
        fails = len(inputs_bt) > windows and len(sizes) >= call
        if fails and not backward:
            raise torch.OutOfMemoryError(FULL)
        loss = original(self, inputs_bt, targets_bt)
        return _FailsBackward.apply(loss) if fails else loss

    monkeypatch.setattr(kind, "forward", forward)
    return sizes


def logged(directory: Path, what: str) -> list[Any]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row[what] for row in rows if row["kind"] == "train"]


def weights(directory: Path) -> bytes:
    return (directory / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("asked", "room", "expected"), [("auto", 5, 3), (6, 5, 3), (6, 2, 1), (12, 4, 3), (4, 3, 2), (3, 1, 1)]
)
@pytest.mark.parametrize("backward", [False, True])
def test_fewer_windows_end_with_the_weights_of_a_run_that_had_them_from_the_start(
    data: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: Any,
    room: int,
    expected: int,
    backward: bool,
) -> None:
    plain = train_model(recipe(data, model, micro_batch=expected), tmp_path / "small")
    with_room_for(monkeypatch, room, backward=backward)
    with caplog.at_level(logging.WARNING):
        found = train_model(recipe(data, model, micro_batch=asked), tmp_path / "halved")
    assert weights(tmp_path / "halved") == weights(tmp_path / "small")
    assert found.losses.tolist() == plain.losses.tolist()
    assert logged(tmp_path / "halved", "loss") == logged(tmp_path / "small", "loss")
    assert logged(tmp_path / "halved", "micro_batch") == [expected] * 4
    told = [line for line in caplog.messages if "out of memory" in line]
    assert told[-1].startswith("out of memory in step 0 with ")
    assert told[-1].endswith(f"it is done again with {expected}, and so are the steps after it")


def test_a_later_micro_batch_of_a_later_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the step had added up before is forgotten, and steps before it keep their windows."""
    model = tmp_path / "gpt2"
    tiny_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).save_pretrained(model)
    sizes = with_room_for(monkeypatch, 3, call=4)
    train_model(recipe(data, model, micro_batch=6), tmp_path / "run")
    assert sizes == [6, 6, 6, 6, *[3] * 12]
    assert logged(tmp_path / "run", "micro_batch") == [6, 3, 3, 3]
    monkeypatch.undo()
    train_model(recipe(data, model, micro_batch=6), tmp_path / "undisturbed")
    expected = logged(tmp_path / "undisturbed", "loss")
    assert logged(tmp_path / "run", "loss") == pytest.approx(expected, rel=1e-5)
    assert logged(tmp_path / "run", "gradient_norm") == pytest.approx(
        logged(tmp_path / "undisturbed", "gradient_norm"), rel=1e-4
    )


def test_a_resumed_training_may_have_other_windows(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room_for(monkeypatch, 0, call=7)
    with pytest.raises(UserError):
        train_model(recipe(data, model, micro_batch=6, checkpoints={"every": 1}), tmp_path / "run")
    monkeypatch.undo()
    train_model(recipe(data, model, micro_batch=2, checkpoints={"every": 1}), tmp_path / "run")
    assert logged(tmp_path / "run", "micro_batch")[-1] == 2


def test_what_fitted_is_kept_for_the_next_start(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with_room_for(monkeypatch, 5)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train_model(recipe(data, model, checkpoints={"every": 1}), run)
    assert (run / FILE).exists()
    sizes = with_room_for(monkeypatch, 5)
    train_model(recipe(data, model, checkpoints={"every": 1}), run)
    assert max(sizes) == 3, "it does not run out of memory again"
    assert logged(run, "micro_batch") == [3] * 4
    monkeypatch.undo()
    train_model(recipe(data, model, micro_batch=3), tmp_path / "small")
    assert weights(run) == weights(tmp_path / "small")


def test_every_training_of_a_run_goes_by_what_fitted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the memory that it takes: of a smaller model more windows may fit."""
    sizes = with_room_for(monkeypatch, 3)
    run_recipe(tiny_recipe(data, training=training(tokens_per_step=32 * WINDOWS)), tmp_path / "run")
    assert [size for size in sizes if size > 3] == [12, 6, 6], "the round, of half the layers, begins with 6"
    assert logged(tmp_path / "run/reference", "micro_batch")[-1] == 3
    assert logged(tmp_path / "run/round-1-2-layers", "micro_batch")[0] == 3


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"device": "cpu", "bytes": null}', '{"device": "another", "bytes": 1}']
)
def test_a_file_that_says_nothing_of_this_device(tmp_path: Path, text: str) -> None:
    hardware = Hardware(torch.device("cpu"), bf16=False, compile=False)
    assert remembered(tmp_path, hardware) is None
    (tmp_path / FILE).write_text(text)
    assert remembered(tmp_path, hardware) is None


def test_distillation(data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = {"alpha": 0.5, "teacher": {"pretrained": str(model)}}
    train_model(recipe(data, model, micro_batch=3, distillation=taught), tmp_path / "small")
    with_room_for(monkeypatch, 3, kind=DistillationLoss)
    train_model(recipe(data, model, micro_batch=6, distillation=taught), tmp_path / "halved")
    assert weights(tmp_path / "halved") == weights(tmp_path / "small")


@pytest.mark.parametrize("backward", [False, True])
def test_one_window_that_does_not_fit(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward: bool
) -> None:
    with_room_for(monkeypatch, 0, backward=backward)
    with pytest.raises(UserError) as caught:
        train_model(recipe(data, model), tmp_path / "run")
    assert str(caught.value) == (
        "the training ran out of memory in step 0 with 1 window in one forward pass: set "
        "`training.activation_checkpointing: all` or a smaller `data.window`, or share the model out over several "
        "GPUs with torchrun and `parallel: fsdp`"
    )


def test_an_optimizer_that_does_not_fit(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: torch.optim.AdamW) -> None:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match="the optimizer in step 0 ran out of memory: share the model out"):
        train_model(recipe(data, model), tmp_path / "run")


def test_a_validation_that_does_not_fit(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def per_window(self: NextTokenLoss, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(NextTokenLoss, "per_window", per_window)
    sentence = (
        r"a validation ran out of memory: whatever the micro-batch, it reads up to 16,384 tokens at once"
    )
    with pytest.raises(UserError, match=sentence):
        train_model(recipe(data, model), tmp_path / "run")


def test_any_other_error_passes(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: NextTokenLoss, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        raise RuntimeError("our own mistake")

    monkeypatch.setattr(NextTokenLoss, "forward", forward)
    with pytest.raises(RuntimeError, match="our own mistake"):
        train_model(recipe(data, model), tmp_path / "run")


@pytest.mark.parametrize(
    ("size", "share", "fewer"),
    [(8, 8, 4), (6, 12, 3), (5, 20, 2), (9, 9, 3), (7, 7, 1), (2, 2, 1), (1, 12, None)],
)
def test_half_as_many_or_the_next_divisor(size: int, share: int, fewer: int | None) -> None:
    assert smaller(size, share) == fewer
