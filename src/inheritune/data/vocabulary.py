"""A smaller vocabulary: the tokens that a corpus uses, and the tokenizer of those alone.

1. `count_tokens`: how often each token occurs.
2. `choose_tokens`: all that occur, or the most frequent so many; always those that every text can be made of (all
   bytes, or all single characters), and special and added ones.
3. `prune`: the tokenizer of the kept tokens under new ids, which are dense and in the old order.
4. `check_pruned`: it reads held-out text as the whole one does.

A text that needs no dropped token is encoded as before. In a BPE, what happens inside a token while a word is merged
is what happens to the token as a word of its own, so with a token all those are kept that this goes through; the
merges are the old ones, in the old order, without those that need a dropped token. In a Unigram the best path stays
the best of fewer; the piece with the lowest score stays, as the price of unknown characters is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from inheritune import UserError
from inheritune.data.shards import Split
from inheritune.data.tokenizer import named_tokenizer, tokens_in_front

Wanted = int | Literal["used"]
"""How many tokens to keep, or all that occur."""

SPAN, SPANS = 64, 2**14
"""Tokens of each piece of held-out text that is read with both tokenizers, and of how many pieces at most."""

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""What characters fall back to where a tokenizer has no token of theirs (`byte_fallback`)."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's space. It has to stay a token: its bytes would be decoded as what it looks like."""

_CHUNK = 2**24


@dataclass(frozen=True)
class HeldOut:
    """UTF-8 bytes per token of a held-out text, in the tokens of the whole vocabulary and in those that were kept."""

    whole: float
    kept: float


def count_tokens(tokens: Split | np.ndarray, size: int) -> np.ndarray:
    """How often each of `size` tokens occurs: int64 [size]."""
    length = tokens.tokens if isinstance(tokens, Split) else len(tokens)
    counts = np.zeros(size, np.int64)
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        part = tokens.read(start, stop) if isinstance(tokens, Split) else tokens[start:stop]
        counts += np.bincount(part, minlength=size)[:size]
    return counts


def choose_tokens(
    tokenizer: Any, counts: np.ndarray, wanted: Wanted, named: Collection[int] = ()
) -> list[int]:
    """Ids of the tokens to keep, ascending.

    Args:
        tokenizer: of transformers, with a `tokenizer.json`.
        counts: how often each id occurs.
        wanted: all that occur; or so many, the most frequent first, of equals the lower id.
        named: ids that something refers to, which are kept where they are tokens.

    Raises:
        UserError: a tokenizer of another kind, or a number that cannot be.
    """
    content = _content(tokenizer)
    ids = tokenizer.get_vocab()
    parts_of = _parts_of(content["model"], ids)
    kept: set[int] = set()

    def missing(token: int) -> set[int]:
        """The token and all it is merged from, as far as they are not kept yet."""
        found, left = set[int](), [token]
        while left:
            one = left.pop()
            if one not in kept and one not in found:
                found.add(one)
                left += parts_of(one)
        return found

    for token in _always(tokenizer, content, ids) | set(named) & set(ids.values()):
        kept |= missing(token)
    if wanted == "used":
        for token in ids.values():
            if counts[token]:
                kept |= missing(token)
        return sorted(kept)
    if not len(kept) <= wanted <= len(ids):
        raise UserError(
            f"cannot keep a vocabulary of {wanted:,} tokens: this tokenizer has {len(ids):,}, and {len(kept):,} of "
            "them are always kept, bytes or single characters and special tokens"
        )
    for token in sorted(ids.values(), key=lambda token: (-counts[token], token)):
        more = missing(token)
        if len(kept) + len(more) <= wanted:
            kept |= more
    return sorted(kept)


def prune(tokenizer: Any, kept: Sequence[int], trust_remote_code: bool = False) -> Any:
    """The tokenizer of these tokens alone; token `kept[i]` becomes i.

    Args:
        tokenizer: is not changed.
        kept: what `choose_tokens` gave.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        UserError: its class makes something else of them.
    """
    new = {old: place for place, old in enumerate(kept)}
    content = _content(tokenizer)
    model = content["model"]
    if model["type"] == "BPE":
        vocabulary = {token: new[old] for token, old in model["vocab"].items() if old in new}
        pairs = [pair for pair in _merges(model) if {*pair, "".join(pair)} <= vocabulary.keys()]
        model |= {"vocab": vocabulary, "merges": pairs}
    else:
        model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new]
    for place, key in _places(content):
        place[key] = new[place[key]]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(
            json.dumps(content, ensure_ascii=False), encoding="utf-8"
        )
        small = named_tokenizer(folder, trust_remote_code)
    if small.get_vocab() != {token: new[old] for token, old in tokenizer.get_vocab().items() if old in new}:
        raise UserError(
            f"cannot take tokens out of this {type(tokenizer).__name__}: it gives those that are kept other numbers"
        )
    return small


