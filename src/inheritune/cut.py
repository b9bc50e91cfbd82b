"""From a trained model to a smaller one: which of its layers, how wide, and those as a model of their own.

1. `choose_layers_of`: which layers, by a rule, by a list, or by measuring (`analysis.layers.choose_kept`).
2. `load_model` with `layers=` reads the tensors of these blocks and of what is around them; the others stay empty.
3. `assemble` makes the smaller configuration (`choose_layers`) and moves the tensors to their new places.
4. `mend` folds into the weights what depends on a block's place, in the architectures that have such a thing.
5. `check_exact` compares the result with the reference's same blocks on a few tokens.
6. Where it is to be narrower, `keep_width` chooses the parts of its width, and `narrowed` takes them.
7. On request `keep_tokens` leaves it the tokens that a text uses (`choose_vocabulary`), and `prune` its tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.analysis.kept import CHOICE, Kept, KeptTokens, save
from inheritune.analysis.layers import choose_kept
from inheritune.analysis.sequences import Text, open_text
from inheritune.analysis.shape import Target, choose_shape, shapes
from inheritune.analysis.width import keep_width, narrowed
from inheritune.card import cut_card
from inheritune.config import Narrow, Pretrained, check_seed
from inheritune.data.documents import is_dataset
from inheritune.data.shards import Split, open_split
from inheritune.data.tokenizer import AUTO, vocabulary_size
from inheritune.data.vocabulary import SPAN, SPANS, Wanted, check_pruned, choose_tokens, count_tokens, prune
from inheritune.initialization.assemble import assemble, read_blocks
from inheritune.initialization.narrow import narrower, width_config, width_of
from inheritune.initialization.vocabulary import keep_tokens, named_tokens
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.models.checkpoint_config import check_live
from inheritune.models.exactness import check_exact
from inheritune.models.load import (
    in_evaluation_mode,
    load_config,
    load_model,
    load_tokenizer,
    read_tokenizer,
    save_model,
)
from inheritune.models.size import bytes_each
from inheritune.runtime import files
from inheritune.runtime.hardware import choose_device
from inheritune.training.checks import check_ids, check_tokens

if TYPE_CHECKING:
    from inheritune.data.documents import TextData

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Parts:
    """What a small model is to have of a large one; arguments as of `inherit`."""

    layers: int | None = None
    keep: str | Sequence[int] = "auto"
    hidden: int | None = None
    heads: int | None = None
    mlp: int | None = None
    narrow: Narrow = "importance"
    parameters: int | None = None
    memory: int | None = None
    vocabulary: Wanted | None = None

    def __post_init__(self) -> None:
        if self.narrow not in get_args(Narrow):
            raise UserError(f"narrow is {self.narrow!r}, but should be {' or '.join(get_args(Narrow))}")
        for name in ("layers", "hidden", "heads", "mlp", "parameters", "memory"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise UserError(f"{name} is {value!r}, but should be a whole number")
        if not isinstance(self.keep, str):
            try:
                object.__setattr__(self, "keep", [index(block) for block in self.keep])
            except TypeError:
                raise UserError(f"keep is {self.keep!r}, but should be a rule or numbers of blocks") from None

    @property
    def narrower(self) -> bool:
        """Whether the width is to be another one."""
        return not self.hidden is self.heads is self.mlp is None

    @property
    def open(self) -> bool:
        """Whether the shape is to be found."""
        return not self.parameters is self.memory is None


@dataclass(frozen=True)
class Measuring:
    """What choices are measured on, and where; arguments as of `inherit`."""

    data: TextData | None = None
    seed: int = 0
    device: str | torch.device | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        choose_device(self.device)

    def text(self, model: Pretrained | PreTrainedModel, config: PretrainedConfig) -> Text | None:
        """The data as text of this model; None without any."""
        return None if self.data is None else text_for(model, config, self.data, tokenizer=self.tokenizer)


def inherit(
    reference: str | Path | Pretrained | PreTrainedModel,
    layers: int | None = None,
    *,
    hidden: int | None = None,
    heads: int | None = None,
    mlp: int | None = None,
    narrow: Narrow = "importance",
    parameters: int | None = None,
    memory: int | None = None,
    keep: str | Sequence[int] = "auto",
    data: TextData | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocabulary: Wanted | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Some transformer blocks of a model, with all its embeddings, its final norm and its head.

    What they compute equals what the reference's same blocks do, which is checked on a few tokens. Tied weights stay
    tied; what the configuration says of single layers follows them. From an id or a folder only the tensors that are
    kept are read.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        layers: how many blocks to keep, 1 to the reference's depth; needless if `keep` lists them, and all by
            default where a size of the width or `vocabulary` is given.
        hidden: the hidden size to come to.
        heads: attention heads that each block keeps.
        mlp: channels that each block's MLP keeps.
        narrow: which of them: those of most "importance", by the size of their activations on the data; or the
            "first". What such a model computes is checked too: it is what the reference would compute with zeros in
            the place of all that was left out.
        parameters: in place of a shape, how many parameters the result may have: depths and widths that come closest
            are compared on the data, at the cut and after a short training (`analysis.shape`).
        memory: the same by the bytes of the weights as they are saved.
        keep: "first" (the paper's), "last", "ends", "spread", "contiguous" or "measured", as a recipe's `keep`; or
            numbers of blocks, from 0. "auto" is "measured" where there is data, else "first".
        data: what to measure on: a folder of token shards (their training split is read), a text file, or a
            `datasets.Dataset` with a column `text`.
        tokenizer: of the model, to read text with and to save; by default the one that comes with its id or folder,
            also of a model in memory that was loaded from there.
        vocabulary: keep so many tokens, those that occur most in `data`, or "used", all that occur in it; with
            either, all bytes and special tokens. Every text can still be encoded, by a tokenizer of its own that is
            saved in `output`.
        output: save the result in this folder, with its tokenizer and a model card, as `inheritune inherit` does. A
            smaller vocabulary needs one, since its model means nothing without its tokenizer.
        seed: of the windows of it.
        device: to measure on; by default a GPU if there is one.
        dtype: of the weights when read; "auto" keeps the checkpoint's. A model in memory keeps its own.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: not a model, no safetensors, `layers` or `vocabulary` out of range, data that does not fit, an
            architecture that is not understood or cannot be cut there exactly, a tokenizer that cannot be cut, or an
            `output` that exists.

    Source: Inheritune (arXiv 2404.08634), Algorithm 1, step 1. The official code leaves out the position embedding
    and the final norm of GPT-2, and the token embedding and the final norm of LLaMA; the paper inherits them, and so
    does this.
    """
    parts = Parts(layers, keep, hidden, heads, mlp, narrow, parameters, memory, vocabulary)
    measuring = Measuring(data, seed, device, tokenizer)
    if vocabulary is not None and output is None:
        raise UserError(
            "a smaller vocabulary has a tokenizer of its own: say in which folder to save both (`output`)"
        )
    source = reference
    if isinstance(source, PreTrainedModel):
        measuring = replace(measuring, device=source.device)
    else:
        source = Pretrained.of(source, revision, trust_remote_code)
    with in_evaluation_mode(source):
        if output is not None:
            place = files.named(output, "output folder")
            cut_to_folder(source, parts, place, measuring, dtype=str(dtype).removeprefix("torch."))
            return load_model(Pretrained(place, trust_remote_code=trust_remote_code), dtype="auto")
        config = config_of(source)
        kept = choose_parts(source, config, parts, measuring, dtype)
        return narrowed(blocks_of(source, config, kept.layers, dtype), kept)


