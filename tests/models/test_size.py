"""FLOPs of models whose tokens do not all meet the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inheritune.models.architecture import blocks
from inheritune.models.size import active_weights, flops_per_token

EXPERTS, TAKEN = 8, 2
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": TAKEN,
}
SHARED = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 0,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 8,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen2_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 64},
    "granitemoe": {"num_local_experts": EXPERTS},
    "glm4_moe": {**SHARED, "head_dim": 8},
    "deepseek_v3": {**SHARED, **LATENT, "n_group": 1, "topk_group": 1},
}


def model_of(kind: str) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **SHAPE, **MIXTURES[kind])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_token_meets_all_weights_but_those_of_experts_it_is_not_sent_to(kind: str) -> None:
    """Experts are kept in tensors of three dimensions; shared ones, which all tokens meet, in two."""
    model = model_of(kind)
    block = blocks(model)[-1]
    weights = [p for p in block.parameters() if p.dim() > 1]
    routed = sum(p.numel() for p in weights if p.dim() == 3)
    assert routed
    expected = sum(p.numel() for p in weights) - routed * (EXPERTS - TAKEN) // EXPERTS
    assert active_weights(block, model.config) == expected


def test_attention_of_latent_heads_has_a_width_for_scores_and_one_for_values() -> None:
    model = model_of("deepseek_v3")
    slope = (flops_per_token(model, 300) - flops_per_token(model, 100)) / 200
    assert slope == 2 * 6 * 4 * ((16 + 8) + 8), "layers, forward and backward, heads, widths"
