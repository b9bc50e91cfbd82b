"""A GGUF file of a Llama, written as llama.cpp's converter lays one out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_BLOCKS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: Type = Type.F16,
    architecture: str = "llama",
) -> Path:
    """Write a model with a byte-level BPE; its matrices in this type, its norms in float32."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, weight in state.items():
        block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        part = IN_BLOCKS[block[2]] if block else ""
        tensor = _interleaved(weight, heads[part]) if part in heads else weight
        data, stored = tensor.float().numpy(), kind if weight.dim() > 1 else Type.F32
        target = f"blk.{block[1]}.{part}.weight" if block else NAMES[name]
        writer.add_tensor(target, gguf.quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring dimensions of a head, transformers those half a head apart."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    tokens += [f"[PAD{number}]" for number in range(len(tokens), rows)]
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    special = set(tokenizer.all_special_tokens)
    kinds = [control if token in special else normal if token in ids else unused for token in tokens]
    backend: Any = tokenizer
    merges = json.loads(backend.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(ids[str(tokenizer.bos_token)])
    writer.add_eos_token_id(ids[str(tokenizer.eos_token)])
