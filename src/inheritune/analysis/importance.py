"""What each layer of a model is worth: the loss without it, and what is known of it from hidden states alone.

Letters: N windows, T tokens, D hidden size, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.models.blockwise import Blockwise
from inheritune.runtime.hardware import computes_in_bf16
from inheritune.training.loss import NextTokenLoss

Choice = tuple[int, ...]
"""Numbers of the blocks that are kept, from 0, in their order."""

BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""In one forward pass."""


@dataclass(frozen=True)
class Windows:
    """What losses are measured on: token ids as a model reads them, and what follows each, int64 [N, T] both."""

    inputs_nt: Tensor
    targets_nt: Tensor

    def __len__(self) -> int:
        return len(self.inputs_nt)


class ChoiceLosses:
    """Losses of a model with any choice of its blocks, on fixed windows; each is computed once.

    Choices that are asked for together are run in the order of their numbers, so that those with the same beginning
    share its hidden states: to leave out each block of a model in turn costs half of what its blocks' number says.

    Args:
        model: where it is; left unchanged.
        windows: to measure on.
        bf16: compute in bfloat16 autocast; by default where the hardware multiplies in it.

    Raises:
        UserError: the model's blocks cannot be run apart.
    """

    def __init__(self, model: PreTrainedModel, windows: Windows, *, bf16: bool | None = None) -> None:
        self.blocks, self.windows, self.device = Blockwise(model), windows, model.device
        self.loss = NextTokenLoss(model)
        self.bf16 = computes_in_bf16(self.device) if bf16 is None else bf16
        self.known: dict[Choice, np.ndarray] = {}
        self.runs = 0
        """Windows times blocks that were computed, the head counted as `head` of them."""

    @property
    def depth(self) -> int:
        """Blocks of the model, L."""
        return self.blocks.depth

    def __call__(self, choices: Sequence[Choice], windows: int | None = None) -> np.ndarray:
        """Losses of the choices on the first `windows` windows, nats per token: float64 [choices, windows]."""
        wanted = len(self.windows) if windows is None else windows
        lacking: dict[int, set[Choice]] = {}
        for choice in choices:
            have = len(self.known.get(choice, ()))
            if have < wanted:
                lacking.setdefault(have, set()).add(choice)
        for have, group in lacking.items():
            for choice, losses in self._measure(sorted(group), have, wanted).items():
                self.known[choice] = np.concatenate([self.known.get(choice, np.empty(0)), losses])
        return np.stack([self.known[choice][:wanted] for choice in choices])

    def mean(self, choice: Choice) -> float:
        """Loss of a choice on all windows, nats per token."""
        return float(self([choice])[0].mean())

    @torch.no_grad()
    def _measure(self, choices: Sequence[Choice], start: int, stop: int) -> dict[Choice, np.ndarray]:
        size = max(1, BATCH_TOKENS[self.device.type] // self.windows.inputs_nt.shape[1])
        found: dict[Choice, list[Tensor]] = {choice: [] for choice in choices}
        for first in range(start, stop, size):
            inputs_bt = self.windows.inputs_nt[first : min(first + size, stop)].to(self.device)
            targets_bt = self.windows.targets_nt[first : min(first + size, stop)].to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                entry = self.blocks.enter(inputs_bt)
                path: list[int] = []
                states = [entry.hidden]
                for choice in choices:
                    shared = _shared(path, choice)
                    del path[shared:], states[shared + 1 :]
                    for layer in choice[shared:]:
                        states.append(entry.run(layer, states[-1]))
                        path.append(layer)
                        self.runs += len(inputs_bt)
                    losses = self.blocks.leave(
                        entry, states[-1], lambda: self.loss.per_window(inputs_bt, targets_bt)
                    )
                    found[choice].append(losses)
        return {choice: torch.cat(losses).double().cpu().numpy() for choice, losses in found.items()}

    @torch.no_grad()
    def similarities(self) -> Tensor:
        """Cosines between the hidden states before and after blocks, mean over tokens.

        Returns:
            Angles as angular distances d = arccos(cosine) / pi: float64 [L + 1, L + 1] between the states at places
            i and j, 0 before the first block; and below the diagonal the mean cosines themselves.
        """
        places = self.depth + 1
        total = torch.zeros(places, places, dtype=torch.float64)
        size = max(1, BATCH_TOKENS[self.device.type] // self.windows.inputs_nt.shape[1])
        for first in range(0, len(self.windows), size):
            inputs_bt = self.windows.inputs_nt[first : first + size].to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                entry = self.blocks.enter(inputs_bt)
                states = [entry.hidden]
                for layer in range(self.depth):
                    states.append(entry.run(layer, states[-1]))
            units = [F.normalize(state.float().flatten(0, 1), dim=-1) for state in states]
            for i in range(places):
                for j in range(i + 1, places):
                    cosine_n = (units[i] * units[j]).sum(-1).clamp(-1, 1)
                    total[i, j] += (cosine_n.arccos().double() / math.pi).sum().cpu()
                    total[j, i] += cosine_n.double().sum().cpu()
        return total / self.windows.inputs_nt.numel()


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many numbers two rows have in common from their beginning on."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
