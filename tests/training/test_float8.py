"""Float8: what is refused; with torchao, on emulated hardware, what is converted and that names stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from inheritune.models.pretrained import load_model
from inheritune.training import float8
from tiny_models import tiny_model, tokens


def llama() -> torch.nn.Module:
    return tiny_model("llama", hidden_size=64, intermediate_size=128)


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"pip install 'inheritune\[fp8\]'"):
        float8.convert(llama())


@pytest.fixture
def with_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "_torchao", lambda: None)


def test_a_cpu_is_refused(with_torchao: None) -> None:
    with pytest.raises(ValueError, match=r"CUDA GPU.*is to train on the cpu"):
        float8.convert(llama())


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match=r"8\.9 or more, and the A100 has 8\.0"):
        float8._check_hardware(torch.device("cuda"))


def test_a_model_without_linear_layers_is_refused(with_torchao: None) -> None:
    with pytest.raises(ValueError, match="'gpt2' model have none"):
        float8.convert(tiny_model("gpt2"), emulate=True)


def test_a_model_that_was_not_converted_is_left_alone() -> None:
    model = llama()
    before = list(model.modules())
    with float8.without_float8(model):
        assert list(model.modules()) == before
    float8.revert(model)
    assert list(model.modules()) == before


def test_converted_models_keep_names_parameters_and_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = llama()
    names, parameters = list(model.state_dict()), dict(model.named_parameters())
    inputs = tokens(2, 16)
    plain = model(input_ids=inputs).logits
    assert float8.convert(model, emulate=True) == 4 * 7
    assert list(model.state_dict()) == names
    assert all(parameters[name] is p for name, p in model.named_parameters())
    rounded = model(input_ids=inputs).logits
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).norm() < 0.2 * plain.norm()
    rounded.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with float8.without_float8(model):
        assert torch.equal(model(input_ids=inputs).logits, plain)
    assert torch.equal(model(input_ids=inputs).logits, rounded)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(input_ids=inputs).logits, plain)
    float8.revert(model)
    assert torch.equal(model(input_ids=inputs).logits, plain)
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
