"""From documents to shards.

1. `resolve` makes a `Source` of every file, hub data set or iterable; the tokenizer is copied, or trained on them.
2. `read_batches` reads documents, in a thread, and gives each a key that its text and the seed decide.
3. `in_order` encodes the batches in threads, and gives them in the order in which they were read.
4. `_write_splits` sends each document to the split of its key (`SplitWriter`), and saves how far it is.
5. `publish` moves everything to its place.

While it works everything is in OUTPUT/unfinished, with a record of how far the files are good (`progress.json`,
replaced every few seconds). A new start with the same arguments reads the documents up to there again, makes sure
that they are the same ones, and continues. At the end the files move up to OUTPUT, the manifest last.

Which split a document falls into depends on its text and the seed alone: not on its place, its neighbours or the
number of threads. Copies of a document are in the same split.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inheritune import UserError
from inheritune.config import check_seed
from inheritune.data import tokenizer as tokenizers
from inheritune.data.documents import DATA_SET, IN_MEMORY, Source, file_format, is_dataset, local_files
from inheritune.data.shards import (
    MANIFEST,
    TOKENIZER,
    Manifest,
    SplitName,
    TokenizerRecord,
    read_manifest,
    sha256_of_directory,
)
from inheritune.data.sources import CHARACTERS_PER_TOKEN, Remote, resolve
from inheritune.data.unfinished import (
    PROGRESS,
    Arguments,
    Position,
    Saved,
    SplitWriter,
    begun,
    check_output,
    finished,
    load_saved,
    publish,
    work_directory,
)
from inheritune.runtime import files
from inheritune.runtime.progress import RESUMES, ProgressBar
from inheritune.runtime.signals import Interrupted

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from inheritune.data.documents import TextData

HELD_OUT = 100 * 1024
"""Tokens to hold out: on windows of 1,024 the losses of two models differ with a standard deviation of 0.05 to 0.1
nats (`results/`), so that the mean of 100 of them has a 95% interval of about 0.02 nats to either side."""
BYTES_PER_TOKEN, COMPRESSED = 4.5, 3
"""Of a text, and bytes of it in one of a compressed file, to guess how many tokens there will be."""
SMALLER = (".gz", ".xz", ".zst", ".parquet", ".arrow")

_BATCH_CHARACTERS = 2**19  # about 0.15 s of encoding, far more than handing a batch over costs
_BATCHES_AHEAD = 2  # read and waiting for a thread
_SMALLEST_VOCABULARY = 257  # all bytes, and end-of-text


def prepare(
    sources: TextData | Sequence[TextData | Iterable[str]],
    output: str | Path,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    train_tokenizer: int | None = None,
    validation: float | None = None,
    workers: int | None = None,
    text_field: str = "text",
    split: str = "train",
    config: str | None = None,
    seed: int = 0,
    max_documents: int | None = None,
    end_of_text: str | None = None,
    bos: str = tokenizers.AUTO,
    skip_invalid: bool = False,
    trust_remote_code: bool = False,
    shard_tokens: int = 100_000_000,
    save_every: float = 15.0,
) -> Manifest:
    """Tokenize documents into shards, and give the manifest.

    `sources`: one or several of presets, files, folders, glob patterns, hub ids (see `sources.resolve`), data sets of
    the library `datasets`, or iterables of documents, as in
    `prepare([["one document", "another"]], "data", train_tokenizer=1000)`. Give either `tokenizer` (a tokenizer, a
    hub id, or a folder) or `train_tokenizer` (the size of a byte-level BPE to train on the sources). `text_field` may
    be a path into nested fields (`data.text`). `validation` is the fraction of documents held out, by default what
    `share_held_out` says, `workers` the number of encoding threads (one a core), `save_every` is in seconds. `bos`
    names the token that models read in front of a text: by default what the tokenizer adds by itself; "none" for
    none. Documents without text are left out, and with `skip_invalid` rows whose text is null, missing or no text;
    `Manifest.rows_without_text` counts both.

    A finished directory is left as it is; an unfinished one is resumed. Raises UserError for wrong arguments (others
    than those the directory was started with, too, among them other documents in memory), for a data set of several
    splits or without such a column, and for text that cannot be read, OSError for a full disk or a network that
    fails, and `Interrupted` for a signal: the same call then resumes.
    """
    if isinstance(sources, str | Path) or is_dataset(sources):
        sources = [sources]
    if not isinstance(sources, Sequence):
        raise UserError(
            f"a {type(sources).__name__} is no source of text: give files, folders, data sets, or lists of documents "
            "in a list"
        )
    output = files.named(output, "folder for the shards")
    check_output(output)
    named = [source for source in sources if isinstance(source, str | Path)]
    local = {str(path): path.stat().st_size for source in named for path in local_files(source, output)}
    if validation is None:
        before = read_manifest(output).arguments if (output / MANIFEST).exists() else {}
        validation = before.get("validation", share_held_out(local))
    arguments = Arguments(
        sources=[_name_of(one) for one in sources],
        tokenizer=tokenizers.name_of(tokenizer),
        in_memory=_digest([one for one in sources if not isinstance(one, str | Path)]),
        train_tokenizer=train_tokenizer,
        end_of_text=end_of_text,
        validation=validation,
        text_field=text_field,
        split=split,
        config=config,
        seed=seed,
        max_documents=max_documents,
        shard_tokens=shard_tokens,
        bos=bos,
        skip_invalid=skip_invalid,
        files=local,
    )
    workers = (os.cpu_count() or 1) if workers is None else workers
    _check(arguments, workers)
    if not begun(output):  # versions before took a negative seed: what was begun with one goes on
        check_seed(seed)
    if (output / MANIFEST).exists():
        return finished(output, arguments)
    how: dict[str, Any] = {
        "text_field": text_field,
        "skip_invalid": skip_invalid,
        "split": split,
        "config": config,
        "output": output,
    }
    opened = [one for source in sources for one in resolve(source, seed=seed, **how)]
    with work_directory(output) as work:
        if (output / MANIFEST).exists():  # finished by another process just now
            return finished(output, arguments)
        saved = load_saved(work, arguments)
        if not (work / MANIFEST).exists():
            if not (work / TOKENIZER).exists():
                _make_tokenizer(work, tokenizer, arguments, opened, trust_remote_code)
            encoder = tokenizers.Encoder(work / TOKENIZER, end_of_text, bos, trust_remote_code)
            with tokenizers.one_thread_per_call():
                _write_splits(work, saved, opened, encoder, workers, save_every)
            manifest = Manifest(
                tokenizer=TokenizerRecord(
                    name=arguments.tokenizer or f"byte-level BPE of {encoder.vocabulary} tokens",
                    sha256=sha256_of_directory(work / TOKENIZER),
                    vocabulary=encoder.vocabulary,
                    end_of_text=encoder.end_of_text,
                    bos=encoder.bos,
                ),
                dtype="uint16" if encoder.dtype.itemsize == 2 else "uint32",
                source=arguments.sources,
                splits={name: record for name, record in saved.splits.items() if record.tokens},
                arguments=arguments.model_dump(),
                rows_without_text=saved.rows_without_text,
                datasets=sorted({one.dataset for one in opened if isinstance(one, Remote)}),
            )
            files.write_json(work / MANIFEST, manifest.model_dump())
        publish(work, output)
    return read_manifest(output)


def share_held_out(local: Mapping[str, int]) -> float:
    """Which fraction of the documents to hold out, if that is left open: half a percent, and more of a small text.

    Args:
        local: bytes of each local file; if there is none, the text is taken for large.
    """
    size = sum(size * (COMPRESSED if path.endswith(SMALLER) else 1) for path, size in local.items())
    return min(0.1, max(0.005, math.ceil(1000 * HELD_OUT * BYTES_PER_TOKEN / size) / 1000)) if size else 0.005


def few_held_out(manifest: Manifest) -> str | None:
    """A warning, if a verdict on what is held out would be a rough one."""
    held = manifest.splits.get("validation")
    if held is None or held.tokens >= HELD_OUT / 2:
        return None
    windows, whole = held.tokens / 1024, held.tokens + manifest.splits["train"].tokens
    enough = math.ceil(100 * min(0.5, HELD_OUT / whole)) / 100
    return (
        f"only {held.tokens:,} tokens are held out, {windows:,.0f} windows of 1,024: a difference between two models "
        f"is then known to about {0.2 / math.sqrt(max(1, windows)):.2f} nats, with {HELD_OUT // 1024} windows to "
        f"{0.2 / math.sqrt(HELD_OUT / 1024):.2f}; --validation {enough:g} into another folder holds out more"
    )


def rows_left_out(count: int) -> str:
    """The sentence that says how many rows had no text."""
    return (
        f"{count:,} {'row' if count == 1 else 'rows'} without text {'was' if count == 1 else 'were'} left out"
    )


def _write_splits(
    work: Path,
    saved: Saved,
    sources: list[Source],
    encoder: tokenizers.Encoder,
    workers: int,
    save_every: float,
) -> None:
    """Encode all documents after those of `saved`, saving now and then, and once all are written."""
    arguments, spent = saved.arguments, set[int]()
    names: tuple[SplitName, ...] = ("train", "validation")
    writers = {
        name: SplitWriter(work, name, encoder.dtype, arguments.shard_tokens, saved.splits.get(name))
        for name in names
    }
    train, validation = writers.values()

    def save() -> None:
        saved.splits = {name: writer.sync() for name, writer in writers.items()}
        files.write_json(work / PROGRESS, saved.model_dump())

    def count() -> int:
        return train.documents + validation.documents

    batches = read_batches(sources, saved.position, arguments.seed, spent)
    threads = workers if encoder.is_parallel else 1
    bar = ProgressBar("encoding", None, "tokens", train.tokens + validation.tokens, RESUMES)
    last_saved = time.monotonic()
    try:
        with bar, closing(in_order(batches, encoder, threads)) as encoded:
            for batch, documents in encoded:
                if count() == arguments.max_documents:
                    break
                if batch.source in spent:
                    continue  # was read ahead
                for key, text, tokens in zip(batch.keys, batch.texts, documents, strict=True):
                    if not text:
                        saved.rows_without_text += 1
                        continue
                    saved.smallest_key = min(saved.smallest_key, key)
                    split = validation if key < arguments.validation else train
                    split.append(tokens, len(text.encode()))
                    saved.source_tokens += len(tokens)
                    if saved.source_tokens >= (sources[batch.source].tokens or math.inf):
                        spent.add(batch.source)
                        break
                    if count() == arguments.max_documents:
                        break
                saved.position = Position(source=batch.source + 1) if batch.source in spent else batch.end
                if saved.position.source > batch.source:
                    saved.source_tokens = 0
                done = train.tokens + validation.tokens
                total = _expected(done, sources, count(), arguments.max_documents)
                bar.update(done, f"{count():,} documents", total)
                if time.monotonic() - last_saved >= save_every:
                    save()
                    last_saved = time.monotonic()
        _check_splits(work, saved, train.documents, validation.documents)
        save()
    except Interrupted:
        save()
        raise
    finally:
        for writer in writers.values():
            with suppress(OSError):  # a full disk: the error that brought us here says so
                writer.close()


def _name_of(source: TextData | Iterable[str]) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return DATA_SET if is_dataset(source) else IN_MEMORY


def _digest(in_memory: Sequence[Any]) -> str:
    """Tells documents in memory from others; "" without any.

    A data set has a fingerprint of its own; what can be read only once has none.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in in_memory:
        if is_dataset(source):
            digest.update(str(getattr(source, "_fingerprint", "")).encode())
        elif iter(source) is not source:
            for text in source:
                digest.update(
                    f"{len(text)} {text}".encode(errors="replace") if isinstance(text, str) else b""
                )
    return digest.hexdigest() if in_memory else ""


