"""Which part each weight belongs to, by hand for some architectures and in outline for all."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import PreTrainedModel

from inheritune.models.architecture import PARTS, blocks_name, parts_of
from tiny_models import ARCHITECTURES, LAYERS, VOCABULARY, tiny_model

GPT2_LIKE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
MORE: dict[str, dict[str, Any]] = {
    "codegen": {**GPT2_LIKE, "rotary_dim": 4},
    "dbrx": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "n_layers": LAYERS,
        "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 32},
    },
    "gpt_bigcode": GPT2_LIKE,
    "gptj": {**GPT2_LIKE, "rotary_dim": 4},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": LAYERS, "n_heads": 4},
    "phi3": ARCHITECTURES["llama"],
    "qwen3_moe": {**ARCHITECTURES["llama"], "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16},
    "stablelm": {**ARCHITECTURES["llama"], "qk_layernorm": True},
}

GPT2 = {
    "transformer.wte": "embeddings",
    "transformer.wpe": "embeddings",
    "transformer.h.N.ln_1": "layernorm",
    "transformer.h.N.attn.c_attn": "attention",
    "transformer.h.N.attn.c_proj": "attention",
    "transformer.h.N.ln_2": "layernorm",
    "transformer.h.N.mlp.c_fc": "mlp",
    "transformer.h.N.mlp.c_proj": "mlp",
    "transformer.ln_f": "final_norm",
    "lm_head": "head",
}
QWEN3 = {
    "model.embed_tokens": "embeddings",
    "model.layers.N.self_attn.q_proj": "attention",
    "model.layers.N.self_attn.k_proj": "attention",
    "model.layers.N.self_attn.v_proj": "attention",
    "model.layers.N.self_attn.o_proj": "attention",
    "model.layers.N.self_attn.q_norm": "attention",
    "model.layers.N.self_attn.k_norm": "attention",
    "model.layers.N.mlp.gate_proj": "mlp",
    "model.layers.N.mlp.up_proj": "mlp",
    "model.layers.N.mlp.down_proj": "mlp",
    "model.layers.N.input_layernorm": "layernorm",
    "model.layers.N.post_attention_layernorm": "layernorm",
    "model.norm": "final_norm",
    "lm_head": "head",
}
OPT = {
    "model.decoder.embed_tokens": "embeddings",
    "model.decoder.embed_positions": "embeddings",
    "model.decoder.project_in": "embeddings",
    "model.decoder.project_out": "head",
    "model.decoder.final_layer_norm": "final_norm",
    "model.decoder.layers.N.self_attn.k_proj": "attention",
    "model.decoder.layers.N.self_attn.v_proj": "attention",
    "model.decoder.layers.N.self_attn.q_proj": "attention",
    "model.decoder.layers.N.self_attn.out_proj": "attention",
    "model.decoder.layers.N.self_attn_layer_norm": "layernorm",
    "model.decoder.layers.N.fc1": "mlp",
    "model.decoder.layers.N.fc2": "mlp",
    "model.decoder.layers.N.final_layer_norm": "layernorm",
    "lm_head": "head",
}
MIXTRAL = {
    "model.embed_tokens": "embeddings",
    "model.layers.N.self_attn.q_proj": "attention",
    "model.layers.N.self_attn.k_proj": "attention",
    "model.layers.N.self_attn.v_proj": "attention",
    "model.layers.N.self_attn.o_proj": "attention",
    "model.layers.N.mlp.gate": "mlp",
    "model.layers.N.mlp.experts": "mlp",
    "model.layers.N.input_layernorm": "layernorm",
    "model.layers.N.post_attention_layernorm": "layernorm",
    "model.norm": "final_norm",
    "lm_head": "head",
}
BLOOM = {
    "transformer.word_embeddings": "embeddings",
    "transformer.word_embeddings_layernorm": "embeddings",
    "transformer.h.N.input_layernorm": "layernorm",
    "transformer.h.N.self_attention.query_key_value": "attention",
    "transformer.h.N.self_attention.dense": "attention",
    "transformer.h.N.post_attention_layernorm": "layernorm",
    "transformer.h.N.mlp.dense_h_to_4h": "mlp",
    "transformer.h.N.mlp.dense_4h_to_h": "mlp",
    "transformer.ln_f": "final_norm",
    "lm_head": "head",
}


def by_module(model: PreTrainedModel) -> dict[str, str]:
    """Module -> part, all blocks taken together; they must agree, and so must weights and biases."""
    prefix, found = blocks_name(model), {}
    for name, part in parts_of(model).items():
        owner = name.rpartition(".")[0]
        if name.startswith(f"{prefix}."):
            number, _, rest = owner.removeprefix(f"{prefix}.").partition(".")
            assert int(number) < LAYERS
            owner = f"{prefix}.N.{rest}"
        assert found.setdefault(owner, part) == part, name
    return found


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("gpt2", {}, GPT2),
        ("qwen3", {}, QWEN3),
        ("opt", {"word_embed_proj_dim": 16}, OPT),
        ("mixtral", {}, MIXTRAL),
        ("bloom", {}, BLOOM),
    ],
)
def test_by_hand(model_type: str, changes: dict[str, Any], expected: dict[str, str]) -> None:
    assert by_module(tiny_model(model_type, **changes)) == expected


@pytest.mark.parametrize("model_type", sorted({*ARCHITECTURES, *MORE}))
def test_every_weight_has_a_part_and_no_part_is_empty(model_type: str) -> None:
    model = tiny_model(model_type, **MORE.get(model_type, {}))
    parts = parts_of(model)
    assert list(parts) == list(model.state_dict())
    assert set(parts.values()) == set(PARTS)
    for name, part in by_module(model).items():
        last = name.rpartition(".")[2]
        if part in ("layernorm", "final_norm"):
            assert "norm" in last or last.startswith("ln_"), name
        elif part == "mlp":
            assert ".N." in name and "att" not in name, name
        elif part == "attention":
            assert ".N." in name and "mlp" not in name, name


def test_norms_beside_the_attention_within_one_module() -> None:
    found = by_module(tiny_model("dbrx", **MORE["dbrx"]))
    assert found["transformer.blocks.N.norm_attn_norm.norm_1"] == "layernorm"
    assert found["transformer.blocks.N.norm_attn_norm.attn.Wqkv"] == "attention"


def test_persistent_buffers_and_bare_parameters_count_too() -> None:
    model = tiny_model("llama")
    block = model.model.layers[2]
    block.mlp.register_buffer("balance", model.model.norm.weight.detach().clone())
    block.self_attn.sinks = nn.Parameter(model.model.norm.weight.detach().clone())
    block.scale = nn.Parameter(model.model.norm.weight.detach().clone())
    parts = parts_of(model)
    assert parts["model.layers.2.mlp.balance"] == "mlp"
    assert parts["model.layers.2.self_attn.sinks"] == "attention"
    assert parts["model.layers.2.scale"] == "mlp"
