"""Matrix products of the blocks in float8, through torchao (the extra `fp8`).

Weights stay float32 and keep their names; torchao's linear layer casts weights, inputs and gradients to float8 on
the fly, each tensor scaled by its own largest value (Micikevicius et al., "FP8 Formats for Deep Learning", 2022), or
each of its rows or columns by theirs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inheritune import UserError
from inheritune.models.architecture import blocks

MULTIPLE = 16
"""Float8 matrix products need dimensions that are multiples of this; that of the tokens in a micro-batch, too."""


def convert(
    model: PreTrainedModel, device: torch.device, *, rowwise: bool = False, emulate: bool = False
) -> int:
    """Let the linear layers of the blocks compute in float8; embeddings, norms and head stay as they are.

    Parameters are the same objects as before, under the same names. Layers with a dimension that float8 does not
    take are left alone.

    Args:
        model: not compiled or shared out yet: layers become other objects.
        device: of its training.
        rowwise: scale each row and column, not whole tensors, so that an outlier costs only those it is in.
        emulate: compute as if in float8, on hardware that has none; slow, for tests.

    Returns:
        How many layers were converted.

    Raises:
        UserError: torchao is not installed, the hardware has no float8, or there are no such layers.
    """
    torchao = _torchao()
    if not emulate:
        _check_hardware(device)
    linears = [module for module in blocks(model).modules() if _fits(module)]
    if not linears:
        raise UserError(
            f"`float8` is for linear layers (nn.Linear, Conv1D), and the blocks of this {model.config.model_type!r} "
            f"model have none whose dimensions are multiples of {MULTIPLE}: leave it out"
        )
    named = torchao.Float8LinearConfig.from_recipe_name("rowwise" if rowwise else "tensorwise")
    config = replace(named, emulate=emulate)
    # Called even where every layer is a Conv1D: it keeps inductor from miscompiling float8, too.
    torchao.convert_to_float8_training(
        blocks(model), config=config, module_filter_fn=lambda module, name: _fits(module)
    )
    for parent in list(blocks(model).modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D) and _fits(child):
                setattr(parent, name, Float8Conv1D(child, torchao.float8_linear, config))
    return len(linears)


@contextmanager
def without_float8(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model computes as if it had not been converted: for validation, and to hand it on.

    A model that was not converted is left alone. Layers stay the same objects, of another class for so long: their
    parameters may be shares, which FSDP puts together where it found them.
    """
    converted = {
        layer: type(layer)
        for layer in blocks(model).modules()
        if isinstance(layer, Float8Conv1D) or type(layer).__name__ == "Float8Linear"
    }
    for layer in converted:
        layer.__class__ = Conv1D if isinstance(layer, Conv1D) else nn.Linear
    try:
        yield
    finally:
        for layer, its in converted.items():
            layer.__class__ = its


class Float8Conv1D(Conv1D):
    """GPT-2's linear layer, whose weight is [in, out], with the matrix product of torchao's linear layer.

    Args:
        layer: whose parameters it has, not copies of them.
        linear: torchao's module `float8_linear`.
        config: torchao's, of how to scale and to multiply.
    """

    def __init__(self, layer: Conv1D, linear: Any, config: Any) -> None:
        nn.Module.__init__(self)
        self.nx, self.nf, self.weight, self.bias = layer.nx, layer.nf, layer.weight, layer.bias
        with torch.device("meta"):
            like = linear.Float8Linear(layer.nx, layer.nf, bias=False, config=config)
        self.product = linear.matmul_with_hp_or_float8_args
        self.products, self.config = like.linear_mm_config, config
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """As torchao's linear layer: what autocast would round is rounded, and the bias added after the product."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        output = self.product.apply(x, self.weight, self.products, self.config)
        return output + self.bias.to(output.dtype)


def _fits(module: nn.Module) -> bool:
    if type(module) not in (nn.Linear, Conv1D):
        return False
    assert isinstance(module.weight, Tensor)
    return not any(size % MULTIPLE for size in module.weight.shape)


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
