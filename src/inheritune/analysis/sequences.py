"""The sequences that an analysis reads: random windows of validation shards, or of a text file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.data.documents import DATA_SET, Rows, RowText, is_dataset
from inheritune.data.loader import model_inputs, read_windows, window_count
from inheritune.data.shards import Split, open_split
from inheritune.data.tokenizer import AUTO, bos_id, pieces
from inheritune.runtime import files

if TYPE_CHECKING:
    from inheritune.data.documents import TextData

LONGEST = 512
"""Tokens of a sequence where its length is left open and the model could take more. On SmolLM2-135M 512 order heads
by rank as the paper's 1024 do (Spearman 0.998), and the same ones have rank one."""

MOST = 2**20
"""Tokens that are read of a data set: more says nothing more of a model's layers."""


@dataclass(frozen=True)
class Sequences:
    """Windows of a text, without overlap, in random order: token ids as a model reads them, int64 [N, T], and their
    numbers from 0."""

    inputs_nt: Tensor
    numbers: list[int]

    @property
    def window(self) -> int:
        """T, tokens of each."""
        return self.inputs_nt.shape[1]

    def first(self, count: int) -> Sequences:
        """So many of them."""
        return Sequences(self.inputs_nt[:count], self.numbers[:count])


@dataclass(frozen=True)
class Text:
    """Token ids, of shards or of a text as the model's own tokenizer reads it; what is in front of a text and at its
    end."""

    source: Path | str
    tokens: Split | np.ndarray
    bos: int | None = None
    end_of_text: int | None = None

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.tokens.tokens if isinstance(self.tokens, Split) else len(self.tokens)

    def choose(self, count: int, window: int | None, context: int | None, seed: int) -> Sequences:
        """At most `count` random windows of `window` tokens; the same arguments give the same ones.

        Raises:
            UserError: a window longer than the context or than the text.
        """
        if count < 1:
            raise UserError(f"cannot analyze {count} sequences: at least one is needed")
        length = self.size - 1 if isinstance(self.tokens, Split) else self.size
        if window is None:
            window = min(LONGEST, length, context or LONGEST)
        if window < 2:
            raise UserError(f"a window of {window} tokens is too short: at least 2 are needed")
        if context is not None and window > context:
            raise UserError(f"windows of {window} tokens are longer than the model's context of {context}")
        available = length // window
        if available == 0:
            raise UserError(f"{self.source} has {length} tokens, fewer than one window of {window}")
        generator = np.random.Generator(np.random.PCG64(seed))
        numbers = generator.choice(available, min(count, available), replace=False)
        if isinstance(self.tokens, Split):
            assert available == window_count(self.tokens, window)
            inputs_nt = read_windows(self.tokens, numbers, window)[:, :-1]
        else:
            inputs_nt = torch.from_numpy(
                self.tokens[: available * window].reshape(available, window)[numbers]
            )
        inputs_nt = model_inputs(inputs_nt, self.bos, self.end_of_text)
        return Sequences(inputs_nt.contiguous(), numbers.tolist())


def text_of(split: Split) -> Text:
    """The tokens of a split of shards."""
    return Text(split.directory, split, split.bos, split.end_of_text)


def open_text(
    data: TextData,
    tokenizer: PreTrainedTokenizerBase | None,
    bos: str = AUTO,
    split: Literal["train", "validation"] = "validation",
) -> Text:
    """A split of a folder of shards, or a text file or data set as the model's tokenizer reads it.

    `bos`: as `analyze`, which see. Of a data set about `MOST` tokens are read, of rows in a random order.

    Raises:
        UserError: nothing there, no text in it, or text without a tokenizer to read it.
    """
    if is_dataset(data):
        return _open_rows(data, tokenizer, bos)
    if not isinstance(data, str | Path):
        raise UserError(
            f"a {type(data).__name__} is not a text that is understood: give a folder of token shards, a text file, "
            "or a data set of the library `datasets`"
        )
    data = files.named(data, "text")
    if data.is_dir():
        return text_of(open_split(data, split, bos))
    if not data.is_file():
        raise UserError(f"there is neither a folder of token shards nor a text file at {data}")
    if tokenizer is None:
        raise UserError(f"the model comes without a tokenizer to read {data} with: give token shards instead")
    try:
        text = data.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{data} is not a text file: byte {error.start} is not UTF-8") from None
    ids = [
        token
        for piece in pieces(text)
        for token in tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
    ]
    if not text.strip() or not ids:
        raise UserError(f"there is no text in {data}")
    return Text(data, np.array(ids, dtype=np.int64), bos_id(tokenizer, bos))


def _open_rows(rows: Any, tokenizer: PreTrainedTokenizerBase | None, bos: str) -> Text:
    """Rows of a data set, each with end-of-text after it if the tokenizer has that."""
    if tokenizer is None:
        raise UserError(f"the model comes without a tokenizer to read {DATA_SET} with: give one (tokenizer)")
    if hasattr(rows, "select"):  # a stream has no rows to choose from
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))
        rows = rows.select(order, keep_in_memory=True)
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for text in Rows(rows, RowText("text", skip_invalid=True)).documents():
        if text:
            ids += tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            ids += [] if end is None else [end]
        if len(ids) >= MOST:
            break
    if not ids:
        raise UserError(f"there is no text in {DATA_SET}")
    return Text(DATA_SET, np.array(ids, dtype=np.int64), bos_id(tokenizer, bos), end)