def config_of(model: Pretrained | PreTrainedModel) -> PretrainedConfig:
    """The configuration of a model on disk or in memory.

    Raises:
        UserError: it is no causal language model.
    """
    if isinstance(model, PreTrainedModel):
        check_live(model)
        return model.config
    return load_config(model)


def blocks_of(
    model: Pretrained | PreTrainedModel,
    config: PretrainedConfig,
    layers: Sequence[int],
    dtype: torch.dtype | str,
) -> PreTrainedModel:
    """These blocks of a model on disk, in this type, or of one in memory, in its own."""
    if isinstance(model, PreTrainedModel):
        return assemble(model, layers)
    return read_blocks(model, config, layers, dtype)


def name_of(model: Pretrained | PreTrainedModel) -> str:
    """What a model is called: by its id or folder, and where one in memory has none, by its type."""
    if isinstance(model, PreTrainedModel):
        return model.name_or_path or f"a {model.config.model_type} model in memory"
    return str(model)


@dataclass(frozen=True)
class Cut:
    """What was made: what was kept, parameters of the result."""

    kept: Kept
    parameters: int


def cut_to_folder(
    model: Pretrained | str | Path | PreTrainedModel,
    parts: Parts,
    output: Path,
    measuring: Measuring = Measuring(),
    *,
    dtype: str = "auto",
) -> Cut:
    """`inherit`, and save the result with the tokenizer that the model comes with, and a model card.

    Before it is moved to `output` it is read again, and has to compute what was cut; else nothing is written.

    Raises:
        UserError: as `inherit`; an unknown dtype; there is something at `output` already.
    """
    if output.exists():
        raise UserError(f"{output} exists already; nothing was written")
    files.check_place(output)
    if dtype not in DTYPES:
        raise _unknown(dtype)
    source = model if isinstance(model, PreTrainedModel) else Pretrained.of(model)
    config = config_of(source)
    trusted = isinstance(source, Pretrained) and source.trust_remote_code
    tokenizer = measuring.tokenizer or tokenizer_of(source)
    smaller = None
    if parts.vocabulary is not None:
        smaller = choose_vocabulary(source, config, tokenizer, measuring, parts.vocabulary)
        tokenizer = smaller.tokenizer
        whole = parts.layers is None and not parts.open and isinstance(parts.keep, str)
        parts = replace(
            parts,
            vocabulary=len(smaller.tokens),
            layers=layer_count(config) if whole else parts.layers,
        )
    kept = choose_parts(source, config, parts, measuring, dtype)
    small = narrowed(blocks_of(source, config, kept.layers, dtype), kept)
    if smaller is not None:
        keep_tokens(small, smaller.tokens)
    output.parent.mkdir(parents=True, exist_ok=True)

    def check(folder: Path) -> None:
        nonlocal kept
        again = Pretrained(folder, trust_remote_code=trusted)
        check_exact(load_model(again, dtype=small.dtype).to(small.device), small, range(len(kept.layers)))
        if smaller is not None:
            saved = load_tokenizer(again)
            kept = kept.model_copy(update={"vocabulary": smaller.checked(saved)})
        save(folder / CHOICE, kept)

    tokens = None if smaller is None else len(smaller.tokens)
    # A model in memory has a type of its own, whatever its folder says.
    made = dtype if isinstance(source, Pretrained) else str(small.dtype).removeprefix("torch.")
    card = cut_card(name_of(source), _named(source), kept, tokens, measuring, made)
    save_model(small, output, tokenizer=tokenizer, card=card, check=check)
    if not tokenizer:
        logger.warning("%s comes without a tokenizer: there is none in %s either", name_of(source), output)
    return Cut(kept, parameter_count(small))


