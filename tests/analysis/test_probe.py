"""The probe: the matrices of eager attention on every architecture, one layer at a time, nothing changed."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from handmade_attention import all_alike, first_token_only, handmade_model
from inheritune.analysis.probe import HOOKED, check_attention, probe_attention
from tiny_models import ARCHITECTURES, LAYERS, VOCABULARY, tiny_model, tokens
from tiny_types import tiny_of_type

_LLAMA = ARCHITECTURES["llama"]
_GPT2 = ARCHITECTURES["gpt2"]
# What `ARCHITECTURES` lack: sinks, ALiBi, GPT-2's scaling by layer, other fused projections.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 4}),
    "cohere2": ("cohere2", {**_LLAMA, "sliding_window": 8}),
    "falcon with groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_oss": (
        "gpt_oss",
        {**_LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "mpt": (
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64},
    ),
    "persimmon": ("persimmon", _LLAMA),
    "phi3": ("phi3", _LLAMA),
    "xglm": (
        "xglm",
        {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 64, "num_layers": LAYERS, "attention_heads": 4},
    ),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {**{name: (name, {}) for name in ARCHITECTURES}, **MORE}


def make(case: str) -> PreTrainedModel:
    model_type, changes = CASES[case]
    return tiny_model(model_type, **changes)


def probed(
    model: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor | None = None
) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    probe_attention(model, inputs, lambda layer, a: found.__setitem__(layer, a.clone()), padding_mask_bt=mask)
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_matrices_are_those_of_eager_attention(case: str, dtype: torch.dtype, padded: bool) -> None:
    model = make(case).to(dtype)
    inputs, mask = tokens(3, 24), None
    if padded:
        mask = torch.ones_like(inputs)
        mask[0, :7] = 0
        mask[1, 20:] = 0
    found = probed(model, inputs, mask)
    assert list(found) == list(range(LAYERS))
    eager = copy.deepcopy(model)
    eager.config._attn_implementation = "eager"
    with torch.no_grad():
        expected = eager(inputs, attention_mask=mask, output_attentions=True, use_cache=False).attentions
    assert len(expected) == LAYERS
    for layer, attention_bhtt in enumerate(expected):
        assert found[layer].shape == (3, 4, 24, 24)
        torch.testing.assert_close(found[layer], attention_bhtt, rtol=0, atol=1e-5)


def test_sliding_windows_and_soft_caps_and_sinks_are_seen() -> None:
    """The cases above do cover what they are meant to."""
    inputs = tokens(1, 24)
    assert probed(make("mistral"), inputs)[0][0, :, 23, :16].abs().max() == 0
    sunk = probed(make("gpt_oss"), inputs)[0].sum(-1)
    assert bool((sunk < 0.999).all()), "some attention goes to the sink, which is no token"
    model = make("gemma2")
    for parameter in model.parameters():
        parameter.data.mul_(8)
    capped = probed(model, inputs)[0]
    model.config.attn_logit_softcapping = None
    for block in model.model.layers:
        block.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(capped, probed(model, inputs)[0])


def test_known_attention() -> None:
    found = probed(handmade_model([(0, 2), ()]), tokens(2, 16))
    for head in range(4):
        expected = first_token_only(16) if head in (0, 2) else all_alike(16)
        for attention_tt in found[0][:, head]:
            torch.testing.assert_close(attention_tt, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], all_alike(16).expand(2, 4, 16, 16), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["gpt2", "gemma2", "gpt_oss", *sorted(set(HOOKED) - {"xglm"})])
def test_the_forward_pass_goes_on_as_with_eager_attention(case: str) -> None:
    """The last layer's matrices are right only if the outputs of all layers before it were."""
    model = make(case)
    before = model(tokens()).logits
    probed(model, tokens())
    assert torch.equal(model(tokens()).logits, before)


