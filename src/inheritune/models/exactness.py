"""The check that a model made of another one's blocks computes what those blocks do. A cut is checked, not trusted.

Right is what the reference itself computes on a few random tokens when only the chosen blocks run in it and every
other one passes on what it is given: with its own configuration, depth and numbers, and all that it does around its
blocks. So whatever makes a block depend on the depth, its number or other blocks shows, in architectures that
nobody listed.

The cost is one forward pass of 32 tokens through each of the two models, and no memory for weights if they share
them; blocks that are not chosen may be empty. Models in a 16-bit type are compared bit for bit first. Only where
that fails, and rounding has to be distinguished from a fault, are they copied to float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks, named
from inheritune.models.blockwise import (
    TOLERANCE,
    Call,
    called,
    check_finite,
    check_order,
    given_hidden,
    hidden_of,
    random_tokens,
    replaced,
    with_hidden,
)
from inheritune.models.layer_fields import MISFITS, lines_of

SHORT = 4
"""Tokens that a sliding window sees during the check, so that a few tokens show where one is."""

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Fields that are looked at while a model computes."""

SIGHT = ("chunk", "rope", "sliding", "type", "window")
"""In the names of attributes of a block's modules: what few tokens may not show. They have to be the same."""


Pass = list[Tensor]
"""One forward pass: what left each block that ran, in order, and the logits at the end."""


def check_exact(model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int]) -> None:
    """Refuse a model whose blocks do not compute what the reference's blocks `layers` do in this order.

    Hidden states after every block, and logits, are the same bit for bit, or to rounding in float32.

    Args:
        model: of `len(layers)` blocks, on the reference's device.
        reference: what is right; its blocks that are not in `layers` may be empty. Neither is changed.
        layers: numbers of the reference's blocks, from 0.

    Raises:
        UserError: they differ, or the reference's blocks cannot be run apart.
    """
    described = f"{named(layers)} of this {reference.config.model_type!r} model"
    theirs = blocks(reference)
    for place, (block, layer) in enumerate(zip(blocks(model), layers, strict=True)):
        if name := _other_sight(block, theirs[layer]):
            raise UserError(
                f"cannot make a model of {described}: layer {layer} would look at tokens in another way at its new "
                f"place {place} (`{name}`); choose other layers"
            )
    found, expected = _both(model, reference, layers, described)
    if {model.dtype, reference.dtype} != {torch.float32} and _difference(found, expected) is not None:
        # Rounding or not is decided in float32.
        model, reference = copy.deepcopy(model).float(), copy.deepcopy(reference).float()
        found, expected = _both(model, reference, layers, described)
    different = _difference(found, expected)
    if different is not None:
        check_finite(reference)
        where, size = different
        raise UserError(
            f"cannot make a model of {described} that computes what they do: its {where} would be off by {size:.2g} "
            "of its largest value, because something in the architecture depends on the depth, on a layer's number "
            "or on other layers; choose other layers"
        )


def _both(
    model: PreTrainedModel, reference: PreTrainedModel, layers: Sequence[int], described: str
) -> tuple[Pass, Pass]:
    tokens = random_tokens(reference)
    try:
        found, shapes = _whole(model, tokens)
        run = _in_place if all(a < b for a, b in pairwise(layers)) else _one_by_one
        return found, run(reference, layers, tokens, shapes)
    except torch.OutOfMemoryError:
        raise
    except MISFITS as error:
        check_finite(reference)
        raise UserError(
            f"cannot check a model of {described}, so it is not made: its blocks cannot be run apart "
            f"({lines_of(error)[0]})"
        ) from error


def _difference(found: Pass, expected: Pass) -> tuple[str, float] | None:
    """Where two passes differ first by more than rounding, and by how much of the largest value."""
    for place, (a, b) in enumerate(zip(found, expected, strict=True), start=1):
        if torch.equal(a, b):
            continue
        off = (a.double() - b.double()).abs().max() / b.double().abs().max()
        if a.dtype != torch.float32 or not off <= TOLERANCE:  # not a number is no rounding either
            return "logits" if place == len(found) else f"hidden state after layer {place}", off.item()
    return None


def _whole(model: PreTrainedModel, tokens: Tensor) -> tuple[Pass, list[Any]]:
    """An ordinary forward pass, and what each block returned."""
    returned: list[Any] = []
    with _prepared(model), ExitStack() as stack:
        for block in blocks(model):
            handle = block.register_forward_hook(lambda module, args, output: returned.append(output))
            stack.callback(handle.remove)
        logits = model(input_ids=tokens, use_cache=False).logits
    if len(returned) != len(blocks(model)):
        raise RuntimeError("they do not run once each")
    return [*(hidden_of(output).clone() for output in returned), logits], returned


def _in_place(model: PreTrainedModel, layers: Sequence[int], tokens: Tensor, returned: list[Any]) -> Pass:
    """The chosen blocks at their places, of which each follows the one before."""
    done: Pass = []
    last, expected, kept = returned[0], 0, None

    def at(number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal last, expected, kept
        check_order(number, expected)
        expected += 1
        if number in layers:
            last = forward(*args, **kwargs)
            kept = hidden_of(last)
            done.append(kept.clone())
            return last
        given = given_hidden(args, kwargs)
        if kept is not None and not torch.equal(given, kept):
            raise RuntimeError("something is done to the hidden state between them")
        kept = given
        return with_hidden(last, given)

    with _prepared(model), called(blocks(model), at):
        logits = model(input_ids=tokens, use_cache=False).logits
    return [*done, logits]


def _one_by_one(model: PreTrainedModel, layers: Sequence[int], tokens: Tensor, returned: list[Any]) -> Pass:
    """The chosen blocks in any order, at the end, each with what it was given at its place but the hidden state."""
    done: Pass = []
    depth = len(blocks(model))
    calls: list[Call] = []

    def at(number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_order(number, len(calls))
        calls.append((forward, args, kwargs))
        hidden = given_hidden(args, kwargs)
        if not torch.equal(hidden, given_hidden(*calls[0][1:])):
            raise RuntimeError("something is done to the hidden state between them")
        output = with_hidden(returned[0], hidden)
        for layer in layers if number == depth - 1 else ():
            forward, args, kwargs = calls[layer]
            output = forward(*replaced(args, hidden), **replaced(kwargs, hidden))
            hidden = hidden_of(output)
            done.append(hidden.clone())
        return output

    with _prepared(model), called(blocks(model), at):
        logits = model(input_ids=tokens, use_cache=False).logits
    return [*done, logits]


@contextmanager
def _prepared(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients and short windows within the block; afterwards all is as it was."""
    training = [module for module in model.modules() if module.training]
    config: PretrainedConfig = model.config.get_text_config()
    windows = {n: v for n in WINDOWS if isinstance(v := vars(config).get(n), int) and v > SHORT}
    model.eval()
    vars(config).update(dict.fromkeys(windows, SHORT))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        vars(config).update(windows)
        for module in training:
            module.training = True


def _other_sight(block: nn.Module, reference: nn.Module) -> str | None:
    """The first attribute by which two blocks look at tokens in another way, where a few tokens may not show it."""
    theirs = {name: vars(module) for name, module in reference.named_modules()}
    for name, module in block.named_modules():
        for key, value in vars(module).items():
            plain = isinstance(value, (bool, int, float, str)) and any(word in key for word in SIGHT)
            if plain and value != theirs.get(name, {}).get(key, value):
                return key
    return None
