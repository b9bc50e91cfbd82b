"""How much a model costs: parameters, training FLOPs, memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import mean

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from inheritune.models.architecture import blocks
from inheritune.models.presets import freeze_biases

EXPERTS = ("num_local_experts", "num_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k")
"""What configurations call the number of experts of a layer, and of those that a token is sent to."""

WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
IN_A_WINDOW = ("sliding_attention", "chunked_attention", "hybrid_sliding", "local")
WITHOUT_ATTENTION = ("linear_attention", "mamba", "conv", "recurrent", "mlp", "moe")
"""What configurations call how far local attention looks back, its layers, and those that look at no other token."""


def on_meta(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without its weights: shapes only, whatever its size; `config` itself is not changed.

    A configuration whose own code runs already was trusted when it was read.
    """
    trusted = trust_remote_code or with_own_code(config)
    with (
        torch.device("meta"),
        no_init_weights(),
    ):  # of a copy: transformers writes the type of the weights into it
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.float32, trust_remote_code=trusted
        )
    model.tie_weights()  # which initializing does
    freeze_biases(model)
    return model


def with_own_code(config: PretrainedConfig) -> bool:
    """Whether a configuration's class is code that came with its model."""
    return type(config).__module__.startswith("transformers_modules.")


def flops_per_token(model: PreTrainedModel, window: int) -> float:
    """FLOPs of training on one token: forward, and twice that backward.

    6 for each weight that a token is multiplied with (matrices in the blocks, and the head, tied or not; of
    experts only those a token is sent to), and 12 * hidden attention width * context for each layer's
    attention scores and values, as in PaLM (Chowdhery et al., 2022, appendix B). Sliding windows count as
    the context they see, layers that pass on a state (Mamba, linear attention) as none; the causal half is not
    subtracted.
    """
    config = model.config.get_text_config()
    matrices = sum(active_weights(block, config) for block in blocks(model))
    head = model.get_output_embeddings()
    matrices += head.weight.numel()
    heads = config.num_attention_heads if hasattr(config, "num_attention_heads") else 0
    width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    scores = values = width
    if latent := getattr(config, "qk_nope_head_dim", None):  # multi-head latent attention
        scores, values = latent + config.qk_rope_head_dim, config.v_head_dim
    attention = sum(
        6.0 * heads * (scores + values) * min(window, seen)
        for seen in _contexts(config, len(blocks(model)), window)
    )
    return 6.0 * matrices + attention


def bytes_each(dtype: torch.dtype | str, config: PretrainedConfig) -> int | None:
    """Bytes of a weight that is read in this type; "auto" is the configuration's. None for what is no type."""
    found = (config.dtype or torch.float32) if dtype == "auto" else dtype
    if isinstance(found, str):
        found = getattr(torch, found, None)
    return found.itemsize if isinstance(found, torch.dtype) else None


def training_memory(model: nn.Module) -> int:
    """Bytes of weights, gradients and AdamW's two moments, all float32; activations come on top."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return 16 * trained + 4 * frozen


def active_weights(block: nn.Module, config: PretrainedConfig) -> int:
    """Entries of the block's weight matrices that one token meets; of experts all, where `PER_TOKEN` says nothing."""
    experts, per_token = experts_of(config)
    total = 0.0
    for name, parameter in block.named_parameters():
        if parameter.dim() < 2:
            continue
        routed = ("experts" in name and "shared" not in name) or (
            parameter.dim() == 3 and len(parameter) == experts
        )
        share = per_token / experts if experts and per_token and routed else 1.0
        total += share * parameter.numel()
    return round(total)


def experts_of(config: PretrainedConfig) -> tuple[float, float]:
    """Experts of a layer, and those that a token is sent to, on average over layers; 0 where that is not known."""
    parts = [part for part in (config, getattr(config, "ffn_config", None)) if part is not None]

    def first(fields: Sequence[str]) -> float:
        found = [value for part in parts for field in fields if (value := getattr(part, field, None))]
        return 0.0 if not found else float(mean(found[0]) if isinstance(found[0], list) else found[0])

    return first(EXPERTS), first(PER_TOKEN)


def _contexts(config: PretrainedConfig, layers: int, window: int) -> list[int]:
    """How far back each layer looks, in tokens."""
    near = next((value for field in WINDOWS if (value := getattr(config, field, None))), window)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if not kinds:
        return [near] * layers
    return [near if kind in IN_A_WINDOW else 0 if kind in WITHOUT_ATTENTION else window for kind in kinds]
