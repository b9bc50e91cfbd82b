"""Checkpoints: complete or absent, checked when read, and enough to go on exactly."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import tiny_data
from inheritune.algorithm import run
from inheritune.config import Recipe, Training
from inheritune.models.load import load_model
from inheritune.recipe_file import differences
from inheritune.runtime.signals import Interrupted
from inheritune.runtime.world import ALONE
from inheritune.training import checkpoint, loop
from inheritune.training.optimizer import make_optimizer
from inheritune.training.step import NonFiniteError, Stepper
from tiny_models import tiny_model, tokens
from tiny_recipes import make_stepper, recipe, stop_after, training, values


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    run(recipe(data, parity={"margin": 100.0}), directory)
    return final_weights(directory)


def stopped(data: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of a run that was stopped after step 8, with checkpoints of steps 6 and 8."""
    settings = recipe(data, parity={"margin": 100.0})
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(settings, directory)
    return settings


def final_weights(directory: Path) -> bytes:
    return (directory / "final/model.safetensors").read_bytes()


def test_a_signal_finishes_the_step_and_saves(
    data: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = recipe(data, parity={"margin": 100.0})
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted, match="stopped after step 8; the same command resumes from there"):
            run(settings, tmp_path / "run")
    assert "finishing step 8, then saving; a second signal ends it at once\n" in capfd.readouterr().err
    assert (tmp_path / "run/reference/checkpoints/step-0000008").is_dir()
    run(settings, tmp_path / "run")
    assert final_weights(tmp_path / "run") == undisturbed


