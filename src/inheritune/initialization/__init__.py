"""How a small model gets its first weights. Each way is a function: (reference, options) -> model."""

from inheritune.initialization.append import append
from inheritune.initialization.inherit import inherit, select
from inheritune.initialization.layers import choose
from inheritune.initialization.narrow import half_width

__all__ = ["append", "choose", "half_width", "inherit", "select"]
