"""Models whose width is chosen: which entries arrive, what they compute, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inheritune import UserError
from inheritune.analysis.importance import Windows
from inheritune.analysis.width import importance
from inheritune.initialization import narrow as narrow_module
from inheritune.initialization.assemble import assemble
from inheritune.initialization.narrow import (
    HIDDEN_IS_HEADS,
    Taken,
    Width,
    first_taken,
    head_group,
    narrow,
    narrower,
    origins,
    reading_modules,
    width_config,
    width_of,
)
from inheritune.models.architecture import blocks
from inheritune.models.load import load_model
from initialization.test_half_width import BY_HEADS, MORE, as_it_arrives, wide_model
from tiny_models import LAYERS, tiny_model, tokens

KINDS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in BY_HEADS]
KINDS += [
    ("gpt_bigcode", {"multi_query": False}),
    ("gemma", {"num_key_value_heads": 1}),
    ("opt", {"word_embed_proj_dim": 8}),
]
KINDS += [("gpt2", {"n_inner": 40}), ("qwen2", {"tie_word_embeddings": True})]


def scattered(model: PreTrainedModel, seed: int = 0) -> Taken:
    """Half of everything, other entries in each block."""
    generator = torch.Generator().manual_seed(seed)
    have, units = width_of(model.config), model.config.num_attention_heads // head_group(model.config)

    def some(size: int, count: int) -> Tensor:
        return torch.randperm(size, generator=generator)[:count].sort().values

    depth = range(LAYERS)
    return Taken(
        some(have.hidden, have.hidden // 2),
        torch.stack([some(units, units // 2) for _ in depth]),
        torch.stack([some(have.mlp, have.mlp // 2 - 3) for _ in depth]),
    )


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(("model_type", "changes"), KINDS)
def test_any_entries_can_be_taken(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """That the result computes what it should is checked by `narrow` itself, for which see below."""
    wide = wide_model(model_type, **changes)
    taken = scattered(wide)
    small = narrow(wide, taken)
    have = width_of(wide.config)
    assert width_of(small.config) == Width(have.hidden // 2, have.heads // 2, have.mlp // 2 - 3)
    assert is_tied(small) == is_tied(wide)
    weights = wide.state_dict()
    for name, (source, entries) in origins(small, wide, taken).items():
        value = weights[source]
        for dimension, chosen in enumerate(entries):
            numbers = torch.arange(value.shape[dimension])[chosen]
            assert bool((numbers.diff() > 0).all()), name
            value = value.index_select(dimension, numbers)
        assert torch.equal(small.state_dict()[name], as_it_arrives(model_type, name, value)), name
    small.save_pretrained(tmp_path)
    with torch.no_grad():
        again = load_model(tmp_path)(tokens(), use_cache=False).logits
        assert torch.equal(again, small(tokens(), use_cache=False).logits)


def silence(model: PreTrainedModel, taken: Taken) -> None:
    """Let the modules that read heads and channels ignore those that are not taken."""
    group = head_group(model.config)
    with torch.no_grad():
        for (attention, mlp), heads, channels in zip(
            reading_modules(model), taken.heads, taken.mlp, strict=True
        ):
            inputs = (attention.weight if isinstance(attention, Conv1D) else attention.weight.T).unflatten(
                0, (-1, group * attention_size(model))
            )
            inputs[[unit for unit in range(len(inputs)) if unit not in heads.tolist()]] = 0
            inputs = mlp.weight if isinstance(mlp, Conv1D) else mlp.weight.T
            inputs[[channel for channel in range(len(inputs)) if channel not in channels.tolist()]] = 0


def attention_size(model: PreTrainedModel) -> int:
    return (
        getattr(model.config, "head_dim", None)
        or model.config.hidden_size // model.config.num_attention_heads
    )


@pytest.mark.parametrize("model_type", BY_HEADS)
def test_without_what_is_zero_the_logits_are_the_same(model_type: str) -> None:
    wide = wide_model(model_type)
    taken = scattered(wide, seed=1)
    if model_type == "olmo2":  # its norm of queries and keys is over all heads
        taken = Taken(taken.hidden, first_taken(wide.config, width_of(wide.config)).heads, taken.mlp)
    silence(wide, taken)
    everything = first_taken(wide.config, width_of(wide.config))
    follow = model_type in HIDDEN_IS_HEADS or getattr(wide.config, "qk_layernorm", False)
    heads = everything.heads if follow else taken.heads
    small = narrow(wide, Taken(everything.hidden, heads, taken.mlp))
    with torch.no_grad():
        torch.testing.assert_close(small(tokens()).logits, wide(tokens()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_importance_finds_what_is_not_zero(model_type: str) -> None:
    """Channels and heads whose activations are zero are the ones that go."""
    wide = wide_model(model_type)
    taken = scattered(wide, seed=2)
    silent = narrow_outputs(wide, taken)
    windows = Windows(tokens(4, 16), tokens(4, 16, seed=1))
    group = head_group(wide.config)
    width = Width(16, taken.heads.shape[1] * group, taken.mlp.shape[1])
    found = importance(silent, windows).most(width, group)
    assert torch.equal(found.heads, taken.heads)
    assert torch.equal(found.mlp, taken.mlp)


def narrow_outputs(model: PreTrainedModel, taken: Taken) -> PreTrainedModel:
    """The same model, in which what is not taken is zero before the modules that read it."""
    size = attention_size(model) * head_group(model.config)
    for (attention, mlp), heads, channels in zip(reading_modules(model), taken.heads, taken.mlp, strict=True):
        places = (heads[:, None] * size + torch.arange(size)).flatten()
        for module, kept in ((attention, places), (mlp, channels)):
            mask = torch.zeros(module.weight.shape[0 if isinstance(module, Conv1D) else 1])
            mask[kept] = 1
            module.register_forward_pre_hook(lambda module, args, mask=mask: (args[0] * mask,), prepend=True)
    return model


def test_importance_by_hand() -> None:
    """The numbers themselves, of GPT-2, whose forward pass is written out."""
    model = wide_model("gpt2")
    windows = Windows(tokens(3, 12), tokens(3, 12, seed=1))
    found = importance(model, windows)
    hidden = np.zeros(32)
    block = blocks(model)[2]
    seen: dict[str, Tensor] = {}
    norms = [norm for b in blocks(model) for norm in (b.ln_1, b.ln_2)] + [model.transformer.ln_f]
    with torch.no_grad():
        for number, norm in enumerate(norms):
            norm.register_forward_hook(
                lambda m, a, output, number=number: seen.update({f"norm {number}": output})
            )
        block.attn.c_proj.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0]))
        block.mlp.c_fc.register_forward_hook(lambda m, args, output: seen.update(inner=block.mlp.act(output)))
        model(input_ids=windows.inputs_nt)
    for number in range(len(norms)):
        hidden += seen[f"norm {number}"].abs().sum((0, 1)).double().numpy()
    np.testing.assert_allclose(found.hidden.numpy(), hidden, rtol=1e-2)
    heads = torch.stack(
        [seen["heads"][..., 8 * h : 8 * h + 8].square().sum(-1).sqrt().sum() for h in range(4)]
    )
    np.testing.assert_allclose(found.heads[2].numpy(), heads.numpy(), rtol=1e-2)
    np.testing.assert_allclose(found.mlp[2].numpy(), seen["inner"].abs().sum((0, 1)).numpy(), rtol=2e-2)


def test_equal_ones_are_taken_in_order() -> None:
    model = wide_model("llama")
    with torch.no_grad():
        for _, mlp in reading_modules(model):
            mlp.register_forward_pre_hook(lambda module, args: (torch.ones_like(args[0]),), prepend=True)
    found = importance(model, Windows(tokens(), tokens())).most(Width(32, 4, 5), 2)
    assert found.mlp.tolist() == [[0, 1, 2, 3, 4]] * LAYERS


@pytest.mark.parametrize(
    ("model_type", "changes"), [("llama", {}), ("gpt2", {}), ("gpt_bigcode", {}), ("olmo2", {})]
)
def test_a_wrong_layout_is_noticed(model_type: str, changes: dict[str, Any], monkeypatch) -> None:
    wide = wide_model(model_type, **changes)
    taken = scattered(wide)
    real = narrow_module._chosen

    def shifted(layout: Any, picks: dict[str, Tensor], many: dict[str, int]) -> tuple[Tensor, int]:
        chosen, total = real(layout, picks, many)
        return (chosen.flip(0) if layout[0][0] == "heads" else chosen), total

    monkeypatch.setattr(narrow_module, "_chosen", shifted)
    with pytest.raises(UserError, match="its logits would be off by"):
        narrow(wide, taken)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("gemma", {}), ("gemma2", {}), ("gemma3_text", {}), ("gemma", {"tie_word_embeddings": False})],
)
def test_a_scale_of_embeddings_stays(model_type: str, changes: dict[str, Any], monkeypatch) -> None:
    wide = wide_model(model_type, **changes)
    taken = scattered(wide)
    entered: list[Tensor] = []
    small = narrow(wide, taken)
    for model in (wide, small):
        blocks(model)[0].register_forward_hook(lambda module, args, output: entered.append(args[0]))
        model(tokens())
    torch.testing.assert_close(entered[1], entered[0][..., taken.hidden])
    assert narrow(wide.to(torch.bfloat16), taken).dtype == torch.bfloat16
    monkeypatch.setattr(narrow_module, "_scale_embeddings", lambda *_: None)
    with pytest.raises(UserError, match="its logits would be off by"):
        narrow(wide, taken)


def test_depth_and_width_together_and_in_16_bits() -> None:
    wide = wide_model("llama").to(torch.bfloat16)
    cut = assemble(wide, [0, 3])
    taken = Taken(*(rows if rows.dim() == 1 else rows[:2] for rows in vars(scattered(wide)).values()))
    small = narrow(cut, taken)
    assert small.dtype == torch.bfloat16 and len(blocks(small)) == 2
    down = blocks(wide)[3].mlp.down_proj.weight
    assert torch.equal(blocks(small)[1].mlp.down_proj.weight, down[taken.hidden][:, taken.mlp[1]])


@pytest.mark.parametrize(
    ("model_type", "sizes", "message"),
    [
        ("falcon", {"mlp": 8}, "cannot narrow a 'falcon' model: how its weights are laid out"),
        ("bloom", {"mlp": 8}, "cannot choose the width of a 'bloom' model: how far each head looks back"),
        ("llama", {"mlp": 65}, "`mlp` is 65, but this 'llama' model has 64: give 1 to 64"),
        ("llama", {"hidden": 0}, "`hidden` is 0, but this 'llama' model has 32"),
        ("llama", {"heads": 8}, "`heads` is 8, but this 'llama' model has 4"),
        (
            "llama",
            {"heads": 3},
            "`heads` is 3, but in this 'llama' model 2 share a key/value head: give a multiple of 2",
        ),
        (
            "gpt2",
            {"heads": 2},
            "the hidden size of this 'gpt2' model is its heads times 8: with 2 heads set `hidden` to 16",
        ),
        ("gpt2", {"hidden": 20}, "`hidden` is 20, but the heads of this 'gpt2' model have 8 each"),
        ("gpt2", {"hidden": 16, "heads": 3}, "with 3 heads set `hidden` to 24"),
    ],
)
def test_what_cannot_be_made(model_type: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        narrower(tiny_model(model_type, **MORE.get(model_type, {})).config, **sizes)


def test_sizes_that_are_not_given_stay() -> None:
    config = tiny_model("gpt2").config
    assert narrower(config, mlp=40) == Width(32, 4, 40)
    assert narrower(config, hidden=16) == Width(16, 2, 128)
    assert width_config(config, Width(16, 2, 128)).n_inner == 128
    assert width_config(config, Width(16, 2, 64)).n_inner is None
    assert config.n_embd == 32
    assert width_config(config, Width(32, 4, 128)) is config
    shared = tiny_model("llama", num_key_value_heads=1).config
    assert narrower(shared, heads=2) == Width(32, 2, 64)
    assert width_config(shared, Width(32, 2, 64)).num_key_value_heads == 1


def test_what_a_configuration_does_not_allow() -> None:
    shared = tiny_model("llama", num_key_value_heads=1).config
    with pytest.raises(UserError, match=r"a hidden size of 32 with 3 heads \(.*not a multiple"):
        width_config(shared, narrower(shared, heads=3))
