"""A model whose blocks are run one at a time, in any choice and order.

Between its embeddings and its final norm a causal language model is a row of blocks, each of which adds to a hidden
state. The model without some of them is the rest of the row, so its loss can be measured without making it, and what
two choices of blocks have in common at their beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks
from inheritune.models.layer_fields import MISFITS, lines_of

T = TypeVar("T")
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""How a model runs one of its blocks: the block's own forward, its arguments, its keyword arguments."""

TOLERANCE = 1e-4
"""Difference over the largest value that counts as rounding, in float32: experts are summed in any order."""

ROUNDING = 0.05
"""The same in a 16-bit type."""


class _LastBlockError(Exception):
    """The last block was reached, and what follows it is not wanted."""


@dataclass(frozen=True)
class Entry:
    """A batch in front of the first block.

    Args:
        hidden_btd: what that block is given, [B, T, D].
        calls: of each block.
        output: what the first block returns, for its form.
    """

    hidden_btd: Tensor
    calls: Sequence[Call]
    output: Any

    def run(self, layer: int, hidden_btd: Tensor) -> Tensor:
        """The hidden state after a block, [B, T, D], of the one before it."""
        forward, args, kwargs = self.calls[layer]
        return hidden_of(forward(*replaced(args, hidden_btd), **replaced(kwargs, hidden_btd)))


class Blockwise:
    """Runs a model block by block.

    Args:
        model: a causal language model in evaluation mode; left unchanged.

    Raises:
        UserError: its blocks cannot be run apart: they depend on more than the hidden state before each.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.blocks = model, blocks(model)
        self.depth = len(self.blocks)
        self._check()

    @torch.no_grad()
    def enter(self, inputs_bt: Tensor) -> Entry:
        """Compute what is in front of the first block, of token ids, int64 [B, T]."""
        calls: list[Call] = []
        output: Any = None

        def at(
            number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            nonlocal output
            check_order(number, len(calls))
            calls.append((forward, args, kwargs))
            given, first = given_hidden(args, kwargs), given_hidden(*calls[0][1:])
            if given is not first and not torch.equal(given, first):
                raise RuntimeError("something is done to the hidden state between them")
            if number == 0:
                output = forward(*args, **kwargs)
            if number == self.depth - 1:
                raise _LastBlockError
            return with_hidden(output, given)

        with called(self.blocks, at):
            try:
                self.model(input_ids=inputs_bt, use_cache=False)
            except _LastBlockError:
                return Entry(given_hidden(*calls[0][1:]), calls, output)
        raise RuntimeError("they do not run once each")

    def leave(self, entry: Entry, hidden_btd: Tensor, compute: Callable[[], T]) -> T:
        """What `compute` gets from the model if this is the hidden state after its last block, [B, T, D]."""
        with called(self.blocks, lambda *_: with_hidden(entry.output, hidden_btd)):
            return compute()

    @torch.no_grad()
    def logits(self, inputs_bt: Tensor, layers: Sequence[int]) -> Tensor:
        """Of a model of these blocks, in this order: [B, T, V]."""
        entry = self.enter(inputs_bt)
        hidden_btd = entry.hidden_btd
        for layer in layers:
            hidden_btd = entry.run(layer, hidden_btd)
        return self.leave(entry, hidden_btd, lambda: self.model(input_ids=inputs_bt, use_cache=False).logits)

    @torch.no_grad()
    def _check(self) -> None:
        """All blocks, one by one, compute what the model does."""
        refusal = f"cannot measure the layers of this {self.model.config.model_type!r} model: its blocks"
        tokens = random_tokens(self.model)
        try:
            expected = self.model(input_ids=tokens, use_cache=False).logits.double()
            found = self.logits(tokens, range(self.depth)).double()
        except torch.OutOfMemoryError:
            raise
        except MISFITS as error:
            check_finite(self.model)
            raise UserError(f"{refusal} cannot be run apart ({lines_of(error)[0]})") from error
        rounding = TOLERANCE if self.model.dtype == torch.float32 else ROUNDING
        if not (found - expected).abs().max() <= rounding * expected.abs().max():
            check_finite(self.model)
            raise UserError(f"{refusal}, one by one, do not compute what it does")


@contextmanager
def called(blocks: nn.ModuleList, at: Callable[..., Any]) -> Iterator[None]:
    """Within the block `at(number, forward, args, kwargs)` computes in the place of each of a model's blocks."""
    own = [vars(block).get("forward") for block in blocks]
    try:
        for number, block in enumerate(blocks):
            forward = block.forward

            def call(*args: Any, number: int = number, forward: Any = forward, **kwargs: Any) -> Any:
                return at(number, forward, args, kwargs)

            block.forward = call
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            del block.forward
            if before is not None:
                block.forward = before


def random_tokens(model: PreTrainedModel) -> Tensor:
    """Random ids, int64 [2, 16], without those of special tokens."""
    config = model.config.get_text_config()
    special = {
        v
        for c in (config, model.config)
        for k, v in c.to_dict().items()
        if k.endswith(("_id", "_index"))
        if isinstance(v, int)
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (256,), generator=generator).tolist()
    usual = [number for number in ids if number not in special] or ids
    return torch.tensor((usual * 32)[:32], device=model.device).view(2, 16)


@torch.no_grad()
def check_finite(model: PreTrainedModel) -> None:
    """UserError if there are numbers in a model that are not finite, so that nothing it computes equals anything."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and not value.is_meta and not value.float().isfinite().all():
            raise UserError(
                f"{name} of this {model.config.model_type!r} model has numbers that are not finite (in "
                f"{str(value.dtype).removeprefix('torch.')}), so nothing can be made of it: give another checkpoint"
            )


def check_order(number: int, expected: int) -> None:
    """Raise RuntimeError unless a block runs in its turn."""
    if number != expected:
        raise RuntimeError("they do not run one after the other")


def hidden_of(output: Any) -> Tensor:
    """The hidden state in what a block returns."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor):
        raise TypeError(f"they return {type(hidden).__name__}")
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block returns, with another hidden state."""
    return type(output)([hidden, *output[1:]]) if isinstance(output, (tuple, list)) else hidden


def given_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state in what a block is given."""
    return args[0] if args else kwargs["hidden_states"]


def replaced(given: Any, hidden: Tensor) -> Any:
    """Positional or named arguments of a block with another hidden state."""
    if isinstance(given, dict):
        return {**given, "hidden_states": hidden} if "hidden_states" in given else given
    return (hidden, *given[1:]) if given else given