def choose_parts(
    model: Pretrained | PreTrainedModel,
    config: PretrainedConfig,
    parts: Parts,
    measuring: Measuring,
    dtype: torch.dtype | str,
) -> Kept:
    """Which layers to keep of a model, and what of their width."""
    if parts.open:
        return choose_shape_of(model, config, parts, measuring, dtype)
    if not parts.narrower:
        return choose_layers_of(model, config, parts, measuring)
    width = narrower(config, parts.hidden, parts.heads, parts.mlp)
    width_config(config, width)  # what cannot be is refused before anything is read
    text = measuring.text(model, config)
    if text is None and parts.narrow == "importance" and width != width_of(config):
        raise UserError(
            "to choose the width by importance takes text to measure on: give token shards or a text file, or keep "
            "the `first` heads, channels and dimensions (narrow)"
        )
    if parts.layers is None and isinstance(parts.keep, str):
        parts = replace(parts, layers=layer_count(config), keep="first")
    kept = choose_layers_of(model, config, parts, measuring, text)
    cut = blocks_of(model, config, kept.layers, torch.float32).to(choose_device(measuring.device))
    return keep_width(kept, cut, width, parts.narrow, text, measuring.seed)


def choose_shape_of(
    model: Pretrained | PreTrainedModel,
    config: PretrainedConfig,
    parts: Parts,
    measuring: Measuring,
    dtype: torch.dtype | str,
) -> Kept:
    """The layers and the width of a model of at most a certain size."""
    fixed = parts.layers is not None or parts.keep not in ("auto", "measured")
    if fixed or parts.narrower or parts.narrow != "importance":
        raise UserError(
            "for a number of parameters or bytes a shape is searched for: leave out layers, keep, hidden, heads, "
            "mlp and narrow"
        )
    if parts.parameters is not None and parts.memory is not None:
        raise UserError("give either a number of parameters or the memory of the weights")
    if measuring.data is None:
        raise UserError("which shape is best is measured on text: give token shards or a text file")
    # A model in memory has a type of its own, whatever its configuration says.
    each = bytes_each(model.dtype if isinstance(model, PreTrainedModel) else dtype, config)
    if each is None:
        raise _unknown(dtype)
    tokens = parts.vocabulary if isinstance(parts.vocabulary, int) else None
    target = Target(parts.parameters, parts.memory, each, tokens)
    shapes(config, target)  # what cannot be is refused before anything is read
    text = measuring.text(model, config)
    assert text is not None
    if isinstance(model, PreTrainedModel):
        large = assemble(model, range(layer_count(config)), dtype=torch.float32)
    else:
        large = load_model(model, config=config).to(choose_device(measuring.device))
    return choose_shape(large, target, text, measuring.seed)


