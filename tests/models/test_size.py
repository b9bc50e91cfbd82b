"""FLOPs of models whose tokens do not all meet the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inheritune.models.architecture import blocks
from inheritune.models.size import active_weights, flops_per_token, on_meta

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
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": [TAKEN, TAKEN], "head_dim": 8},
    "aria_text": {"moe_num_experts": EXPERTS, "moe_topk": TAKEN},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": TAKEN,
        "moe_intermediate_size": 64,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
    },
}


def model_of(kind: str) -> PreTrainedModel:
    fields = {**SHAPE, **MIXTURES[kind]}
    if {"top_k_experts", "moe_topk"} & fields.keys():
        del fields["num_experts_per_tok"]
    config = AutoConfig.for_model(kind, **fields)
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


LINEAR = {"layer_types": ["linear_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("kind", "fields", "seen"),
    [
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 16}, 16),
        ("mistral", {"sliding_window": 16}, 2 * 16 - 200),
        ("qwen3_next", {**LINEAR, "num_experts": EXPERTS, "head_dim": 8}, 0),
        ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}, 0),
        (
            "llama4_text",
            {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 16},
            16,
        ),
    ],
)
def test_layers_are_counted_with_what_they_see(kind: str, fields: dict[str, Any], seen: int) -> None:
    """One of two layers sees all 200 tokens, the other fewer or none."""
    sizes = {k: v for k, v in SHAPE.items() if kind != "gpt_neo" or k in ("vocab_size", "hidden_size")}
    sizes |= {"num_layers": 2, "num_heads": 4} if kind == "gpt_neo" else {}
    model = on_meta(AutoConfig.for_model(kind, **sizes, **fields))
    config = model.config
    weights = sum(active_weights(block, config) for block in blocks(model))
    attention = flops_per_token(model, 200) - 6 * (weights + config.vocab_size * config.hidden_size)
    width = getattr(config, "head_dim", None) or 8
    assert attention == 12 * 4 * width * (200 + seen)
