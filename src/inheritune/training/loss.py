"""Next-token cross entropy, without ever holding more logits than needed.

Letters: B windows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from inheritune.data.loader import Batch
from inheritune.models.architecture import blocks, head_is_linear
from inheritune.models.size import flops_per_token
from inheritune.runtime.world import ALONE, World

CHUNK = 4_096
"""Tokens whose logits are held at once where they are made in chunks."""

PIECE = 2_048
"""Logits of a token whose float32 copy a CPU holds at once."""

WHOLE = 5 * 2**28
"""Logits that compiled code on a GPU holds at once; in bfloat16 2.5 GiB, and their gradient takes their place."""


class NextTokenLoss(nn.Module):
    """Mean cross entropy of a batch of windows, in nats per token.

    Where logits are a linear map of the last hidden state, head and cross entropy are computed together
    (`linear_cross_entropy`); models that do more to their logits (soft-capping in Gemma 2, scaling in Cohere)
    compute them themselves.

    Args:
        model: whose loss it is.
        world: the processes that make this loss together; only the first one's model needs to have its weights yet.
    """

    def __init__(self, model: PreTrainedModel, world: World = ALONE) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self.linear_head = world.on_first(head_is_linear, model)
        self.cross_entropy: Callable[..., Tensor] = linear_cross_entropy

    def compile_parts(self) -> None:
        """Compile each block alone, and what comes after the last one: between them processes may communicate."""
        compile_each(blocks(self.model))
        self.cross_entropy = torch.compile(self.cross_entropy)

    @property
    def head(self) -> nn.Linear:
        """From hidden states [..., D] to logits [..., V], where `linear_head`."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear), type(head)
        return head

    def hidden(self, inputs_bt: Tensor) -> Tensor:
        """The last hidden state, which the head reads: [B, T, D]."""
        hidden_btd: Tensor = self.model.base_model(input_ids=inputs_bt, use_cache=False).last_hidden_state
        return hidden_btd

    def logits(self, inputs_bt: Tensor) -> Tensor:
        """All logits of a batch, as the model itself computes them: [B, T, V]."""
        logits_btv: Tensor = self.model(input_ids=inputs_bt, use_cache=False).logits
        return logits_btv

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Scalar loss."""
        if not self.linear_head:
            return F.cross_entropy(self.logits(inputs_bt).float().flatten(0, 1), targets_bt.flatten())
        hidden_nd, head = self.hidden(inputs_bt).flatten(0, 1), self.head
        return self.cross_entropy(hidden_nd, head.weight, head.bias, targets_bt.flatten())

    def blank(self, shape: tuple[int, int], device: torch.device) -> Batch:
        """A batch [B, T] of zeros, laid out as the loader's, so that compiled code sees nothing new afterwards."""
        zeros = torch.zeros(shape[0], shape[1] + 1, dtype=torch.long, device=device)
        return zeros[:, :-1].contiguous(), zeros[:, 1:].contiguous()

    @torch.no_grad()
    def per_window(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Mean loss of each window: float32 [B]. Logits are held for one window at a time."""
        if self.linear_head:
            logits = (self.head(hidden_td) for hidden_td in self.hidden(inputs_bt))
        else:
            logits = iter(self.logits(inputs_bt))
        return torch.stack([cross_entropy(row, t) for row, t in zip(logits, targets_bt, strict=True)])

    def flops_per_token(self, window: int) -> float:
        """Of a training step on windows of this length."""
        return flops_per_token(self.model, window)


def compile_each(layers: nn.ModuleList) -> None:
    """Compile what blocks compute, in place, each alone; blocks that are alike share their code.

    Their hooks, which are FSDP's, stay outside: compiled code would be left and entered again for each of them.
    Neighbours are not compiled as one: a model may give each block something else (the mask of its kind).

    Blocks that differ in a number, as GPT-2's in their scale of attention, have code of their own. In one cache each
    call would look through that of all blocks before it (on a GPU longer than a block of GPT-2 medium computes).
    """
    differ = len({_numbers(block) for block in layers}) > 1
    known = "isolate_recompiles" in signature(torch.compile).parameters  # since torch 2.13
    options: dict[str, Any] = {"isolate_recompiles": True} if differ and known else {}
    for block in layers:
        method: Any = block.forward
        block.forward = torch.compile(_with_own_code(method) if differ and not known else method, **options)


def _with_own_code(method: MethodType) -> MethodType:
    """The same method with a copy of its code, which torch then compiles into a cache of its own."""
    function = method.__func__
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copy, method.__self__)


def _numbers(block: nn.Module) -> tuple[float, ...]:
    """The numbers that a block's modules hold, which compiled code takes as constants."""
    return tuple(v for module in block.modules() for v in vars(module).values() if isinstance(v, float))


def linear_cross_entropy(
    hidden_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor
) -> Tensor:
    """Mean cross entropy of `hidden @ weight.T + bias` against class indices.

    Compiled code holds logits in the type of autocast only, and needs them once, so they are made at once as long as
    they are not too many; so they are on a CPU, where anything else costs more time than it saves memory (measured).
    Otherwise, in eager code on a GPU, they would be the largest tensors of the step, so they are made in chunks.
    """
    few = len(hidden_nd) * len(weight_vd) <= WHOLE
    if hidden_nd.device.type == "cpu" or (few and torch.compiler.is_compiling()):
        return F.cross_entropy(F.linear(hidden_nd, weight_vd, bias_v).float(), targets_n)
    return chunked_cross_entropy(hidden_nd, weight_vd, bias_v, targets_n)


def chunked_cross_entropy(
    hidden_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor, chunk: int = CHUNK
) -> Tensor:
    """The same value as `linear_cross_entropy`; each chunk's logits are made again in the backward pass."""

    def summed(hidden_cd: Tensor, weight: Tensor, bias: Tensor | None, targets_c: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden_cd, weight, bias).float(), targets_c, reduction="sum")

    total = hidden_nd.new_zeros((), dtype=torch.float32)
    for hidden_cd, targets_c in zip(hidden_nd.split(chunk), targets_n.split(chunk), strict=True):
        total = total + checkpoint(summed, hidden_cd, weight_vd, bias_v, targets_c, use_reentrant=False)
    return total / len(targets_n)


def cross_entropy(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    """Mean cross entropy of logits in any type, in float32, without gradients.

    A CPU takes half the time if the float32 copies stay in its cache (vocabulary of 49,152, bfloat16 logits).
    """
    if logits_nv.device.type != "cpu":
        return F.cross_entropy(logits_nv.float(), targets_n)
    pieces = [piece.float().logsumexp(-1) for piece in logits_nv.split(PIECE, dim=-1)]
    target_n = logits_nv.gather(-1, targets_n[:, None])[:, 0].float()
    return (torch.stack(pieces).logsumexp(0) - target_n).mean()


def uniform_loss(vocabulary: int) -> float:
    """Loss of guessing every token with the same probability: ln V."""
    return math.log(vocabulary)
