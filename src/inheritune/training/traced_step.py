"""One training step as the loop takes it, run to count its tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from inheritune.config import Distillation, Optimizer, Training
from inheritune.models.architecture import blocks
from inheritune.models.presets import freeze_biases
from inheritune.training import distillation, loss
from inheritune.training.distillation import DistillationLoss
from inheritune.training.loss import NextTokenLoss
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import checkpoint_activations
from inheritune.training.tracing import Point, StorageCounter, moments, points

ATTENTION = "inheritune_traced"


@dataclass(frozen=True)
class Step:
    """What decides how much memory a process takes for a step.

    Args:
        config: of the model.
        window: tokens.
        micro_batch: windows in one forward pass.
        accumulates: whether a process has more than one micro-batch in a step.
        bf16: whether the forward pass computes in bfloat16.
        gpu: whether on a GPU, where eager code never holds the logits of all tokens at once.
        compiled: whether the head is compiled, which holds them in the type of autocast only.
        checkpointing: as `training.activation_checkpointing`.
        optimizer: as `training.optimizer.name`.
        teacher: configuration of a teacher.
        distillation: how it teaches.
    """

    config: PretrainedConfig = field(hash=False)
    window: int
    micro_batch: int
    accumulates: bool = False
    bf16: bool = False
    gpu: bool = False
    compiled: bool = False
    checkpointing: str | tuple[int, ...] = "none"
    optimizer: Literal["adamw", "muon"] = "adamw"
    teacher: PretrainedConfig | None = field(default=None, hash=False)
    distillation: Distillation | None = None

    @property
    def halved(self) -> bool:
        """Whether FSDP puts blocks together in bfloat16."""
        return self.bf16 and self.gpu


@dataclass(frozen=True)
class Traced:
    """A traced step of one micro-batch, and the sizes of what it was made with.

    Args:
        points: what was held, from moment to moment.
        weights: bytes of all weights and buffers, a teacher's too.
        state: numbers in the optimizer's state.
        blocks: parameters of each block.
        root: parameters outside the blocks, a teacher's too.
        teacher: parameters of the teacher's largest block; 0 without one.
        trained: parameters that get a gradient.
    """

    points: list[Point]
    weights: int
    state: int
    blocks: list[int]
    root: int
    teacher: int
    trained: int


@lru_cache(maxsize=64)
def traced_step(step: Step, halved: bool = False, fake: bool = True) -> Traced:
    """Trace forward and backward pass, clipping and update.

    Args:
        step: what to trace.
        halved: with the blocks' weights in bfloat16, as FSDP puts them together; autocast then copies none.
        fake: without computing it. Otherwise it is computed, on the CPU, and its tensors counted all the same.
    """
    with FakeTensorMode() if fake else nullcontext(), _stand_ins(step, fake):
        objective = _objective(step)
        model = objective.model
        optimizer = make_optimizer(model, Optimizer(name=step.optimizer))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()  # makes its state
        optimizer.zero_grad(set_to_none=True)
        state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
        taught = (
            blocks(objective.teacher.model) if isinstance(objective, DistillationLoss) else nn.ModuleList()
        )
        weights = sum(_bytes(_tensors(objective)))
        if halved:
            for block in [*blocks(model), *taught]:
                _halve(block)
        tokens = torch.zeros(step.micro_batch, step.window, dtype=torch.long)
        objective.train()
        own, counter = list(blocks(model)), StorageCounter([*_tensors(objective), *state])
        with moments(counter, own), counter:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step.bf16):
                value = objective(tokens, tokens)
            value.backward()
            counter.moment = "update"
            groups = {
                counter.number_of(p.grad): number for number, p in _by_block(model) if p.grad is not None
            }
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not halved:  # FSDP updates the float32 shares
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sizes = [_count(block.parameters()) for block in own]
        teachers = [_count(block.parameters()) for block in taught]
        return Traced(
            points=points(counter.events, groups),
            weights=weights,
            state=sum(tensor.numel() for tensor in state),
            blocks=sizes,
            root=_count(objective.parameters()) - sum(sizes) - sum(teachers),
            teacher=max(teachers, default=0),
            trained=_count(p for p in model.parameters() if p.requires_grad),
        )


def _objective(step: Step) -> NextTokenLoss:
    """The loss with its models, which have random weights, if any."""
    student = NextTokenLoss(_model(step.config, step))
    checkpoint_activations(student.model, Training(activation_checkpointing=step.checkpointing))
    if step.teacher is None:
        return student
    assert step.distillation is not None
    return DistillationLoss(student.model, _model(step.teacher, step), step.distillation)


def _model(config: PretrainedConfig, step: Step) -> PreTrainedModel:
    """A model that leaves out attention masks as it would if its tensors had values to look at."""
    # A copy, as a model keeps its configuration and the switch below is written there.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    freeze_biases(model)
    if model.config.get_text_config()._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, sdpa_attention_forward)
        AttentionMaskInterface.register(ATTENTION, _mask)
        model.set_attn_implementation(ATTENTION)
    return model


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *arguments: Any,
    local_size: int | None = None,
    **options: Any,
) -> Tensor | None:
    """transformers' `sdpa_mask`, which makes one wherever it cannot see that none is needed."""
    if local_size is None or kv_length < local_size:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, *arguments, local_size=local_size, **options)


