"""Attention without a mask: which models are switched, that nothing changes, and that compiled code has no mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from inheritune.models.attention import CAUSAL, CAUSAL_OR_SLIDING, attend, fitting_attention
from tiny_models import ARCHITECTURES, tiny_model, tokens

SLIDING = {"mistral", "qwen2", "qwen3", "gemma3_text"}
"""Their tiny versions have layers that see 8 tokens."""
OF_THEIR_OWN = {"gemma2", "falcon", "gpt_neo", "bloom"}


def compiled_attention(model: Any, inputs: Tensor) -> tuple[Tensor, list[tuple[bool, bool]]]:
    """Logits, and for each attention in the compiled graph whether it is causal, and whether it has a mask."""
    kinds: list[tuple[bool, bool]] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        for node in graph.graph.nodes:
            if "scaled_dot_product" in str(node.target):
                kinds.append((bool(node.kwargs["is_causal"]), node.kwargs["attn_mask"] is not None))
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        logits = torch.compile(model, backend=look)(input_ids=inputs, use_cache=False).logits
    return logits, kinds


def test_transformers_own_way_has_a_mask_in_compiled_code() -> None:
    """The reason why all this exists: where this fails, it may not be needed any more."""
    _, kinds = compiled_attention(tiny_model("gpt2"), tokens(2, 24))
    assert kinds == [(False, True)] * 4


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_no_masks_are_made_where_all_layers_see_the_whole_window(model_type: str) -> None:
    for window in (7, 24):
        model, inputs = tiny_model(model_type), tokens(2, window)
        with torch.no_grad():
            before = model(input_ids=inputs, use_cache=False).logits
            own, fitting = model.config._attn_implementation, fitting_attention(model, window)
            assert model.config._attn_implementation == own and not model.training
            attend(model, fitting)
            after = model(input_ids=inputs, use_cache=False).logits
        assert torch.equal(before, after)
        if model_type in OF_THEIR_OWN:
            assert fitting == own
        else:
            sliding = model_type in SLIDING and window > 8
            assert fitting == (CAUSAL_OR_SLIDING if sliding else CAUSAL)
            compiled, kinds = compiled_attention(model, inputs)
            torch.testing.assert_close(compiled, before, rtol=1e-4, atol=1e-5)
            assert sliding or kinds == [(True, False)] * 4


def test_without_masks_nothing_looks_for_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """That makes the host wait for a GPU in every forward pass."""
    looked: list[bool] = []
    own = masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(
        masking_utils, "find_packed_sequence_indices", lambda ids: (looked.append(True), own(ids))[1]
    )
    model, inputs = tiny_model("gpt2"), tokens(2, 24)
    model(input_ids=inputs, use_cache=False)
    assert looked
    attend(model, fitting_attention(model, 24))
    looked.clear()
    model(input_ids=inputs, use_cache=False)
    assert not looked


def test_layers_that_see_less_than_the_window_keep_their_mask() -> None:
    model = tiny_model("qwen2")
    attend(model, fitting_attention(model, 24))
    _, kinds = compiled_attention(model, tokens(2, 24))
    assert kinds == [(True, False)] * 2 + [(False, True)] * 2
    _, kinds = compiled_attention(model, tokens(2, 6))
    assert kinds == [(True, False)] * 4


def test_layers_that_see_next_to_nothing_are_seen_in_the_trial() -> None:
    model, inputs = tiny_model("qwen2", sliding_window=3), tokens(2, 24)
    with torch.no_grad():
        before = model(input_ids=inputs, use_cache=False).logits
        attend(model, fitting_attention(model, 24))
        assert torch.equal(model(input_ids=inputs, use_cache=False).logits, before)


def test_padding_and_caches_are_as_before() -> None:
    model, inputs = tiny_model("llama"), tokens(2, 12)
    padding = torch.ones_like(inputs)
    padding[0, :5] = 0
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(input_ids=inputs, attention_mask=padding, **options)
    attend(model, CAUSAL_OR_SLIDING)
    assert torch.equal(model.generate(input_ids=inputs, attention_mask=padding, **options), before)


def test_the_switch_is_not_saved_and_can_be_made_twice(tmp_path: Path) -> None:
    model = tiny_model("gpt2").train()
    attend(model, fitting_attention(model, 8))
    assert fitting_attention(model, 8) == CAUSAL  # it is switched already
    assert model.training
    model.save_pretrained(tmp_path)
    assert "inheritune" not in (tmp_path / "config.json").read_text(encoding="utf-8")
