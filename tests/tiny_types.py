"""A tiny model with random weights of any causal language model type that transformers knows.

Nothing is known here of single architectures but sizes by the names that configurations give them; the rest of a
configuration stays as its class makes it, so that lists with an entry per layer come out as transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 128
DEPTH = 4

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
            "encoder_layers",
            "num_decoder_layers",
            "num_encoder_layers",
            "num_layers_per_stack",
        ),
        DEPTH,
    ),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "emb_dim",
            "embedding_dim",
            "embedding_size",
            "input_embedding_size",
            "output_embedding_size",
            "word_embed_proj_dim",
            "lru_width",
            "attention_hidden_size",
            "backbone_hidden_size",
            "nemo_conv_channels",
            "ext_pw_out_channel",
            "depthwise_separable_out_channel",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
            "swa_num_attention_heads",
            "index_n_heads",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_num_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("num_global_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "qk_rope_head_dim",
            "qk_nope_head_dim",
            "v_head_dim",
            "d_head",
            "d_kv",
            "dim_head",
            "kv_channels",
            "swa_head_dim",
            "index_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_head_dim",
            "attention_head_size",
            "global_head_dim",
            "swa_v_head_dim",
        ),
        8,
    ),
    **dict.fromkeys(("qk_head_dim", "attention_head_dim"), 16),
    **dict.fromkeys(
        (
            "intermediate_size",
            "n_inner",
            "ffn_dim",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_hidden_size",
            "dim_ff",
            "dff",
            "d_inner",
            "feed_forward_size",
            "intermediate_size_mlp",
            "dense_intermediate_size",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_experts_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "shared_intermediate_size",
            "expert_ffn_hidden_size",
            "q_lora_rank",
            "kv_lora_rank",
            "o_lora_rank",
        ),
        16,
    ),
    **dict.fromkeys(
        ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"), 4
    ),
    **dict.fromkeys(
        (
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_topk",
            "moe_k",
            "moe_top_k",
            "n_group",
            "num_expert_group",
        ),
        2,
    ),
    **dict.fromkeys(
        ("topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
        1,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "context_length",
            "model_max_length",
            "max_target_positions",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "sliding_window",
            "window_size",
            "attention_window_size",
            "sliding_window_size",
            "attention_chunk_size",
            "local_attention",
            "index_topk",
            "keep_window_size",
        ),
        8,
    ),
    **dict.fromkeys(
        (
            "mamba_n_heads",
            "mamba_num_heads",
            "mamba_d_head",
            "mamba_head_dim",
            "mamba_d_state",
            "state_size",
            "ssm_state_size",
            "hidden_size_per_layer_input",
            "laurel_rank",
            "hc_lowrank",
        ),
        8,
    ),
    **dict.fromkeys(
        (
            "shape_vocab_size",
            "pronunciation_vocab_size",
            "ngram_vocab_size_base",
            "encoder_hash_byte_group_vocab",
        ),
        256,
    ),
    **dict.fromkeys(("num_kv_shared_layers", "n_layers_per_attn_res_block", "rescale_every"), 2),
    **dict.fromkeys(("image_size", "position_embedding_size", "num_position_embeddings"), 32),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    "is_decoder": True,
    "mamba_d_ssm": 64,
    "rotary_dim": 4,
}
"""Configuration field -> its value in a tiny model."""

CHANGES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 32},
    },
    "dots3_note_text": {"num_key_value_heads": 4, "layer_types": ["indexed_attention"] * DEPTH},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_unified_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "reformer": {"attn_layers": ["local"] * 4, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type -> what it needs beside small sizes: fields that depend on the depth or on each other."""


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The configuration of a type with its sizes made small, those of the configurations inside it as well."""
    return _tiny(CONFIG_MAPPING[model_type], {**CHANGES.get(model_type, {}), **changes})


def _tiny(kind: type[PretrainedConfig], changes: dict[str, Any]) -> PretrainedConfig:
    known = {field for base in kind.__mro__ for field in getattr(base, "__annotations__", {})}
    values = {field: value for field, value in SIZES.items() if field in known}
    if "kv_lora_rank" in known:  # latent attention has as many keys as queries
        values["num_key_value_heads"] = values["num_attention_heads"]
    values |= {field: number for number, field in enumerate(("pad_token_id", "bos_token_id", "eos_token_id"))}
    if kind.sub_configs:
        # The parts of some are of the type that their default has.
        parts = {name: getattr(kind(), name, None) for name in kind.sub_configs}
        values |= {
            # Real models see with another depth than they read.
            name: _tiny(
                type(part),
                {"num_hidden_layers": DEPTH + 1} if "vision" in name else CHANGES.get(part.model_type, {}),
            )
            for name, part in parts.items()
            if isinstance(part, PretrainedConfig)
        }
    return kind(**{**values, **changes})


def tiny_of_type(model_type: str, **changes: Any) -> PreTrainedModel:
    """A model of four layers in evaluation mode whose norms, gates and biases are not what initialisation gives."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
