"""Float8: what is refused; with torchao, on emulated hardware, what is converted and that names stay."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_data
from inheritune.algorithm import run
from inheritune.models.load import load_model
from inheritune.runtime.signals import Interrupted
from inheritune.training import float8, start
from tiny_models import tiny_model, tokens
from tiny_recipes import recipe, stop_after, training


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


def test_converted_models_keep_names_parameters_and_checkpoints(tmp_path: Path) -> None:
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
        assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert torch.equal(model(input_ids=inputs).logits, rounded)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(input_ids=inputs).logits, plain)


def test_a_run_in_float8_goes_on_exactly_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "convert", partial(float8.convert, emulate=True))
    data = tiny_data.write_shards(tmp_path / "data")
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    shape = {**llama, "num_attention_heads": 4, "vocab_size": 128}

    def trained(name: str, *, eight: bool) -> Path:
        settings = training(float8=eight, checkpoints={"every": 2})
        run(recipe(data, reference={"architecture": shape}, training=settings), tmp_path / name)
        return tmp_path / name

    rounded, plain = trained("rounded", eight=True), trained("plain", eight=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            trained("stopped", eight=True)
    again = trained("stopped", eight=True)
    for name, value in load_file(rounded / "final/model.safetensors").items():
        assert torch.equal(value, load_file(again / "final/model.safetensors")[name]), name

    def losses(directory: Path, kind: str) -> list[float]:
        lines = (directory / "reference/metrics.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, lines) if row["kind"] == kind]

    # Validation is not in float8: before the first step it is the same; after some steps it is near.
    first, *_, last = zip(losses(rounded, "validation"), losses(plain, "validation"), strict=True)
    assert first[0] == first[1]
    assert last[0] != last[1] and last[0] == pytest.approx(last[1], rel=0.02)
