"""Words for layers, and stacks of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from inheritune.initialization import choose


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ((3, 1, 1), [3, 1, 1]),
        ("first 3", [0, 1, 2]),
        ("last 3", [5, 6, 7]),
        ("middle 4", [2, 3, 4, 5]),
        ("middle 3", [2, 3, 4]),
        ("ends 4", [0, 1, 6, 7]),
        ("ends 3", [0, 1, 7]),
        ("every 2", [0, 2, 4, 6]),
        ("every 3", [0, 3, 6]),
        ("spread 4", [0, 2, 4, 6]),
        ("spread 5", [0, 1, 3, 4, 6]),
        ("spread 8", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("1:6:2", [1, 3, 5]),
        ("-2:", [6, 7]),
        ("::4", [0, 4]),
    ],
)
def test_what_the_words_mean(layers: str | Sequence[int] | None, chosen: list[int]) -> None:
    assert choose(layers, 8) == chosen


def test_sixteen_of_twenty_four_layers_are_spread_over_all_of_them() -> None:
    chosen = choose("spread 16", 24)
    assert len(set(chosen)) == 16
    assert {b - a for a, b in pairwise(chosen)} == {1, 2}
    assert choose("spread 12", 24) == choose("every 2", 24)


def test_a_stack_repeats_the_blocks_in_order() -> None:
    assert choose(None, 3, stack_to=6) == [0, 1, 2, 0, 1, 2]
    assert choose("first 2", 8, stack_to=6) == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("layers", "stack_to", "sentence"),
    [
        (None, 12, "cannot stack 8 layers to 12: give a multiple, such as 16"),
        (None, 8, "cannot stack 8 layers to 8"),
        ("first 3", 8, "cannot stack 3 layers to 8"),
        ("first 9", None, "'first 9' are more than the 8"),
        ((0, 8), None, "there is no layer 8: the model has 8, 0 to 7"),
        ("8:", None, "is none of the 8"),
        ((), None, "is none of the 8"),
    ],
)
def test_what_cannot_be(layers: str | Sequence[int] | None, stack_to: int | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose(layers, 8, stack_to)
