"""What configurations say of single layers, for choices of them."""

from __future__ import annotations

from typing import Any

import pytest

from inheritune import UserError, inherit
from inheritune.initialization import select
from inheritune.models.architecture import choose_layers
from inheritune.models.checkpoint_config import check_positions
from inheritune.models.layer_fields import per_layer_fields
from tiny_models import tiny_model
from tiny_types import tiny_config, tiny_of_type

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


@pytest.mark.parametrize(
    ("model_type", "changes", "layers", "expected"),
    [
        ("deepseek_v2", {"first_k_dense_replace": 2}, (0, 1, 3), {"first_k_dense_replace": 2}),
        ("deepseek_v2", {"first_k_dense_replace": 2}, (1, 2, 3), {"first_k_dense_replace": 1}),
        ("lfm2_moe", {"num_dense_layers": 2}, (2, 3), {"num_dense_layers": 0, "layer_types": [FULL, "conv"]}),
        (
            "qwen3_moe",
            {"mlp_only_layers": [0], "decoder_sparse_step": 2},
            (0, 1, 3),
            {"mlp_only_layers": [0], "decoder_sparse_step": 1},
        ),
        (
            "jamba",
            {
                "attn_layer_period": 4,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
            },
            (0, 1, 2),
            {"layers_block_type": ["mamba", "attention", "mamba"], "layers_num_experts": [1, 4, 1]},
        ),
        (
            "ernie4_5_moe",
            {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
            (0, 2, 3),
            {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1},
        ),
        ("recurrent_gemma", {}, (2, 3), {"block_types": ["attention", "recurrent"]}),
        ("gpt_neo", {}, (1, 3), {"attention_layers": ["local", "local"]}),
        (
            "laguna",
            {"num_attention_heads_per_layer": [4, 2, 4, 2]},
            (1, 2),
            {"num_attention_heads_per_layer": [2, 4]},
        ),
        ("llama4_text", {"moe_layers": [1, 3]}, (0, 3), {"moe_layers": [1], "no_rope_layers": [1, 0]}),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 0]}, (1, 2, 3), {"no_rope_layers": [1, 0, 0]}),
        ("gemma3n_text", {}, (0, 1, 2), {"num_kv_shared_layers": 1, "intermediate_size": [64, 64, 64]}),
        ("minicpm3", {"scale_depth": 1.4}, (0,), {"scale_depth": 0.7}),
        ("bamba", {"num_hidden_layers": 2}, (0,), {"time_step_limit": [0.0, float("inf")]}),
        ("zamba2", {}, (0, 1), {"layers_block_type": [LINEAR, "hybrid"], "hybrid_layer_ids": [1]}),
    ],
)
def test_fields_follow_the_layers(
    model_type: str, changes: dict[str, Any], layers: tuple[int, ...], expected: dict[str, Any]
) -> None:
    config = tiny_config(model_type, **changes)
    before, chosen = config.to_dict(), choose_layers(config, layers)
    assert chosen.num_hidden_layers == len(layers)
    found = {name: getattr(chosen, name) for name in expected}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()} == expected
    assert config.to_dict() == before


def test_lists_of_any_name_are_cut_where_they_have_an_entry_per_layer() -> None:
    config = tiny_config(
        "llama", colours=["red", "green", "blue", "grey"], eos_token_id=[2, 3, 4, 5], mrope_section=[1] * 4
    )
    assert per_layer_fields(config, 4) == ["colours"]
    assert choose_layers(config, (3, 0)).colours == ["grey", "red"]


def test_rules_that_fit_no_choice_are_refused() -> None:
    config = tiny_config("jamba", attn_layer_period=4, attn_layer_offset=1)
    with pytest.raises(
        UserError, match=r"layers \[1, 0, 1, 1\]: no `attn_layer_period` of the configuration puts"
    ):
        choose_layers(config, (1, 0, 1, 1))


def test_blocks_of_another_kind_than_their_place_are_refused() -> None:
    """Only the first layers of a configuration can be dense: no choice can put one later."""
    reference = tiny_of_type("deepseek_v2", first_k_dense_replace=1)
    with pytest.raises(
        UserError,
        match=r"model of layers 2, 0 of this 'deepseek_v2' model: layer 2 does not fit its new place 0",
    ):
        select(reference, (2, 0))
    assert inherit(reference, 2).config.first_k_dense_replace == 1


def test_settings_that_are_not_written_to_disk_stay() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    assert inherit(model, 2).config._attn_implementation == "eager"


def test_unknown_positions_are_refused() -> None:
    config = tiny_config("llama")
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 10_000.0}
    with pytest.raises(
        UserError, match=r"rotary positions of the unknown type 'spiral'; .* knows default, linear"
    ):
        check_positions(config)
    config.rope_parameters = {FULL: {"rope_type": "spiral"}, SLIDING: {"rope_type": "default"}}
    with pytest.raises(UserError, match="'spiral'"):
        check_positions(config)
