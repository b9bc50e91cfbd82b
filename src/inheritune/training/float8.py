"""Matrix products of the blocks in float8, through torchao (the extra `fp8`).

Weights stay float32 and keep their names; torchao's linear layer casts weights, inputs and gradients to float8 on
the fly, each tensor scaled by its own largest value (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks

MULTIPLE = 16
"""Float8 matrix products need dimensions that are multiples of this; that of the tokens in a micro-batch, too."""


def convert(model: PreTrainedModel, *, emulate: bool = False) -> int:
    """Let the linear layers of the blocks compute in float8; embeddings, norms and head stay as they are.

    Parameters are the same objects as before, under the same names. Layers with a dimension that float8 does not
    take are left alone.

    Args:
        model: on the device of its training.
        emulate: compute as if in float8, on hardware that has none; slow, for tests.

    Returns:
        How many layers were converted.

    Raises:
        UserError: torchao is not installed, the hardware has no float8, or there are no such layers.
    """
    torchao = _torchao()
    if not emulate:
        _check_hardware(model.device)
    linears = [module for module in blocks(model).modules() if _fits(module)]
    if not linears:
        raise UserError(
            f"`float8` is for linear layers (nn.Linear), and the blocks of this {model.config.model_type!r} model "
            f"have none whose dimensions are multiples of {MULTIPLE}: leave it out"
        )
    config = torchao.Float8LinearConfig(emulate=emulate)
    torchao.convert_to_float8_training(
        blocks(model), config=config, module_filter_fn=lambda module, name: _fits(module)
    )
    return len(linears)


@contextmanager
def without_float8(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model computes as if it had not been converted: for validation, and to hand it on.

    A model that was not converted is left alone. The converted layers come back as the same objects, so that
    compiled code stays valid.
    """
    converted = [
        (parent, name, child)
        for parent in blocks(model).modules()
        for name, child in parent.named_children()
        if type(child).__name__ == "Float8Linear"
    ]
    for parent, name, child in converted:
        setattr(parent, name, _plain(child))
    try:
        yield
    finally:
        for parent, name, child in converted:
            setattr(parent, name, child)


def _fits(module: nn.Module) -> bool:
    return type(module) is nn.Linear and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)


def _plain(layer: nn.Module) -> nn.Linear:
    """An `nn.Linear` with this layer's parameters, not copies of them."""
    assert isinstance(layer, nn.Linear), type(layer)
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.float8")
    except ImportError as error:
        raise UserError(
            "the recipe asks for `float8`, which needs torchao: pip install 'inheritune[fp8]'"
        ) from error


def _check_hardware(device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(
            f"`float8` needs a CUDA GPU that computes in it, and the model is to train on the {device.type}"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise UserError(
            f"`float8` needs a GPU of compute capability 8.9 or more, and the {torch.cuda.get_device_name(device)} "
            f"has {capability[0]}.{capability[1]}"
        )
