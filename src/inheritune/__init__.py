"""Turn a large trained language model into a smaller one that is as good: inherit, train, compare, grow."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune.analysis.analyze import analyze
    from inheritune.api import compare, evaluate, importance, plan, run, train
    from inheritune.config import Recipe
    from inheritune.cut import inherit
    from inheritune.data.prepare import prepare
    from inheritune.initialization.append import append
    from inheritune.publish import push
    from inheritune.training.teacher import answers

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "UserError",
    "__version__",
    "analyze",
    "answers",
    "append",
    "compare",
    "evaluate",
    "importance",
    "inherit",
    "plan",
    "prepare",
    "push",
    "run",
    "train",
]

_PLACES = {
    **dict.fromkeys(("compare", "evaluate", "importance", "plan", "run", "train"), "inheritune.api"),
    "analyze": "inheritune.analysis.analyze",
    "answers": "inheritune.training.teacher",
    "append": "inheritune.initialization.append",
    "inherit": "inheritune.cut",
    "prepare": "inheritune.data.prepare",
    "push": "inheritune.publish",
    "Recipe": "inheritune.config",
}
"""Where each name of the package comes from. No module of the package has the name of one of them."""


class UserError(ValueError):
    """What the user can fix, in one sentence: what is wrong, where, and what to do.

    The command line prints it and exits with 2. Every other exception is a fault of the program, and keeps its
    traceback.
    """


class _OnFirstCall(ModuleType):
    """A module of functions, imported when one of them is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(import_module(self.__name__), name)(*arguments, **named)

        return call


# transformers imports all of torchao wherever it is installed, which takes time and warns, for the functions of one
# module, which only quantized checkpoints need.
_TORCHAO = "torchao.prototype.safetensors.safetensors_support"
sys.modules.setdefault(_TORCHAO, _OnFirstCall(_TORCHAO))


def __getattr__(name: str) -> Any:
    """Import on first use: `import inheritune` and `inheritune --help` need not wait for torch."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
