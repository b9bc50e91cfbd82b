"""How a small model gets its first weights. Each way is a function: (reference, options) -> model."""

from inheritune.initialization.grow import append
from inheritune.initialization.inherit import inherit
from inheritune.initialization.select import select

__all__ = ["append", "inherit", "select"]
