"""Attention without a mask: which models are switched, that nothing changes, and that compiled code has no mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inheritune.models.attention import NAME, use_causal_attention
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


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_switched_models_compute_the_same(model_type: str) -> None:
    model, inputs = tiny_model(model_type), tokens(2, 24)
    with torch.no_grad():
        before = model(input_ids=inputs, use_cache=False).logits
        assert use_causal_attention(model) == (model_type not in OF_THEIR_OWN)
        assert not model.training
        after = model(input_ids=inputs, use_cache=False).logits
    assert torch.equal(before, after)
    compiled, kinds = compiled_attention(model, inputs)
    torch.testing.assert_close(compiled, before, rtol=1e-4, atol=1e-5)
    if model_type not in SLIDING | OF_THEIR_OWN:
        assert kinds == [(True, False)] * 4


def test_transformers_own_way_has_a_mask_in_compiled_code() -> None:
    """The reason why all this exists: where this fails, it may not be needed any more."""
    _, kinds = compiled_attention(tiny_model("gpt2"), tokens(2, 24))
    assert kinds == [(False, True)] * 4


def test_layers_that_see_less_than_the_window_keep_their_mask() -> None:
    model = tiny_model("qwen2")
    assert use_causal_attention(model)
    _, kinds = compiled_attention(model, tokens(2, 24))
    assert kinds == [(True, False)] * 2 + [(False, True)] * 2
    _, kinds = compiled_attention(model, tokens(2, 6))
    assert kinds == [(True, False)] * 4


def test_padding_and_caches_are_as_before() -> None:
    model, inputs = tiny_model("llama"), tokens(2, 12)
    padding = torch.ones_like(inputs)
    padding[0, :5] = 0
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(input_ids=inputs, attention_mask=padding, **options)
    assert use_causal_attention(model)
    assert torch.equal(model.generate(input_ids=inputs, attention_mask=padding, **options), before)


def test_the_switch_is_not_saved_and_can_be_made_twice(tmp_path: Path) -> None:
    model = tiny_model("gpt2").train()
    assert use_causal_attention(model)
    assert not use_causal_attention(model)  # it is switched already
    assert model.training
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
