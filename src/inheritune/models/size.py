"""How much a model costs: parameters, training FLOPs, memory."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from inheritune.models.architecture import blocks
from inheritune.models.presets import freeze_biases


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
    the context they see; the causal half is not subtracted.
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
    """Entries of the block's weight matrices that one token meets."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    per_token = getattr(config, "num_experts_per_tok", None)
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


def _contexts(config: PretrainedConfig, layers: int, window: int) -> list[int]:
    """How far back each layer looks, in tokens."""
    sliding = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not sliding:
        return [window] * layers
    if not kinds:
        return [sliding] * layers
    return [sliding if kind == "sliding_attention" else window for kind in kinds]
