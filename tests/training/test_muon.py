"""Muon against its formula and torch's own; what it trains and what AdamW trains; shards; save and restore."""

from __future__ import annotations

import copy
import math
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

import muon_shards
from inheritune.models.presets import freeze_biases
from inheritune.training.muon import MuonWithAdamW, make_muon, newton_schulz
from muon_shards import SETTINGS, backward
from tiny_models import tiny_model


def test_the_iteration_keeps_directions_and_makes_every_singular_value_nearly_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((48, 32), (32, 48), (40, 40)):
        u, _, vt = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
        matrix = u @ torch.diag(torch.linspace(0.2, 1.0, len(vt))) @ vt
        values = (u.T @ newton_schulz(matrix).float() @ vt.T).diagonal()
        assert values.min() > 0.6 and values.max() < 1.3
        off = newton_schulz(matrix).float() - u @ torch.diag(values) @ vt
        assert off.norm() / math.sqrt(len(vt)) < 0.03  # bfloat16


def test_an_update_follows_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 40, generator=generator))
    gradients = [torch.randn(24, 40, generator=generator) for _ in range(3)]
    expected, average = weight.detach().double(), torch.zeros(24, 40, dtype=torch.float64)
    optimizer = MuonWithAdamW([weight], [{"params": [nn.Parameter(torch.zeros(3))]}], SETTINGS)
    for gradient in gradients:
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
        average = 0.95 * average + 0.05 * gradient.double()
        nesterov = 0.05 * gradient.double() + 0.95 * average
        u, values, vt = torch.linalg.svd(nesterov, full_matrices=False)
        x = values / values.norm()  # the iteration acts on each singular value alone
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
        update = 0.2 * math.sqrt(40) * (u @ torch.diag(x) @ vt)
        expected = (1 - 1e-2 * 0.1) * expected - 1e-2 * update
        moved = weight.detach().double() - before.double()
        wanted = expected - before.double()
        assert (moved - wanted).norm() / wanted.norm() < 0.02  # bfloat16 in the iteration
        expected = weight.detach().double()


def test_updates_are_those_of_torch_bit_for_bit() -> None:
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    optimizer = make_muon(ours, SETTINGS)
    names = {id(p): name for name, p in ours.named_parameters()}
    matrices = [theirs.get_parameter(names[id(p)]) for p in optimizer.param_groups[0]["params"]]
    reference = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    chosen = {id(p) for p in matrices}
    others = [p for p in theirs.parameters() if id(p) not in chosen]
    embeddings = {id(theirs.get_input_embeddings().weight)}
    groups = [
        {"params": [p for p in others if p.dim() > 1 and id(p) not in embeddings], "weight_decay": 0.1},
        {"params": [p for p in others if p.dim() < 2 or id(p) in embeddings], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)
    for seed in range(3):
        backward(ours, seed)
        backward(theirs, seed)
        for each in (optimizer, reference, adamw):
            each.step()
            each.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_every_trainable_parameter_is_trained_once_and_frozen_ones_never() -> None:
    model = tiny_model("gpt2", frozen_biases=True)
    freeze_biases(model)
    optimizer = make_muon(model, SETTINGS)
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
    optimizer = make_muon(model, SETTINGS)
    experts = [p for p in model.parameters() if p.dim() == 3]
    assert experts
    decayed = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert {id(p) for p in experts} <= decayed
    backward(model)
    before = experts[0].detach().clone()
    optimizer.step()
    assert not torch.equal(before, experts[0])


def test_a_model_without_matrices_in_its_blocks_is_refused() -> None:
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.requires_grad_(False)
    with pytest.raises(ValueError, match="use adamw"):
        make_muon(model, SETTINGS)


def test_the_loss_goes_down_and_the_schedule_reaches_every_group() -> None:
    model = tiny_model("llama")
    optimizer = make_muon(model, SETTINGS)
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


def test_state_survives_a_state_dict() -> None:
    model = tiny_model("gpt2")
    optimizer = make_muon(model, SETTINGS)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    other = copy.deepcopy(model)
    restored = make_muon(other, SETTINGS)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, step in ((model, optimizer), (other, restored)):
        backward(each, seed=1)
        step.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_set_tensor_by_tensor_goes_on_the_same() -> None:
    """As checkpoints put it back: `optimizer.state[parameter] = {name: tensor}`."""
    model = tiny_model("llama")
    optimizer = make_muon(model, SETTINGS)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    other = copy.deepcopy(model)
    restored = make_muon(other, SETTINGS)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        restored.state[its] = {key: value.clone() for key, value in optimizer.state[mine].items()}
    for each, step in ((model, optimizer), (other, restored)):
        backward(each, seed=1)
        step.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_sharded_matrices_are_updated_as_whole_ones(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(muon_shards.train, (port, str(tmp_path)), nprocs=2)
    sharded: dict[str, Tensor] = torch.load(tmp_path / "weights.pt", weights_only=True)
    model = tiny_model("llama")
    optimizer = make_muon(model, SETTINGS)
    for seed in range(3):
        backward(model, seed)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(sharded[name], parameter.detach(), rtol=1e-6, atol=1e-8)
