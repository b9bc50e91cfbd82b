"""How a small model gets its first weights. Each way is a function: (reference, options) -> model."""

from .grow import append
from .inherit import inherit

__all__ = ["append", "inherit"]
