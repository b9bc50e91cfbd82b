"""Reading and writing checkpoints in Hugging Face's format.

Weights come from safetensors files only: pickle files can run code, so they are refused.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.data.shards import TOKENIZER
from inheritune.models.architecture import layer_count
from inheritune.models.checkpoint_config import load_config, without_weights
from inheritune.models.checkpoint_files import (
    CONFIG,
    GENERATION,
    WEIGHTS,
    check_pointer,
    downloading,
    read_object,
    read_tensors,
    reading,
    warn_once,
)
from inheritune.models.checkpoint_weights import LANGUAGE_MODEL, check_size, check_weights
from inheritune.models.empty_blocks import empty_all_but, with_only
from inheritune.models.gguf import given, located
from inheritune.models.layer_fields import lines_of
from inheritune.models.presets import freeze_biases
from inheritune.runtime import files

logger = logging.getLogger(__name__)

VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenization*.py",
)
"""Names of the files that tokenizers consist of; those that hold the tokens come first."""


def load_model(
    named: Pretrained | str | Path,
    *,
    config: PretrainedConfig | None = None,
    layers: Collection[int] | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> PreTrainedModel:
    """A trained causal language model, in evaluation mode on the CPU.

    Args:
        named: which model, or its name alone: an id, or a folder.
        config: what `load_config` says of it, where that is known already.
        layers: numbers of the only blocks that are wanted; the others are empty in their places, and their tensors
            stay on the disk. Such a model cannot compute; `assemble` makes others of its blocks.
        dtype: of the weights; "auto" keeps the checkpoint's.

    Raises:
        UserError: not a model, no safetensors, or weights that do not fit the configuration.
    """
    source = Pretrained.of(named)
    config = load_config(source) if config is None else config
    kept = range(layer_count(config)) if layers is None else layers
    if located(source)[1] is not None:
        return _load_gguf(source, config, dtype)
    folder = Path(source.name)
    local = folder.is_dir()
    if local:
        tensors = read_tensors(folder, getattr(config, "transformers_weights", None) or WEIGHTS)
        if (folder / GENERATION).exists():
            read_object(folder / GENERATION)
    kind: Any = AutoModelForCausalLM
    sized = local and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING  # code of its own may tie what it likes
    if sized or layers is not None:
        empty = without_weights(source, config)
        empty_all_but(empty, kept)
        if sized:
            check_size(source, empty, tensors)
        if layers is not None:
            kind = with_only(type(empty), config, layers)
    try:
        with downloading(source), quietly():
            model, report = kind.from_pretrained(
                **given(source),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # `check_weights` names the tensor and both shapes
                key_mapping=LANGUAGE_MODEL,
                output_loading_info=True,
            )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if "use_safetensors" in str(error):  # transformers would have one allow pickles
            raise UserError(
                f"{source} has no safetensors on the hub, or they cannot be reached: other files can run code when "
                "they are read; convert them with transformers' `save_pretrained`"
            ) from error
        raise UserError(f"cannot load the model {source}: {lines_of(error)[0]}") from error
    if not local:  # the hub's client has made sure that what it gave is whole
        folder = Path(cached_file(source.name, CONFIG, revision=source.revision)).parent
        tensors = read_tensors(folder)
    model.__class__ = getattr(type(model), "whole_class", type(model))
    check_weights(source, model, report, tensors, kept)
    _make_trainable(source, model)
    return model.eval()


def _load_gguf(source: Pretrained, config: PretrainedConfig, dtype: torch.dtype | str) -> PreTrainedModel:
    """The whole model in a GGUF file, which `load_config` has looked at, as one of plain tensors."""
    wanted = config.dtype if dtype == "auto" else dtype
    warn_once(
        f"{source} is a GGUF file: all of it is read and dequantized, and what was quantized stays as coarse as it is"
    )
    try:
        with downloading(source), quietly():
            model, report = AutoModelForCausalLM.from_pretrained(
                **given(source),
                config=copy.deepcopy(config),
                dtype=wanted,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # of whatever kind, from the three libraries that read it
        raise UserError(f"cannot load the model {source}: {lines_of(error)[0]}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{source} lacks {missing[0]}: transformers cannot read this model from GGUF")
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)
    model.name_or_path = str(source)
    _make_trainable(source, model)
    return model.eval()


def save_model(
    model: PreTrainedModel,
    directory: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | Sequence[Path] = (),
    card: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a standard checkpoint (weights, configuration, tokenizer, model card) to `directory`, at once.

    Args:
        model: is written in its own dtype.
        directory: is made.
        tokenizer: goes with it.
        card: text of its README.md.
        check: is called with the folder before it is moved to `directory`; if it raises, nothing is written.

    Raises:
        UserError: there is something at `directory` already.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already; nothing was written")
    with files.directory(directory) as folder:
        with quietly():
            model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        if check is not None:
            check(folder)


def load_tokenizer(source: Pretrained | str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that comes with a model or with token shards; None if none does, or if it cannot be used here.

    Raises:
        UserError: it is damaged.
    """
    found = read_tokenizer(source)
    return None if isinstance(found, list) else found


