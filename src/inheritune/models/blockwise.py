"""A model whose blocks are run one at a time, in any choice and order.

Between its embeddings and its final norm a causal language model is a row of blocks that each add to a hidden state.
So the model without some of them is the rest of the row, and its loss can be measured without making it: what a
choice of blocks shares with another one at its beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks
from inheritune.models.exactness import (
    MODEL_ERRORS,
    TOLERANCE,
    called,
    check_order,
    given_hidden,
    hidden_of,
    random_tokens,
    replaced,
    with_hidden,
)

T = TypeVar("T")


class _Entered(Exception):
    """The last block was reached, and what follows it is not wanted."""


@dataclass(frozen=True)
class Entry:
    """A batch on its way: what the first block is given, and each block's other arguments.

    Args:
        inputs_bt: token ids, int64 [B, T].
        hidden: state before the first block, [B, T, D].
        calls: of each block, what runs it.
        output: what a block returned, for the form of it.
    """

    inputs_bt: Tensor
    hidden: Tensor
    calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
    output: Any

    def run(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden state after this block, [B, T, D], of the one before it."""
        forward, args, kwargs = self.calls[layer]
        return hidden_of(forward(*replaced(args, hidden), **replaced(kwargs, hidden)))


class Blockwise:
    """Runs a model block by block. The model is not changed.

    Args:
        model: a causal language model, in evaluation mode.

    Raises:
        UserError: its blocks cannot be run apart: what they compute depends on more than the hidden state before them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.depth = len(blocks(model))
        self._check()

    @torch.no_grad()
    def enter(self, inputs_bt: Tensor) -> Entry:
        """Compute what is in front of the first block."""
        calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        output: Any = None

        def at(number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal output
            check_order(number, len(calls))
            hidden = given_hidden(args, kwargs)
            if calls and hidden is not given_hidden(*calls[0][1:]) and not torch.equal(
                hidden, given_hidden(*calls[0][1:])
            ):
                raise RuntimeError("something is done to the hidden state between them")
            if not calls:
                output = forward(*args, **kwargs)
            calls.append((forward, args, kwargs))
            if number == self.depth - 1:
                raise _Entered
            return with_hidden(output, hidden)

        with called(self.model, at):
            try:
                self.model(input_ids=inputs_bt, use_cache=False)
            except _Entered:
                return Entry(inputs_bt, given_hidden(*calls[0][1:]), calls, output)
        raise RuntimeError("they do not run once each")

    def leave(self, entry: Entry, hidden: Tensor, compute: Callable[[], T]) -> T:
        """What `compute` gets from the model when this is the hidden state after its last block, [B, T, D]."""

        def at(number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_hidden(entry.output, hidden)

        with called(self.model, at):
            return compute()

    def logits(self, inputs_bt: Tensor, layers: Sequence[int]) -> Tensor:
        """Of a model of these blocks, in this order: [B, T, V]."""
        entry = self.enter(inputs_bt)
        hidden = entry.hidden
        for layer in layers:
            hidden = entry.run(layer, hidden)
        return self.leave(entry, hidden, lambda: self.model(input_ids=inputs_bt, use_cache=False).logits)

    @torch.no_grad()
    def _check(self) -> None:
        """All blocks, one by one, compute what the model does."""
        kind, tokens = self.model.config.model_type, random_tokens(self.model)
        try:
            expected = self.model(input_ids=tokens, use_cache=False).logits.double()
            found = self.logits(tokens, range(self.depth)).double()
        except torch.OutOfMemoryError:
            raise
        except MODEL_ERRORS as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"cannot measure the layers of this {kind!r} model: its blocks cannot be run apart ({reason})"
            ) from error
        tolerance = TOLERANCE if self.model.dtype == torch.float32 else 0.05
        if not (found - expected).abs().max() <= tolerance * expected.abs().max():
            raise UserError(
                f"cannot measure the layers of this {kind!r} model: its blocks, one by one, do not compute what it does"
            )
