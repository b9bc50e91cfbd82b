"""Half-width models against weights sliced by hand and forward passes written out in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu, softmax

from inheritune.initialization.narrow import half_width
from inheritune.models.presets import architecture_config, from_config
from tiny_models import tiny_model

WINDOW = 10
Weights = dict[str, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of [H, T, d] -> [T, H * d]."""
    logits = (q @ k.transpose(1, 2)) * scale
    logits = logits.masked_fill(torch.ones(WINDOW, WINDOW).triu(1).bool(), float("-inf"))
    return (softmax(logits, -1) @ v).transpose(0, 1).flatten(1)


def heads(x: Tensor, size: int) -> Tensor:
    return x.view(WINDOW, -1, size).transpose(0, 1)


def rotate(x: Tensor, size: int) -> Tensor:
    """The first `size` dimensions of each head [H, T, d] turned by position, halves paired."""
    angles = torch.arange(WINDOW)[:, None] / 10_000 ** (torch.arange(0, size, 2) / size)
    a, b, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), rest), -1)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def check(weights: Weights, found: Weights, expected: Tensor, logits: Tensor) -> None:
    assert weights.keys() == found.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name
    assert expected.std() > 0.05
    torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=1e-5)


IDS = torch.tensor([3, 5, 2, 8, 1, 0, 7, 9, 4, 6])


def test_gpt2_without_biases() -> None:
    """Sixteen dimensions in two heads; eight in one are kept."""
    fields = {"preset": "gpt2-small", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 12}
    wide = randomised(from_config(architecture_config({**fields, "vocab_size": 11}), 0))
    qkv = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 32, 33, 34, 35, 36, 37, 38, 39]
    hidden, inner = [0, 1, 2, 3, 4, 5, 6, 7], list(range(32))
    picks = {"c_attn": (hidden, qkv), "attn.c_proj": (hidden, hidden), "c_fc": (hidden, inner)}
    picks["mlp.c_proj"] = (inner, hidden)
    weights: Weights = {}
    for name, value in wide.state_dict().items():
        kind = next((kind for kind in picks if f"{kind}." in name), None)
        if kind is not None:
            rows, columns = picks[kind]
            weights[name] = value[rows][:, columns] if value.dim() == 2 else value[columns]
        else:
            weights[name] = value[..., hidden]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (8,), weights[f"transformer.{name}.weight"])

    x = weights["transformer.wte.weight"][IDS] + weights["transformer.wpe.weight"][:WINDOW]
    for layer in range(2):
        w = {k.removeprefix(f"transformer.h.{layer}."): v for k, v in weights.items()}
        q, k, v = (norm(x, f"h.{layer}.ln_1") @ w["attn.c_attn.weight"]).split(8, -1)
        scale = 8**-0.5 / (layer + 1)
        x = x + attend(heads(q, 8), heads(k, 8), heads(v, 8), scale) @ w["attn.c_proj.weight"]
        inside = gelu(norm(x, f"h.{layer}.ln_2") @ w["mlp.c_fc.weight"])
        x = x + inside @ w["mlp.c_proj.weight"]
    expected = norm(x, "ln_f") @ weights["transformer.wte.weight"].T
    narrow = half_width(wide)
    with torch.no_grad():
        check(weights, narrow.state_dict(), expected, narrow(IDS[None]).logits)


def test_llama_with_grouped_queries() -> None:
    """Four heads of six dimensions on two key heads; two heads on the first key head are kept."""
    wide = randomised(tiny_model("llama", hidden_size=16, intermediate_size=20, head_dim=6))
    picks = {
        "q_proj": (list(range(12)), list(range(8))),
        "k_proj": ([0, 1, 2, 3, 4, 5], list(range(8))),
        "v_proj": ([0, 1, 2, 3, 4, 5], list(range(8))),
        "o_proj": (list(range(8)), list(range(12))),
        "gate_proj": (list(range(10)), list(range(8))),
        "up_proj": (list(range(10)), list(range(8))),
        "down_proj": (list(range(8)), list(range(10))),
    }
    weights: Weights = {}
    for name, value in wide.state_dict().items():
        kind = next((kind for kind in picks if kind in name), None)
        if kind is not None:
            weights[name] = value[picks[kind][0]][:, picks[kind][1]]
        else:
            weights[name] = value[..., :8]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + wide.config.rms_norm_eps).sqrt() * weight

    x = weights["model.embed_tokens.weight"][IDS]
    for layer in range(4):
        w = {k.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): v for k, v in weights.items()}
        y = norm(x, w["input_layernorm"])
        q, k, v = (heads(y @ w[f"self_attn.{name}_proj"].T, 6) for name in "qkv")
        k, v = rotate(k, 6).expand(2, -1, -1), v.expand(2, -1, -1)
        x = x + attend(rotate(q, 6), k, v, 6**-0.5) @ w["self_attn.o_proj"].T
        y = norm(x, w["post_attention_layernorm"])
        x = x + (silu(y @ w["mlp.gate_proj"].T) * (y @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    expected = norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
    narrow = half_width(wide)
    with torch.no_grad():
        check(weights, narrow.state_dict(), expected, narrow(IDS[None]).logits)


def test_gpt_neox() -> None:
    """Four heads of eight dimensions, two of them rotated, each head's q, k and v together; two are kept."""
    wide = randomised(tiny_model("gpt_neox"))
    picks = {
        "query_key_value": (list(range(48)), list(range(16))),  # heads 0 and 1, of 24 rows each
        "attention.dense": (list(range(16)), list(range(16))),
        "dense_h_to_4h": (list(range(32)), list(range(16))),
        "dense_4h_to_h": (list(range(16)), list(range(32))),
    }
    weights: Weights = {}
    for name, value in wide.state_dict().items():
        kind = next((kind for kind in picks if kind in name), None)
        if kind is not None:
            rows, columns = picks[kind]
            weights[name] = value[rows][:, columns] if value.dim() == 2 else value[rows]
        else:
            weights[name] = value[..., :16]

    x = weights["gpt_neox.embed_in.weight"][IDS]
    for layer in range(4):
        w = {k.removeprefix(f"gpt_neox.layers.{layer}."): v for k, v in weights.items()}

        def norm(x: Tensor, name: str, w: Weights = w) -> Tensor:
            return layer_norm(x, (16,), w[f"{name}.weight"], w[f"{name}.bias"])

        def linear(x: Tensor, name: str, w: Weights = w) -> Tensor:
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        qkv = heads(linear(norm(x, "input_layernorm"), "attention.query_key_value"), 24)
        q, k, v = qkv[..., :8], qkv[..., 8:16], qkv[..., 16:]
        mixed = linear(attend(rotate(q, 2), rotate(k, 2), v, 8**-0.5), "attention.dense")
        inside = gelu(linear(norm(x, "post_attention_layernorm"), "mlp.dense_h_to_4h"))
        x = x + mixed + linear(inside, "mlp.dense_4h_to_h")
    x = layer_norm(
        x, (16,), weights["gpt_neox.final_layer_norm.weight"], weights["gpt_neox.final_layer_norm.bias"]
    )
    narrow = half_width(wide)
    with torch.no_grad():
        expected = x @ weights["lm_head.weight"].T
        check(weights, narrow.state_dict(), expected, narrow(IDS[None]).logits)
