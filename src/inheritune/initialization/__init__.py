"""How a small model gets its first weights. Each way is a function: (reference, options) -> model."""

from inheritune.initialization.append import append
from inheritune.initialization.layers import choose
from inheritune.initialization.narrow import half_width
from inheritune.initialization.select import select

__all__ = ["append", "choose", "half_width", "select"]
