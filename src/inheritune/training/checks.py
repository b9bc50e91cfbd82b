"""Checks that are made before a training, an analysis or an evaluation has cost anything."""

from __future__ import annotations

import logging

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.data.loader import TrainingData
from inheritune.data.shards import GPT2, Split
from inheritune.models.architecture import context_length
from inheritune.models.load import same_tokens, tokenizer_in
from inheritune.models.size import on_meta, training_memory
from inheritune.runtime.progress import say
from inheritune.training.loss import uniform_loss

logger = logging.getLogger(__name__)

NEAR_UNIFORM = 0.3
"""Nats below ln(vocabulary) within which a model knows suspiciously little."""

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's, by which shards without a tokenizer (nanoGPT's) are compared with one."""


def check_fit(
    config: PretrainedConfig,
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "the model",
) -> None:
    """The data's tokens and windows exist in a model, and its tokens mean there what they mean in the data.

    Raises:
        UserError: as `check_tokens`, or windows longer than the model's context.
    """
    check_rows(data.train, config, name)
    # Both splits have one tokenizer.
    check_tokens(data.validation, config, tokenizer, name, ignore_tokenizer=data.ignore_tokenizer)
    context = context_length(config)
    if context is not None and data.window > context:
        raise UserError(f"windows of {data.window} tokens are longer than the model's context of {context}")


def check_room(config: PretrainedConfig, device: torch.device) -> None:
    """This machine can hold what a training needs, activations not counted: the system would kill it silently.

    Raises:
        UserError: it cannot. GPUs are not checked: they can share a model, and raise an error of their own.
    """
    needed, there = training_memory(on_meta(config)), psutil.virtual_memory().total
    if device.type == "cpu" and needed > there:
        raise UserError(
            f"training this model takes {needed / 2**30:,.1f} GiB for its weights, gradients and optimizer, and this "
            f"machine has {there / 2**30:,.1f} GiB: take a smaller model, or a GPU"
        )


def check_tokens(
    split: Split,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    *,
    ignore_tokenizer: bool = False,
) -> None:
    """A split's tokens exist in a model, and mean there what they mean in the split.

    Args:
        split: of token shards.
        config: of the model.
        tokenizer: of the model; None where it has none, and then meanings cannot be compared.
        name: of the model, for messages.
        ignore_tokenizer: compare no meanings.

    Raises:
        UserError: an id occurs that the embedding does not have, or the tokenizers differ.
    """
    check_rows(split, config, name)
    if ignore_tokenizer or tokenizer is None:
        return
    own = tokenizer_in(split.directory)
    if own is not None:
        same = same_tokens(own, tokenizer)
    else:
        same = split.tokenizer != GPT2 or tokenizer.get_vocab().get(END_OF_TEXT) == split.end_of_text
    if not same:
        raise UserError(
            f"the tokens of {split.directory} are not those of {name}, which has another tokenizer: prepare the text "
            "with the model's own, or set `ignore_tokenizer` if you know that they mean the same"
        )


def check_rows(split: Split, config: PretrainedConfig, name: str) -> None:
    """As `check_ids`, of a split.

    Raises:
        UserError: an id occurs that the embedding does not have.
    """
    # A tokenizer may have more entries than the embedding has rows (CodeLlama): what counts is what occurs.
    if split.vocabulary > config.get_text_config().vocab_size:
        check_ids(max(split.largest_token, split.bos or 0), config, str(split.directory), name)


def check_ids(largest: int, config: PretrainedConfig, where: str, name: str) -> None:
    """The largest token id that occurs in a text has a row in a model's embedding.

    Raises:
        UserError: it has none.
    """
    rows = config.get_text_config().vocab_size
    if largest >= rows:
        raise UserError(
            f"token {largest} occurs in {where}, but the embedding of {name} has {rows} rows: prepare the text with "
            "the model's own tokenizer"
        )


def check_tied(model: PreTrainedModel) -> None:
    """Embedding and head are one tensor where the configuration says so.

    Raises:
        UserError: they came untied, so training would make two different tensors of them.
    """
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if model.config.get_text_config().tie_word_embeddings and not tied:
        raise UserError("the model's embedding and head should be tied, but are two tensors")


def tell_at_the_cut(
    title: str, loss: float, reference: float, config: PretrainedConfig, *, pretrained: bool
) -> None:
    """Say what a small model knows before its training, and whose fault it is if that is nothing.

    Args:
        title: of the training.
        loss: of the small model, in nats per token.
        reference: the reference's on the same windows.
        config: of either.
        pretrained: whether the reference was trained elsewhere; one that was trained here may have had little time.
    """
    say(
        f"{title}: before training its loss is {loss:.2f}, the reference's {reference:.2f} on the same windows"
    )
    chance = uniform_loss(config.get_text_config().vocab_size)
    if not pretrained or loss <= chance - NEAR_UNIFORM:
        return
    if reference > chance - NEAR_UNIFORM:
        why = f"and so is the reference's, {reference:.2f}: is the text of the kind and language it was trained on?"
    else:
        why = (
            f"and the reference's is {reference:.2f}, so it is the cut and not the text: more layers, or other ones "
            "(`keep: measured`), leave more of it"
        )
    logger.warning(
        "before training the small model's loss is %.2f, near or above chance (ln of the vocabulary, %.2f), %s",
        loss,
        chance,
        why,
    )
