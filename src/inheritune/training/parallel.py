"""A training's tensors, spread over processes by torch's own engines.

One process holds everything. With DDP every process holds the whole model and a share of the windows, and gradients
are averaged. With FSDP2 (`fully_shard`) every weight, its gradient and its optimizer state are cut into as many
shares as there are processes. A group of blocks is put together while it computes; where memory allows
(`micro_batch.keeps_gathered`), it stays so until a step's last backward pass.

The model is made on the first process. The others make its shape without memory (meta device) and receive the
weights block by block, so that nobody but the first holds more of it than the strategy needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from itertools import chain, pairwise
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Training
from inheritune.initialization import choose
from inheritune.models.architecture import blocks
from inheritune.models.attention import attend, fitting_attention
from inheritune.models.size import on_meta, training_memory, with_own_code
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.out_of_memory import LESS_PER_WINDOW, SHARED_OUT, needing_memory
from inheritune.runtime.world import World
from inheritune.training.float8 import convert
from inheritune.training.loss import NextTokenLoss

Strategy = Literal["single", "ddp", "fsdp"]

SHARE_OF_MEMORY = 0.5
"""Of a device, that a whole model in training may take; the rest is for activations."""

BUCKET = 100
"""MiB of gradients that DDP averages at once: four times torch's own, as compiled code is cut at their ends."""

GROUP = 2**28
"""Bytes, in float32, of the weights of neighbouring blocks that FSDP gathers together; a larger block is a group of
its own. What the host does for a group takes about as long for few weights as for many. Larger groups would make
longer what nothing overlaps with: gathering the first one, and averaging the gradients of the last."""


@dataclass(frozen=True)
class Placed:
    """A loss where it is to compute.

    Args:
        loss: whose modules hold the parameters, whole or in shares.
        forward: computes it; compiled, and with gradients averaged over processes, where that is wanted.
        strategy: how it is spread over the processes.
        groups: under FSDP, the first block of every group of blocks that is trained.
        keeps: under FSDP, whether a step's weights stay gathered, and gradients whole, until its last backward pass.
    """

    loss: NextTokenLoss
    forward: Callable[..., Tensor]
    strategy: Strategy
    groups: tuple[Any, ...] = ()
    keeps: bool = False

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: DDP averages gradients after the last one only.

        So does FSDP if it `keeps` what is gathered; otherwise after each, and only shares of them are held.
        """
        if self.keeps:
            return self._keeping(last)
        if self.strategy == "ddp" and not last:
            assert isinstance(self.forward, nn.parallel.DistributedDataParallel)
            return self.forward.no_sync()
        return nullcontext()

    @contextmanager
    def _keeping(self, last: bool) -> Iterator[None]:
        """So it is set for training only: without a backward pass nothing would free what validation gathers."""
        for group in (self.loss, *self.groups):
            group.set_requires_gradient_sync(last, recurse=False)
            group.set_reshard_after_backward(last, recurse=False)
        for group in self.groups:
            group.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for group in self.groups:
                group.set_reshard_after_forward(True, recurse=False)


def built_on_rank_0(make: Callable[[], PreTrainedModel], world: World) -> PreTrainedModel:
    """A model on the first process; on the others its shape, without memory.

    Code that comes with a model cannot be sent: there every process makes the model itself.
    """
    made: list[PreTrainedModel] = []

    def shape() -> Any:
        made.append(make())
        config = made[0].config
        return None if with_own_code(config) else config

    config = world.on_first(shape)
    if world.first:
        return made[0]
    return make() if config is None else on_meta(config)


@needing_memory("the model on its device", f"train a smaller one, or {SHARED_OUT}")
def place(loss: NextTokenLoss, training: Training, hardware: Hardware, window: int) -> Placed:
    """Put a loss and the models in it on this process's device, and spread it over the processes.

    From then on the models read windows of at most so many tokens, without padding.
    """
    checkpoint_activations(loss.model, training)
    for model in _models_of(loss):
        attend(model, hardware.world.on_first(fitting_attention, model, window))
    if training.float8:  # after the model was tried on the CPU
        convert(loss.model, hardware.device, rowwise=training.float8 == "rowwise")
    if hardware.world.size == 1:
        loss.to(hardware.device)
        return Placed(loss, torch.compile(loss) if hardware.compile else loss, "single")
    strategy = training.parallel.strategy
    if strategy == "auto":
        room = min(hardware.world.gather(device_memory(hardware)))
        strategy = fitting_strategy(training_memory(loss), room)
    check_strategy(strategy, training)
    return spread(loss, strategy, hardware)


def spread(loss: NextTokenLoss, strategy: Literal["ddp", "fsdp"], hardware: Hardware) -> Placed:
    """Spread a loss over the processes of the default process group, with the first one's weights."""
    if strategy == "fsdp":
        groups = _shard(loss, hardware)
        if hardware.compile:
            loss.compile_parts()
        return Placed(loss, loss, strategy, groups)
    if hardware.compile:
        loss.compile()  # torch cuts the graph where DDP's buckets end
    _receive(loss, hardware.device)
    engine = nn.parallel.DistributedDataParallel
    # Buffers never change; torch 2.13 has a new name for not sending them at every step.
    newer = "forward_sync_buffers" in signature(engine).parameters
    quiet: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    replica = engine(
        loss,
        device_ids=[hardware.device] if hardware.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        bucket_cap_mb=BUCKET,
        **quiet,
    )
    return Placed(loss, replica, strategy)


