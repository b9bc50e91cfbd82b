"""Narrower models: which entries arrive, what they compute, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inheritune.initialization.narrow import (
    ALIBI,
    LAYOUTS,
    LEARNED_POSITIONS,
    Divide,
    half_width,
    narrow_config,
    origins,
)
from inheritune.models.architecture import blocks, layer_count
from inheritune.models.load import load_model
from inheritune.models.presets import architecture_config, from_config
from tiny_models import ARCHITECTURES, LAYERS, VOCABULARY, shaken, tiny_model, tokens

SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "hidden_size": 32}
GROUPED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
MORE: dict[str, dict[str, Any]] = {
    "gemma": {**GROUPED, "head_dim": 12},
    "gpt_bigcode": SIZES,
    "gptj": {**SIZES, "rotary_dim": 4},
    "mpt": {**SIZES, "max_seq_len": 64},
    "phi": {**GROUPED, "qk_layernorm": True},
    "phi3": GROUPED,
    "qwen3": {"head_dim": 12},
    "stablelm": {**GROUPED, "qk_layernorm": True, "use_qkv_bias": True},
}
BY_HEADS = sorted(set(LAYOUTS) - set(ALIBI))
BY_SIZE = sorted({*ALIBI, *LEARNED_POSITIONS})
WAYS: list[tuple[str, Divide]] = [(name, "heads") for name in BY_HEADS]
WAYS += [(name, "head_size") for name in BY_SIZE]


def wide_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A tiny model in which no two weights are alike, norms and biases included."""
    return shaken(tiny_model(model_type, **{**MORE.get(model_type, {}), **changes}))


def as_it_arrives(model_type: str, name: str, part: Tensor) -> Tensor:
    """Gemma multiplies embeddings by the root of the hidden size, here halved."""
    if not model_type.startswith("gemma"):
        return part
    lacks = float(torch.tensor(32**0.5)) / float(torch.tensor(16**0.5))
    if name == "model.norm.weight":
        return (1 + part) / lacks - 1
    return part * lacks if name in ("model.embed_tokens.weight", "lm_head.weight") else part


@pytest.mark.parametrize(("model_type", "divide"), WAYS)
def test_every_tensor_is_a_part_of_its_own(model_type: str, divide: Divide) -> None:
    wide = wide_model(model_type)
    narrow = half_width(wide, divide=divide)
    assert layer_count(narrow.config) == LAYERS
    assert narrow.config.hidden_size == 16
    assert narrow.config.vocab_size == VOCABULARY
    assert narrow.config.num_attention_heads == (2 if divide == "heads" else 4)
    taken, weights = origins(narrow, wide), wide.state_dict()
    for name, value in narrow.state_dict().items():
        source, picks = taken[name]
        assert source == name
        kept = [torch.arange(size)[pick] for size, pick in zip(weights[name].shape, picks, strict=True)]
        assert all(bool((numbers.diff() > 0).all()) for numbers in kept), name
        part = weights[name][torch.meshgrid(*kept, indexing="ij")]
        assert torch.equal(value, as_it_arrives(model_type, name, part)), name
    with torch.no_grad():
        assert narrow(tokens()).logits.isfinite().all()
    tied = wide.get_output_embeddings().weight is wide.get_input_embeddings().weight
    assert (narrow.get_output_embeddings().weight is narrow.get_input_embeddings().weight) == tied


