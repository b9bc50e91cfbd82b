"""Repair of a cut before any training: a linear map in the place of each run of blocks that was dropped.

Source: ReplaceMe (arXiv 2505.02819). The map is found by least squares on hidden states and multiplied into the last
projection of the block in front of the gap, so that the result is a plain checkpoint. Letters: B windows at once, T
tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inheritune.analysis.sequences import Text
from inheritune.models.architecture import blocks, context_length
from inheritune.models.blockwise import Blockwise, Entry

LENGTH, AT_ONCE = 256, 8
"""Tokens of a window, and windows in one forward pass."""

TOKENS, FEWEST = 28, 8
"""Of text for each hidden dimension, where there is as much; and windows where there is not."""

RIDGE = 1e-2
"""How strongly the map is pulled to the identity, over the mean square of what it maps."""

TOLERANCE = 1e-2
"""Of the check that the block computes with its new weight what was solved for, over the largest value."""


@torch.no_grad()
def repair(
    small: PreTrainedModel, reference: PreTrainedModel, kept: Sequence[int], text: Text, seed: int
) -> list[int]:
    """Bring the hidden state behind each gap of a cut close to what the reference has there; `small` is changed.

    With the output y of the last projection of the block in front of a gap and what its residual stream has beside
    it, r, the hidden state is r + y. The map M minimises |r + y M - h|^2 + ridge |M - 1|^2, where h is what the
    reference's next kept block is given. The gaps are repaired in their order, each on what the repaired blocks
    before it compute, so that errors do not add up.

    Args:
        small: a model of some of the reference's blocks, in float32.
        reference: the whole model, on the same device.
        kept: which of its blocks `small` has, in order.
        text: to solve on.
        seed: of the choice of windows.

    Returns:
        Numbers of the kept blocks of the reference whose projection was changed. Missing are those in front of a gap
        that have no such projection: a norm follows it, or it is spread over experts.

    Raises:
        UserError: the blocks of one of the models cannot be run apart, or as `Text.choose`.
    """
    behind = [*kept[1:], len(blocks(reference))]
    gaps = {place: after for place, after in enumerate(behind) if after != kept[place] + 1}
    if not gaps:
        return []
    context = context_length(reference.config) or LENGTH
    windows = max(FEWEST, math.ceil(TOKENS * reference.config.get_text_config().hidden_size / LENGTH))
    sequences = text.choose(windows, min(LENGTH, context, text.size // FEWEST), context, seed)
    inputs = [batch_bt.to(small.device) for batch_bt in sequences.inputs_nt.split(AT_ONCE)]
    targets = _given(Blockwise(reference), set(gaps.values()), inputs)
    rows = Blockwise(small)
    entries = [rows.enter(batch_bt) for batch_bt in inputs]
    hidden = [entry.hidden_btd for entry in entries]
    changed = []
    for place, layer in enumerate(kept):
        if place in gaps and _fold(blocks(small)[place], place, entries, hidden, targets[gaps[place]]):
            changed.append(layer)
        hidden = [entry.run(place, state) for entry, state in zip(entries, hidden, strict=True)]
    return changed


def _given(whole: Blockwise, layers: set[int], inputs: Sequence[Tensor]) -> dict[int, list[Tensor]]:
    """What these blocks are given, for each batch, [B, T, D]; the one after the last is what all of them return."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch_bt in inputs:
        entry = whole.enter(batch_bt)
        hidden_btd = entry.hidden_btd
        for layer in range(max(layers)):
            hidden_btd = entry.run(layer, hidden_btd)
            if layer + 1 in layers:
                found[layer + 1].append(hidden_btd.cpu())
    return found


def _fold(
    block: nn.Module,
    place: int,
    entries: Sequence[Entry],
    hidden: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> bool:
    """Solve for the map of one gap and multiply it into the block; whether the block can take it."""
    last = _last_projection(block, partial(entries[0].run, place, hidden[0]))
    if last is None:
        return False
    affine = last.bias is not None
    size = hidden[0].shape[-1]
    squares = torch.zeros(size + affine, size + affine, dtype=torch.float64, device=hidden[0].device)
    products = torch.zeros(size + affine, size, dtype=torch.float64, device=hidden[0].device)
    for entry, state, target in zip(entries, hidden, targets, strict=True):
        after, written = _with_output(last, partial(entry.run, place, state))
        wanted_nd = (target.to(after) - after + written).flatten(0, 1).double()
        written_nd = _extended(written, affine)
        squares += written_nd.T @ written_nd
        products += written_nd.T @ wanted_nd
    strength = RIDGE * squares.diagonal()[:size].mean()
    identity = torch.eye(size + affine, size, dtype=torch.float64, device=squares.device)
    pull = strength * torch.eye(len(squares), dtype=torch.float64, device=squares.device)
    mapping = torch.linalg.solve(squares + pull, products + strength * identity)

    before = {name: value.clone() for name, value in last.state_dict().items()}
    after, written = _with_output(last, partial(entries[0].run, place, hidden[0]))
    expected = (after - written).double() + (_extended(written, affine) @ mapping).view_as(after)
    map_dd = mapping[:size]
    weight = last.weight.double()
    last.weight.copy_(weight @ map_dd if isinstance(last, Conv1D) else map_dd.T @ weight)
    if affine:
        last.bias.copy_(last.bias.double() @ map_dd + mapping[size])
    found = entries[0].run(place, hidden[0]).double()
    if (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
        return True
    last.load_state_dict(before)
    return False


def _extended(written: Tensor, affine: bool) -> Tensor:
    """Outputs as rows, [B T, D], in float64; with a column of ones for an offset."""
    rows = written.flatten(0, 1).double()
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1) if affine else rows


def _last_projection(block: nn.Module, run: Callable[[], Tensor]) -> nn.Linear | Conv1D | None:
    """The module that is called last of those that project onto the whole hidden state."""
    called: list[tuple[nn.Module, tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(lambda m, _, output: called.append((m, tuple(output.shape))))
        for module in block.modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    try:
        shape = tuple(run().shape)
    finally:
        for hook in hooks:
            hook.remove()
    return next((module for module, size in reversed(called) if size == shape), None)


def _with_output(module: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What a block returns, and what a module of it wrote on the way."""
    written: list[Tensor] = []
    hook = module.register_forward_hook(lambda _m, _i, output: written.append(output))
    try:
        return run(), written[-1]
    finally:
        hook.remove()
