"""Tiny models with random weights of every architecture the program promises to handle."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
LAYERS = 4

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
}

# Every per-layer field differs between its first and its last entry, so that a cut at the wrong end shows.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "llama": _COMMON,
    "mistral": {**_COMMON, "sliding_window": 8},
    "qwen2": {**_COMMON, "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
    "qwen3": {
        **_COMMON,
        "head_dim": 8,
        "use_sliding_window": True,
        "max_window_layers": 3,
        "sliding_window": 8,
    },
    "gemma2": {**_COMMON, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_COMMON, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gpt_neox": _COMMON,
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "phi": _COMMON,
    "falcon": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    },
    "mixtral": {**_COMMON, "num_local_experts": 4, "sliding_window": None},
    "olmo2": _COMMON,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "max_position_embeddings": 64,
        "window_size": 8,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "smollm3": {**_COMMON, "no_rope_layers": [1, 1, 0, 0], "pad_token_id": 0},
}


def tiny_model(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of four layers in evaluation mode; the same seed gives the same weights."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, **{**special, **ARCHITECTURES.get(model_type, {}), **changes})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with all weights that are trained a little off."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids of shape [batch, length]; ids 0..2 are special and left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
