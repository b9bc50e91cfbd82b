"""Architectures made from random weights: any value at any field is computed with, or refused in a sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from inheritune import UserError
from inheritune.models.presets import architecture_config, from_config
from tiny_models import ARCHITECTURES

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 97, "n_positions": 32}
LLAMA = {"model_type": "llama", **ARCHITECTURES["llama"], "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        (GPT2, {"n_head": 3}, "must be divisible by num_heads"),
        (GPT2, {"n_head": 0}, "division or modulo by zero"),
        (GPT2, {"n_head": -2}, "invalid shape dimension -16"),
        (GPT2, {"n_embd": -32}, "negative dimension -32"),
        (GPT2, {"n_embd": "x"}, "expected int, got str"),
        (GPT2, {"n_embd": 10**9}, "n_embd is 1e+09, but an architecture has at most 16,777,216 of it"),
        (GPT2, {"n_layer": 10**9}, "n_layer is 1e+09, but an architecture has at most 1,024 of it"),
        (GPT2, {"n_layer": 0}, "does not say how deep it is"),
        (GPT2, {"n_inner": 0}, "cannot reshape tensor of 0 elements"),
        (GPT2, {"vocab_size": 0}, "should be positive"),
        (GPT2, {"activation_function": "nope"}, "KeyError('nope')"),
        (GPT2, {"resid_pdrop": 2.0}, "dropout probability has to be between 0 and 1"),
        (GPT2, {"layer_norm_epsilon": -1.0}, "what it computes is not finite"),
        (GPT2, {"initializer_range": -1.0}, "normal expects std >= 0.0"),
        (GPT2, {"return_dict": False}, "'tuple' object has no attribute"),
        (GPT2, {"id2label": 3}, "'int' object has no attribute 'items'"),
        (GPT2, {"num_labels": 10**9}, "num_labels is 1e+09"),
        (GPT2, {"n_embed": 3}, "unknown field 'n_embed' of a 'gpt2' architecture; did you mean 'n_embd'?"),
        (GPT2, {"x" * 10**6: 3}, "unknown field 'xxxxx"),
        (GPT2, {"model_type": "vit"}, "unknown model_type 'vit'"),
        (GPT2, {"model_type": None}, "unknown model_type None"),
        (GPT2, {"model_type": ["gpt2"]}, "unknown model_type ['gpt2']"),
        (GPT2, {"preset": None}, "unknown preset None"),
        (LLAMA, {"num_key_value_heads": 3}, "must match the size of tensor b (3)"),
        (LLAMA, {"rope_parameters": {"rope_type": "nope"}}, "KeyError('nope')"),
        (LLAMA, {"rope_parameters": {"rope_type": "linear"}}, "Missing required keys in `rope_parameters`"),
        (LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": "x"}}, "unsupported operand type"),
        (LLAMA, {"attention_dropout": 5.0}, "dropout probability has to be between 0 and 1"),
        (LLAMA, {"hidden_act": "nope"}, "KeyError('nope')"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    base: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        from_config(architecture_config({**base, **changes}), seed=0)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_recipe_is_not_changed_by_what_transformers_fills_in() -> None:
    recipe = {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    before = copy.deepcopy(recipe)
    architecture_config(recipe)
    assert recipe == before


def test_a_context_of_one_token() -> None:
    assert from_config(architecture_config({**GPT2, "n_positions": 1}), seed=0).training
