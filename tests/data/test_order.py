"""The order of the data: a pure function of (seed, step, data)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune.data.order import Order, permute

sizes = st.integers(1, 700)
seeds = st.integers(0, 2**32)

RECORDED = [9, 5, 8, 7, 6, 4, 0, 2, 3, 1]
RECORDED_STEP = [896, 384, 7, 164]


@given(size=sizes, seed=seeds, epoch=st.integers(0, 1000))
def test_a_permutation_covers_every_window_once(size: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(size), size, seed, epoch)
    assert sorted(image.tolist()) == list(range(size))


@given(
    windows=sizes, per_step=st.integers(1, 64), seed=seeds, kind=st.sampled_from(["shuffled", "sequential"])
)
def test_each_epoch_covers_every_window_exactly_once(
    windows: int, per_step: int, seed: int, kind: str
) -> None:
    order = Order(windows, per_step, seed, kind)  # type: ignore[arg-type]
    epochs = 3
    steps = -(-epochs * windows // per_step)
    seen = np.concatenate([order.step(s) for s in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * windows : (epoch + 1) * windows].tolist()) == list(range(windows))


@given(
    windows=sizes,
    each=st.integers(1, 8),
    processes=st.sampled_from([1, 2, 4, 8]),
    micro_batch=st.integers(1, 9),
    seed=seeds,
    step=st.integers(0, 10_000),
)
def test_windows_of_a_step_do_not_depend_on_how_they_are_shared(
    windows: int, each: int, processes: int, micro_batch: int, seed: int, step: int
) -> None:
    order = Order(windows, each * processes, seed)
    alone = order.step(step)
    shared: list[int] = []
    for rank in range(processes):
        share = order.share(step, rank, processes)
        for start in range(0, len(share), micro_batch):
            shared += share[start : start + micro_batch].tolist()
    assert shared == alone.tolist()


@given(windows=sizes, per_step=st.integers(1, 64), seed=seeds, stops=st.lists(st.integers(0, 40), max_size=5))
@settings(max_examples=50)
def test_interruptions_change_nothing(windows: int, per_step: int, seed: int, stops: list[int]) -> None:
    undisturbed = [Order(windows, per_step, seed).step(s).tolist() for s in range(40)]
    resumed: list[list[int]] = []
    for start, stop in zip([0, *sorted(stops)], [*sorted(stops), 40], strict=True):
        order = Order(windows, per_step, seed)  # a new process knows only the step it goes on from
        resumed += [order.step(s).tolist() for s in range(start, stop)]
    assert resumed == undisturbed


def test_the_order_is_the_one_recorded() -> None:
    """Runs must stay resumable and comparable across versions: this order may never change."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == RECORDED
    assert Order(1000, 4, seed=7).step(123).tolist() == RECORDED_STEP


def test_seeds_and_epochs_differ_and_windows_are_spread() -> None:
    size = 4096
    base = permute(np.arange(size), size, 0, 0)
    for seed, epoch in [(0, 1), (1, 0), (1, 1)]:
        assert (permute(np.arange(size), size, seed, epoch) == base).mean() < 0.01
    # Where a window lands says nothing about where its neighbour does.
    assert abs(np.corrcoef(base[:-1], base[1:])[0, 1]) < 0.05
    counts = np.histogram(base[: size // 4], bins=16, range=(0, size))[0]
    expected = size / 4 / 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 40  # 15 degrees of freedom: 0.05% of random permutations exceed it


def test_positions_of_one_window_are_uniform_over_seeds() -> None:
    landed = np.array([int(permute(np.array([3]), 10, seed, 0)[0]) for seed in range(5000)])
    counts = np.bincount(landed, minlength=10)
    assert float(((counts - 500) ** 2 / 500).sum()) < 30  # 9 degrees of freedom


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="shorter than one window"):
        Order(0, 4)
    with pytest.raises(ValueError, match="4 windows cannot be shared evenly by 3 processes"):
        Order(10, 4).share(0, 0, 3)
