"""transformers' `sdpa` attention, without a mask in compiled code, so that flash attention can be used.

In eager code transformers leaves the mask of a plain causal model out and says "causal" instead, which is what flash
attention needs. In compiled code it cannot see that nothing is padded and that no sequences are packed, because
those are values of tensors; so it makes a mask of all tokens by all tokens, which flash attention does not take
(`_ignore_causal_mask_sdpa` and `find_packed_sequence_indices` of transformers 5.17 to 5.23). Our training windows
are neither padded nor packed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "inheritune_causal"

_seen: ContextVar[list[bool]] = ContextVar("seen")
"""Of a trial: for each mask that the model asked for, whether it could be left out."""


def use_causal_attention(model: PreTrainedModel) -> bool:
    """Let a model that attends with `sdpa` do so without a mask when it is compiled.

    Whether it is plainly causal is tried on the model itself with a few tokens, in eager code, where transformers
    tells; so it holds for architectures nobody listed. Eager code, padding, caches and sliding windows are as before,
    so the model can stay as it is for all that follows; the switch is not saved with it.

    Returns:
        Whether the model was switched.
    """
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, _mask)
    try:
        model.set_attn_implementation(NAME)
    except ValueError:  # the architecture has attention of its own
        return False
    left_out = _trial(model)
    if not left_out or not all(left_out):
        model.set_attn_implementation("sdpa")
        return False
    return True


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *arguments: Any,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **options: Any,
) -> Tensor | None:
    """What transformers asks of a mask function: a mask [B, 1, T, T], or None where `is_causal` says it all."""
    whole = (
        attention_mask is None and q_length == kv_length and (local_size is None or kv_length < local_size)
    )
    if whole and torch.compiler.is_compiling():
        return None
    mask: Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        *arguments,
        attention_mask=attention_mask,
        local_size=local_size,
        **options,
    )
    if not torch.compiler.is_compiling() and whole and (seen := _seen.get(None)) is not None:
        seen.append(mask is None)
    return mask


@torch.no_grad()
def _trial(model: PreTrainedModel) -> list[bool]:
    seen: list[bool] = []
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
