"""Turn a large trained language model into a smaller one that is as good: inherit, train, compare, grow."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune.analysis.analyze import analyze
    from inheritune.cut import inherit
    from inheritune.publish import push
    from inheritune.training.teacher import answers

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "analyze", "answers", "inherit", "push"]


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
    if name == "inherit":
        from inheritune.cut import inherit

        return inherit
    if name == "analyze":
        from inheritune.analysis.analyze import analyze

        return analyze
    if name == "answers":
        from inheritune.training.teacher import answers

        return answers
    if name == "push":
        from inheritune.publish import push

        return push
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
