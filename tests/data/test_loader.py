"""A fixed sample of the training windows, and what a model reads of a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny_data
from inheritune.config import Data
from inheritune.data.loader import batches, open_data, training_steps, window_count
from inheritune.data.order import Order


class InMemory:
    """The tokens of a split, without files."""

    def __init__(self, tokens: list[int], bos: int | None, end_of_text: int | None) -> None:
        self.all = np.array(tokens, np.int64)
        self.tokens, self.bos, self.end_of_text = len(tokens), bos, end_of_text

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.all[start:stop].copy()


def test_a_sample_is_fixed_and_only_grows_with_its_size(tmp_path: Path) -> None:
    path = tiny_data.write_shards(tmp_path / "data")
    whole = open_data(Data(path=path, window=32))
    small = open_data(Data(path=path, window=32, tokens=10 * 32 + 5))
    large = open_data(Data(path=path, window=32, tokens=40 * 32))
    assert (small.windows, large.windows) == (10, 40)
    assert whole.windows > 40
    assert small.sample is not None
    assert large.sample is not None
    assert set(small.sample) < set(large.sample) <= set(range(whole.windows))
    assert list(small.sample) == sorted(set(small.sample))
    assert list(small.sample) != list(range(10))  # from all over the text
    again = open_data(Data(path=path, window=32, tokens=320))
    assert np.array_equal(again.sample, small.sample)  # type: ignore[arg-type]
    numbers = np.array([9, 0, 9])
    assert list(small.training_windows(numbers)) == [small.sample[9], small.sample[0], small.sample[9]]
    assert list(whole.training_windows(numbers)) == [9, 0, 9]
    assert small.validation_windows == whole.validation_windows


@pytest.mark.parametrize("tokens", [31, 10**9])
def test_a_sample_has_a_window_and_is_not_larger_than_the_text(tmp_path: Path, tokens: int) -> None:
    path = tiny_data.write_shards(tmp_path / "data")
    with pytest.raises(ValueError, match=f"data.tokens is {tokens}, but should be at least one window"):
        open_data(Data(path=path, window=32, tokens=tokens))


TOKENS = st.lists(st.integers(0, 5), min_size=5, max_size=60)


def plain_inputs(tokens: list[int], bos: int | None, end_of_text: int | None) -> list[int]:
    """What a model reads of a window, token by token."""
    read = []
    for place, token in enumerate(tokens):
        begins = place == 0 or token == end_of_text
        read.append(bos if begins and bos is not None else token)
    return read


@given(
    tokens=TOKENS,
    window=st.integers(1, 9),
    size=st.integers(1, 4),
    bos=st.sampled_from([None, 0, 1, 7]),
    end_of_text=st.sampled_from([None, 0, 1]),
)
def test_beginning_of_text_is_where_texts_begin_and_costs_no_prediction(
    tokens: list[int], window: int, size: int, bos: int | None, end_of_text: int | None
) -> None:
    assume(len(tokens) > window)
    split = InMemory(tokens, bos, end_of_text)
    count = window_count(split, window)  # type: ignore[arg-type]
    numbers = np.arange(count)[::-1].copy()
    inputs, targets = [], []
    for inputs_bt, targets_bt in batches(split, numbers, window, size, torch.device("cpu")):  # type: ignore[arg-type]
        assert inputs_bt.shape == targets_bt.shape
        assert inputs_bt.dtype == targets_bt.dtype == torch.int64
        assert inputs_bt.is_contiguous()
        inputs += inputs_bt.tolist()
        targets += targets_bt.tolist()
    places = [int(n) * window for n in numbers]
    assert targets == [tokens[at + 1 : at + window + 1] for at in places], "all of them, end-of-text too"
    assert inputs == [plain_inputs(tokens[at : at + window], bos, end_of_text) for at in places]
    assert split.read(0, len(tokens)).tolist() == tokens, "the text itself is left as it is"


def test_the_windows_of_a_step_are_the_same_with_beginning_of_text(tmp_path: Path) -> None:
    path = tiny_data.write_shards(tmp_path / "data")
    order, targets, inputs = {}, {}, {}
    for bos in ("none", "set"):
        data = open_data(Data(path=path, window=32, tokens=2000, bos="none"))
        if bos == "set":
            data.train.bos = 96
        order[bos] = Order(data.windows, 4, seed=3)
        steps = list(training_steps(data, order[bos], range(5), 2, torch.device("cpu")))
        inputs[bos] = torch.stack([batch[0] for step in steps for batch in step])
        targets[bos] = torch.stack([batch[1] for step in steps for batch in step])
    assert torch.equal(targets["none"], targets["set"])
    expected = inputs["none"].masked_fill(inputs["none"] == 0, 96)  # the shards' end-of-text is 0
    expected[..., 0] = 96
    assert torch.equal(inputs["set"], expected)
    assert (inputs["none"][..., 1:] == 0).any(), "there are ends within windows"
