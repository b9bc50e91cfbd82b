"""A fixed sample of the training windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_data
from inheritune.config import Data
from inheritune.data.loader import open_data


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
