"""Several processes train as one would, stop as one, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny_data
from inheritune.analysis.forecast import load_forecast
from inheritune.config import TrainRecipe
from inheritune.data.answers import read_record
from inheritune.data.loader import open_data
from inheritune.models.load import load_model
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.hardware import Hardware
from inheritune.training.float8 import convert
from inheritune.training.loss import NextTokenLoss
from inheritune.training.validation import WindowLosses, validate
from tiny_recipes import ARCHITECTURE, training
from worlds import free_port, run_jobs

LAYOUTS: dict[str, tuple[int, str]] = {
    "single": (1, "auto"),
    "ddp-2": (2, "ddp"),
    "fsdp-2": (2, "fsdp"),
    "ddp-4": (4, "ddp"),
    "fsdp-4": (4, "fsdp"),
}
GROUP, ROOM = "inheritune.training.parallel.GROUP", "inheritune.training.micro_batch.FILLED_TOGETHER"
WAYS: dict[str, dict[str, float]] = {
    "one group, kept": {},
    "two blocks a group, kept": {GROUP: 120_000},
    "a block a group, gathered again": {GROUP: 1, ROOM: 0},
}
"""How FSDP groups blocks, and whether it keeps what it gathered."""
LOST = 3
INTERRUPTED = 130


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


def train_recipe(data: Path, **changes: Any) -> dict[str, Any]:
    """Values for `inheritune train`."""
    values = {
        "name": "tiny",
        "data": {"path": str(data), "window": 32},
        "model": {"architecture": ARCHITECTURE},
        "training": training(),
    }
    return values | changes


def job(layout: str, recipe: dict[str, Any], directory: Path, **more: Any) -> dict[str, Any]:
    processes, strategy = LAYOUTS[layout]
    recipe = {**recipe, "training": {**recipe["training"], "parallel": {"strategy": strategy}}}
    return {"recipe": recipe, "directory": str(directory), "processes": processes, **more}


def succeed(jobs: list[dict[str, Any]]) -> None:
    for asked, done in zip(jobs, run_jobs(jobs), strict=True):
        assert set(done["codes"].values()) == {0}, (asked["directory"], done["errors"])


def rows(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(directory: Path) -> torch.Tensor:
    tensors = load_file(directory / "model/model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("accumulate", [{}, {"tokens_per_step": 512, "micro_batch": 2}])
def test_fifty_steps_are_those_of_one_process(data: Path, tmp_path: Path, accumulate: dict[str, int]) -> None:
    recipe = train_recipe(data, training=training(steps=50, log_every=1, **accumulate))
    succeed([job(layout, recipe, tmp_path / layout) for layout in LAYOUTS])
    alone = rows(tmp_path / "single", "train")
    for layout in LAYOUTS:
        found = rows(tmp_path / layout, "train")
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in alone], rel=1e-6)
        assert [row["gradient_norm"] for row in found] == pytest.approx(
            [row["gradient_norm"] for row in alone], rel=1e-4
        )
        assert [row["tokens"] for row in found] == [row["tokens"] for row in alone]
        if accumulate:
            assert {row["micro_batch"] for row in found} == {accumulate["micro_batch"]}
        first, expected = rows(tmp_path / layout, "validation")[0], rows(tmp_path / "single", "validation")[0]
        assert first["loss"] == expected["loss"], "the same weights have the same validation loss, exactly"


def test_groups_of_blocks(data: Path, tmp_path: Path) -> None:
    """Of any size, kept or gathered again, in one micro-batch or several: the same training."""
    ways = dict(enumerate(WAYS.values()))
    for several in ({"tokens_per_step": 512, "micro_batch": 2}, {}):
        recipe = train_recipe(data, training=training(log_every=1, **several))
        folder = tmp_path / str(len(several))
        jobs = [job("fsdp-2", recipe, folder / str(way), constants=ways[way]) for way in ways]
        succeed([job("single", recipe, folder / "single"), *jobs])
        for way in ways:
            for kind, figure, rel in (
                ("train", "loss", 1e-6),
                ("train", "gradient_norm", 1e-4),
                ("validation", "loss", 1e-6),
            ):
                expected = [row[figure] for row in rows(folder / "single", kind)]
                assert [row[figure] for row in rows(folder / str(way), kind)] == pytest.approx(
                    expected, rel=rel
                )


@pytest.mark.parametrize(
    ("layout", "constants"),
    [("fsdp-2", {GROUP: 120_000}), ("fsdp-2", {ROOM: 0}), ("ddp-2", {})],
)
def test_distillation_and_activation_checkpointing(
    data: Path, tmp_path: Path, layout: str, constants: dict[str, float]
) -> None:
    """A sharded teacher teaches the same, and activations that are made again are the same ones."""
    succeed([job("single", train_recipe(data), tmp_path / "teacher")])
    recipe = train_recipe(
        data,
        model={"pretrained": str(tmp_path / "teacher/model")},
        initialization={"layers": "first 2"},
        distillation={"alpha": 0.6},
    )
    again, partly = (
        {**recipe, "training": {**recipe["training"], "activation_checkpointing": which, "micro_batch": 1}}
        for which in ("all", "first 1")
    )
    succeed(
        [
            job("single", recipe, tmp_path / "single"),
            job(layout, recipe, tmp_path / "together", constants=constants),
            job(layout, again, tmp_path / "again", constants=constants),
            job(layout, partly, tmp_path / "partly", constants=constants),
        ]
    )
    expected = [row["loss"] for row in rows(tmp_path / "single", "train")]
    for name in ("together", "again", "partly"):
        assert [row["loss"] for row in rows(tmp_path / name, "train")] == pytest.approx(expected, rel=1e-6)


def test_a_reference_that_is_asked_once(data: Path, tmp_path: Path) -> None:
    """Its answers are the same bytes, whoever asks how many files of them, and students learn from them alike."""
    recipe = {
        "name": "tiny",
        "data": {"path": str(data), "window": 32},
        "reference": {"architecture": ARCHITECTURE},
        "grow": {"max_rounds": 1},
        "distillation": {"draws": 20},
        "training": training(log_every=1),
    }
    succeed([job("single", recipe, tmp_path / "teacher", kind="run")])
    recipe["reference"] = {"pretrained": str(tmp_path / "teacher/reference/model")}
    compiled = {**recipe, "training": training(log_every=1, compile=True)}
    layouts, quick = ("single", "ddp-2", "fsdp-2"), ("single", "fsdp-2")
    jobs = [job(layout, recipe, tmp_path / layout, kind="run", file_tokens=9 * 32) for layout in layouts]
    jobs += [job(layout, compiled, tmp_path / f"compiled-{layout}", kind="run") for layout in quick]
    succeed(jobs)
    records = [read_record(tmp_path / layout / "answers") for layout in layouts]
    assert len(records[0].files) == 6
    for record in records[1:]:
        assert [file.sha256 for file in record.files] == [file.sha256 for file in records[0].files]
    expected = [row["loss"] for row in rows(tmp_path / "single/round-1-2-layers", "train")]
    for name in (*layouts[1:], *(f"compiled-{layout}" for layout in quick)):
        found = [row["loss"] for row in rows(tmp_path / name / "round-1-2-layers", "train")]
        assert found == pytest.approx(expected, rel=1e-5 if "compiled" in name else 1e-6)


def test_what_is_left_behind_is_rounded_in_shares_too(data: Path, tmp_path: Path) -> None:
    recipe = train_recipe(data, training=training(dtype="bfloat16"))
    layouts = ("ddp-2", "fsdp-2")
    succeed([job(layout, recipe, tmp_path / layout) for layout in layouts])
    replicated, sharded = ([row["loss"] for row in rows(tmp_path / layout, "train")] for layout in layouts)
    assert replicated == pytest.approx(sharded, rel=1e-6)
    opened = open_data(parse_recipe(recipe, TrainRecipe).data)
    hardware = Hardware(torch.device("cpu"), bf16=False, compile=False)
    for layout in layouts:
        tensors = load_file(tmp_path / layout / "model/model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        loss = NextTokenLoss(load_model(tmp_path / layout / "model"))
        again = validate(loss, opened.validation, opened.window, hardware).losses
        found = WindowLosses.load(tmp_path / layout / "validation.json").losses
        np.testing.assert_allclose(again, found, rtol=0, atol=1e-6)
        assert not (tmp_path / layout / "checkpoints").exists()


def test_bf16(data: Path, tmp_path: Path) -> None:
    recipe = train_recipe(data, training=training(precision="bf16"))
    layouts = ("single", "ddp-2", "fsdp-2")
    succeed([job(layout, recipe, tmp_path / layout) for layout in layouts])
    expected = [row["loss"] for row in rows(tmp_path / "single", "train")]
    for layout in layouts[1:]:
        assert [row["loss"] for row in rows(tmp_path / layout, "train")] == pytest.approx(expected, rel=1e-2)


def test_compiled(data: Path, tmp_path: Path) -> None:
    """DDP's graph is cut at its buckets (of this model there are two); under FSDP each block is compiled alone."""
    wide = {"architecture": {**ARCHITECTURE, "n_embd": 160}}
    recipe = train_recipe(data, model=wide, training=training(steps=6))
    compiled = {**recipe, "training": {**recipe["training"], "compile": True}}
    again = {**compiled, "training": {**compiled["training"], "activation_checkpointing": "all"}}
    succeed(
        [
            job("single", recipe, tmp_path / "single"),
            job("ddp-2", compiled, tmp_path / "ddp"),
            job("fsdp-2", compiled, tmp_path / "fsdp"),
            job("ddp-2", again, tmp_path / "again"),
            job("fsdp-2", again, tmp_path / "fsdp-again", constants={ROOM: 0}),
        ]
    )
    expected = [row["loss"] for row in rows(tmp_path / "single", "train")]
    for name in ("ddp", "fsdp", "again", "fsdp-again"):
        assert [row["loss"] for row in rows(tmp_path / name, "train")] == pytest.approx(expected, rel=1e-5)


