"""What FSDP holds, gathers and averages when, in a process group of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from inheritune.config import Distillation
from inheritune.models.architecture import blocks
from inheritune.models.presets import architecture_config
from inheritune.models.size import on_meta
from inheritune.runtime.hardware import Hardware
from inheritune.training import parallel
from inheritune.training.distillation import DistillationLoss
from inheritune.training.loss import NextTokenLoss, compile_each
from inheritune.training.parallel import Placed, groups_of, is_share, spread
from tiny_models import tiny_model, tokens

CPU = Hardware(torch.device("cpu"), bf16=False, compile=False)


@pytest.fixture(autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shared_out(model: nn.Module) -> set[bool]:
    return {is_share(parameter) for parameter in model.parameters()}


def pass_over(placed: Placed, last: bool) -> None:
    batch = tokens(2, 16)
    with placed.accumulating(last):
        placed.forward(batch, batch).backward()


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ({"preset": "gpt2-medium"}, [5, 5, 5, 5, 4]),
        ({"preset": "gpt2-xlarge", "n_layer": 5}, [2, 2, 1]),
        (
            {"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 3200, "intermediate_size": 8640},
            [1, 1, 1],
        ),
    ],
)
def test_small_blocks_are_gathered_together(architecture: dict[str, Any], sizes: list[int]) -> None:
    layers = blocks(on_meta(architecture_config(architecture)))
    groups = groups_of(layers)
    assert [len(group) for group in groups] == sizes
    assert [block for group in groups for block in group] == list(layers)


@pytest.mark.parametrize("limit", [1, 2**28])
@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_kept_between_micro_batches(monkeypatch: pytest.MonkeyPatch, keeps: bool, limit: int) -> None:
    monkeypatch.setattr(parallel, "GROUP", limit)
    placed = replace(spread(NextTokenLoss(tiny_model("llama")), "fsdp", CPU), keeps=keeps)
    model = placed.loss.model
    shares = list(model.parameters())
    assert len(placed.groups) == (len(blocks(model)) if limit == 1 else 1)
    pass_over(placed, last=False)
    assert shared_out(model) == {not keeps}
    assert {share.grad is None for share in shares} == {keeps}
    pass_over(placed, last=True)
    assert shared_out(model) == {True}
    assert all(share.grad is not None for share in shares)


def test_validation_keeps_no_blocks() -> None:
    placed = replace(spread(NextTokenLoss(tiny_model("llama")), "fsdp", CPU), keeps=True)
    pass_over(placed, last=True)
    placed.loss.eval()
    batch = tokens(2, 16)
    placed.loss.per_window(batch, batch)
    assert shared_out(blocks(placed.loss.model)) == {True}


def test_a_teacher_is_gathered_for_its_forward_pass_only() -> None:
    student, teacher = tiny_model("llama"), tiny_model("llama", num_hidden_layers=3)
    loss = DistillationLoss(student, teacher, Distillation())
    placed = replace(spread(loss, "fsdp", CPU), keeps=True)
    held = []
    blocks(student)[-1].register_full_backward_pre_hook(lambda *_: held.append(shared_out(blocks(teacher))))
    for last in (False, True):
        pass_over(placed, last)
    assert held == [{True}, {True}]


@pytest.mark.parametrize("known", [True, False])
def test_blocks_that_differ_do_not_share_compiled_code(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """By torch's own option (2.13), and without it."""
    compiled = []

    def with_option(method: Any, isolate_recompiles: bool = False) -> Any:
        compiled.append((method.__func__.__code__, isolate_recompiles))
        return method

    def without(method: Any) -> Any:
        return with_option(method)

    monkeypatch.setattr(torch, "compile", with_option if known else without)
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    batch = tokens(2, 16)
    expected = NextTokenLoss(model)(batch, batch)
    compile_each(blocks(model))
    torch.testing.assert_close(NextTokenLoss(model)(batch, batch), expected, rtol=0, atol=0)
    assert len({id(code) for code, _ in compiled}) == (1 if known else len(blocks(model)))
    assert {isolated for _, isolated in compiled} == {known}
