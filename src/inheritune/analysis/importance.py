"""What a model's blocks are worth: the loss with any choice of them, and how little each changes the hidden state.

Letters: N windows, B of them at once, T tokens, D hidden size, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.models.blockwise import Blockwise
from inheritune.runtime.hardware import computes_in_bf16
from inheritune.training.loss import NextTokenLoss

Choice = tuple[int, ...]
"""Numbers of the blocks that are kept, from 0: rising, each once."""

BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""In one forward pass."""

SHARING = 32
"""So many choices at most share what they have in common: it is kept in memory."""


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

    Choices that are asked for together share the hidden states up to where they differ: to leave out each block of a
    model in turn so costs half of the blocks. What runs the same block next is run at once.

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
                together = Together(self.blocks, self.loss, inputs_bt, targets_bt, lambda: self.tell(0))
                for first in range(0, len(choices), SHARING):
                    for some, losses_kb in together(choices[first : first + SHARING]):
                        for choice, losses_b in zip(some, losses_kb, strict=True):
                            found[choice].append(losses_b)
                        self.tell(losses_kb.numel())
        return {choice: torch.cat(losses).double().cpu().numpy() for choice, losses in found.items()}

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


class Together:
    """Runs choices of blocks on one batch of windows, side by side: as many times the batch at once as fit.

    Args:
        blocks: of the model.
        loss: of it.
        inputs_bt, targets_bt: the batch, as of `Windows`.
        tick: is called after every block that was run.
    """

    def __init__(
        self,
        blocks: Blockwise,
        loss: NextTokenLoss,
        inputs_bt: Tensor,
        targets_bt: Tensor,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.blocks, self.loss, self.inputs_bt, self.targets_bt = blocks, loss, inputs_bt, targets_bt
        self.tick = tick
        self.at_once = max(1, BATCH_TOKENS[inputs_bt.device.type] // inputs_bt.numel())
        self.entry = cache(lambda times: blocks.enter(inputs_bt.repeat(times, 1)))

    def __call__(self, choices: Sequence[Choice]) -> Iterator[tuple[Sequence[Choice], Tensor]]:
        """Some of the choices, K of them, and their losses, nats per token [K, B]; in the end all."""
        states: dict[Choice, Tensor] = {(): self.entry(1).hidden_btd}
        for layer in range(self.blocks.depth):
            grown = {c[: c.index(layer)] for c in choices if layer in c}
            for some in self._groups(sorted(grown)):
                after = self.entry(len(some)).run(layer, torch.cat([states[prefix] for prefix in some]))
                self.tick()
                states |= {(*p, layer): state for p, state in zip(some, after.chunk(len(some)), strict=True)}
            needed = {c[: sum(block <= layer for block in c)] for c in choices}
            states = {prefix: state for prefix, state in states.items() if prefix in needed}
        for some in self._groups(choices):
            entry, last = self.entry(len(some)), torch.cat([states[choice] for choice in some])
            inputs, targets = (ids.repeat(len(some), 1) for ids in (self.inputs_bt, self.targets_bt))
            losses = self.blocks.leave(entry, last, partial(self.loss.per_window, inputs, targets))
            yield some, losses.view(len(some), -1)

    def _groups(self, choices: Sequence[Choice]) -> Iterator[Sequence[Choice]]:
        return (choices[first : first + self.at_once] for first in range(0, len(choices), self.at_once))
