"""Float8: what is refused; with torchao, on emulated hardware, what is converted and that names stay."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import tiny_data
from inheritune.algorithm import run
from inheritune.config import Training
from inheritune.models.load import load_model
from inheritune.recipe_file import differences, parse_recipe
from inheritune.runtime.signals import Interrupted
from inheritune.training import float8, parallel
from tiny_models import tiny_model, tokens
from tiny_recipes import ARCHITECTURE, recipe, stop_after, training

CPU = torch.device("cpu")


def llama() -> PreTrainedModel:
    return tiny_model("llama", hidden_size=64, intermediate_size=128)


def gpt2(**changes: Any) -> PreTrainedModel:
    return tiny_model("gpt2", **{"n_embd": 64, **changes})


MODELS = pytest.mark.parametrize(("make", "linears"), [(llama, 4 * 7), (gpt2, 4 * 4)])
SCALES = pytest.mark.parametrize("rowwise", [False, True])


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"pip install 'inheritune\[fp8\]'"):
        float8.convert(llama(), CPU)


@pytest.fixture
def with_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "_torchao", lambda: None)


def test_a_cpu_is_refused(with_torchao: None) -> None:
    with pytest.raises(ValueError, match=r"CUDA GPU.*is to train on the cpu"):
        float8.convert(llama(), CPU)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match=r"8\.9 or more, and the A100 has 8\.0"):
        float8._check_hardware(torch.device("cuda"))


def test_a_model_of_other_dimensions_is_refused(with_torchao: None) -> None:
    with pytest.raises(ValueError, match="'gpt2' model have none"):
        float8.convert(gpt2(n_embd=24), CPU, emulate=True)


def test_a_model_that_was_not_converted_is_left_alone() -> None:
    model = llama()
    before = list(model.modules())
    with float8.without_float8(model):
        assert list(model.modules()) == before


@MODELS
@SCALES
def test_converted_models_keep_names_parameters_and_checkpoints(
    make: Callable[[], PreTrainedModel], linears: int, rowwise: bool, tmp_path: Path
) -> None:
    model = make()
    names, parameters = list(model.state_dict()), dict(model.named_parameters())
    kinds = [type(module) for module in model.modules()]
    inputs = tokens(2, 16)
    plain = model(input_ids=inputs).logits
    assert float8.convert(model, CPU, rowwise=rowwise, emulate=True) == linears
    converted = list(model.modules())
    assert sum(type(module) is not kind for module, kind in zip(converted, kinds, strict=True)) == linears
    assert list(model.state_dict()) == names
    assert all(parameters[name] is p for name, p in model.named_parameters())
    rounded = model(input_ids=inputs).logits
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).norm() < 0.2 * plain.norm()
    with float8.without_float8(model):
        assert torch.equal(model(input_ids=inputs).logits, plain)
        assert [type(module) for module in model.modules()] == kinds
        assert all(now is before for now, before in zip(model.modules(), converted, strict=True))
    assert torch.equal(model(input_ids=inputs).logits, rounded)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(input_ids=inputs).logits, plain)


@MODELS
@SCALES
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_near_the_exact_ones(
    make: Callable[[], PreTrainedModel], linears: int, rowwise: bool, autocast: bool
) -> None:
    model, inputs = make(), tokens(2, 16)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=inputs).logits
        logits.float().square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    exact = gradients()
    float8.convert(model, CPU, rowwise=rowwise, emulate=True)
    rounded = gradients()
    assert rounded.keys() == exact.keys()
    for name, gradient in rounded.items():
        assert 0 < (gradient - exact[name]).norm() < 0.2 * exact[name].norm(), name


@SCALES
def test_a_conv1d_computes_as_the_linear_layer_of_its_transposed_weight(rowwise: bool) -> None:
    torch.manual_seed(0)
    model, turned = gpt2(), llama()
    conv, linear = model.transformer.h[0].mlp.c_fc, nn.Linear(64, 256)
    linear.weight.data, linear.bias.data = conv.weight.data.T.contiguous(), conv.bias.data
    turned.model.layers[0].mlp.up_proj = linear
    for each in (model, turned):
        float8.convert(each, CPU, rowwise=rowwise, emulate=True)
    conv, linear = model.transformer.h[0].mlp.c_fc, turned.model.layers[0].mlp.up_proj
    assert isinstance(conv, Conv1D) and isinstance(linear, nn.Linear)
    inputs = [torch.randn(2, 16, 64).requires_grad_() for _ in range(2)]
    inputs[1].data = inputs[0].data
    outputs = conv(inputs[0]), linear(inputs[1])
    slope = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(slope)
    assert torch.equal(*outputs)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(conv.weight.grad, linear.weight.grad.T)
    assert torch.equal(conv.bias.grad, linear.bias.grad)


@MODELS
def test_compiled_code_is_one_graph_with_float8_and_one_without(
    make: Callable[[], PreTrainedModel], linears: int
) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    model, inputs = make(), tokens(2, 16)
    plain = model(input_ids=inputs).logits
    float8.convert(model, CPU, emulate=True)
    rounded = model(input_ids=inputs).logits
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(input_ids=inputs).logits, rounded)
        with float8.without_float8(model):
            torch.testing.assert_close(compiled(input_ids=inputs).logits, plain)
    assert len(graphs) == 2


def test_tensorwise_is_another_word_for_true() -> None:
    values = {"true": True, "tensorwise": True, "rowwise": "rowwise", "false": False}
    for written, read in values.items():
        assert parse_recipe({"float8": written}, Training).float8 == read
    assert not differences(Training(float8=True), Training(float8="tensorwise"))
    assert differences(Training(float8=True), Training(float8="rowwise"))
    with pytest.raises(ValueError, match=r"float8.*'tensorwise' or 'rowwise'"):
        parse_recipe({"float8": "blockwise"}, Training)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


@pytest.mark.parametrize(("shape", "how"), [(LLAMA, True), (ARCHITECTURE, "rowwise")])
def test_a_run_in_float8_goes_on_exactly_where_it_was_stopped(
    shape: dict[str, Any], how: bool | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "convert", partial(float8.convert, emulate=True))
    data = tiny_data.write_shards(tmp_path / "data")

    def trained(name: str, eight: bool | str) -> Path:
        settings = training(float8=eight, checkpoints={"every": 2})
        run(recipe(data, reference={"architecture": shape}, training=settings), tmp_path / name)
        return tmp_path / name

    rounded, plain = trained("rounded", how), trained("plain", False)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            trained("stopped", how)
    again = trained("stopped", how)
    for name, value in load_file(rounded / "final/model.safetensors").items():
        assert torch.equal(value, load_file(again / "final/model.safetensors")[name]), name

    def losses(directory: Path, kind: str) -> list[float]:
        lines = (directory / "reference/metrics.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, lines) if row["kind"] == kind]

    # Validation is not in float8: before the first step it is the same; after some steps it is near.
    first, *_, last = zip(losses(rounded, "validation"), losses(plain, "validation"), strict=True)
    assert first[0] == first[1]
    assert last[0] != last[1] and last[0] == pytest.approx(last[1], rel=0.02)
