"""Documents read ahead by one thread, encoded by several, handed on in their order.

Threads and not processes: decompressing, hashing and encoding happen outside Python's global lock, nothing has to be
copied between processes, and a killed program leaves none behind.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from inheritune import UserError
from inheritune.data.documents import Source

_BATCH_CHARACTERS = 2**19  # about 0.15 s of encoding, far more than handing a batch over costs
_BATCHES_AHEAD = 2  # read and waiting for a thread

Tokens = npt.NDArray[Any]


class Position(BaseModel):
    """A place between two documents: in which source, after how many of its documents, and a hash of these."""

    model_config = ConfigDict(frozen=True)
    source: int = 0
    documents: int = 0
    digest: str = ""


class Batch(NamedTuple):
    """Some documents of one source, with their keys, and the place after the last of them."""

    source: int
    texts: list[str]
    keys: list[float]
    end: Position


def key_and_hash(text: str, seed: int) -> tuple[float, bytes]:
    """A number in [0, 1) that depends on the text and the seed alone, and the hash it is made of."""
    digest = hashlib.blake2b(
        text.encode(), digest_size=16, salt=seed.to_bytes(8, "little", signed=True)
    ).digest()
    return int.from_bytes(digest[:7], "little") / 2**56, digest  # 56 bits: never rounded up to 1


def read_batches(sources: Sequence[Source], start: Position, seed: int, spent: set[int]) -> Iterator[Batch]:
    """The documents after `start`. A source that is added to `spent` meanwhile is read no further.

    Raises UserError if the documents before `start` are not those that its hash was made of.
    """
    for index in range(start.source, len(sources)):
        begin = start if index == start.source else Position(source=index)
        met = begin.documents == 0  # whether the documents before `begin` were met, the same as before
        texts: list[str] = []
        keys: list[float] = []
        characters, chain = 0, b""
        for count, text in enumerate(sources[index].documents(), start=1):
            if index in spent:
                break
            key, digest = key_and_hash(text, seed)
            chain = hashlib.blake2b(chain + digest, digest_size=16).digest()
            if count <= begin.documents:
                met = count == begin.documents and chain.hex() == begin.digest
                continue
            if not met:
                break
            texts.append(text)
            keys.append(key)
            characters += max(1, len(text))  # so that a batch of empty documents ends too
            if characters >= _BATCH_CHARACTERS:
                yield Batch(index, texts, keys, Position(source=index, documents=count, digest=chain.hex()))
                texts, keys, characters = [], [], 0
        if not met:
            raise UserError(
                f"the documents of {sources[index].name} are no longer those that the work was begun with"
            )
        if index not in spent:
            yield Batch(index, texts, keys, Position(source=index + 1))


def in_order(
    batches: Iterator[Batch], encode: Callable[[list[str]], list[Tokens]], threads: int
) -> Generator[tuple[Batch, list[Tokens]]]:
    """Each batch with the tokens of its documents, in the order of the batches. Errors come in this order too."""

    def work(reading: Future[Batch | None]) -> tuple[Batch, list[Tokens]] | None:
        return None if (batch := reading.result()) is None else (batch, encode(batch.texts))

    # The reader is left first: the encoders wait for what it was asked to read.
    with ThreadPoolExecutor(threads) as encoders, ThreadPoolExecutor(1) as reader:
        pending: deque[Future[tuple[Batch, list[Tokens]] | None]] = deque()
        try:
            while True:
                while len(pending) < threads + _BATCHES_AHEAD:
                    pending.append(encoders.submit(work, reader.submit(next, batches, None)))
                if (result := pending.popleft().result()) is None:
                    return
                yield result
        finally:
            for future in pending:
                future.cancel()
