from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inheritune import UserError
from inheritune.planning import KNOWN_RATES, known_rate, plan
from inheritune.training.memory import Step, memory_per_process
from inheritune.training.micro_batch import fitting_step, step_of
from tiny_data import write_shards
from tiny_models import tiny_model
from tiny_recipes import ARCHITECTURE, recipe, training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def reference(data: Path, **changes: Any) -> Any:
    return plan(recipe(data, training=training(**changes))).stages[0]


def test_every_stage_and_strategy(data: Path) -> None:
    planned = plan(recipe(data, distillation={}), processes=2)
    needs = planned.memory
    assert list(needs) == ["reference", "round 1"]
    for stage in planned.stages:
        assert list(needs[stage.name].needs) == ["single", "ddp", "fsdp"]
        assert needs[stage.name].strategy == "ddp"
        assert needs[stage.name].chosen > stage.memory


def test_the_micro_batch_is_that_of_each_process(data: Path) -> None:
    stage = reference(data)
    alone, together = stage.step_memory(), stage.step_memory(processes=4)
    assert (alone.micro_batch, together.micro_batch) == (4, 1)
    assert together.needs["ddp"] < together.needs["single"] == alone.chosen


def test_a_gpu_that_is_not_here(data: Path) -> None:
    stage = reference(data, device="auto", precision="auto", tokens_per_step=24_576)
    on_cpu, on_gpu = stage.step_memory(device="cpu"), stage.step_memory(device="cuda")
    assert (on_cpu.micro_batch, on_gpu.micro_batch) == (256, 768)
    assert on_gpu.chosen < 3 * on_cpu.chosen  # logits are not held all at once


def test_the_micro_batch_is_what_the_gpu_has_room_for(data: Path) -> None:
    stage = reference(data, device="cuda", precision="auto", tokens_per_step=24_576)
    step = step_of(stage.shape, stage.training, stage.window, torch.device("cuda"), bf16=True)
    need = {size: memory_per_process(replace(step, micro_batch=size), "single") for size in (384, 768)}

    def chosen(room: int | None, fitted: int | None = None, **changes: Any) -> int:
        settings = stage.training.model_copy(update=changes)
        return fitting_step(step, settings, "single", room=room, fitted=fitted).micro_batch

    assert chosen(None) == chosen(2 * need[768]) == 768
    assert chosen(need[768]) == 384  # it is not filled to the brim
    assert chosen(1) == 1
    assert chosen(1, micro_batch=256) == 256  # the recipe knows better
    assert chosen(None, need[768] - 1) == chosen(2 * need[768], need[768] - 1) == 384


def test_several_processes_need_more_of_a_margin(data: Path) -> None:
    """None of them can take fewer windows when memory runs out."""
    stage = reference(data, device="cuda", precision="auto", tokens_per_step=49_152)
    step = step_of(stage.shape, stage.training, stage.window, torch.device("cuda"), bf16=True)
    taken = memory_per_process(replace(step, micro_batch=768), "ddp", 2)
    sizes = [
        fitting_step(step, stage.training, "ddp", 2, room=round(taken / share)).micro_batch
        for share in (0.7, 0.8)
    ]
    assert sizes == [768, 384]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_stay_gathered_where_there_is_room(data: Path, device: str) -> None:
    """One rule for training and plan, on the same share of a device as for a GPU's micro-batches."""
    stage = reference(data, device=device, precision="auto", parallel="fsdp", tokens_per_step=24_576)
    step = step_of(stage.shape, stage.training, stage.window, torch.device(device), bf16=True)

    def fitting(room: int | None, strategy: Any = "fsdp") -> Step:
        settings = stage.training.model_copy(update={"micro_batch": 8})
        return fitting_step(step, settings, strategy, 2, room=room)

    assert fitting(None).keeps
    assert not fitting(None, "ddp").keeps
    taken = memory_per_process(fitting(None), "fsdp", 2)
    assert [fitting(round(taken / share)).keeps for share in (0.7, 0.8)] == [True, False]
    assert memory_per_process(fitting(1), "fsdp", 2) < taken
    assert stage.step_memory(processes=2).strategy == "fsdp"


def test_what_training_refuses_is_refused(data: Path) -> None:
    stage = reference(data, optimizer={"name": "muon"}, parallel="fsdp")
    assert stage.step_memory().chosen
    with pytest.raises(UserError, match="Muon needs whole matrices"):
        stage.step_memory(processes=2)


@pytest.mark.parametrize(
    ("processes", "words"),
    [(0, "processes is 0, but must be at least 1"), (3, "shared evenly by 3 processes")],
)
def test_processes_that_cannot_share_a_step(data: Path, processes: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(recipe(data), processes=processes)


def test_models_of_short_trainings_are_on_the_disk_until_all_are_measured(data: Path, tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "large")
    changes: dict[str, Any] = {
        "reference": {"pretrained": str(tmp_path / "large")},
        "training": training(steps=50, optimizer={"learning_rate": "auto"}),
    }
    planned = plan(recipe(data, start_layers="auto", grow={"max_rounds": 1}, **changes))
    _, rates, *probes, _ = (stage.times * stage.parameters for stage in planned.stages)
    assert planned.models_on_disk == 4 * max(rates, sum(probes))
    deep = {"architecture": {**ARCHITECTURE, "n_layer": 8}}
    planned = plan(
        recipe(data, start_layers="auto", reference=deep, grow={"layers": 1}, parity={"control": True})
    )
    assert [stage.layers for stage in planned.stages] == [8, *(4, 4, 4, 6, 6), *(4, 5, 6, 7), 8]
    left = [stage.parameters for stage in planned.stages if not stage.name.startswith("probe")]
    assert planned.models_on_disk == 4 * sum(left)


def test_the_rate_of_a_gpu_that_was_measured_before(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = recipe(data, training=training(device="cuda", precision="auto"))
    assert known_rate(on_gpu) is None  # none is here
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert known_rate(on_gpu) == KNOWN_RATES["NVIDIA H100 80GB HBM3"]
    assert known_rate(on_gpu, device="cpu") is None
    assert known_rate(recipe(data, training=training(device="cuda", precision="fp32"))) is None
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "another")
    assert known_rate(on_gpu) is None


def test_a_measured_rate_is_that_of_one_gpu_of_several(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inheritune.planning.measured_rate", lambda recipe: 1e9)
    for kind, factor in (("cpu", 1), ("cuda", 4)):
        found = SimpleNamespace(device=torch.device(kind))
        monkeypatch.setattr("inheritune.planning.choose_hardware", lambda training, found=found: found)
        planned = plan(recipe(data), measure=True, processes=4, device="cpu")
        assert planned.rate == factor * 1e9
        assert planned.rate_is == ("measured here" if factor == 1 else "4 x what was measured here")
