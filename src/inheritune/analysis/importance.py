"""What a model's blocks are worth: the loss with any choice of them, and how little each changes the hidden state.

Letters: N windows, B of them at once, T tokens, D hidden size, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.models.blockwise import Blockwise, Entry
from inheritune.runtime.hardware import computes_in_bf16
from inheritune.training.loss import NextTokenLoss

Choice = tuple[int, ...]
"""Numbers of the blocks that are kept, from 0, in their order."""

BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""In one forward pass."""


@dataclass(frozen=True)
class Windows:
    """What losses are measured on: token ids as a model reads them, and those that follow, int64 [N, T] each."""

    inputs_nt: Tensor
    targets_nt: Tensor

    def __len__(self) -> int:
        return len(self.inputs_nt)

    def batches(self, start: int, stop: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Windows `start` to `stop` (exclusive) on the device, as many at once as it takes."""
        size = max(1, BATCH_TOKENS[device.type] // self.inputs_nt.shape[1])
        cuts = [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
        return [(self.inputs_nt[cut].to(device), self.targets_nt[cut].to(device)) for cut in cuts]


class ChoiceLosses:
    """Losses of a model with any choice of its blocks, on fixed windows; each is computed once.

    Choices that are asked for together are run in the order of their numbers, and share the hidden states up to where
    they differ. To leave out each block of a model in turn so costs half of the blocks.

    Args:
        model: in evaluation mode, on the device to compute on; left unchanged.
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
        self.tell: Callable[[int], None] = lambda windows: None
        """Is called with the number of windows whenever a choice, or all blocks, were run on some."""

    @property
    def whole(self) -> Choice:
        """All blocks."""
        return tuple(range(self.blocks.depth))

    def __call__(self, choices: Sequence[Choice], windows: int | None = None) -> np.ndarray:
        """Losses on the first `windows` windows, or on all of them, nats per token: float64 [choices, windows]."""
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
        return float(self([choice]).mean())

    @torch.no_grad()
    def _measure(self, choices: Sequence[Choice], start: int, stop: int) -> dict[Choice, np.ndarray]:
        found: dict[Choice, list[Tensor]] = {choice: [] for choice in choices}
        for inputs_bt, targets_bt in self.windows.batches(start, stop, self.device):
            with self._autocast():
                entry, path = self.blocks.enter(inputs_bt), list[int]()
                states = [entry.hidden_btd]
                for choice in choices:
                    shared = _shared(path, choice)
                    del path[shared:], states[shared + 1 :]
                    for layer in choice[shared:]:
                        states.append(entry.run(layer, states[-1]))
                        path.append(layer)
                    found[choice].append(self._per_window(entry, states[-1], inputs_bt, targets_bt))
                    self.tell(len(inputs_bt))
        return {choice: torch.cat(losses).double().cpu().numpy() for choice, losses in found.items()}

    def _per_window(self, entry: Entry, hidden_btd: Tensor, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        return self.blocks.leave(entry, hidden_btd, lambda: self.loss.per_window(inputs_bt, targets_bt))

    @torch.no_grad()
    def similarities(self, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """How alike the hidden states before and after runs of blocks are, mean over the tokens of some windows.

        Returns:
            Cosines, and angular distances arccos(cosine) / pi: float64 [L + 1, L + 1] each. Place i is before block
            i, place L after the last one.

        Source: block influence is 1 - cosine over one block (ShortGPT, arXiv 2403.03853); the angular distance over n
        blocks says which contiguous ones to drop (arXiv 2403.17887, on the last token only).
        """
        places = self.blocks.depth + 1
        cosines = torch.eye(places, dtype=torch.float64, device=self.device)
        angles = torch.zeros_like(cosines)
        for inputs_bt, _ in self.windows.batches(0, windows, self.device):
            with self._autocast():
                entry = self.blocks.enter(inputs_bt)
                states = [entry.hidden_btd]
                for layer in self.whole:
                    states.append(entry.run(layer, states[-1]))
            self.tell(len(inputs_bt))
            units = [F.normalize(state.float().flatten(0, 1), dim=-1) for state in states]
            share = len(inputs_bt) / windows
            for i in range(places):
                for j in range(i + 1, places):
                    cosine_n = (units[i] * units[j]).sum(-1).clamp(-1, 1).double()
                    cosines[i, j] += share * cosine_n.mean()
                    angles[i, j] += share * (cosine_n.arccos() / math.pi).mean()
        cosines, angles = cosines.triu() + cosines.triu(1).T, angles + angles.T
        return cosines.cpu().numpy(), angles.cpu().numpy()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many numbers two rows have in common from their beginning on."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
