from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

from inheritune.config import Distillation
from inheritune.training import memory
from inheritune.training.memory import memory_per_process
from inheritune.training.traced_step import Step, Traced, traced_step
from inheritune.training.tracing import Event, Point, points
from tiny_models import ARCHITECTURES, tiny_model


def tiny(model_type: str, **changes: Any) -> PretrainedConfig:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(model_type, **{**special, **ARCHITECTURES[model_type], **changes})


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gpt2", {"bf16": True}),
        ("llama", {"checkpointing": "all"}),
        ("llama", {"gpu": True, "optimizer": "muon"}),
        ("opt", {}),
        ("gemma2", {"bf16": True}),  # sliding windows, and logits that the model makes itself
        ("gpt2", {"teacher": tiny("gpt2"), "distillation": Distillation(temperature=2.0)}),
    ],
)
def test_a_traced_step_holds_what_a_computed_one_holds(model_type: str, settings: dict[str, Any]) -> None:
    step = Step(tiny(model_type), window=48, micro_batch=3, **settings)
    traced, computed = traced_step(step), traced_step(step, fake=False)

    def largest(one: Traced) -> int:
        return max(point.rest + point.gradients for point in one.points)

    assert largest(traced) == largest(computed) > 0
    assert replace(traced, points=[]) == replace(computed, points=[])


def test_tracing_leaves_the_configuration_alone() -> None:
    """It may be that of a model in training."""
    config = tiny_model("gpt2").config
    traced_step(Step(config, window=8, micro_batch=1))
    assert config._attn_implementation == "sdpa"


def test_a_compiled_head_holds_logits_once() -> None:
    config = tiny("gpt2", n_layer=1, vocab_size=20_000)
    step = Step(config, window=64, micro_batch=4, bf16=True, gpu=True)
    eager, compiled = traced_step(step), traced_step(replace(step, compiled=True))

    def head(one: Traced) -> int:
        return max(p.rest for p in one.points if p.moment == "head") - next(
            p.rest for p in reversed(one.points) if p.moment == "forward 0"
        )

    logits = 64 * 4 * 20_000 * 2
    assert logits <= head(compiled) < 1.5 * logits < 3 * logits < head(eager)


def test_experts_are_traced_without_knowing_their_tokens() -> None:
    step = Step(tiny("mixtral", num_hidden_layers=1), window=48, micro_batch=3)
    traced, computed = (max(p.rest for p in traced_step(step, fake=fake).points) for fake in (True, False))
    assert traced == pytest.approx(computed, rel=0.01)


@pytest.mark.parametrize(
    ("model_type", "checkpointing", "micro_batch"),
    [("gpt2", "none", 3), ("llama", "all", 1), ("llama", "none", 1)],
)
def test_a_deep_model_follows_from_shallow_ones(
    model_type: str, checkpointing: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    config = tiny(model_type, **{field: 9})
    step = Step(config, window=48, micro_batch=micro_batch, bf16=True, checkpointing=checkpointing)
    strategies: list[tuple[Any, int]] = [("single", 1), ("ddp", 2), ("fsdp", 2)]
    short = [memory_per_process(step, *strategy) for strategy in strategies]
    monkeypatch.setattr(memory, "TRACED_LAYERS", 9)
    whole = [memory_per_process(step, *strategy) for strategy in strategies]
    assert short == whole


def test_points_tell_gradients_apart() -> None:
    events = [
        Event("start", 0, 10),
        Event("head", 1, 5),  # gradient outside the blocks
        Event("backward 1", 2, 7),
        Event("backward 0", 0, -10),
        Event("backward 0", 3, 9),
    ]
    assert points(events, {1: None, 2: 1, 3: 0}) == [
        Point("start", rest=10, own=0, done=0, root=0, fresh=0),
        Point("head", rest=10, own=0, done=0, root=5, fresh=5),
        Point("backward 1", rest=10, own=7, done=0, root=5, fresh=7),
        Point("backward 0", rest=0, own=9, done=7, root=5, fresh=9),
    ]


def test_sums_of_each_strategy_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two blocks of 100 parameters and 50 outside, in float32: 1000 bytes of weights, 2000 of moments.
    moments = [
        Point("start", rest=10, own=0, done=0, root=0, fresh=0),
        Point("forward 1", rest=300, own=0, done=0, root=0, fresh=0),
        Point("head", rest=900, own=0, done=0, root=200, fresh=200),
        Point("backward 1", rest=400, own=400, done=0, root=200, fresh=400),
        Point("backward 0", rest=300, own=400, done=400, root=200, fresh=400),
        Point("end", rest=100, own=0, done=800, root=200, fresh=0),
        Point("update", rest=0, own=0, done=800, root=200, fresh=0),
    ]
    traced = Traced(moments, 1000, 500, [100, 100], root=50, teacher=0, trained=250)
    monkeypatch.setattr(memory, "traced_step", lambda step, halved=False: traced)
    step = Step(tiny("gpt2", n_layer=2), window=8, micro_batch=1)
    # head: 900 + 200; backward 0: 300 + 1000
    assert memory_per_process(step, "single") == 3000 + 1300
    # head: gradients are there already, and a new one of 200 beside them
    assert memory_per_process(step, "ddp", 2) == 3000 + 900 + 1000 + 200
    assert memory_per_process(replace(step, accumulates=True), "single") == 3000 + 900 + 1000 + 200
    # as many, since DDP's gradients of one micro-batch are added to those of the one before
    assert memory_per_process(replace(step, accumulates=True), "ddp", 2) == 3000 + 900 + 1000 + 200
    # Half of 3000. backward 1: 400 + 400 + 200 held, 200 + 400 gathered and 400 of the next: 2000; as it ends,
    # 200 + 400 gathered, 400 to reduce and 200 reduced: 2200. backward 0: 300 + 400 + 200 and half of 400 done,
    # 200 + 400 gathered, 400 of block 1 to reduce: 2100; as it ends, 200 gathered, 400 and 200: 1900.
    assert memory_per_process(step, "fsdp", 2) == 1500 + 2200


def test_a_share_of_the_weights_is_less_than_all_of_them() -> None:
    step = Step(tiny("llama", vocab_size=2000), window=8, micro_batch=1)
    ddp, two, four = (
        memory_per_process(step, "ddp", 4),
        memory_per_process(step, "fsdp", 2),
        memory_per_process(step, "fsdp", 4),
    )
    assert four < two < ddp


@pytest.mark.parametrize(("strategy", "processes"), [("single", 2), ("ddp", 1), ("fsdp", 0)])
def test_a_strategy_that_does_not_go_with_the_processes(strategy: Any, processes: int) -> None:
    with pytest.raises(ValueError, match=f"'{strategy}' does not go with {processes} processes"):
        memory_per_process(Step(tiny("gpt2"), window=8, micro_batch=1), strategy, processes)
