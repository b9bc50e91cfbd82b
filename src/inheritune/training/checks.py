"""Alarms that go off before a training has cost anything."""

from __future__ import annotations

import logging

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.data.loader import TrainingData
from inheritune.models.architecture import context_length
from inheritune.models.size import on_meta, training_memory
from inheritune.training.loss import uniform_loss

logger = logging.getLogger(__name__)

NEAR_UNIFORM = 0.3
"""Nats below ln(vocabulary) within which an inherited model knows suspiciously little."""


def check_fit(config: PretrainedConfig, data: TrainingData) -> None:
    """The data's tokens and windows exist in the model.

    Raises:
        UserError: token ids beyond the embedding, or windows longer than the model's context.
    """
    vocabulary = config.get_text_config().vocab_size
    if data.train.vocabulary > vocabulary:
        raise UserError(
            f"the data in {data.path} was made with a tokenizer of {data.train.vocabulary} tokens, but the model's "
            f"embedding has {vocabulary}: prepare the text with the model's own tokenizer"
        )
    context = context_length(config)
    if context is not None and data.window > context:
        raise UserError(f"windows of {data.window} tokens are longer than the model's context of {context}")


def check_room(config: PretrainedConfig, device: torch.device) -> None:
    """This machine can hold what a training needs, activations not counted: the system would kill it without a word.

    Raises:
        UserError: it cannot. GPUs are not asked: they can share a model, and say themselves what they lack.
    """
    needed, there = training_memory(on_meta(config)), psutil.virtual_memory().total
    if device.type == "cpu" and needed > there:
        raise UserError(
            f"training this model takes {needed / 2**30:,.1f} GiB for its weights, gradients and optimizer, and this "
            f"machine has {there / 2**30:,.1f} GiB: take a smaller model, or a GPU"
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


def warn_if_untrained(loss: float, config: PretrainedConfig) -> None:
    """Say so if a model that inherited its weights predicts no better than chance."""
    chance = uniform_loss(config.get_text_config().vocab_size)
    if loss > chance - NEAR_UNIFORM:
        logger.warning(
            "before training, the inherited model's loss is %.2f, near or above chance (ln of the vocabulary, %.2f): "
            "is the text of the kind and language that the reference was trained on?",
            loss,
            chance,
        )
