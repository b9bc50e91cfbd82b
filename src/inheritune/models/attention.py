"""transformers' `sdpa` attention, without masks where nothing needs one.

In eager code transformers leaves the mask of a plain causal model out and says "causal" instead, which is what flash
attention needs; but to see that no sequences are packed it waits for the GPU, in every forward pass. In compiled code
it cannot look at values of tensors at all; so it makes a mask of all tokens by all tokens, which flash attention does
not take (`_ignore_causal_mask_sdpa` and `find_packed_sequence_indices` of transformers 5.17 to 5.23). Our training
windows are neither padded nor packed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CAUSAL = "inheritune_causal"
"""Attention that no masks belong to: transformers makes none."""

CAUSAL_OR_SLIDING = "inheritune_causal_or_sliding"
"""Attention whose masks are left out in compiled code, in layers that see the whole window."""

_seen: ContextVar[list[tuple[bool, int | None]]] = ContextVar("seen")
"""Of a trial: for each mask that the model asked for, whether it could be left out, and how far its layer sees."""


def fitting_attention(model: PreTrainedModel, window: int) -> str:
    """The attention with the fewest masks that computes the same as the model's own; what to give `attend`.

    Whether a model that attends with `sdpa` is plainly causal is tried on the model itself with a few tokens, in
    eager code, where transformers says so; it holds for architectures nobody listed.

    Args:
        model: with its weights.
        window: the model is only going to read windows of at most so many tokens, without padding.
    """
    own = str(model.config.get_text_config()._attn_implementation)
    if own != "sdpa":
        return own
    try:
        attend(model, CAUSAL_OR_SLIDING)
    except ValueError:  # the architecture has attention of its own
        return own
    seen = _trial(model)
    attend(model, own)
    if not seen or not all(left_out for left_out, _ in seen):
        return own
    sees_all = all(size is None or window < size for _, size in seen)
    return CAUSAL if sees_all else CAUSAL_OR_SLIDING


def attend(model: PreTrainedModel, implementation: str) -> None:
    """Switch a model's attention; the switch is not saved with it.

    Raises:
        ValueError: the architecture has attention of its own.
    """
    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    AttentionInterface.register(CAUSAL_OR_SLIDING, sdpa_attention_forward)
    AttentionMaskInterface.register(CAUSAL_OR_SLIDING, _mask)
    if implementation != model.config.get_text_config()._attn_implementation:
        model.set_attn_implementation(implementation)


def _mask(batch_size: int, q_length: int, kv_length: int, *arguments: Any, **options: Any) -> Tensor | None:
    """What transformers asks of a mask function: a mask [B, 1, T, T], or None where `is_causal` says it all."""
    local_size, compiling = options.get("local_size"), torch.compiler.is_compiling()
    sees_all = local_size is None or kv_length < local_size
    if compiling and sees_all and q_length == kv_length and options.get("attention_mask") is None:
        return None
    mask: Tensor | None = sdpa_mask(batch_size, q_length, kv_length, *arguments, **options)
    if not compiling and (seen := _seen.get(None)) is not None:
        seen.append((mask is None, local_size))
    return mask


@torch.no_grad()
def _trial(model: PreTrainedModel) -> list[tuple[bool, int | None]]:
    seen: list[tuple[bool, int | None]] = []
    training = model.training
    token = _seen.set(seen)
    model.eval()
    try:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(8, device=model.device) % vocabulary).reshape(2, 4)
        model.base_model(input_ids=tokens, use_cache=False)
    finally:
        _seen.reset(token)
        model.train(training)
    return seen