def check_pruned(small: Any, whole: Any, kept: Sequence[int], held_out: np.ndarray) -> HeldOut:
    """Read held-out text with both tokenizers: in pieces of `SPAN` tokens, and in runs of kept ones.

    Args:
        small: what `prune` made of `whole`.
        whole: the tokenizer that it was made of.
        kept: what was kept.
        held_out: tokens of `whole`.

    Raises:
        UserError: a text is decoded to something else than before, or one that needs no dropped token is encoded
            otherwise.
    """
    new = {old: place for place, old in enumerate(kept)}
    if [new.get(token) for token in tokens_in_front(whole)] != tokens_in_front(small):
        raise UserError("cannot take tokens out of this tokenizer: it would put others in front of a text")
    spans = [held_out[start : start + SPAN].tolist() for start in range(0, len(held_out), SPAN)[:SPANS]]
    runs = [list(run) for span in spans for is_kept, run in groupby(span, new.__contains__) if is_kept]
    texts = whole.batch_decode(spans + runs, skip_special_tokens=True)
    before, after = (one(texts, add_special_tokens=False).input_ids for one in (whole, small))
    decoded = zip(whole.batch_decode(before), small.batch_decode(after), strict=True)
    for text, old, found, (right, again) in zip(texts, before, after, decoded, strict=True):
        as_before = [new.get(token) for token in old]
        if again != right or (None not in as_before and found != as_before):
            raise UserError(
                f"cannot take tokens out of this tokenizer: it would read {text!r} in another way than before"
            )
    size = sum(len(text.encode()) for text in texts[: len(spans)])
    return HeldOut(*(size / sum(map(len, encoded[: len(spans)])) for encoded in (before, after)))


def _content(tokenizer: Any) -> dict[str, Any]:
    """What `tokenizer.json` holds.

    Raises:
        UserError: there is none, or it is of a kind of which tokens cannot be taken out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"cannot take tokens out of a {type(tokenizer).__name__}: it has no tokenizer.json; save the model with "
            "a fast tokenizer first"
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    model = content["model"]
    kind = model["type"]
    kind += "".join(
        f" with {mark}" for mark in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(mark)
    )
    if kind not in ("BPE", "Unigram"):
        raise UserError(
            f"cannot take tokens out of a tokenizer of the type {kind}: it has to be a BPE, or a Unigram"
        )
    return content


def _always(tokenizer: Any, content: dict[str, Any], ids: dict[str, int]) -> set[int]:
    """Ids of what every text can be made of, and of special and added tokens."""
    model = content["model"]
    own = [piece if isinstance(piece, str) else piece[0] for piece in model["vocab"]]
    falls_back = model.get("byte_fallback") and set(BYTES) <= set(own)
    names = [*BYTES, SPACE] if falls_back else [token for token in own if len(token) == 1]
    names += [*tokenizer.all_special_tokens, model.get("unk_token")]
    if model["type"] == "Unigram":
        names.append(min(model["vocab"], key=lambda piece: piece[1])[0])
    return {ids[name] for name in names if name in ids} | {place[key] for place, key in _places(content)}


def _places(content: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where `tokenizer.json` has ids, the tokens of its model aside: what holds one, and the key in it."""
    yield from ((token, "id") for token in content["added_tokens"])
    if content.get("padding"):
        yield content["padding"], "pad_id"
    if content["model"].get("unk_id") is not None:
        yield content["model"], "unk_id"
    processors = [content["post_processor"] or {}]
    for one in processors:
        processors += one.get("processors", [])  # of a sequence
        for special in one.get("special_tokens", {}).values():  # of a template
            yield from ((special["ids"], place) for place in range(len(special["ids"])))
        yield from ((one[name], 1) for name in ("sep", "cls") if name in one)  # of BERT and RoBERTa


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE, in their order; older files have them as text."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _parts_of(model: dict[str, Any], ids: dict[str, int]) -> Callable[[int], list[int]]:
    """Of a token's id those of the two that it is merged from; none of a token that no merges lead to.

    A token may have several merges (SentencePiece's BPE). Which one makes it is found by merging its characters as
    an encoder does: the pair that comes first in the list, of equal ones the leftmost.
    """
    if model["type"] != "BPE":
        return lambda token: []
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
    names = {number: token for token, number in ids.items()}
    last = len(ranks)

    def parts_of(token: int) -> list[int]:
        symbols = list(names[token])
        while len(symbols) > 1:
            rank, at = min((ranks.get(pair, last), at) for at, pair in enumerate(pairwise(symbols)))
            if rank == last:
                return []
            if len(symbols) == 2:
                return [ids[symbol] for symbol in symbols]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return []

    return parts_of
