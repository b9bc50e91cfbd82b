"""Settings of ours that `gpu.py` can change without a change of the source: `ours+NAME=VALUE+...`.

attention   masked (what transformers does with `sdpa` in compiled code), cudnn, flash, padded (heads of a
            multiple of eight, which cuDNN takes)
loss        whole (all logits at once), chunked, fused (torch's, in bf16), ahead (gradients in the forward pass)
compile     whole, blocks (each block and the cross entropy alone), autotune (max-autotune-no-cudagraphs),
            graphs (CUDA graphs), none
micro       windows in a micro-batch
residual    bf16: between the blocks too (not what autocast does; for comparison)
optimizer   adamw, muon
float8      tensorwise, rowwise
deterministic  yes
parallel    ddp, fsdp: in a process group of one, to see what the engine itself costs
gather      again: FSDP as where there is no room to keep what it gathered

The other contestants know `micro`, such as `trainer+micro=24`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from inheritune.config import Training
from inheritune.models.attention import attend
from inheritune.runtime.hardware import Hardware
from inheritune.training import loss as losses
from inheritune.training.loss import NextTokenLoss
from inheritune.training.parallel import Placed, place, spread

NAMES = (
    "attention",
    "loss",
    "compile",
    "micro",
    "residual",
    "optimizer",
    "float8",
    "deterministic",
    "parallel",
    "gather",
)
PADDED = "benchmark_padded"
MODES = {"autotune": "max-autotune-no-cudagraphs", "graphs": "reduce-overhead"}


def parse(contestant: str) -> dict[str, str]:
    """`ours+loss=whole+micro=24` -> {"loss": "whole", "micro": "24"}."""
    settings = dict(part.split("=") for part in contestant.split("+")[1:])
    unknown = set(settings) - set(NAMES)
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}; known are {', '.join(NAMES)}")
    return settings


def recipe(settings: dict[str, str]) -> dict[str, Any]:
    """The part of the settings that a recipe's `training` has keys for."""
    keys: dict[str, Any] = {}
    if "micro" in settings:
        keys["micro_batch"] = int(settings["micro"])
    if "optimizer" in settings:
        keys["optimizer"] = {"name": settings["optimizer"]}
    if "float8" in settings:
        keys["float8"] = settings["float8"]
    if "deterministic" in settings:
        keys["deterministic"] = True
    if settings.get("compile") in ("none", "whole"):
        keys["compile"] = settings["compile"] == "whole"
    return keys


def placed(
    model: Any, training: Training, hardware: Hardware, window: int, settings: dict[str, str]
) -> Placed:
    """The model's loss, placed as the training loop does, with the settings changed."""
    loss: NextTokenLoss = LOSSES[settings.get("loss", "ours")](model)
    result = place(loss, training, hardware, window)
    if "attention" in settings:
        _attend(model, settings["attention"])
    if settings.get("residual") == "bf16":
        base = model.base_model
        first = getattr(base, "drop", None) or base.get_input_embeddings()
        first.register_forward_hook(lambda module, inputs, output: output.bfloat16())
    how = settings.get("compile")
    if "parallel" in settings:
        _group_of_one(hardware.device)
        if how == "blocks":
            loss.compile_parts()
            hardware = dataclasses.replace(hardware, compile=False)
        result = spread(loss, settings["parallel"], hardware)  # type: ignore[arg-type]
        keeps = result.strategy == "fsdp" and settings.get("gather") != "again"
        result = dataclasses.replace(result, keeps=keeps)
    elif how == "blocks":
        loss.compile_parts()
        result = dataclasses.replace(result, forward=loss)
    elif how in MODES:
        result = dataclasses.replace(result, forward=torch.compile(loss, mode=MODES[how]))
    return result


def _group_of_one(device: torch.device) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _attend(model: Any, how: str) -> None:
    if how == "masked":
        attend(model, "sdpa")
        return
    if how == "padded":
        AttentionInterface.register(PADDED, _padded)
        attend(model, PADDED)
        return
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(how == "flash")
    torch.backends.cuda.enable_cudnn_sdp(how == "cudnn")