def _make_tokenizer(
    work: Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    arguments: Arguments,
    sources: list[Source],
    trust_remote_code: bool,
) -> None:
    directory = work / TOKENIZER
    if tokenizer is not None:
        tokenizers.save(tokenizer, directory, trust_remote_code)
        return
    assert arguments.train_tokenizer is not None
    if any(source.once for source in sources):
        raise UserError("a tokenizer can only be trained on documents that can be read twice: give a list")
    texts = filter(None, itertools.chain.from_iterable(map(_about_what_is_taken, sources)))
    most = arguments.max_documents

    def training_documents() -> Iterator[tuple[float, str]]:
        for count, text in enumerate(itertools.islice(texts, most), start=1):
            key, _ = key_and_hash(text, arguments.seed)
            if key >= arguments.validation:
                yield key, text
            if count % 1000 == 0:
                bar.update(count, total=_expected(count, sources, count, most))

    with ProgressBar("reading for the tokenizer", None, "documents") as bar:
        sample = tokenizers.sample(training_documents())
    size = arguments.train_tokenizer
    with ProgressBar("training the tokenizer", None, "tokens", keeps=RESUMES) as bar:
        try:
            bar.wait_for(lambda: tokenizers.train(sample, size, directory))
        except Interrupted:
            files.write_json(work / PROGRESS, Saved(arguments=arguments).model_dump())  # so that it is kept
            raise


