"""Muon against its formula; what it trains and what AdamW trains; save and restore; refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from inheritune import UserError
from inheritune.config import Optimizer, Training
from inheritune.models.presets import freeze_biases
from inheritune.training.loss import NextTokenLoss
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import check_strategy
from tiny_models import tiny_model, tokens

SETTINGS = Optimizer(name="muon", learning_rate=1e-2, weight_decay=0.1)


def backward(model: Any, seed: int = 0) -> float:
    """The gradients of the mean loss over four windows, and that loss."""
    windows = tokens(4, 25, seed)
    loss = NextTokenLoss(model)(windows[:, :-1], windows[:, 1:].contiguous())
    loss.backward()
    return float(loss.detach())


def test_an_update_follows_the_formula() -> None:
    model = tiny_model("llama")
    optimizer = make_optimizer(model, SETTINGS)
    weight: nn.Parameter = model.model.layers[0].mlp.up_proj.weight
    generator = torch.Generator().manual_seed(0)
    average = torch.zeros(weight.shape, dtype=torch.float64)
    for _ in range(3):
        weight.grad = torch.randn(weight.shape, generator=generator)
        before, gradient = weight.detach().double(), weight.grad.double()
        optimizer.step()
        average = 0.95 * average + 0.05 * gradient
        u, values, vt = torch.linalg.svd(0.05 * gradient + 0.95 * average, full_matrices=False)
        x = values / values.norm()  # the iteration acts on each singular value alone
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
        update = 0.2 * math.sqrt(max(weight.shape)) * (u @ torch.diag(x) @ vt)
        wanted = -1e-2 * (0.1 * before + update)
        moved = weight.detach().double() - before
        assert (moved - wanted).norm() / wanted.norm() < 0.02  # bfloat16 in the iteration


def test_every_trainable_parameter_is_trained_once_and_frozen_ones_never() -> None:
    model = tiny_model("gpt2", frozen_biases=True)
    freeze_biases(model)
    optimizer = make_optimizer(model, SETTINGS)
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert {name.split("h.0.")[1] for name in muon if ".h.0." in name} == {
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    }
    assert len(muon) == 16  # no embeddings, no head


def test_experts_in_one_tensor_go_to_adamw() -> None:
    model = tiny_model("mixtral")
    optimizer = make_optimizer(model, SETTINGS)
    experts = [p for p in model.parameters() if p.dim() == 3]
    assert experts
    decayed = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert {id(p) for p in experts} <= decayed
    backward(model)
    before = experts[0].detach().clone()
    optimizer.step()
    assert not torch.equal(before, experts[0])


def test_the_loss_goes_down_and_the_schedule_reaches_every_group() -> None:
    model = tiny_model("llama")
    optimizer = make_optimizer(model, SETTINGS)
    losses = []
    for _ in range(15):
        losses.append(backward(model))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert losses[-1] < losses[0] - 0.5
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("tensor_by_tensor", [True, False])
def test_restored_state_continues_the_same(tensor_by_tensor: bool) -> None:
    """Whole, or as checkpoints put it back: `optimizer.state[parameter] = {name: tensor}`."""
    model = tiny_model("llama")
    optimizer = make_optimizer(model, SETTINGS)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    assert set(optimizer.state[model.model.layers[0].mlp.up_proj.weight]) == {"momentum_buffer"}
    assert set(optimizer.state[model.model.norm.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    other = copy.deepcopy(model)
    restored = make_optimizer(other, SETTINGS)
    if tensor_by_tensor:
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            restored.state[its] = {key: value.clone() for key, value in optimizer.state[mine].items()}
    else:
        restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, step in ((model, optimizer), (other, restored)):
        backward(each, seed=1)
        step.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refusals() -> None:
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.requires_grad_(False)
    with pytest.raises(UserError, match="use adamw"):
        make_optimizer(model, SETTINGS)
    with pytest.raises(UserError, match="Muon needs whole matrices"):
        check_strategy("fsdp", Training(optimizer=SETTINGS))
    check_strategy("ddp", Training(optimizer=SETTINGS))