def state_of(model: PreTrainedModel) -> list[Any]:
    modules = list(model.modules())
    return [
        model.config.to_dict(),
        model.config._attn_implementation,
        getattr(getattr(model.config, "attn_config", None), "_attn_implementation", None),
        [module.training for module in modules],
        [len(module._forward_hooks) for module in modules],
        [parameter.requires_grad for parameter in model.parameters()],
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("case", ["gpt2", "llama", "falcon", "mpt", "bloom"])
def test_nothing_is_changed_for_good(case: str, raises: bool) -> None:
    model = make(case).train()
    next(iter(model.base_model.children())).eval()
    before, logits = state_of(model), make(case)(tokens()).logits

    def measure(layer: int, attention_bhtt: torch.Tensor) -> None:
        assert not model.training
        if raises and layer == 1:
            raise RuntimeError("half-way")

    if raises:
        with pytest.raises(RuntimeError, match="half-way"):
            probe_attention(model, tokens(), measure)
    else:
        probe_attention(model, tokens(), measure)
    assert state_of(model) == before
    assert torch.equal(model.eval()(tokens()).logits, logits)
    assert len(probed(model, tokens())) == LAYERS, "it can be probed again"


class LiveMatrices(TorchDispatchMode):
    """The largest number of tensors as large as a layer's matrices that were alive at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.most = size, 0
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() >= 4 * self.size:
            storage = result.untyped_storage()
            self.storages[storage.data_ptr()] = weakref.ref(result)
            self.most = max(self.most, sum(ref() is not None for ref in self.storages.values()))
        return result


@pytest.mark.parametrize("case", ["gpt2", "llama", "falcon", "bloom"])
def test_memory_is_that_of_one_layer(case: str) -> None:
    length, heads = 48, 4
    peaks = []
    for depth in (2, 8):
        field = "n_layer" if case in ("gpt2", "bloom") else "num_hidden_layers"
        model = tiny_model(case, **{field: depth})
        seen: list[weakref.ref[torch.Tensor]] = []

        def measure(
            layer: int, attention_bhtt: torch.Tensor, seen: list[weakref.ref[torch.Tensor]] = seen
        ) -> None:
            assert all(earlier() is None for earlier in seen), "an earlier layer's matrices are still held"
            seen.append(weakref.ref(attention_bhtt))

        with LiveMatrices(2 * heads * length**2) as live:
            probe_attention(model, tokens(2, length), measure)
        assert len(seen) == depth
        peaks.append(live.most)
    assert peaks[0] == peaks[1] > 0


def test_models_without_attention_are_refused() -> None:
    mamba = tiny_model("mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, state_size=4)
    sentence = "a 'mamba' model has no attention matrices to analyze"
    with pytest.raises(ValueError, match=sentence):
        check_attention(mamba.config)
    with pytest.raises(ValueError, match=sentence):
        probe_attention(mamba, tokens(), lambda layer, a: None)
    assert not mamba.training


def test_hybrid_models_are_refused_by_layer() -> None:
    model = tiny_model(
        "qwen3_next",
        **_LLAMA,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    sentence = "'qwen3_next' model has no attention matrices in layers 1, 2, 3"
    with pytest.raises(ValueError, match=sentence):
        check_attention(model.config)
    with pytest.raises(ValueError, match=sentence):
        probe_attention(model, tokens(), lambda layer, a: None)


def test_attention_that_cannot_be_replaced_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the attention of a 'xlnet' model cannot be replaced"):
        probe_attention(tiny_of_type("xlnet"), tokens(), lambda layer, a: None)


def test_sparse_attention_is_read_as_the_model_attends() -> None:
    """DeepSeek V3.2 looks at the name of the attention to see whether the keys it selects are masked there."""
    found = probed(tiny_of_type("deepseek_v32", index_topk=8), tokens(2, 24))
    assert [int((a > 0).sum(-1).max()) for a in found.values()] == [8] * LAYERS
    assert all(int((a[:, :, 5] > 0).sum(-1).max()) == 6 for a in found.values())


def test_matrices_that_the_model_does_not_attend_with_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers adds Falcon's ALiBi twice in eager attention; a Llama is made to forget the mask there."""
    sentence = "matrices of this '{}' model cannot be read: with eager attention it computes something else"
    alibi = tiny_model("falcon", alibi=True)
    with pytest.raises(ValueError, match=sentence.format("falcon")):
        probed(alibi, tokens())
    alibi.config._attn_implementation = "eager"  # then it is what the model computes
    assert list(probed(alibi, tokens())) == list(range(LAYERS))

    llama = tiny_model("llama")
    eager = modeling_llama.eager_attention_forward

    def without_mask(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        return eager(module, query, key, value, None, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", without_mask)
    with pytest.raises(ValueError, match=sentence.format("llama")):
        probed(llama, tokens())
    assert modeling_llama.eager_attention_forward is without_mask, "it is put back"