def _about_what_is_taken(source: Source) -> Iterator[str]:
    """Documents of a source, before there is a tokenizer that could count the tokens to take from it."""
    left = CHARACTERS_PER_TOKEN * (source.tokens or math.inf)
    for text in source.documents():
        yield text
        left -= len(text)
        if left <= 0:
            return


def _expected(done: int, sources: list[Source], documents: int, max_documents: int | None) -> int | None:
    """About how many units there will be in all, when so many are done; None where that cannot be known."""
    sizes = [source.size for source in sources if source.size is not None]
    known = len(sizes) == len(sources) and sum(sizes) > 0
    share = sum(source.read for source in sources) / sum(sizes) if known else 0.0
    if max_documents is not None:
        share = max(share, documents / max_documents)
    return round(done / share) if share > 0 else None


def _check(arguments: Arguments, workers: int) -> None:
    if not arguments.sources:
        raise UserError("no source is given")
    if (arguments.tokenizer is None) == (arguments.train_tokenizer is None):
        raise UserError("give either a tokenizer or the size of one to train")
    size = arguments.train_tokenizer
    if size is not None and size < _SMALLEST_VOCABULARY:
        raise UserError(f"a byte-level tokenizer has at least {_SMALLEST_VOCABULARY} tokens, not {size}")
    if not 0 <= arguments.validation < 1:
        raise UserError(f"the fraction for validation is {arguments.validation}, not from 0 to below 1")
    limits = (("max_documents", arguments.max_documents), ("shard_tokens", arguments.shard_tokens))
    for name, value in (*limits, ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, not at least 1")


def _check_splits(work: Path, saved: Saved, train: int, validation: int) -> None:
    """UserError for a split without documents. The work is of no use then, whatever comes next."""
    arguments = saved.arguments
    if train and (validation or not arguments.validation):
        return
    (work / PROGRESS).unlink(missing_ok=True)
    if not train + validation:
        rows = f": {rows_left_out(saved.rows_without_text)}" if saved.rows_without_text else ""
        raise UserError(f"there is no document with text in {', '.join(arguments.sources)}{rows}")
    if train + validation == 1:
        texts = any(file_format(Path(file)) == ".txt" for file in arguments.files)
        of_texts = ", as every .txt file is one," if texts else ""
        advice = "split the file, or give .jsonl with one document a line" if texts else "give more"
        raise UserError(
            f"there is only one document{of_texts} and training and validation need at least one each: {advice}"
        )
    if not train:
        raise UserError(f"all {validation} documents fall into validation: make the fraction smaller")
    enough = min(math.ceil(saved.smallest_key * 1000 + 1) / 1000, 0.999)
    raise UserError(
        f"none of the {train} documents falls into validation with a fraction of {arguments.validation}: "
        f"a fraction of {enough} gives one (or set it to 0 for no validation split)"
    )


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
                f"the documents of {sources[index].name} have changed since this preparation was started"
            )
        if index not in spent:
            yield Batch(index, texts, keys, Position(source=index + 1))


def in_order(
    batches: Iterator[Batch], encode: Callable[[list[str]], list[tokenizers.Tokens]], threads: int
) -> Generator[tuple[Batch, list[tokenizers.Tokens]]]:
    """Each batch with the tokens of its documents, in the order of the batches. Errors come in this order too.

    Threads and not processes: decompressing, hashing and encoding happen outside Python's global lock, nothing has to
    be copied between processes, and a killed program leaves none behind.
    """

    def work(reading: Future[Batch | None]) -> tuple[Batch, list[tokenizers.Tokens]] | None:
        return None if (batch := reading.result()) is None else (batch, encode(batch.texts))

    # The reader is left first: the encoders wait for what it was asked to read.
    with ThreadPoolExecutor(threads) as encoders, ThreadPoolExecutor(1) as reader:
        pending: deque[Future[tuple[Batch, list[tokenizers.Tokens]] | None]] = deque()
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