@dataclass(frozen=True)
class SmallerVocabulary:
    """Which tokens of a model are kept, and its tokenizer with those alone.

    Args:
        text: that they were counted in.
        held_out: tokens of `whole` that were not counted, int64.
        whole: the model's own tokenizer.
        tokenizer: the smaller one.
        tokens: ids in `whole`, ascending.
    """

    text: Text
    held_out: np.ndarray
    whole: PreTrainedTokenizerBase
    tokenizer: PreTrainedTokenizerBase
    tokens: list[int]

    def checked(self, saved: PreTrainedTokenizerBase | None) -> KeptTokens:
        """The record, once the tokenizer that was saved has read the held-out text as the whole one does.

        Raises:
            UserError: it reads it otherwise.
        """
        held_out = check_pruned(saved, self.whole, self.tokens, self.held_out)
        return KeptTokens(
            tokens=len(self.tokens),
            of_tokens=len(self.whole.get_vocab()),
            data=str(self.text.source),
            identity=self.text.tokens.identity if isinstance(self.text.tokens, Split) else None,
            bytes_per_token=held_out.kept,
            bytes_per_token_before=held_out.whole,
        )


def choose_vocabulary(
    source: Pretrained | PreTrainedModel,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | list[Path],
    measuring: Measuring,
    wanted: Wanted,
) -> SmallerVocabulary:
    """The tokens that a text uses: the training split of shards, or the first nine tenths of a text file.

    Raises:
        UserError: no text, tokens that are not the model's, or a tokenizer or a number of which nothing can be made.
    """
    data = measuring.data
    if data is None:
        raise UserError("which tokens to keep is counted in text: give token shards or a text file")
    if is_dataset(data):
        raise UserError(
            "which tokens to keep is counted in a whole text: prepare the data set, and give the shards"
        )
    if isinstance(tokenizer, list):
        raise UserError(
            f"{name_of(source)} has no tokenizer that can be used here, so its vocabulary cannot be cut"
        )
    text = measuring.text(source, config)
    assert text is not None
    counted = text.tokens
    if isinstance(counted, Split):
        validation = open_split(counted.directory, "validation")
        held_out = validation.read(0, min(validation.tokens, SPAN * SPANS))
    else:
        counted, held_out = np.split(counted, [len(counted) * 9 // 10])
    named = named_tokens(config.get_text_config())
    tokens = choose_tokens(tokenizer, count_tokens(counted, vocabulary_size(tokenizer)), wanted, named)
    pruned = prune(tokenizer, tokens, isinstance(source, Pretrained) and source.trust_remote_code)
    return SmallerVocabulary(text, held_out, tokenizer, pruned, tokens)


def choose_layers_of(
    model: Pretrained | PreTrainedModel,
    config: PretrainedConfig,
    parts: Parts,
    measuring: Measuring,
    text: Text | None = None,
) -> Kept:
    """Which layers to keep of a model; `text` is that of the data, where it is open already."""
    depth, layers, keep, data = layer_count(config), parts.layers, parts.keep, measuring.data
    if layers is None:
        if isinstance(keep, str):
            raise UserError("say how many layers to keep, or list them")
        layers = len(keep)
    if keep == "auto":
        keep = "first" if data is None else "measured"

    def ready() -> PreTrainedModel:
        if isinstance(model, PreTrainedModel):
            return model
        return load_model(model, config=config).to(choose_device(measuring.device))

    if text is None:
        text = measuring.text(model, config)
    kept = choose_kept(keep, layers, depth, text, ready, measuring.seed)
    if parts.keep == "auto" and data is None and isinstance(model, Pretrained):
        logger.warning(
            "keeping the first layers, as in the paper: of most pretrained models a measured choice loses far less, "
            "and takes some text to measure on"
        )
    return kept


def text_for(
    model: Pretrained | PreTrainedModel,
    config: PretrainedConfig,
    data: TextData,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    bos: str = AUTO,
    ignore_tokenizer: bool = False,
) -> Text:
    """Text to measure a model's layers on: the training split of token shards, a text file, or a data set.

    Args:
        model: whose tokenizer reads the text.
        config: of it.
        data: a folder of shards, a text file, or a data set.
        tokenizer: in place of the one that comes with the model.
        bos: token in front of every window, as in a recipe's `data.bos`.
        ignore_tokenizer: accept shards of another tokenizer.

    Raises:
        UserError: there is none, or its tokens are not the model's.
    """
    name = name_of(model)
    if tokenizer is None:
        found = tokenizer_of(model)
        tokenizer = None if isinstance(found, list) else found
    text = open_text(data, tokenizer, bos, split="train")
    if isinstance(text.tokens, Split):
        check_tokens(text.tokens, config, tokenizer, name, ignore_tokenizer=ignore_tokenizer)
    else:
        check_ids(max(int(text.tokens.max()), text.bos or 0), config, str(text.source), name)
    return text


def tokenizer_of(model: Pretrained | PreTrainedModel) -> PreTrainedTokenizerBase | list[Path]:
    """What `read_tokenizer` finds at a model's id or folder; of a model in memory without either, nothing."""
    if isinstance(model, PreTrainedModel):
        return read_tokenizer(model.name_or_path) if model.name_or_path else []
    return read_tokenizer(model)


def _named(model: Pretrained | PreTrainedModel) -> Pretrained | None:
    """Where a model is from; of one in memory without an id or a folder nothing is known."""
    if isinstance(model, Pretrained):
        return model
    return Pretrained(model.name_or_path) if model.name_or_path else None


def _unknown(dtype: torch.dtype | str) -> UserError:
    return UserError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