def test_a_signal_in_the_last_validation_ends_the_training_and_the_run(
    data: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = recipe(data, parity={"margin": 100.0})
    with monkeypatch.context() as patch:
        original = loop.round_weights

        def signalled(*arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            original(*arguments)

        patch.setattr(loop, "round_weights", signalled)
        with pytest.raises(
            Interrupted, match="stopped after the end of reference, 4 layers; the same command"
        ):
            run(settings, tmp_path / "run")
    assert "finishing the last validation, then saving the model; a second" in capfd.readouterr().err
    assert (tmp_path / "run/reference/model").is_dir()
    assert not list((tmp_path / "run").glob("round-*"))
    run(settings, tmp_path / "run")
    assert final_weights(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_flipped_byte_sends_back_to_the_checkpoint_before(
    data: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    victim: str,
) -> None:
    settings = stopped(data, tmp_path / "run", monkeypatch)
    path = tmp_path / "run/reference/checkpoints/step-0000008" / victim
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    found = checkpoint.newest(path.parents[1], checkpoint.TrainState())
    assert found is not None
    assert found[1].step == 6
    assert f"step-0000008 is damaged: {victim}" in caplog.text
    run(settings, tmp_path / "run")
    assert final_weights(tmp_path / "run") == undisturbed


def test_all_checkpoints_damaged(tmp_path: Path) -> None:
    for name in ("step-0000001", "step-0000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text("{")
    with pytest.raises(ValueError, match=f"every checkpoint in {tmp_path} is damaged"):
        checkpoint.newest(tmp_path, checkpoint.TrainState())


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / "step-0000001.0a1b2c3d.tmp").mkdir()
    assert checkpoint.newest(tmp_path, checkpoint.TrainState()) is None
    assert not list(tmp_path.iterdir())


def test_only_the_newest_are_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 10)
    with pytest.raises(Interrupted):
        run(recipe(data, parity={"margin": 100.0}), tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run/reference/checkpoints").iterdir())
    assert kept == ["step-0000009", "step-0000011"]


@pytest.mark.parametrize("step", [7, 9, 20])
def test_a_past_that_was_left_makes_room(tmp_path: Path, step: int) -> None:
    """The training went back to step 6, behind damaged checkpoints; the good one is kept beside the new one."""
    model = tiny_model("gpt2")
    optimizer = make_optimizer(model, Training.model_validate(training()).optimizer)

    def save(saver: checkpoint.Saver, *steps: int) -> list[str]:
        for one in steps:
            saver.save(model, optimizer, checkpoint.TrainState(step=one))
            saver.wait()
            assert saver.last == tmp_path / f"step-{one:07d}"
        return [path.name for path in checkpoint.all_in(tmp_path)]

    save(checkpoint.Saver(tmp_path, 4, ALONE), 3, 6, 9, 12)
    for damaged in ("step-0000009", "step-0000012"):
        (tmp_path / damaged / "training.json").write_text("{")
    found = checkpoint.newest(tmp_path, checkpoint.TrainState())
    assert found is not None and found[1].step == 6
    resumed = checkpoint.Saver(tmp_path, 2, ALONE, 6)
    assert save(resumed, step) == ["step-0000006", f"step-{step:07d}"]
    assert save(resumed, step + 1) == [f"step-{step:07d}", f"step-{step + 1:07d}"]


def test_ten_million_steps_come_after_the_ones_before(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    optimizer = make_optimizer(model, Training.model_validate(training()).optimizer)
    saver = checkpoint.Saver(tmp_path, 2, ALONE)
    for step in (9_999_990, 9_999_999, 10_000_008):
        saver.save(model, optimizer, checkpoint.TrainState(step=step))
        saver.wait()
    assert [path.name for path in checkpoint.all_in(tmp_path)] == ["step-9999999", "step-10000008"]
    found = checkpoint.newest(tmp_path, checkpoint.TrainState())
    assert found is not None and found[1].step == 10_000_008


def test_a_damaged_checkpoint_is_not_called_good(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stopped(data, tmp_path / "run", monkeypatch)
    folder = tmp_path / "run/reference/checkpoints"
    (folder / "step-0000008/training.json").write_text("{")

    def fail(self: Stepper, number: int, *rest: object, **options: object) -> object:
        raise NonFiniteError(f"the loss of step {number} is not finite", number)

    monkeypatch.setattr(Stepper, "__call__", fail)
    with pytest.raises(NonFiniteError, match=f"the last good checkpoint is {folder}/step-0000006;"):
        run(settings, tmp_path / "run")


def test_a_full_disk_leaves_the_checkpoint_before(
    data: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(data, parity={"margin": 100.0})
    original, saves = checkpoint.save_file, 0

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            path.write_bytes(b"what still fitted")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        original(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space left") as caught:
            run(settings, tmp_path / "run")
    assert caught.value.errno == errno.ENOSPC
    names = sorted(path.name for path in (tmp_path / "run/reference/checkpoints").iterdir())
    assert names == ["step-0000003", "step-0000006"]
    run(settings, tmp_path / "run")
    assert final_weights(tmp_path / "run") == undisturbed


def test_a_disk_that_is_really_full(data: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        settings = recipe(data, parity={"margin": 100.0})
        with pytest.raises(OSError, match="No space left"):
            run(settings, small / "run")
        folder = small / "run/reference/checkpoints"
        assert not list(folder.glob("*.tmp"))
        for path in folder.iterdir():
            assert checkpoint._verified(path).step > 0
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert run(settings, small / "run").verdict == "parity"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_metrics_of_steps_done_again_are_written_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(data, parity={"margin": 100.0}, training=training(checkpoints={"every": 5}))
    original, calls = Stepper.__call__, 0

    def fail(self: Stepper, number: int, *rest: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise RuntimeError("power cut")
        return original(self, number, *rest, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            run(settings, tmp_path / "run")
    run(settings, tmp_path / "run")
    rows = json.loads(
        "[" + ",".join((tmp_path / "run/reference/metrics.jsonl").read_text().splitlines()) + "]"
    )
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert all(row["tokens_per_second"] > 0 for row in rows if row["kind"] == "train")


def test_the_command_stops_on_sigterm_and_goes_on(data: Path, tmp_path: Path) -> None:
    """As a user meets it: the real command, a real signal, exit code 130, and the same command again."""
    path = tmp_path / "recipe.yaml"
    long = training(steps=3000, checkpoints={"every": 1000}, log_every=1)
    path.write_text(json.dumps(values(data, training=long)))
    command = [sys.executable, "-m", "inheritune", "run", str(path), "-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run/reference/metrics.jsonl"
    timer = threading.Timer(120, process.kill)
    timer.start()
    while process.poll() is None and not (log.exists() and log.stat().st_size > 2000):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    timer.cancel()
    assert process.returncode == 130, errors
    assert "the same command resumes from there" in errors
    assert "Traceback" not in errors
    assert len(list((tmp_path / "run/reference/checkpoints").iterdir())) == 1


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2")
    settings = Training.model_validate(training())
    optimizer = make_optimizer(model, settings.optimizer)
    stepper = make_stepper(model, optimizer, settings)
    stepper(0, [(tokens(2, 16), tokens(2, 16, seed=1))])
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    original, may_write = checkpoint.save_file, threading.Event()

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert may_write.wait(60)
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    saver = checkpoint.Saver(tmp_path, 2, ALONE)
    saver.save(model, optimizer, checkpoint.TrainState(step=1))
    stepper(1, [(tokens(2, 16), tokens(2, 16, seed=1))])
    assert not checkpoint.all_in(tmp_path), "it is not complete, so it is not there"
    may_write.set()
    saver.wait()
    path, state = checkpoint.newest(tmp_path, checkpoint.TrainState()) or (None, None)
    assert path is not None and state is not None and state.step == 1
    for name, value in load_model(path).state_dict().items():
        assert torch.equal(value, saved[name]), "the weights of the step it was asked for, not of the next"


def test_how_a_training_is_computed_is_no_part_of_what_it_is() -> None:
    plain = Training.model_validate(training())
    spread = Training.model_validate(
        training(parallel="fsdp", micro_batch=1, activation_checkpointing="every 2")
    )
    assert spread.parallel.strategy == "fsdp"
    assert not differences(spread, plain)
    assert differences(plain, Training.model_validate(training(seed=1)))
    with pytest.raises(ValueError, match="it is 'most', but should be none, all, a list of block numbers"):
        Training.model_validate(training(activation_checkpointing="most"))


def test_tensors_lie_where_new_ones_would(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from a file they would lie elsewhere, and that may show in the last bit of what is computed."""
    addresses: dict[str, list[int]] = {}

    def note(self: Stepper, step: int, *rest: object, **options: object) -> object:
        model, state = self.loss.model, self.optimizer.state
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [value for of_one in state.values() for value in of_one.values() if value.dim()]
        addresses[str(step)] = [tensor.data_ptr() % 64 for tensor in tensors]
        return original(self, step, *rest, **options)  # type: ignore[arg-type]

    settings = stopped(data, tmp_path / "run", monkeypatch)
    original = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", note)
    run(settings, tmp_path / "run")
    assert "8" in addresses and "0" in addresses, (
        "a resumed training, and one that starts with inherited weights"
    )
    assert {place for places in addresses.values() for place in places} == {0}