def test_float8(data: Path, tmp_path: Path) -> None:
    """Also of weights in shares, however they are gathered, and compiled; each process scales by its own inputs."""
    emulated = {"inheritune.training.parallel.convert": partial(convert, emulate=True)}
    regathered = emulated | WAYS["a block a group, gathered again"]
    recipe = train_recipe(data, training=training(log_every=1, float8=True))
    compiled = {**recipe, "training": {**recipe["training"], "compile": True}}
    stop = {"rank": 1, "step": 5}
    run_jobs([job("fsdp-2", recipe, tmp_path / "stopped", constants=regathered, stop=stop)])
    succeed(
        [
            *(job(layout, recipe, tmp_path / layout, constants=emulated) for layout in ("single", "ddp-2")),
            *(job("fsdp-2", recipe, tmp_path / name, constants=regathered) for name in ("fsdp-2", "stopped")),
            job("fsdp-2", compiled, tmp_path / "compiled", constants=emulated),
        ]
    )
    for kind in ("train", "validation"):
        expected = [row["loss"] for row in rows(tmp_path / "single", kind)]
        for name in ("ddp-2", "fsdp-2", "compiled"):
            assert [row["loss"] for row in rows(tmp_path / name, kind)] == pytest.approx(expected, rel=2e-3)
    assert torch.equal(weights(tmp_path / "stopped"), weights(tmp_path / "fsdp-2"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_gpus(data: Path, tmp_path: Path) -> None:
    """Through NCCL, in bf16 and compiled, as a real training would."""
    recipe = train_recipe(data, training=training(device="cuda", precision="bf16", compile=True))
    layouts = ("single", "ddp-2", "fsdp-2")
    succeed([job(layout, recipe, tmp_path / layout) for layout in layouts])
    expected = [row["loss"] for row in rows(tmp_path / "single", "train")]
    for layout in layouts[1:]:
        assert [row["loss"] for row in rows(tmp_path / layout, "train")] == pytest.approx(expected, rel=1e-2)


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of each layout that were stopped in their sixth step, and one that was not."""
    folder = tmp_path_factory.mktemp("stopped")
    jobs = [
        job(layout, train_recipe(data), folder / layout, stop={"rank": LAYOUTS[layout][0] - 1, "step": 5})
        for layout in ("single", "ddp-2", "fsdp-4")
    ]
    for done in run_jobs(jobs):
        assert set(done["codes"].values()) == {INTERRUPTED}, done["errors"]
        for rank, error in done["errors"].items():
            told = "stopped after step 6; the same command resumes from there" in error
            assert told == (rank == "0"), "once"
    succeed([job("single", train_recipe(data), folder / "undisturbed")])
    return folder


@pytest.mark.parametrize("saved", ["single", "ddp-2", "fsdp-4"])
def test_a_checkpoint_is_gone_on_with_in_any_layout(
    data: Path, stopped: Path, tmp_path: Path, saved: str
) -> None:
    jobs = []
    for layout in ("single", "ddp-2", "fsdp-4"):
        shutil.copytree(stopped / saved, tmp_path / layout)
        jobs.append(job(layout, train_recipe(data), tmp_path / layout))
    succeed(jobs)
    expected = weights(stopped / "undisturbed")
    for layout in ("single", "ddp-2", "fsdp-4"):
        rest = [row["step"] for row in rows(tmp_path / layout, "train")]
        assert rest == [2, 4, 6, 8, 10, 12]
        torch.testing.assert_close(weights(tmp_path / layout), expected, rtol=1e-2, atol=3e-5)


@pytest.mark.parametrize("layout", ["ddp-4", "fsdp-4"])
def test_going_on_is_exact_with_four_processes(data: Path, tmp_path: Path, layout: str) -> None:
    """Sums over more than two processes depend on their order, and DDP's on where its buckets begin."""
    recipe = train_recipe(data, training=training(tokens_per_step=256, micro_batch=1))
    stop = {"rank": 3, "step": 5}
    _, goes_on, undisturbed = run_jobs(
        [
            job(layout, recipe, tmp_path / "stopped", stop=stop),
            job(layout, recipe, tmp_path / "stopped"),
            job(layout, recipe, tmp_path / "undisturbed"),
        ]
    )
    assert set(goes_on["codes"].values()) | set(undisturbed["codes"].values()) == {0}
    assert torch.equal(weights(tmp_path / "stopped"), weights(tmp_path / "undisturbed"))


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_going_on_is_exact_however_blocks_are_grouped(data: Path, tmp_path: Path, way: str) -> None:
    recipe = train_recipe(data, training=training(tokens_per_step=256, micro_batch=1))
    _, goes_on, undisturbed = run_jobs(
        [
            job("fsdp-2", recipe, tmp_path / name, constants=WAYS[way], **stop)
            for name, stop in (
                ("stopped", {"stop": {"rank": 1, "step": 5}}),
                ("stopped", {}),
                ("undisturbed", {}),
            )
        ]
    )
    assert set(goes_on["codes"].values()) | set(undisturbed["codes"].values()) == {0}
    assert torch.equal(weights(tmp_path / "stopped"), weights(tmp_path / "undisturbed"))


@pytest.mark.parametrize(("layout", "victim"), [("ddp-2", 0), ("fsdp-2", 1), ("fsdp-2", 0)])
def test_one_process_killed_in_the_middle_of_saving(
    data: Path, tmp_path: Path, layout: str, victim: int
) -> None:
    recipe = train_recipe(data)
    killed, goes_on, undisturbed = run_jobs(
        [
            job(layout, recipe, tmp_path / "killed", kill={"rank": victim, "saves": 2}),
            job(layout, recipe, tmp_path / "killed"),
            job(layout, recipe, tmp_path / "undisturbed"),
        ]
    )
    survivor = str(1 - victim)
    assert killed["codes"] == {str(victim): -9, survivor: LOST}
    assert (
        f"(process {survivor} of 2): process {survivor} of 2 lost another process"
        in killed["errors"][survivor]
    )
    assert "Traceback" not in killed["errors"][survivor]
    assert killed["seconds"] < 60
    assert set(goes_on["codes"].values()) | set(undisturbed["codes"].values()) == {0}
    assert torch.equal(weights(tmp_path / "killed"), weights(tmp_path / "undisturbed"))


def test_memory_of_one_process_that_runs_out(data: Path, tmp_path: Path) -> None:
    """The others wait for its gradients, so it cannot try again: it says what to set, and they that it is lost."""
    full = {"rank": 1, "windows": 1}
    recipe = train_recipe(data, training=training(parallel={"timeout_seconds": 30}))
    sharded = job("fsdp-2", recipe, tmp_path / "fsdp", full=full)
    replicated = job("ddp-2", recipe, tmp_path / "ddp", full=full)
    for done, sentence in zip(
        run_jobs([sharded, replicated]),
        (
            "process 1 of 2 ran out of memory in step 0 with 2 windows in one forward pass: set "
            "`training.micro_batch: 1`, `training.activation_checkpointing: all`",
            "the first forward pass ran out of memory: set a smaller `training.micro_batch`",
        ),
        strict=True,
    ):
        assert done["codes"] == {"0": LOST, "1": 2}, done["errors"]
        assert f"error (process 1 of 2): {sentence}" in done["errors"]["1"]
        assert "lost another process" in done["errors"]["0"]
        assert done["seconds"] < 60


@pytest.mark.parametrize("start", [2, "auto"])
def test_algorithm_1_together(data: Path, tmp_path: Path, start: int | str) -> None:
    """The whole of it, with a second round or with a forecast for the first cut, and the same verdict as alone."""
    recipe = {
        "name": "tiny",
        "data": {"path": str(data), "window": 32},
        "reference": {"architecture": ARCHITECTURE},
        "start_layers": start,
        "grow": {"layers": 1, "max_rounds": 2, "mode": "append"},
        "parity": {"margin": -100.0, "control": True, "also": {"other": str(tmp_path / "other")}},
        "training": training(),
    }
    tiny_data.write_shards(tmp_path / "other", validation=700)
    layouts = ("single", "ddp-2", "fsdp-2")
    succeed([job(layout, recipe, tmp_path / layout, kind="run") for layout in layouts])
    alone = json.loads((tmp_path / "single/summary.json").read_text())
    assert len(alone["rounds"]) == (2 if start == 2 else 1)
    for layout in layouts[1:]:
        found = json.loads((tmp_path / layout / "summary.json").read_text())
        assert found["verdict"] == alone["verdict"] == "no parity"
        assert [r["layers"] for r in found["rounds"]] == [r["layers"] for r in alone["rounds"]]
        losses = [r["loss"] for r in found["rounds"]]
        assert losses == pytest.approx([r["loss"] for r in alone["rounds"]], rel=1e-5)
        for one, other in zip(found["rounds"], alone["rounds"], strict=True):
            assert one["also"]["other"]["loss"] == pytest.approx(other["also"]["other"]["loss"], rel=1e-5)
        ours, its = (summary["control"]["to_reference"]["loss"] for summary in (found, alone))
        assert ours == pytest.approx(its, rel=1e-5)
        assert (tmp_path / layout / "final/model.safetensors").exists()
    if start == "auto":
        predicted = [load_forecast(tmp_path / layout / "reference/forecast.json") for layout in layouts]
        for theirs in predicted[1:]:
            assert theirs.start == predicted[0].start and len(theirs.probes) == 5
            for kind in ("probes", "depths", "curve"):
                found = [one.loss for one in getattr(theirs, kind)]
                assert found == pytest.approx([one.loss for one in getattr(predicted[0], kind)], rel=1e-4)


def test_validation_of_the_same_model_is_identical(data: Path, tmp_path: Path) -> None:
    succeed([job("single", train_recipe(data), tmp_path / "reference")])
    recipe = {
        "name": "tiny",
        "data": {"path": str(data), "window": 8},
        "reference": {"pretrained": str(tmp_path / "reference/model")},
        "grow": {"max_rounds": 1},
        "training": training(steps=3, tokens_per_step=64),
    }
    layouts = ("single", "ddp-2", "fsdp-2", "fsdp-4")
    succeed([job(layout, recipe, tmp_path / layout, kind="run") for layout in layouts])
    losses = [
        np.array(json.loads((tmp_path / layout / "reference/validation.json").read_text())["losses"])
        for layout in layouts
    ]
    assert len(losses[0]) == 249
    for found in losses[1:]:
        assert np.array_equal(found, losses[0])


@pytest.fixture(scope="module")
def failed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How jobs end that cannot be done together; nobody hung, and everybody said why in a sentence."""
    folder, port = tmp_path_factory.mktemp("failed"), free_port()
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    store.add("inheritune/0/0", 1)  # of the first meeting, by rank 0
    store.add("inheritune/0/1", 1)

    def asked(name: str, settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        recipe = train_recipe(data, training=training(**settings or {}))
        return {"recipe": recipe, "directory": str(folder / name), "processes": 2, **more}

    other = {"training": training(parallel={"strategy": "fsdp"}, seed=1)}
    left = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    jobs = {
        "windows": asked("windows", {"tokens_per_step": 96}),
        "backend": asked("backend", {"parallel": {"backend": "pigeon"}}),
        "two recipes": asked("two recipes", changes={"1": other}),
        "alone": asked("alone", {"parallel": {"join_seconds": 2}}, ranks=[0]),
        "left": {**asked("left"), "port": port, "environment": left},
        "study": asked("study", kind="study"),
    }
    found = dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))
    for name, done in found.items():
        assert done["codes"] == ({"0": 2} if name == "alone" else {"0": 2, "1": 2}), done
        assert done["seconds"] < 60
        for error in done["errors"].values():
            assert "Traceback" not in error, error
            assert error.count("error (process") == 1, error
        assert name != "two recipes" or not (folder / name).exists()
        done["port"] = port
    return found


def test_windows_that_cannot_be_shared(failed: dict[str, dict[str, Any]]) -> None:
    for error in failed["windows"]["errors"].values():
        assert (
            "the windows of a step (3) cannot be shared evenly by 2 processes: make tokens_per_step" in error
        )


def test_a_backend_that_is_not_there(failed: dict[str, dict[str, Any]]) -> None:
    for error in failed["backend"]["errors"].values():
        assert "this torch has no backend 'pigeon' for parallel training" in error


def test_two_recipes(failed: dict[str, dict[str, Any]]) -> None:
    for error in failed["two recipes"]["errors"].values():
        assert "process 1 was started with something else than process 0" in error
        assert "training.parallel.strategy: auto -> fsdp; training.seed: 0 -> 1" in error


def test_a_process_that_does_not_come(failed: dict[str, dict[str, Any]]) -> None:
    error = failed["alone"]["errors"]["0"]
    assert "waited 2 s at 127.0.0.1:" in error
    assert "for all 2 processes, and they did not come" in error


def test_a_meeting_place_that_an_earlier_start_left(failed: dict[str, dict[str, Any]]) -> None:
    for rank, error in failed["left"]["errors"].items():
        place = f"127.0.0.1:{failed['left']['port']}"
        assert f"process {rank} of 2 is at {place} already: an earlier start" in error


def test_work_for_one(failed: dict[str, dict[str, Any]]) -> None:
    error = failed["study"]["errors"]["1"]
    assert "`inheritune study` is work for one process, and torchrun started 2" in error
