"""Which parts of a model's width to keep: those whose activations are largest on some text.

A head is worth the norm of what it gives to the output projection, a channel of the MLP the size of what it gives to
the last projection, a dimension of the hidden state its size in what the norms give, summed over all norms.

Of SmolLM2-135M with half of its MLP's channels the loss is 5.06 so, 5.25 if each is multiplied by the norm of its
column in the last projection, and 13.26 with the first ones.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv 2407.14679, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inheritune.analysis.importance import ChoiceLosses, Windows
from inheritune.analysis.kept import Kept, KeptWidth
from inheritune.analysis.layers import losses_on
from inheritune.analysis.sequences import Text
from inheritune.config import Narrow
from inheritune.initialization.narrow import (
    Taken,
    Width,
    first_taken,
    head_group,
    narrow,
    reading_modules,
    width_of,
)
from inheritune.models.architecture import parts_of
from inheritune.runtime.hardware import computes_in_bf16


@dataclass(frozen=True)
class Importance:
    """What the parts of a model's width are worth, float64; numbered as in `Taken`.

    Args:
        hidden: [hidden size].
        heads: [L, heads].
        mlp: [L, channels].
    """

    hidden: Tensor
    heads: Tensor
    mlp: Tensor

    def most(self, width: Width, group: int) -> Taken:
        """Those that are worth most, for a model of this width whose heads are taken `group` at a time."""
        return Taken(
            _largest(self.hidden, width.hidden),
            _largest(self.heads, width.heads // group),
            _largest(self.mlp, width.mlp),
        )


@torch.no_grad()
def importance(model: PreTrainedModel, windows: Windows) -> Importance:
    """What the parts of a model's width are worth on some windows.

    Args:
        model: in evaluation mode, on the device to compute on; of a type whose width is known.
        windows: of text.

    Raises:
        UserError: as `width_of`.
    """
    width, group, device = width_of(model.config), head_group(model.config), model.device
    sums: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, values_bte: Tensor, size: Callable[[Tensor], Tensor] = torch.abs) -> None:
        found = size(values_bte.float().flatten(0, -2)).sum(0).double().cpu()
        sums[module] = sums[module] + found if module in sums else found

    def norms(values_ne: Tensor) -> Tensor:
        return values_ne.unflatten(-1, (width.heads, -1)).norm(dim=-1)

    def reads_heads(module: nn.Module, args: Any) -> None:
        add(module, args[0], norms)

    def reads_channels(module: nn.Module, args: Any) -> None:
        add(module, args[0])

    def gives(module: nn.Module, args: Any, output: Tensor) -> None:
        add(module, output)

    readers, owners = reading_modules(model), parts_of(model)
    around = {name.rpartition(".")[0] for name, part in owners.items() if part in ("layernorm", "final_norm")}
    with ExitStack() as hooks:
        for attention, mlp in readers:
            hooks.callback(attention.register_forward_pre_hook(reads_heads).remove)
            hooks.callback(mlp.register_forward_pre_hook(reads_channels).remove)
        for name in sorted(around):
            hooks.callback(model.get_submodule(name).register_forward_hook(gives).remove)
        for inputs_bt, _ in windows.batches(0, len(windows), device):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bf16(device)):
                model.base_model(input_ids=inputs_bt, use_cache=False)
    return Importance(
        torch.stack([sums[model.get_submodule(name)] for name in sorted(around)]).sum(0),
        torch.stack([sums[attention].unflatten(0, (-1, group)).sum(-1) for attention, _ in readers]),
        torch.stack([sums[mlp] for _, mlp in readers]),
    )


def keep_width(
    kept: Kept, model: PreTrainedModel, width: Width, by: Narrow, text: Text | None, seed: int
) -> Kept:
    """Which parts of the width of a model to keep.

    Args:
        kept: which layers it has.
        model: of these layers, in evaluation mode, on the device to compute on.
        width: to come to.
        by: how the parts are chosen.
        text: to measure on; None only where nothing is measured.
        seed: of the windows.

    Returns:
        The record of both choices, with the loss of the result where it was measured.

    Raises:
        UserError: as `losses_on` and `narrow`.
    """
    if width == width_of(model.config):
        return kept
    if by == "first":
        return kept.model_copy(
            update={"width": _record(by, model, width, first_taken(model.config, width)), "loss": None}
        )
    assert text is not None, "the caller has made sure"
    losses, measured = losses_on(model, text, seed)
    taken = importance(model, losses.windows).most(width, head_group(model.config))
    small = ChoiceLosses(narrow(model, taken), losses.windows)
    whole = losses.mean(losses.whole) if len(kept.layers) == kept.of_layers else kept.whole
    return kept.model_copy(
        update={
            "width": _record(by, model, width, taken),
            "loss": small.mean(small.whole),
            "whole": whole,
            "measured": measured,
        }
    )


def narrowed(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """The model, or if a narrower one is recorded, that.

    Args:
        model: of the layers that were kept.
        kept: which layers and which parts of their width.

    Raises:
        UserError: as `narrow`.
    """
    if kept.width is None:
        return model
    return narrow(
        model,
        Taken(
            _numbers(kept.width.hidden_taken),
            torch.stack([_numbers(bits) for bits in kept.width.heads_taken]),
            torch.stack([_numbers(bits) for bits in kept.width.mlp_taken]),
        ),
    )


def _largest(scores: Tensor, count: int) -> Tensor:
    """Numbers of the largest along the last dimension, in order; of equal ones the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def _record(by: Narrow, model: PreTrainedModel, width: Width, taken: Taken) -> KeptWidth:
    have, group = width_of(model.config), head_group(model.config)
    hidden, heads, mlp = astuple(width)
    return KeptWidth(
        narrow=by,
        hidden=hidden,
        heads=heads,
        mlp=mlp,
        hidden_taken=_bits(taken.hidden, have.hidden),
        heads_taken=tuple(_bits(row, have.heads // group) for row in taken.heads),
        mlp_taken=tuple(_bits(row, have.mlp) for row in taken.mlp),
    )


def _bits(numbers: Tensor, size: int) -> str:
    """Which of so many are taken, as hexadecimal bits, the first one's first."""
    bits = np.zeros(size, dtype=np.uint8)
    bits[numbers.numpy()] = 1
    return np.packbits(bits).tobytes().hex()


def _numbers(bits: str) -> Tensor:
    taken = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8))
    return torch.from_numpy(np.flatnonzero(taken))
