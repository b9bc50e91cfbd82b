"""Which heads are degenerate, which layers lazy, and where to cut.

A head is degenerate if one singular value holds its attention on most sequences: mean k* of at most `DEGENERATE`
over sequences. A layer is lazy if every head in it is (paper, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.analysis.mass import column_mass
from inheritune.analysis.probe import probe_attention
from inheritune.analysis.rank import decide_rank
from inheritune.analysis.result import Cut, LayerFigures, Spread
from inheritune.models.architecture import layer_count
from inheritune.quantities import ranges

DEGENERATE = 1.5
"""Mean k* up to which a head is degenerate: "about 1", with rank 1 on at least half of the sequences."""

LAYER_BYTES = 2**28
"""What one layer's attention matrices may take where the number of sequences at once is left open."""

PRECISION, LEAST, MOST = 0.1, 8, 100
"""Sequences are read until each layer's mean rank is known to a tenth of it, or of the mean over all layers where
that is more: at least 8, at most the paper's 100."""


@dataclass(frozen=True)
class Heads:
    """k* and m* of every head on every sequence: for each layer one int64 tensor [H, N]."""

    ranks: list[Tensor]
    masses: list[Tensor]

    def wanted(self, precision: float) -> int:
        """How many sequences make half the 95% interval of each layer's mean rank this fraction of it, or of all."""
        means_ln = torch.stack([ranks_hn.double().mean(0) for ranks_hn in self.ranks])
        if means_ln.shape[1] < 2:
            return LEAST
        means_l = means_ln.mean(1).clamp_min(1)
        variation = float((means_ln.std(1) / means_l.clamp_min(means_l.mean())).max())
        return max(LEAST, math.ceil((1.96 * variation / precision) ** 2))


def measure_heads(
    model: PreTrainedModel,
    inputs_nt: Tensor,
    *,
    tau: float,
    mass: float,
    batch: int | None = None,
    padding_mask_nt: Tensor | None = None,
    precision: float | None = None,
    tick: Callable[[int, int], None] = lambda read, wanted: None,
) -> Heads:
    """Rank and mass of every head on every sequence, in one forward pass of each sequence.

    Args:
        model: the matrices are measured on its device.
        inputs_nt: token ids, int64 [N, T], on the CPU.
        tau: fraction of the squared singular values that k* of them must hold.
        mass: fraction of the squared entries that m* columns must hold.
        batch: sequences at once; memory is a few times one layer's matrices of so many sequences.
        padding_mask_nt: 1 for tokens and 0 for padding, [N, T]; padding does not count.
        precision: stop as soon as each layer's mean rank is known to this fraction of it; by default at the end.
        tick: is called after each layer of each batch with the sequences in it, and how many there will be in all, as
            far as is known.
    """
    depth = layer_count(model.config)
    size = batch or batch_size(model, inputs_nt.shape[1])
    wanted = len(inputs_nt) if precision is None else min(LEAST, len(inputs_nt))
    ranks: list[list[Tensor]] = [[] for _ in range(depth)]
    masses: list[list[Tensor]] = [[] for _ in range(depth)]

    def heads() -> Heads:
        return Heads([torch.cat(rows).T for rows in ranks], [torch.cat(rows).T for rows in masses])

    start = 0
    while start < wanted:
        now, first = slice(start, min(start + size, wanted)), start == 0
        start = now.stop
        inputs_bt = inputs_nt[now].to(model.device)
        mask_bt = None if padding_mask_nt is None else padding_mask_nt[now].to(model.device)

        def measure(layer: int, attention_bhtt: Tensor, mask_bt: Tensor | None = mask_bt) -> None:
            if mask_bt is not None:
                # Rows and columns of zeros change neither singular values nor masses.
                attention_bhtt = attention_bhtt * (mask_bt[:, None, :, None] * mask_bt[:, None, None, :])
            decided = decide_rank(attention_bhtt, tau)
            ranks[layer].append(decided.rank.cpu())
            masses[layer].append(column_mass(decided.columns, mass).cpu())
            tick(len(attention_bhtt), wanted)  # noqa: B023 (called before it changes)

        probe_attention(model, inputs_bt, measure, padding_mask_bt=mask_bt, check=first)
        if precision is not None:
            wanted = min(heads().wanted(precision), len(inputs_nt))
    return heads()