@needing_memory("the first forward pass", f"set a smaller `training.micro_batch`, {LESS_PER_WINDOW}")
def rebuild_buckets(placed: Placed, hardware: Hardware, shape: tuple[int, int]) -> None:
    """Let DDP sort its buckets anew, as it does after its first backward pass, before the first step.

    A training that was stopped then adds gradients up in the order of one that was not, to the last bit, and
    gradients are in the buckets from the first step on. Weights are left alone. `shape` is a micro-batch's, [B, T].
    """
    if placed.strategy != "ddp":
        return
    placed.loss.train()
    with hardware.autocast():
        loss = placed.forward(*placed.loss.blank(shape, hardware.device))
    loss.backward()
    for parameter in placed.loss.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def fitting_strategy(size: int, room: int) -> Literal["ddp", "fsdp"]:
    """How to spread models that take so many bytes in training, over devices of so many bytes."""
    return "ddp" if size <= SHARE_OF_MEMORY * room else "fsdp"


def check_strategy(strategy: Strategy, training: Training) -> None:
    """Refuse what does not go together with weights that are shared out.

    Raises:
        UserError: Muon under fsdp.
    """
    if strategy == "fsdp" and training.optimizer.name == "muon":
        raise UserError(
            "Muon needs whole matrices, and fsdp shares them out: use `parallel: ddp`, or `optimizer.name: adamw`"
        )


def checkpoint_activations(model: PreTrainedModel, training: Training) -> None:
    """Let the blocks that the recipe names make their activations again in the backward pass.

    Raises:
        UserError: the architecture cannot, or there are no such blocks.
    """
    wanted, layers = training.activation_checkpointing, blocks(model)
    if wanted == "none":
        return
    chosen = choose(None if wanted == "all" else wanted, len(layers))
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"a {model.config.model_type!r} model has no activation checkpointing: set it to none"
        )
    # transformers 5.23 has the new name, and warns of the old one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for number, block in enumerate(layers):
        block.gradient_checkpointing = number in chosen  # type: ignore[assignment]


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is shared out over processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the shares that all processes hold; every process must ask for it."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def groups_of(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Neighbouring blocks that FSDP gathers together: as many as there is room for in `GROUP`, and at least one."""
    groups: list[list[nn.Module]] = []
    taken = 0
    for block in layers:
        size = 4 * sum(p.numel() for p in block.parameters())
        if not groups or taken + size > GROUP:
            groups.append([])
            taken = 0
        groups[-1].append(block)
        taken += size
    return groups


def _shard(loss: NextTokenLoss, hardware: Hardware) -> tuple[Any, ...]:
    """FSDP2: neighbouring blocks are a group; embeddings, final norm and head are one with the loss as their root.

    The next group is asked for before a group computes, so that it is there in time also where the host is slow. In
    the backward pass torch does so by itself. A teacher has none: its groups are never gathered there.

    On a GPU blocks are sent in bfloat16 where the training computes in it; gradients are averaged in float32. The
    root stays float32, as autocast would have it, and so does the residual stream. On a CPU autocast lets a
    layernorm meet both types, which it cannot compute with; so there blocks are sent as they are.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = dist.init_device_mesh(hardware.device.type, (hardware.world.size,))
    half = torch.bfloat16 if hardware.bf16 and hardware.device.type == "cuda" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    firsts: list[list[Any]] = []
    for model in _models_of(loss):
        groups = groups_of(blocks(model))
        for group in groups:
            _receive(nn.ModuleList(group), hardware.device)
            fully_shard(group if len(group) > 1 else group[0], mesh=mesh, mp_policy=policy)
        firsts.append([group[0] for group in groups])
        for this, following in pairwise(firsts[-1]):
            this.set_modules_to_forward_prefetch([following])
    trained, *taught = firsts
    for first in chain(*taught):
        first.set_unshard_in_backward(False)
    _receive(loss, hardware.device)
    fully_shard(loss, mesh=mesh)
    register_fsdp_forward_method(loss, "per_window")
    return tuple(trained)


def _models_of(loss: NextTokenLoss) -> list[PreTrainedModel]:
    """The model of a loss, and after it a teacher."""
    return [module.model for module in loss.modules() if isinstance(module, NextTokenLoss)]


def _receive(module: nn.Module, device: torch.device) -> None:
    """Bring a module to the device, with the first process's weights and buffers; shares are passed over.

    A tensor that is in two places (a tied head) is one tensor afterwards too.
    """
    moved: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None or is_share(parameter):
                continue
            if id(parameter) not in moved:
                sent = _sent(parameter.detach(), device)
                moved[id(parameter)] = nn.Parameter(sent, requires_grad=parameter.requires_grad)
            owner._parameters[name] = moved[id(parameter)]  # type: ignore[assignment]
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = _sent(buffer, device)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    own = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    own = own.contiguous()
    dist.broadcast(own.view(torch.uint8) if own.dtype == torch.bool else own, src=0)
    return own


def device_memory(hardware: Hardware) -> int:
    """Bytes of the GPU, or this process's share of the machine's memory."""
    if hardware.device.type == "cuda":
        return torch.cuda.get_device_properties(hardware.device).total_memory
    return psutil.virtual_memory().total // hardware.world.local_size
