"""What each layer of a model is worth, which ones to keep, and what that costs before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.analysis.choice import check_fewest, contiguous, put_back, search, without_each
from inheritune.analysis.importance import Choice, ChoiceLosses, Windows
from inheritune.analysis.kept import (
    CHOICE,
    BlockFigures,
    Kept,
    LayerAnalysis,
    Measurement,
    Point,
    load_kept,
    save,
    telling,
)
from inheritune.analysis.sequences import Text
from inheritune.data.loader import model_inputs, read_windows
from inheritune.data.shards import Split
from inheritune.initialization.layers import choose
from inheritune.models.architecture import context_length, layer_count, parameter_count
from inheritune.runtime.progress import ProgressBar
from inheritune.training.validation import interval_of, standard_error

WINDOWS = 32
LENGTH = 256
"""Choices are compared on so many windows of so many tokens."""

RACE = 120
"""About so many windows are read to find the best choice of a size."""

SHORTEST = 16
"""Tokens of a window that says anything."""

FEW = 8
"""Windows on which the loss without each block is measured: enough to tell which blocks matter."""

WORDS = ("first", "last", "ends", "spread")
"""Rules that need no measuring."""

RULES = (*WORDS, "contiguous", "measured")


def windows_of(text: Text, context: int | None, seed: int) -> tuple[Windows, int]:
    """Random windows to compare choices on, and how many tokens each has.

    Raises:
        UserError: as `window_length`.
    """
    length = window_length(text, context)
    available = (text.size - 1) // length
    generator = np.random.Generator(np.random.PCG64(seed))
    numbers = generator.choice(available, min(WINDOWS, available), replace=False)
    return windows_at(text, numbers, length), length


def window_length(text: Text, context: int | None) -> int:
    """Tokens of a window to compare choices on: of a short text, or for a short context, shorter than usual.

    Raises:
        UserError: the text has too few.
    """
    length = min(LENGTH, context or LENGTH, (text.size - 1) // FEW)
    if length < SHORTEST:
        raise UserError(
            f"{text.source} has {text.size} tokens, too few to choose layers by: it takes {FEW} windows of {SHORTEST}"
        )
    return length


def windows_at(text: Text, numbers: np.ndarray, length: int) -> Windows:
    """The windows of so many tokens that have these numbers, from 0."""
    tokens = text.tokens
    if isinstance(tokens, Split):
        windows_nt = read_windows(tokens, numbers, length)
    else:
        windows_nt = torch.from_numpy(np.stack([tokens[n * length : (n + 1) * length + 1] for n in numbers]))
    inputs_nt = model_inputs(windows_nt[:, :-1], text.bos, text.end_of_text)
    return Windows(inputs_nt.contiguous(), windows_nt[:, 1:].contiguous())


def losses_on(model: PreTrainedModel, text: Text, seed: int) -> tuple[ChoiceLosses, Measurement]:
    """What measures choices of a model's blocks on windows of a text, and what those are.

    Raises:
        UserError: too little text, or a model whose blocks cannot be run apart.
    """
    windows, length = windows_of(text, context_length(model.config), seed)
    identity = text.tokens.identity if isinstance(text.tokens, Split) else None
    measured = Measurement(
        data=str(text.source), identity=identity, windows=len(windows), window=length, seed=seed
    )
    return ChoiceLosses(model, windows), measured


def choose_kept(
    keep: str | Sequence[int],
    layers: int,
    depth: int,
    text: Text | None,
    model: Callable[[], PreTrainedModel],
    seed: int,
) -> Kept:
    """Which layers to keep, by a rule of which only `contiguous` and `measured` need text and a model.

    Args:
        keep: the rule, one of a recipe's `keep`, or the blocks themselves.
        layers: how many to keep.
        depth: of the model.
        text: to measure on.
        model: gives the model, where it is to compute.
        seed: of the windows.

    Raises:
        UserError: more layers than there are, no text where one is needed, or as `losses_on`.
    """
    if not isinstance(keep, str):
        return Kept(keep="list", layers=listed(keep, layers, depth), of_layers=depth)
    if not 1 <= layers <= depth:
        raise UserError(f"cannot keep {layers} layers of a model with {depth}: choose 1 to {depth}")
    if keep in WORDS or layers == depth:
        word = keep if keep in WORDS else "first"
        return Kept(keep=keep, layers=choose(f"{word} {layers}", depth), of_layers=depth)
    if keep not in RULES:
        raise UserError(f"keep is {keep!r}, but should be {', '.join(RULES)}, or a list of block numbers")
    if text is None:
        raise UserError(f"to keep {keep} layers takes text to measure on: give token shards or a text file")
    return kept_at(keep, [layers], depth, text, model(), seed)[0]


def kept_at(
    keep: str, sizes: Sequence[int], depth: int, text: Text, model: PreTrainedModel, seed: int
) -> list[Kept]:
    """The choice of each of these sizes by a rule, with its loss; arguments and errors as of `choose_kept`."""
    losses, measured = losses_on(model, text, seed)
    if keep == "measured":
        fewest = min(sizes)
        with _shown(losses, "worth of each layer", lambda done: FEW * (depth + 2)):
            cosines, angles = losses.similarities(FEW)
            blocks = block_figures(losses, cosines)
        found = searched(losses, angles, fewest, f"choosing {fewest} of {depth} layers")
        path = [found[size] for size in sorted(found, reverse=True)]
        with _shown(losses, "what a cut costs by simple rules", lambda done: None):
            known = {"blocks": tuple(blocks), "curve": tuple(rule_curve(losses, angles, found))}
        kept = [_kept(keep, found[size], losses, measured, path[: depth - size]) for size in sizes]
        # What is known of all blocks and depths is in the record of the smallest cut alone.
        return [one.model_copy(update=known) if len(one.layers) == fewest else one for one in kept]
    if keep == "contiguous":
        with _shown(losses, "contiguous layers", lambda done: len(losses.windows)):
            angles = losses.similarities(len(losses.windows))[1]
        found = {size: contiguous(angles, size) for size in sizes}
    else:
        found = {size: tuple(choose(f"{keep} {size}", depth)) for size in sizes}
    return [_kept(keep, found[size], losses, measured) for size in sizes]


def searched(losses: ChoiceLosses, angles: np.ndarray, fewest: int, title: str) -> dict[int, Choice]:
    """`search`, with a bar that counts windows on which choices were measured; how many there will be is a guess."""
    left = len(losses.whole) - fewest

    def rules(size: int) -> list[Choice]:
        return [contiguous(angles, size), tuple(choose(f"ends {size}", len(losses.whole)))]

    def next_race(races: int) -> None:
        nonlocal left
        left = races

    def total(done: int) -> int:
        return done + left * RACE

    with _shown(losses, title, total):
        return search(losses, fewest, rules=rules, tell=next_race)


@contextmanager
def _shown(losses: ChoiceLosses, title: str, total: Callable[[int], int | None]) -> Iterator[None]:
    """A bar of the windows that choices are measured on in the block; `total` guesses how many, by those done."""
    with ProgressBar(title, None, "windows") as bar:
        losses.tell = lambda windows: bar.update(bar.done + windows, total=total(bar.done + windows))
        yield
    losses.tell = lambda windows: None


def grown_kept(kept: Kept, layers: int, model: PreTrainedModel, text: Text, seed: int) -> Kept:
    """The layers to grow a trained model to: those it has, and the reference's whose return lowers the loss most.

    Args:
        kept: what the small model was cut to.
        layers: how many there will be.
        model: the reference, with the trained blocks, embeddings, norm and head in the places of its own.
        text: to measure on.
        seed: of the windows.
    """
    losses, measured = losses_on(model, text, seed)
    with _shown(losses, f"growing from {len(kept.layers)} to {layers} layers", lambda done: None):
        choice = put_back(losses, tuple(kept.layers), layers)
    return _kept(kept.keep, choice, losses, measured)


def _kept(
    keep: str, choice: Choice, losses: ChoiceLosses, measured: Measurement, path: Sequence[Choice] = ()
) -> Kept:
    """The record of a choice that was measured."""
    return Kept(
        keep=keep,
        layers=list(choice),
        of_layers=len(losses.whole),
        loss=losses.mean(choice),
        whole=losses.mean(losses.whole),
        path=tuple(path),
        measured=measured,
    )


def listed(blocks: Sequence[int], layers: int, depth: int) -> list[int]:
    """A choice that a user wrote down: each block once, in order.

    Raises:
        UserError: a block that is not there, is named twice or out of order, or another number of them.
    """
    chosen = choose(blocks, depth)
    if sorted(set(chosen)) != chosen:
        raise UserError(f"keep names layers {chosen}, but should name each once, in their order")
    if len(chosen) != layers:
        raise UserError(f"keep names {len(chosen)} layers, but {layers} are to be kept")
    return chosen


def smallest_cut(fewest: int | None, depth: int) -> int:
    """Layers of the smallest cut of an analysis, by default half of them.

    Raises:
        UserError: the model has no such cut.
    """
    fewest = max(1, depth // 2) if fewest is None else fewest
    check_fewest(fewest, depth)
    return fewest


def analyze_layers(
    model: PreTrainedModel,
    text: Text,
    *,
    name: str,
    fewest: int | None = None,
    seed: int = 0,
    show: Callable[[Sequence[BlockFigures]], object] = lambda blocks: None,
) -> LayerAnalysis:
    """What each layer is worth, and what cuts would cost.

    Args:
        model: in evaluation mode, on the device to compute on.
        text: to measure on.
        name: of the model.
        fewest: layers of the smallest cut; by default half of them.
        seed: of the choice of windows.
        show: is given what each block is worth as soon as it is known; the search for cuts takes longer.

    Raises:
        UserError: as `losses_on` and `search`.
    """
    depth = layer_count(model.config)
    fewest = smallest_cut(fewest, depth)
    losses, measured = losses_on(model, text, seed)
    with _shown(losses, f"worth of each layer of {name}", lambda done: FEW * (depth + 2)):
        cosines, angles = losses.similarities(FEW)
        blocks = block_figures(losses, cosines)
    show(blocks)
    best = searched(losses, angles, fewest, f"cuts of {name}")
    with _shown(losses, f"cuts of {name} by simple rules", lambda done: None):
        curve = rule_curve(losses, angles, best)
    return LayerAnalysis(
        model=name,
        parameters=parameter_count(model),
        of_layers=depth,
        measured=measured,
        loss=losses.mean(losses.whole),
        blocks=blocks,
        angles=[float(min(angles[i, i + n] for i in range(depth - n + 1))) for n in range(1, depth)],
        curve=curve,
        sentence=advice(blocks, curve, depth),
    )


def rule_curve(losses: ChoiceLosses, angles: np.ndarray, best: Mapping[int, Choice]) -> list[Point]:
    """Losses on a few windows of the best choice at each depth, and at some depths of what the other rules choose."""
    depth, cuts = len(losses.whole), [("measured", best[size]) for size in sorted(best, reverse=True)]
    for size in telling(best):
        cuts.append(("contiguous", contiguous(angles, size)))
        cuts += [(word, tuple(choose(f"{word} {size}", depth))) for word in WORDS]
    found = losses([choice for _, choice in cuts], FEW).mean(1)  # all at once: they begin alike
    return [
        Point(keep=keep, layers=list(choice), loss=float(loss))
        for (keep, choice), loss in zip(cuts, found, strict=True)
    ]


def block_figures(losses: ChoiceLosses, cosines: np.ndarray) -> list[BlockFigures]:
    """The loss without each block, exactly, on a few windows; and its influence."""
    whole = losses.whole
    added = losses(without_each(whole), FEW) - losses([whole], FEW)
    figures = []
    for block, row in zip(whole, added, strict=True):
        mean = float(row.mean())
        low, high = interval_of(mean, standard_error(row), len(row))
        influence = float(1 - cosines[block, block + 1])
        figures.append(BlockFigures(block=block, added=mean, low=low, high=high, influence=influence))
    return figures


def advice(blocks: Sequence[BlockFigures], curve: Sequence[Point], depth: int) -> str:
    """In words: which block costs least and most to drop, and which way to cut is best at the smallest depth."""
    ranked = sorted(blocks, key=lambda figures: figures.added)
    smallest = min(len(point.layers) for point in curve)
    at = {point.keep: point.loss for point in curve if len(point.layers) == smallest}
    other = min((word for word in at if word != "measured"), key=lambda word: at[word])
    sentence = (
        f"The cheapest block to drop is {ranked[0].block} ({ranked[0].added:+.3f} nats), the dearest "
        f"{ranked[-1].block} ({ranked[-1].added:+.3f}). At {smallest} of {depth} layers the measured choice starts "
        f"at {at['measured']:.2f}, the first layers at {at['first']:.2f}"
    )
    if other != "first":
        sentence += f", the best simple rule ({other}) at {at[other]:.2f}"
    if at["first"] - at["measured"] < 0.1:
        return f"{sentence}: which layers are kept makes little difference here."
    return f"{sentence}: keep the measured ones."


def disagreement(blocks: Sequence[BlockFigures], lazy: Sequence[int]) -> str | None:
    """A sentence if layers whose attention is lazy are dear to lose; None if they are not.

    Args:
        blocks: what each is worth.
        lazy: the layers that attention says could go, counted from 0.
    """
    median = float(np.median([figures.added for figures in blocks]))
    dear = [figures.block for figures in blocks if figures.block in lazy and figures.added > median]
    if not dear:
        return None
    return (
        f"Rank and importance disagree: the attention of blocks {', '.join(map(str, dear))} is lazy, but their "
        "absence costs more than most. Go by the loss."
    )


def recorded(path: Path, make: Callable[[], Kept]) -> Kept:
    """The choice that is recorded there, or a new one, recorded."""
    if not path.exists():
        kept = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, kept)
    return load_kept(path)


def kept_in(directory: Path, layers: int, depth: int) -> Kept:
    """Which layers a model in a run has: what is recorded beside it, or the first ones, as versions before did."""
    path = directory / CHOICE
    return (
        load_kept(path) if path.exists() else Kept(keep="first", layers=list(range(layers)), of_layers=depth)
    )
