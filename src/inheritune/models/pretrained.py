"""Reading and writing checkpoints in Hugging Face's format.

Weights come from safetensors files only: pickle files can run code, so they are refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from inheritune import UserError, atomic
from inheritune.models.architecture import blocks_name, check_positions
from inheritune.models.empty_blocks import whole_class, with_only
from inheritune.models.presets import freeze_biases

logger = logging.getLogger(__name__)

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")


def load_config(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The configuration of a Hugging Face model id or checkpoint folder.

    Raises:
        UserError: there is no such model, or it is not a model.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(_explain(source, error)) from error
    if not trust_remote_code:
        check_positions(config)
    return config


def load_model(
    source: str | Path,
    *,
    config: PretrainedConfig | None = None,
    layers: Collection[int] | None = None,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model from a Hugging Face id or a checkpoint folder, in evaluation mode on the CPU.

    Args:
        source: model id or folder.
        config: read the weights into this configuration.
        layers: numbers of the only blocks that are wanted; the others stand empty in their places, and their tensors
            stay on the disk. Such a model cannot compute; `assemble` makes others of its blocks.
        dtype: of the weights; "auto" keeps the checkpoint's.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: not a model, no safetensors, or weights that do not fit the configuration.
    """
    if config is None:
        config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = [name for name in PICKLES if (folder / name).exists()]
        if pickles:
            raise UserError(
                f"{source} has its weights in {pickles[0]} only: pickle files can run code when they are read, "
                "so only safetensors are read; convert it with transformers' `save_pretrained`"
            )
        raise UserError(f"{source} has a configuration but no weights (no .safetensors file)")
    try:
        kind = AutoModelForCausalLM if layers is None else with_only(config, layers, trust_remote_code)
        with _without_load_report():
            model, report = kind.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                revision=revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_explain(source, error)) from error
    if layers is not None:
        model.__class__ = whole_class(model)
    _check_complete(source, model, report)
    freeze_biases(model)
    return model.eval()


def save_model(
    model: PreTrainedModel,
    directory: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a standard checkpoint (weights, configuration, tokenizer, model card) to `directory`, at once.

    Args:
        model: is written in its own dtype.
        directory: is made.
        tokenizer: goes with it.
        card: text of its README.md.
        check: is given the folder before it stands at `directory`; if it raises, nothing is left behind.

    Raises:
        UserError: there is something at `directory` already.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already; nothing was written")
    with atomic.directory(directory) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        if check is not None:
            check(folder)


def load_tokenizer(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that comes with a model or with token shards, or None if none does.

    For a folder without a tokenizer transformers makes one of some architectures that knows special tokens
    only; that counts as none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError):
        return None
    return None if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens) else tokenizer


def same_tokens(small: PreTrainedTokenizerBase, large: PreTrainedTokenizerBase) -> bool:
    """Whether every token of one has the same id in the other, which may have further ones."""
    return bool(small.get_vocab().items() <= large.get_vocab().items())


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from listing every tensor that a cut leaves behind; `_check_complete` looks at them."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_complete(source: str | Path, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Every weight of the model came from the checkpoint; what was left over are whole later blocks."""
    if report["missing_keys"]:
        raise UserError(f"{source} lacks weights: {_some(report['missing_keys'])}")
    if report["mismatched_keys"]:
        names = [str(entry[0]) for entry in report["mismatched_keys"]]
        raise UserError(f"{source} has weights of another shape than its configuration: {_some(names)}")
    # Blocks beyond the cut are left over by design; anything else is worth a word.
    block = re.compile(rf"(^|\.){blocks_name(model).rpartition('.')[2]}\.\d+\.")
    alien = [name for name in report["unexpected_keys"] if not block.search(name)]
    if alien:
        logger.warning("%s has weights that its architecture does not use: %s", source, _some(alien))


def _some(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _explain(source: str | Path, error: Exception) -> str:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").exists():
        return f"{source} is not a model: the folder has no config.json"
    if not folder.exists() and (folder.is_absolute() or str(source).startswith((".", "~"))):
        return f"there is no model at {source}: the folder does not exist"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot load the model {source}: {first_line}"