def read_tokenizer(model: Pretrained | str | Path) -> PreTrainedTokenizerBase | list[Path]:
    """The tokenizer that comes with a model; where it takes a library or code that is not there, its files.

    Without any files of a tokenizer the list is empty; transformers would make one of some architectures that
    knows special tokens only.

    Raises:
        UserError: it is damaged.
    """
    source = Pretrained.of(model)
    if located(source)[1] is not None:
        return _gguf_tokenizer(source)
    files = _tokenizer_files(source)
    if not files:
        return []
    for file in files:
        with reading(file):
            check_pointer(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**given(source))
    except Exception as error:  # tokenizers has nothing narrower for a file that it cannot read
        if need := _needs(files, source.trust_remote_code):
            logger.warning("the tokenizer of %s cannot be used here: it needs %s", source, need)
            return files
        if any(files[0].match(name) for name in VOCABULARIES):
            raise UserError(
                f"the tokenizer of {source} cannot be read: its files are damaged, or made for other versions of "
                f"tokenizers and transformers ({lines_of(error)[0]})"
            ) from error
        raise UserError(_no_vocabulary(source, files)) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(_no_vocabulary(source, files))
    return tokenizer


def _gguf_tokenizer(source: Pretrained) -> PreTrainedTokenizerBase | list[Path]:
    """The tokenizer in a GGUF file, as transformers makes it again."""
    try:
        with downloading(source):
            return AutoTokenizer.from_pretrained(**given(source))
    except UserError:
        raise
    except Exception as error:
        logger.warning("the tokenizer in %s cannot be used here: %s", source, lines_of(error)[0])
        return []


def save_tokenizer(tokenizer: PreTrainedTokenizerBase | Sequence[Path], folder: Path) -> None:
    """Write what `read_tokenizer` found: the tokenizer, or its files as they are."""
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.save_pretrained(folder)
        return
    for file in tokenizer:
        shutil.copyfile(file, folder / file.name)


def tokenizer_in(shards: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that token shards were made with; nanoGPT's folders have none."""
    folder = shards / TOKENIZER
    return load_tokenizer(folder) if folder.exists() else None


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of one are those of the other, which may have further ones (added, or to fill up)."""
    ids, others = one.get_vocab().items(), other.get_vocab().items()
    return ids <= others or others <= ids


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from showing its progress, and from listing every tensor that a cut leaves behind."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def in_evaluation_mode(*models: object) -> Iterator[None]:
    """Keep dropout out of the models in memory among these, for the time of the block."""
    modes = [(model, model.training) for model in models if isinstance(model, PreTrainedModel)]
    for model, _ in modes:
        model.eval()
    try:
        yield
    finally:
        for model, mode in modes:
            model.train(mode)


def _make_trainable(source: Pretrained, model: PreTrainedModel) -> None:
    """What makes a model that was loaded one that can be trained and saved."""
    freeze_biases(model)
    # Else a language model would be saved under the names that it had in a multimodal one.
    if model._weight_conversions is not None:  # of a GGUF there are none
        model._weight_conversions = [
            change
            for change in model._weight_conversions
            if not set(change.source_patterns) & set(LANGUAGE_MODEL)
        ]
    if model.generation_config is None:  # a model that cannot generate
        return
    try:
        with TemporaryDirectory() as folder:
            model.generation_config.save_pretrained(folder)
    except ValueError as error:  # some versions of transformers read settings that they refuse to save
        warn_once(f"{GENERATION} of {source} is left out: {lines_of(error)[0]}")
        model.generation_config = GenerationConfig.from_model_config(model.config)


def _tokenizer_files(source: Pretrained) -> list[Path]:
    folder = Path(source.name)
    if not folder.is_dir():
        try:
            with downloading(source):
                kept = list(TOKENIZER_FILES)
                folder = Path(snapshot_download(str(source), revision=source.revision, allow_patterns=kept))
        except UserError:
            raise
        except (OSError, ValueError):  # neither a folder, nor an id that the hub or its cache knows
            return []
    return [file for name in TOKENIZER_FILES for file in sorted(folder.glob(name))]


def _no_vocabulary(source: Pretrained, files: Sequence[Path]) -> str:
    return (
        f"the tokenizer of {source} has no tokens: there is {files[0].name}, but a file such as tokenizer.json is "
        "missing"
    )


def _needs(files: Sequence[Path], trust_remote_code: bool) -> str | None:
    """What a tokenizer cannot be made of here without."""
    names = {file.name for file in files}
    if not trust_remote_code and any(
        "auto_map" in read_object(file) for file in files if file.name == "tokenizer_config.json"
    ):
        return "code that comes with it (--trust-remote-code)"
    if "tokenizer.json" in names:
        return None
    for library, suffixes in (("sentencepiece", (".model",)), ("tiktoken", (".tiktoken", "tiktoken.model"))):
        if any(name.endswith(suffixes) for name in names) and importlib.util.find_spec(library) is None:
            return f"the library {library} (pip install {library})"
    return None
