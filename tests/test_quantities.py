"""Numbers as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune import UserError, quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.4784, "1.48"),
        (9.999, "10"),
        (0.01, "0.01"),
        (1234, "1,234"),
        (1200, "1,200"),
        (-0.5, "-0.5"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert quantities.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (812, "812"),
        (999.4, "999"),
        (999.6, "1K"),
        (812_000, "812K"),
        (124_439_808, "124M"),
        (1.5576e9, "1.56B"),
    ],
)
def test_count(value: float, text: str) -> None:
    assert quantities.count(value) == text


def test_flops() -> None:
    assert quantities.flops(1.2e15) == "1.2 PFLOP"
    assert quantities.flops(999.9e15) == "1 EFLOP"
    assert quantities.flops(3.12e14, "FLOP/s") == "312 TFLOP/s"
    assert quantities.flops(5e28) == "50,000 YFLOP"
    assert quantities.flop_scale(3.6e15) == (1e15, "PFLOP")
    assert quantities.flop_scale(0.0) == (1.0, "FLOP")


@given(st.floats(1, 1e26))
def test_a_prefix_never_changes_the_value(value: float) -> None:
    number, unit = quantities.flops(value).split()
    factor = 1000.0 ** quantities.FLOP_PREFIXES.index(unit.removesuffix("FLOP"))
    assert float(number.replace(",", "")) * factor == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (42, "42 s"),
        (59.9, "1 min"),
        (750, "12 min 30 s"),
        (3 * 3600 + 300, "3 h 5 min"),
        (2 * 86400 + 4 * 3600 + 59, "2 d 4 h"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert quantities.duration(seconds) == text


def test_memory() -> None:
    assert quantities.memory(700 * 2**20) == "700 MiB"
    assert quantities.memory(79.1 * 2**30) == "79.1 GiB"


def test_decimals_follow_the_interval() -> None:
    assert quantities.loss_decimals((-0.025, -0.011)) == 3
    assert quantities.loss_decimals((-0.0004, 0.0004)) == 4
    assert quantities.loss_decimals((-1e-9, 1e-9)) == 5
    assert quantities.loss_decimals((0.1, 0.1)) == 3
    assert quantities.signed_interval((-0.025, 0.0034), 3) == "[-0.025, +0.003]"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80M", 80_000_000),
        ("1.5B", 1_500_000_000),
        ("80_000_000", 80_000_000),
        ("12,345", 12_345),
        ("7 k", 7000),
    ],
)
def test_a_count_is_read(text: str, value: int) -> None:
    assert quantities.parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("200MB", 200_000_000), ("1.5 GiB", 3 * 2**29), ("64kib", 65_536), ("1TB", 10**12)]
)
def test_memory_is_read(text: str, value: int) -> None:
    assert quantities.parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "M", "80MB", "eighty", "8e7", "-5M", "1.M", "80 M parameters"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UserError, match="is no number of parameters: write it such as 80M"):
        quantities.parse_count(text)


@pytest.mark.parametrize("text", ["200", "200M", "2XB"])
def test_what_is_no_memory(text: str) -> None:
    with pytest.raises(UserError, match="is no number of bytes: write it such as 200MB"):
        quantities.parse_memory(text)