def _padded(
    module: nn.Module,
    query_bhtd: Tensor,
    key_bhtd: Tensor,
    value_bhtd: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of heads that zeros make as wide as the next multiple of eight: the same values."""
    width = query_bhtd.shape[-1]
    wide = [F.pad(each, (0, -width % 8)) for each in (query_bhtd, key_bhtd, value_bhtd)]
    own = width**-0.5 if scaling is None else scaling
    out_bthd, _ = sdpa_attention_forward(module, *wide, mask, scaling=own, **options)
    return out_bthd[..., :width], None


class Whole(NextTokenLoss):
    """All logits at once: compiled, they are held in bf16 only."""

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        logits_nv = self.head(self.hidden(inputs_bt).flatten(0, 1))
        return F.cross_entropy(logits_nv.float(), targets_bt.flatten())


class Chunked(NextTokenLoss):
    """Some logits at a time, made again in the backward pass."""

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        hidden_nd = self.hidden(inputs_bt).flatten(0, 1)
        return losses.chunked_cross_entropy(hidden_nd, self.head.weight, self.head.bias, targets_bt.flatten())


class Fused(NextTokenLoss):
    """torch's own, told to compute in bf16: autocast does not reach into it (torch 2.13)."""

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        hidden_nd, weight_vd = self.hidden(inputs_bt).flatten(0, 1), self.head.weight
        if torch.is_autocast_enabled(hidden_nd.device.type):
            hidden_nd, weight_vd = hidden_nd.bfloat16(), weight_vd.bfloat16()
        options = nn.LinearCrossEntropyOptions(allow_retain_graph=True)
        return F.linear_cross_entropy(hidden_nd, weight_vd, targets_bt.flatten(), options=options).float()


class Ahead(NextTokenLoss):
    """Some logits at a time, whose gradients are made at once, so that they need not be made again."""

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        hidden_nd = self.hidden(inputs_bt).flatten(0, 1)
        half = torch.is_autocast_enabled(hidden_nd.device.type)
        dtype = torch.bfloat16 if half else hidden_nd.dtype
        return GradientsAhead.apply(hidden_nd.to(dtype), self.head.weight, targets_bt.flatten())


class GradientsAhead(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`, with both gradients made in the forward pass, chunk by chunk."""

    CHUNK = 4096

    @staticmethod
    def forward(ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
        count, dtype = len(targets_n), hidden_nd.dtype
        low_vd = weight_vd.to(dtype)
        classes = torch.arange(len(weight_vd), device=hidden_nd.device)
        total = hidden_nd.new_zeros((), dtype=torch.float32)
        to_hidden, to_weight = [], torch.zeros_like(weight_vd, dtype=torch.float32)
        for hidden_cd, targets_c in zip(
            hidden_nd.split(GradientsAhead.CHUNK), targets_n.split(GradientsAhead.CHUNK), strict=True
        ):
            logits_cv = (hidden_cd @ low_vd.T).float()
            top_c = torch.logsumexp(logits_cv, 1)
            total = total + (top_c - logits_cv.gather(1, targets_c[:, None])[:, 0]).sum()
            right_cv = (classes[None, :] == targets_c[:, None]).float()
            slope_cv = (((logits_cv - top_c[:, None]).exp() - right_cv) / count).to(dtype)
            to_hidden.append(slope_cv @ low_vd)
            to_weight = to_weight + slope_cv.T @ hidden_cd
        ctx.save_for_backward(torch.cat(to_hidden), to_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        to_hidden, to_weight = ctx.saved_tensors
        return (to_hidden * slope).to(to_hidden.dtype), to_weight * slope, None


LOSSES: dict[str, Any] = {
    "ours": NextTokenLoss,
    "whole": Whole,
    "chunked": Chunked,
    "fused": Fused,
    "ahead": Ahead,
}