def _attention_output(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    """What the first block's attention makes of these inputs [B, T, hidden], run within the whole model."""
    block = blocks(model)[0]
    module = next(
        child for name, child in block.named_children() if name in ("attn", "attention", "self_attn")
    )
    seen: list[Tensor] = []

    def replace(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if given:
            return (inputs, *given[1:]), named
        return given, {**named, "hidden_states": inputs}

    module.register_forward_pre_hook(replace, with_kwargs=True)
    module.register_forward_hook(lambda *call: seen.append(call[2][0]))
    with torch.no_grad():
        model(input_ids=tokens(2, inputs.shape[1]))
    return seen[0]


def _forget(module: nn.Module, kept: int) -> None:
    """Let a projection ignore all but its first inputs."""
    with torch.no_grad():
        (module.weight if isinstance(module, Conv1D) else module.weight.T)[kept:] = 0


@pytest.mark.parametrize(
    ("model_type", "changes"), [(name, {}) for name in BY_HEADS] + [("gpt_bigcode", {"multi_query": False})]
)
def test_the_heads_kept_attend_as_they_did(model_type: str, changes: dict[str, Any]) -> None:
    """The wide attention, reading only the dimensions kept and written to by only the heads kept."""
    wide = wide_model(model_type, **changes)
    narrow = half_width(wide)
    if model_type == "olmo2":  # its norm of queries and keys is over all heads
        for model in (wide, narrow):
            blocks(model)[0].self_attn.q_norm = nn.Identity()
            blocks(model)[0].self_attn.k_norm = nn.Identity()
    outputs = [
        module
        for name, module in blocks(wide)[0].named_modules()
        if "att" in name and name.endswith(("c_proj", "dense", "o_proj", "out_proj"))
    ]
    assert len(outputs) == 1
    head_size = getattr(wide.config, "head_dim", None) or 8
    _forget(outputs[0], 2 * head_size)
    inputs = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(1))
    inputs[..., 16:] = 0
    expected = _attention_output(wide, inputs)[..., :16]
    assert expected.std() > 0.01
    torch.testing.assert_close(_attention_output(narrow, inputs[..., :16]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", [name for name in BY_HEADS if name != "opt"])
def test_the_mlp_kept_computes_what_it_did(model_type: str) -> None:
    wide = wide_model(model_type)
    narrow = half_width(wide)
    last = [
        module
        for name, module in blocks(wide)[0].mlp.named_modules()
        if name in ("c_proj", "fc2", "fc_out", "dense_4h_to_h", "down_proj")
    ]
    inner = last[0].weight.shape[0 if isinstance(last[0], Conv1D) else 1]
    _forget(last[0], inner // 2)
    inputs = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(1))
    inputs[..., 16:] = 0
    with torch.no_grad():
        expected = blocks(wide)[0].mlp(inputs)[..., :16]
        found = blocks(narrow)[0].mlp(inputs[..., :16])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_hand_sliced_heads_of_half_the_size() -> None:
    """Four heads of eight dimensions, of which the first four are kept, in each of the fused orders."""
    heads = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
    after_another = [*heads, *(32 + row for row in heads), *(64 + row for row in heads)]
    by_head = [24 * head + 8 * kind + place for head in range(4) for kind in range(3) for place in range(4)]
    one_key = [*heads, 32, 33, 34, 35, 40, 41, 42, 43]
    cases = [
        ("gpt2", {}, "attn.c_attn", after_another, "attn.c_proj"),
        ("mpt", {}, "attn.Wqkv", after_another, "attn.out_proj"),
        ("bloom", {}, "self_attention.query_key_value", by_head, "self_attention.dense"),
        ("gpt_bigcode", {}, "attn.c_attn", one_key, "attn.c_proj"),
        ("gpt_bigcode", {"multi_query": False}, "attn.c_attn", by_head, "attn.c_proj"),
        ("gpt_neo", {}, "attn.attention.k_proj", heads, "attn.attention.out_proj"),
        ("opt", {}, "self_attn.v_proj", heads, "self_attn.out_proj"),
    ]
    for model_type, changes, into, rows, out in cases:
        wide = wide_model(model_type, **changes)
        source, target = (blocks(m)[1] for m in (wide, half_width(wide, divide="head_size")))
        for name, inputs, outputs in ((into, list(range(16)), rows), (out, heads, list(range(16)))):
            large, small = source.get_submodule(name), target.get_submodule(name)
            if isinstance(large, Conv1D):
                assert torch.equal(small.weight, large.weight[inputs][:, outputs]), (model_type, name)
            else:
                assert torch.equal(small.weight, large.weight[outputs][:, inputs]), (model_type, name)
            if large.bias is not None:
                assert torch.equal(small.bias, large.bias[outputs]), (model_type, name)


def test_opt_with_narrower_embeddings_keeps_its_projections() -> None:
    wide = wide_model("opt", word_embed_proj_dim=16)
    narrow = half_width(wide)
    small, large = narrow.model.decoder, wide.model.decoder
    assert torch.equal(small.embed_tokens.weight, large.embed_tokens.weight[:, :8])
    assert torch.equal(small.project_in.weight, large.project_in.weight[:16, :8])
    assert torch.equal(small.project_out.weight, large.project_out.weight[:8, :16])


def test_from_a_folder_with_any_precision(tmp_path: Path) -> None:
    wide = wide_model("llama").to(torch.bfloat16)
    with torch.no_grad():
        wide.model.layers[3].self_attn.k_proj.weight[0, 0] = 1e30  # too large for float16
    wide.save_pretrained(tmp_path)
    found, expected = half_width(tmp_path).state_dict(), wide.state_dict()
    assert all(value.dtype == torch.float32 for value in found.values())
    key = "model.layers.3.self_attn.k_proj.weight"
    assert torch.equal(found[key], expected[key][:8, :16].float())
    again = half_width(wide)
    assert all(torch.equal(value, found[name]) for name, value in again.state_dict().items())


def test_the_reference_is_not_changed_nor_shared() -> None:
    wide = wide_model("gpt2")
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with torch.no_grad():
        for parameter in half_width(wide).parameters():
            parameter.zero_()
    assert wide.config.n_embd == 32
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


def test_widths_that_are_not_halves() -> None:
    thirds = tiny_model(
        "llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=3, intermediate_size=66
    )
    narrow = half_width(thirds, 1 / 3).config
    assert (narrow.hidden_size, narrow.num_attention_heads, narrow.num_key_value_heads) == (16, 2, 1)
    assert narrow.intermediate_size == 22
    shared = half_width(wide_model("gemma", num_key_value_heads=1)).config
    assert (shared.num_attention_heads, shared.num_key_value_heads, shared.head_dim) == (2, 1, 12)


def test_the_papers_largest_model_has_25_heads() -> None:
    config = architecture_config({"preset": "gpt2-xlarge"})
    with pytest.raises(
        ValueError, match=r"1/2 of 25 attention heads is not a whole number; multiples of 1/25"
    ):
        narrow_config(config, 0.5)
    by_size, by_heads = narrow_config(config, 0.5, "head_size"), narrow_config(config, 0.4)
    assert (by_size.n_embd, by_size.n_head, config.n_embd) == (800, 25, 1600)
    assert (by_heads.n_embd, by_heads.n_head) == (640, 10)


@pytest.mark.parametrize(
    ("model_type", "width", "divide", "message"),
    [
        ("falcon", 0.5, "heads", "cannot narrow a 'falcon' model: how its weights are laid out"),
        ("mixtral", 0.5, "heads", "cannot narrow a 'mixtral' model"),
        (
            "llama",
            0.5,
            "head_size",
            "cannot cut the heads of a 'llama' model: its rotary positions .* set `divide` to `heads`",
        ),
        ("bloom", 0.5, "heads", "cannot leave out heads of a 'bloom' model: .* set `divide` to `head_size`"),
        ("llama", 0.25, "heads", "1/4 of 2 key/value heads is not a whole number; multiples of 1/2 would do"),
        ("gpt2", 1 / 3, "head_size", "1/3 of the head size 8 is not a whole number; multiples of 1/8"),
        ("gpt2", 1 / 3, "heads", "1/3 of 4 attention heads .* multiples of 1/4 would do, or set `divide`"),
        ("gpt2", 1.0, "heads", "the width must be between 0 and 1, such as 0.5, not 1.0"),
        ("gpt2", 0.0, "heads", "the width must be between 0 and 1"),
        ("gpt2", 1e-9, "heads", "the width must be between 0 and 1"),
        ("gpt2", float("nan"), "heads", "the width must be between 0 and 1"),
        ("gpt2", 0.5, "layers", "`divide` is 'layers'; choose one of heads, head_size"),
    ],
)
def test_what_cannot_be_made_is_told_at_once(
    model_type: str, width: float, divide: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        half_width(tiny_model(model_type), width, divide=divide)


def test_an_mlp_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"1/2 of the MLP size 63 is not a whole number; no width would do$"):
        half_width(tiny_model("llama", intermediate_size=63))


def test_frozen_biases_stay_zero_and_frozen() -> None:
    fields = {"preset": "gpt2-small", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 11}
    narrow = half_width(shaken(from_config(architecture_config(fields), 0)))
    biases = [value for name, value in narrow.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 2 * 6 + 1
    assert all(not value.requires_grad and not value.any() for value in biases)
    assert narrow.transformer.wte.weight.requires_grad


@pytest.mark.parametrize(("model_type", "divide"), WAYS)
def test_saved_and_read_again_it_gives_the_same_logits(
    model_type: str, divide: Divide, tmp_path: Path
) -> None:
    narrow = half_width(wide_model(model_type), divide=divide)
    narrow.save_pretrained(tmp_path)
    with torch.no_grad():
        logits = load_model(tmp_path)(tokens(), use_cache=False).logits
        assert torch.equal(logits, narrow(tokens(), use_cache=False).logits)


def test_all_tiny_architectures_are_known_or_refused_by_name() -> None:
    assert set(ARCHITECTURES) - set(LAYOUTS) == {"falcon", "mixtral"}
