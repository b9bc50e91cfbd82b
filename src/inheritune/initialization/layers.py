"""Which of a model's layers: from the words of a recipe to block numbers."""

from __future__ import annotations

from collections.abc import Sequence

from inheritune import UserError


def choose(layers: str | Sequence[int] | None, depth: int, stack_to: int | None = None) -> list[int]:
    """Numbers of the blocks (from 0) that make up a model, out of one with `depth` blocks.

    Args:
        layers: the numbers themselves; a Python slice such as "0:24:2"; "first n", "last n", "middle n" (n
            blocks around the middle), "ends n" (all but the middle: n / 2 from the beginning, the rest from the
            end), "spread n" (n blocks at even distances from the first on), "every n" (of n blocks the first); or
            None for all.
        depth: of the model they are taken from.
        stack_to: repeat the chosen blocks, all of them in order, until there are so many (stacking, Gong et al.,
            2019).

    Raises:
        UserError: more blocks than there are, none at all, or a stack that does not come out even.
    """
    chosen = list(range(depth)) if layers is None else _named(layers, depth)
    missing = [layer for layer in chosen if not 0 <= layer < depth]
    if missing:
        raise UserError(f"there is no layer {missing[0]}: the model has {depth}, 0 to {depth - 1}")
    if not chosen:
        raise UserError(f"layers {layers!r} is none of the {depth} that the model has")
    if stack_to is None:
        return chosen
    if stack_to % len(chosen) or stack_to == len(chosen):
        raise UserError(
            f"cannot stack {len(chosen)} layers to {stack_to}: give a multiple, such as {2 * len(chosen)}"
        )
    return chosen * (stack_to // len(chosen))


def _named(layers: str | Sequence[int], depth: int) -> list[int]:
    if not isinstance(layers, str):
        return list(layers)
    every = range(depth)
    if ":" in layers:
        return list(every[slice(*(int(part) if part else None for part in layers.split(":")))])
    kind, number = layers.split()
    count = int(number)
    if count > depth:
        raise UserError(f"layers {layers!r} are more than the {depth} that the model has")
    start, front = (depth - count) // 2, (count + 1) // 2
    return {
        "first": list(every[:count]),
        "last": list(every[depth - count :]),
        "middle": list(every[start : start + count]),
        "ends": [*every[:front], *every[depth - (count - front) :]],
        "spread": [i * depth // count for i in range(count)],
        "every": list(every[::count]),
    }[kind]