@contextmanager
def _stand_ins(step: Step, fake: bool) -> Iterator[None]:
    """Within it, losses hold as many logits as on a GPU, and experts need not know which tokens they get."""

    def grouped(input_nd: Tensor, weight_edf: Tensor, *, offs: Tensor) -> Tensor:
        # As large as the product with the expert of each token, before and behind.
        with torch.autocast("cpu", enabled=False):
            return input_nd @ weight_edf[0]

    with ExitStack() as stack:
        if step.gpu:
            head = _compiled_head if step.compiled else loss.chunked_cross_entropy
            stack.enter_context(mock.patch.object(loss, "linear_cross_entropy", head))
            chunk = {"cpu": distillation.CHUNK["cuda"]}
            stack.enter_context(mock.patch.dict(distillation.CHUNK, chunk))
        if fake:
            stack.enter_context(mock.patch.object(F, "grouped_mm", grouped))
        yield


def _compiled_head(hidden_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor) -> Tensor:
    """What compiled code holds of `loss.linear_cross_entropy`: all logits, or chunks of them."""
    if len(hidden_nd) * len(weight_vd) > loss.WHOLE:
        return loss.chunked_cross_entropy(hidden_nd, weight_vd, bias_v, targets_n)
    value: Tensor = _CompiledHead.apply(hidden_nd, weight_vd, bias_v)
    return value


class _CompiledHead(torch.autograd.Function):
    """Tensors of the right sizes, not values."""

    @staticmethod
    def forward(ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None) -> Tensor:
        logits_nv = F.linear(hidden_nd, weight_vd, bias_v)
        ctx.save_for_backward(hidden_nd, weight_vd, bias_v, logits_nv)
        return logits_nv.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden_nd, weight_vd, bias_v, logits_nv = ctx.saved_tensors
        slope_nv = logits_nv.zero_()  # it writes the gradient over them
        to_hidden = (slope_nv @ weight_vd.to(slope_nv.dtype)).to(hidden_nd.dtype)
        to_weight = (slope_nv.T @ hidden_nd.to(slope_nv.dtype)).to(weight_vd.dtype)
        return to_hidden, to_weight, None if bias_v is None else slope_nv.sum(0).to(bias_v.dtype)


def _halve(module: nn.Module) -> None:
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            half = nn.Parameter(parameter.detach().bfloat16(), requires_grad=parameter.requires_grad)
            owner.register_parameter(name, half)


def _by_block(model: PreTrainedModel) -> Iterator[tuple[int | None, nn.Parameter]]:
    """Every parameter, with the number of its block."""
    own = {id(p): number for number, block in enumerate(blocks(model)) for p in block.parameters()}
    for parameter in model.parameters():
        yield own.get(id(parameter)), parameter


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> list[int]:
    return list({id(s): s.nbytes() for s in [t.untyped_storage() for t in tensors]}.values())


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
