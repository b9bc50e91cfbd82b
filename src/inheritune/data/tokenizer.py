"""The tokenizer of a data set: found, or trained on its text; kept beside the shards; used to encode them."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.data.documents import one_line
from inheritune.models.gguf import given, located
from inheritune.runtime import files

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
TEXT_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
"""What families of models end their pretraining texts with."""
CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")
"""What they end a turn of a chat with."""

# What may be said of the token in front of a text instead of naming it.
AUTO, NONE = "auto", "none"
_NAME_BOS = (
    "name the token that models read there with --bos TOKEN, or say that there is none with --bos none"
)

# Training sees at most this many characters of the source. More does not change the merges that matter.
SAMPLE_CHARACTERS = 32 * 2**20

# Longer documents are encoded in pieces of this many characters.
PIECE = 2**20
_SPACE_BETWEEN_LETTERS = re.compile(r"[^\W\d_] (?=[^\W\d_])")

Tokens = npt.NDArray[Any]

_PROBE = "Hello world! Ünïcödé, 漢字 and 123\n\n\tdef f(x): return x  "


class Encoder:
    """Documents to token ids. Special tokens written out in a document are plain text, never control tokens."""

    def __init__(
        self,
        directory: Path,
        end_of_text: str | None = None,
        bos: str = AUTO,
        trust_remote_code: bool = False,
    ) -> None:
        self.tokenizer = named_tokenizer(str(directory), trust_remote_code)
        self.end_of_text = _end_of_text_id(self.tokenizer, end_of_text)
        self.bos = bos_id(self.tokenizer, bos)  # before the backend is set up, as asking for it changes that
        self.vocabulary = vocabulary_size(self.tokenizer)
        self.dtype = np.dtype("<u2" if self.vocabulary <= 2**16 else "<u4")
        self._end = np.array([self.end_of_text], self.dtype)
        # The fast tokenizers of transformers keep a `tokenizers.Tokenizer`; it may be used by many threads at once.
        self.backend = getattr(self.tokenizer, "backend_tokenizer", None)
        self.is_parallel = self.backend is not None
        if self.backend is not None:
            self.backend.encode_special_tokens = True
            self.backend.no_truncation()
            self.backend.no_padding()

    def __call__(self, texts: list[str]) -> list[Tokens]:
        """The token ids of each document, with end-of-text after them."""
        short = iter(self._encode([text for text in texts if len(text) <= PIECE]))
        return [
            np.concatenate([*([next(short)] if len(text) <= PIECE else self._in_pieces(text)), self._end])
            for text in texts
        ]

    def _in_pieces(self, text: str) -> Iterator[Tokens]:
        # An encoding takes about 120 bytes of memory a character until its ids are taken out.
        for piece in pieces(text):
            yield from self._encode([piece])

    def _encode(self, texts: list[str]) -> list[Tokens]:
        if self.backend is not None:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, self.dtype) for encoding in encodings]
        encode = self.tokenizer.encode
        return [
            np.array(encode(text, add_special_tokens=False, split_special_tokens=True), self.dtype)
            for text in texts
        ]


def name_of(tokenizer: Any) -> str | None:
    """What a tokenizer was given as: its id or folder, or the name of one in memory with a hash that tells it apart.

    Raises:
        UserError: it is none of transformers'.
    """
    if tokenizer is None or isinstance(tokenizer, str | Path):
        return None if tokenizer is None else str(tokenizer)
    if not hasattr(tokenizer, "save_pretrained") or not hasattr(tokenizer, "get_vocab"):
        raise UserError(
            f"a {type(tokenizer).__name__} is not a tokenizer of transformers: give one, its Hugging Face id, or its "
            "folder"
        )
    return f"{tokenizer.name_or_path or 'in memory'} ({identity(tokenizer)[:12]})"


def identity(tokenizer: Any) -> str:
    """SHA-256 over everything that makes tokens of a text; over the vocabulary where no more can be known."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = repr(sorted(tokenizer.get_vocab().items()))
    else:
        backend = copy.deepcopy(backend)  # how it was last called is left out
        backend.no_truncation()
        backend.no_padding()
        text = backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()


def pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """Cut a long text into pieces that can be encoded one by one.

    Cuts are made before a space between two letters. There a byte-level tokenizer starts a new word in any case, so
    that the tokens are the same as those of the whole text; a SentencePiece one may add a space token. A text
    without such a place is cut anywhere.
    """
    start = 0
    while len(text) - start > length:
        window = text[start : start + length]
        places = [match.end() - 1 for match in _SPACE_BETWEEN_LETTERS.finditer(window, length // 2)]
        stop = start + (places[-1] if places else length)
        yield text[start:stop]
        start = stop
    yield text[start:]


def save(tokenizer: Any, directory: Path, trust_remote_code: bool = False) -> None:
    """Copy a tokenizer (itself, its hub id or folder) to a directory that needs nothing else."""
    if isinstance(tokenizer, str | Path):
        tokenizer = named_tokenizer(str(tokenizer), trust_remote_code)
    _save_checked(tokenizer, directory, trust_remote_code)


def train(texts: Iterable[str], vocabulary: int, directory: Path) -> None:
    """Train a byte-level BPE like GPT-2's on the texts and save it. The same texts give the same tokenizer."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
    _save_checked(tokenizer, directory)


def named_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a hub id, a folder or a GGUF. Raises UserError if there is none, or it has no vocabulary."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id
    from transformers import AutoTokenizer

    source = Pretrained(name, None, trust_remote_code)
    if not Path(name).exists():
        try:
            validate_repo_id(located(source)[0])
        except HFValidationError as error:
            raise UserError(f"there is no tokenizer at {name}: the folder does not exist") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(**given(source), use_fast=True)
    except Exception as error:  # OSError, KeyError, bare Exception of tokenizers: whatever the files are not
        if Path(name).exists():
            raise UserError(f"{name} is not a folder with a tokenizer: {one_line(error)}") from error
        raise UserError(
            f"the tokenizer {name!r} is no local folder, and it cannot be loaded from the Hugging Face hub: "
            f"{one_line(error)}"
        ) from error
    if vocabulary_size(tokenizer) <= 1 or not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(f"the tokenizer {name} has no vocabulary: a file such as tokenizer.json is missing")
    return tokenizer


def tokens_in_front(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts in front of a text by itself. What it appends is not among them.

    Raises UserError for a tokenizer that makes other tokens of the text itself when it adds its own.
    """
    plain = list(tokenizer(_PROBE, add_special_tokens=False).input_ids)
    whole = list(tokenizer(_PROBE).input_ids)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise UserError(f"it cannot be seen what the tokenizer puts in front of a text: {_NAME_BOS}")


def bos_id(tokenizer: Any, bos: str = AUTO) -> int | None:
    """The token that a model reads in front of a text: what the tokenizer adds (`auto`), none (`none`), or this one.

    Raises UserError for a token that is not in the vocabulary, and for a tokenizer that adds more than one.
    """
    if bos == NONE:
        return None
    if bos != AUTO:
        return _token_id(tokenizer, bos, "beginning-of-text")
    front = tokens_in_front(tokenizer)
    if len(front) > 1:
        names = ", ".join(tokenizer.convert_ids_to_tokens(front))
        raise UserError(f"the tokenizer puts more than one token in front of a text ({names}): {_NAME_BOS}")
    return front[0] if front else None


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id, added tokens included."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def sample(documents: Iterable[tuple[float, str]], characters: int = SAMPLE_CHARACTERS) -> list[str]:
    """Of documents with keys, those with the smallest keys that fit into a number of characters, in their order.

    Which these are does not depend on the order in which documents come. Never holds more than twice as much.
    """
    chosen: list[tuple[float, str]] = []
    held = 0
    for document in documents:
        chosen.append(document)
        held += len(document[1])
        if held > 2 * characters:
            chosen = _smallest(chosen, characters)
            held = sum(len(text) for _, text in chosen)
    return [text for _, text in _smallest(chosen, characters)]


def _smallest(documents: list[tuple[float, str]], characters: int) -> list[tuple[float, str]]:
    documents.sort()
    ends = itertools.accumulate(len(text) for _, text in documents)
    return documents[: max(1, sum(end <= characters for end in ends))]


@contextmanager
def one_thread_per_call() -> Iterator[None]:
    """Keep `tokenizers` from starting a thread per core for each call: prepare makes its calls from threads."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _save_checked(tokenizer: Any, directory: Path, trust_remote_code: bool = False) -> None:
    """Save, and make sure that what was saved gives the same ids."""
    with files.directory(directory) as temporary:
        tokenizer.save_pretrained(temporary)
        again = named_tokenizer(str(temporary), trust_remote_code)
        same = again.get_vocab() == tokenizer.get_vocab() and again.encode(_PROBE) == tokenizer.encode(_PROBE)
        if not same:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} gives other ids once it is saved and loaded again"
            )


def _token_id(tokenizer: Any, token: str, role: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(f"the {role} token {token!r} is not in the vocabulary of the tokenizer")
    return vocabulary[token]


def _end_of_text_id(tokenizer: Any, token: str | None) -> int:
    """The token after every text: this one, or what texts ended with when the tokenizer's models were pretrained.

    A chat model's tokenizer may name the end of a turn instead.
    """
    if token is not None:
        return _token_id(tokenizer, token, "end-of-text")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token: name one with --end-of-text TOKEN")
    named = tokenizer.eos_token
    template = tokenizer.chat_template
    if named in TEXT_ENDS or not (named in CHAT_ENDS or (isinstance(template, str) and named in template)):
        return tokenizer.eos_token_id
    special = {str(added): id for id, added in tokenizer.added_tokens_decoder.items() if added.special}
    end = next((end for end in TEXT_ENDS if end in special and end != named), None)
    taken = f"so texts end with {end}" if end else "but it knows no other, so texts end with it too"
    logger.warning("the tokenizer's %s ends turns of a chat, %s (--end-of-text names another)", named, taken)
    return tokenizer.eos_token_id if end is None else special[end]
