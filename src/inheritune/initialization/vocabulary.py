"""Fewer tokens: of the embedding and the head the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.models.blockwise import ROUNDING, TOLERANCE
from inheritune.models.layer_fields import MISFITS, lines_of

CHECKED = 32
"""Tokens that both vocabularies are computed on."""


def named_tokens(config: PretrainedConfig | GenerationConfig) -> set[int]:
    """The ids that a configuration refers to, such as that of the end of a text."""
    values = (value for _, value in _token_fields(config))
    return {one for value in values for one in (value if isinstance(value, list) else [value])}


def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave a model these tokens alone, in place; token `kept[i]` becomes i.

    Rows of the embedding and of the head (with its bias) that belong to no token, which many checkpoints have to fill
    up, go as well. Embeddings for each layer (Gemma 3n) are cut alike. Ids in the configurations follow; those of no
    kept token are left out.

    Args:
        model: in evaluation mode; tied weights stay tied.
        kept: ids, ascending.

    Raises:
        UserError: a token without a row, or a model that would give the kept tokens other logits than before.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    refusal = f"cannot take tokens out of this {model.config.model_type!r} model"
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise UserError(f"{refusal}: its embedding or its head is not a matrix with a row for each token")
    if kept[-1] >= len(embedding.weight):
        raise UserError(
            f"{refusal}: its tokenizer has token {kept[-1]}, but its embedding only {len(embedding.weight)} rows"
        )
    special = named_tokens(model.config.get_text_config())
    usual = [place for place, old in enumerate(kept) if old not in special]
    chosen = torch.linspace(0, len(usual) - 1, CHECKED).long().tolist()
    tokens_bt = torch.tensor([usual[place] for place in chosen], device=embedding.weight.device).view(2, -1)
    rows = torch.tensor(kept, device=embedding.weight.device)
    try:
        expected_btv = _logits(model, rows[tokens_bt])[..., rows]
        _cut(model, rows)
        found_btv = _logits(model, tokens_bt)
        off = (found_btv - expected_btv).abs().max() / expected_btv.abs().max()
    except MISFITS as error:
        raise UserError(f"{refusal}: {lines_of(error)[-1]}") from error
    if not off <= (TOLERANCE if model.dtype == torch.float32 else ROUNDING):
        raise UserError(
            f"{refusal}: the logits of those that are kept would change, as something else in the architecture "
            "depends on a token's number"
        )


@torch.no_grad()
def _cut(model: PreTrainedModel, rows: Tensor) -> None:
    """Move these rows to the front of all that has one for each token, and cut off what is behind them."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    padded, per_layer = (
        embedding.padding_idx is not None,
        getattr(model.base_model, "embed_tokens_per_layer", None),
    )
    tensors = [embedding.weight, head.weight, head.bias, None if per_layer is None else per_layer.weight]
    for tensor in {id(tensor): tensor for tensor in tensors if tensor is not None}.values():
        # Gemma 3n has embeddings for each layer of fewer tokens; the others read those of token 0.
        tensor[: len(rows)] = tensor[torch.where(rows < len(tensor), rows, 0)]
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(len(rows), mean_resizing=False)
    new = {old: place for place, old in enumerate(rows.tolist())}
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    for config in {id(config): config for config in configs if config is not None}.values():
        for field, value in _token_fields(config):
            ids = [new[one] for one in value if one in new] if isinstance(value, list) else new.get(value)
            setattr(config, field, None if ids == [] else ids)
    if padded:
        model.get_input_embeddings().padding_idx = model.config.get_text_config().pad_token_id


def _token_fields(config: PretrainedConfig | GenerationConfig) -> Iterator[tuple[str, Any]]:
    """Fields with one id or several; a negative number means none."""
    for field, value in config.to_dict().items():
        if field.endswith(("_token_id", "_token_ids")) and (
            isinstance(value, list) or (isinstance(value, int) and value >= 0)
        ):
            yield field, value


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens_bt: Tensor) -> Tensor:
    """In float32: [B, T, V]."""
    with torch.random.fork_rng(devices=[]):
        return model(input_ids=tokens_bt, use_cache=False).logits.float()
