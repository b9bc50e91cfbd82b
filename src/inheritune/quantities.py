"""Numbers for people: three digits, and the unit that fits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from inheritune import UserError

COUNT_PREFIXES = ("", "K", "M", "B", "T")
FLOP_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent, thousands separated: 0.0123, 1.48, 1,234."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """A loss in nats per token, for each byte of text and in bits; None where the bytes are not known."""
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token


def count(value: float) -> str:
    """A number of parameters or tokens: 812K, 124M, 1.54B."""
    return _with_prefix(value, COUNT_PREFIXES, "")


def flops(value: float, unit: str = "FLOP") -> str:
    """An amount of computation, or with `unit="FLOP/s"` a rate: 1.2 PFLOP, 312 TFLOP/s."""
    return _with_prefix(value, FLOP_PREFIXES, f" {{}}{unit}")


def flop_scale(largest: float) -> tuple[float, str]:
    """The divisor and the unit in which an axis up to `largest` FLOPs has readable numbers."""
    power = min(int(math.log10(largest)) // 3, len(FLOP_PREFIXES) - 1) if largest >= 1 else 0
    return 1000.0**power, f"{FLOP_PREFIXES[power]}FLOP"


def memory(value: float) -> str:
    """A number of bytes: 512 MiB, 79.1 GiB."""
    mebibytes = value / 2**20
    return f"{significant(mebibytes)} MiB" if mebibytes < 1000 else f"{significant(mebibytes / 1024)} GiB"


def parse_count(text: str) -> int:
    """A number of parameters as people write it: 80M, 1.5B, 80_000_000.

    Raises:
        UserError: it is none.
    """
    return _parsed(
        text, {prefix: 1000**power for power, prefix in enumerate(COUNT_PREFIXES)}, "parameters", "80M"
    )


def parse_memory(text: str) -> int:
    """A number of bytes as people write it: 200MB, 1.5 GiB.

    Raises:
        UserError: it is none.
    """
    units = {f"{prefix}B": 1000**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)}
    units |= {f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)}
    return _parsed(text, units, "bytes", "200MB")


def duration(seconds: float) -> str:
    """A time span in its two largest units: 42 s, 12 min 30 s, 3 h 5 min, 2 d 4 h; `?` for one without an end."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{significant(seconds, 2)} s"
    for size, name, smaller_size, smaller_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    raise AssertionError("a minute or more has a unit")


def loss_decimals(interval: tuple[float, float]) -> int:
    """How many decimals a difference with this interval deserves: 3, or more if the interval is narrow."""
    half_width = (interval[1] - interval[0]) / 2
    return min(5, max(3, -math.floor(math.log10(half_width)))) if half_width > 0 else 3


def without_spread(interval: tuple[float, float]) -> bool:
    """Whether it is none: of a difference on a single window, which says nothing of chance."""
    return interval[0] == interval[1] != 0


def signed_interval(interval: tuple[float, float], decimals: int) -> str:
    """The interval with the signs of its ends: [-0.025, +0.003]."""
    if without_spread(interval):
        return "[no spread]"
    return f"[{interval[0]:+.{decimals}f}, {interval[1]:+.{decimals}f}]"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as people list them: 3, 7-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _parsed(text: str, units: dict[str, int], what: str, example: str) -> int:
    found = re.fullmatch(r"([\d_,]*\d(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    known = {unit.lower(): size for unit, size in units.items()}
    if found is None or found[2].lower() not in known:
        raise UserError(f"{text!r} is no number of {what}: write it such as {example}")
    return round(float(re.sub("[_,]", "", found[1])) * known[found[2].lower()])


def _with_prefix(value: float, prefixes: tuple[str, ...], unit: str) -> str:
    power = 0
    # 999.5 is the smallest value that three digits round up to 1000.
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value /= 1000
        power += 1
    suffix = unit.format(prefixes[power]) if unit else prefixes[power]
    return significant(value) + suffix