def batch_size(model: PreTrainedModel, window: int) -> int:
    """How many sequences of `window` tokens have one layer's matrices within `LAYER_BYTES`; at least one."""
    heads = model.config.get_text_config().num_attention_heads
    one = (max(heads) if isinstance(heads, list) else heads) * window**2 * model.dtype.itemsize
    return max(1, LAYER_BYTES // one)


def layer_figures(heads: Heads, degenerate: float = DEGENERATE) -> list[LayerFigures]:
    """What the figures show of each layer, and which heads of it are degenerate."""
    figures = []
    for layer, (ranks_hn, masses_hn) in enumerate(zip(heads.ranks, heads.masses, strict=True), start=1):
        mean_h = ranks_hn.double().mean(1)
        weak = (mean_h <= degenerate).nonzero().flatten().tolist()
        figures.append(
            LayerFigures(
                layer=layer,
                max_rank=_spread(_highest(ranks_hn)),
                mean_rank=_spread(ranks_hn.double().mean(0)),
                max_mass=_spread(_highest(masses_hn)),
                mean_mass=_spread(masses_hn.double().mean(0)),
                degenerate_heads=weak,
                lazy=len(weak) == len(ranks_hn),
            )
        )
    return figures


def judge_cut(lazy: Sequence[bool], degenerate: float = DEGENERATE) -> Cut:
    """What it means for the cut that these layers, in order, are lazy.

    What a cut drops should be lazy. So the smallest depth that the ranks support is that of the last layer that is
    not, and the paper's k/2 is supported if it is no smaller.
    """
    depth = len(lazy)
    half = max(1, depth // 2)
    lazy_layers = [layer for layer, is_lazy in enumerate(lazy, start=1) if is_lazy]
    keeps_active = max((layer for layer, is_lazy in enumerate(lazy, start=1) if not is_lazy), default=0)
    dropped = [layer for layer in range(half + 1, depth + 1) if not lazy[layer - 1]]
    cut = f"a first cut at {half}"
    if depth == 1:
        sentence = "A model of one layer cannot be cut."
    elif not lazy_layers:
        sentence = (
            f"No layer is lazy: each has a head with a mean rank above {degenerate:g}. The ranks speak for no cut; "
            f"{cut} would rest on the paper's k/2 alone."
        )
    elif len(lazy_layers) == depth:
        sentence = (
            f"Every layer is lazy: no head has a mean rank above {degenerate:g}. So this does not rank the layers; "
            f"{cut} would rest on the paper's k/2 alone."
        )
    elif dropped:
        instead = (
            f"{keeps_active} layers keep every layer that is not lazy"
            if keeps_active < depth
            else "no cut keeps every layer that is not lazy, since the last one is not"
        )
        sentence = (
            f"{_lazy(lazy_layers)}; {cut} is too deep: it drops {_named(dropped)}, "
            f"which {_are(dropped)} not lazy; {instead}."
        )
    else:
        sentence = f"{_lazy(lazy_layers)}; {cut} is supported: all that it drops is lazy"
        sentence += (
            f", and {keeps_active} layers would keep every layer that is not." if keeps_active < half else "."
        )
    undecided = depth == 1 or len(lazy_layers) in (0, depth)
    return Cut(
        lazy_layers=lazy_layers,
        half=half,
        verdict="undecided" if undecided else "too deep" if dropped else "supported",
        keeps_active=keeps_active,
        suggested=keeps_active if 0 < keeps_active < depth else half,
        sentence=sentence,
    )


def _highest(values_hn: Tensor) -> Tensor:
    """The values [N] of the head whose mean over sequences is the largest."""
    return values_hn[values_hn.double().mean(1).argmax()]


def _spread(values_n: Tensor) -> Spread:
    values = values_n.double()
    return Spread(
        mean=float(values.mean()), deviation=float(values.std(correction=1)) if len(values) > 1 else 0.0
    )


def _lazy(numbers: list[int]) -> str:
    return f"{_named(numbers).capitalize()} {_are(numbers)} lazy"


def _named(numbers: list[int]) -> str:
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {ranges(numbers)}"


def _are(numbers: list[int]) -> str:
    return "is" if len(numbers) == 1 else "are"
