"""The tensors of one training step, counted without computing it.

The step is run on fake tensors (torch's `FakeTensorMode`), which have shapes and types and nothing in them. Every
operation of it, forward, backward and in the optimizer, tells which storages it made; when the last tensor that uses
one is gone, so is the storage. What is not seen is what a kernel takes for itself while it runs, and what an
allocator keeps in reserve.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Point:
    """What is held right after a storage was made, in bytes, apart from weights and the optimizer's state.

    Args:
        moment: part of the step: "start" (a teacher's pass too), "forward N", "head" (from the last block to the
            loss, and back), "backward N", "end" (the embeddings' backward), "update".
        rest: activations, and whatever else is none of the below.
        own: gradients of the block that computes.
        done: gradients of the blocks that are through.
        root: gradients of what is outside the blocks.
        fresh: if the storage is a gradient, its size.
    """

    moment: str
    rest: int
    own: int
    done: int
    root: int
    fresh: int

    @property
    def gradients(self) -> int:
        """All of them."""
        return self.own + self.done + self.root


@dataclass
class Event:
    """A storage that was made, or let go of (then `size` is negative)."""

    moment: str
    storage: int
    size: int


@dataclass(eq=False)
class StorageCounter(TorchDispatchMode):
    """Within it, notes when storages are made and let go of; `moment` says in which part of a step.

    Args:
        known: tensors that were there before, and are not counted.
    """

    known: Iterable[Tensor]
    moment: str = "start"
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._kept = [tensor.untyped_storage() for tensor in self.known]
        self._numbers: dict[int, int] = {id(storage): -1 for storage in self._kept}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._made = 0

    def number_of(self, tensor: Tensor) -> int:
        """Under which number the events name a tensor's storage."""
        return self._numbers[id(tensor.untyped_storage())]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return outputs

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._numbers:
            return
        number, size = self._made, storage.nbytes()
        self._made += 1

        def gone(_: object) -> None:
            del self._numbers[key], self._references[key]
            self.events.append(Event(self.moment, number, -size))

        self._numbers[key], self._references[key] = number, weakref.ref(storage, gone)
        self.events.append(Event(self.moment, number, size))


@contextmanager
def moments(counter: StorageCounter, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, a counter's `moment` follows the blocks' forward and backward pass.

    A block's backward begins when the gradient of what it gave is there. What it makes again of its activations
    belongs to its backward.
    """
    back = False

    def enter(moment: str) -> Callable[[Tensor], None]:
        def act(gradient: Tensor) -> None:
            nonlocal back
            back, counter.moment = True, moment

        return act

    def before(number: int) -> Callable[..., None]:
        def act(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if back:
                return
            counter.moment = f"forward {number}"
            if number == 0:
                hidden_btd = args[0] if args else kwargs["hidden_states"]
                hidden_btd.register_hook(enter("end"))

        return act

    def after(number: int) -> Callable[..., None]:
        def act(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if back:
                return
            if number == len(blocks) - 1:
                counter.moment = "head"
            hidden_btd = output[0] if isinstance(output, tuple) else output
            hidden_btd.register_hook(enter(f"backward {number}"))

        return act

    handles = []
    for number, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(before(number), with_kwargs=True))
        handles.append(block.register_forward_hook(after(number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def points(events: list[Event], gradients: dict[int, int | None]) -> list[Point]:
    """What is held at each storage's making.

    Args:
        events: in their order.
        gradients: number of a storage -> number of the block whose gradient it is, None outside the blocks.
    """
    found = []
    rest, root, computing, own, done = 0, 0, None, 0, 0
    for event in events:
        kind, _, number = event.moment.partition(" ")
        block = int(number) if kind == "backward" else None
        if block != computing:
            done, own, computing = done + own, 0, block
        if event.storage not in gradients:
            rest += event.size
        elif gradients[event.storage] is None:
            root += event.size
        elif gradients[event.storage] == computing:
            own += event.size
        else:
            done += event.size
        if event.size > 0:
            fresh = event.size if event.storage in gradients else 0
            found.append(Point(event.moment, rest, own, done, root, fresh))
    return found
