"""Gradient norms of query and key weights: the right rows of every fused projection, at the right time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inheritune.algorithm import run
from inheritune.analysis.probe import probe_attention
from inheritune.config import Training
from inheritune.training.gradients import QueryKeyGradients
from inheritune.training.metrics import read
from inheritune.training.optimizer import make_optimizer
from tiny_data import write_shards
from tiny_models import ARCHITECTURES, LAYERS, VOCABULARY, tiny_model, tokens
from tiny_recipes import make_stepper, recipe, training

_LLAMA, _GPT2 = ARCHITECTURES["llama"], ARCHITECTURES["gpt2"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ARCHITECTURES}
CASES |= {
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 4}),
    "falcon head by head": ("falcon", {"multi_query": False}),
    "falcon with groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_bigcode head by head": ("gpt_bigcode", {**_GPT2, "multi_query": False}),
    "mpt": (
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64},
    ),
    "persimmon": ("persimmon", _LLAMA),
    "phi3": ("phi3", _LLAMA),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_right_rows_are_queries_and_keys(case: str) -> None:
    """Without queries, or without keys, attention no longer depends on the tokens; values are untouched by both."""
    model_type, changes = CASES[case]

    def attention_and_output(zeroed: int | None, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        model = tiny_model(model_type, **changes)
        config = model.config.get_text_config()
        for layer in QueryKeyGradients(model).layers:
            for p in {layer.query, layer.key}:
                p.grad = p.data  # the parts of a gradient are those of its weight
            pair = layer.gradients()
            heads, width = config.num_attention_heads, getattr(config, "head_dim", None) or 8
            assert pair[0].numel() == heads * width * 32
            assert heads % (pair[1].numel() // (width * 32)) == 0
            if zeroed is not None:
                pair[zeroed].zero_()
        found: list[torch.Tensor] = []
        probe_attention(model, tokens(seed=seed), lambda _, a: found.append(a))
        with torch.no_grad():
            return found, model(tokens(seed=seed)).logits

    attention, logits = attention_and_output(None, 0)
    other, _ = attention_and_output(None, 1)
    assert not torch.allclose(attention[0], other[0], atol=1e-6)
    without_query, logits_without_query = attention_and_output(0, 0)
    without_key, logits_without_key = attention_and_output(1, 0)
    for found in (without_query, without_key):
        for layer, elsewhere in zip(found, attention_and_output(0, 1)[0], strict=True):
            torch.testing.assert_close(layer, elsewhere, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_without_query, logits_without_key, rtol=0, atol=1e-5)
    assert not torch.allclose(logits, logits_without_key, atol=1e-6)


def test_norms_are_of_the_whole_step_before_clipping() -> None:
    settings = Training.model_validate(
        training(gradient_norms=True, optimizer={"gradient_clip": 1e-6, "learning_rate": 1e-3})
    )
    model = tiny_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    optimizer = make_optimizer(model, settings.optimizer)
    stepper = make_stepper(model, optimizer, settings)
    windows = [(tokens(2, seed=i), tokens(2, seed=i + 9)) for i in range(2)]
    (sum(stepper.loss(*pair) for pair in windows) / 2).backward()
    expected = {}
    for i, block in enumerate(model.transformer.h, start=1):
        gradient = block.attn.c_attn.weight.grad
        expected[f"query_{i}"] = float(gradient[:, :32].norm())
        expected[f"key_{i}"] = float(gradient[:, 32:64].norm())
    model.zero_grad(set_to_none=True)

    assert stepper(0, windows, gradient_norms=True).gradient_norms == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 1e-5, "clipped ones would be smaller"
    assert stepper(1, windows).gradient_norms == {}


def test_frozen_weights_have_no_gradient() -> None:
    model = tiny_model("llama")
    assert set(QueryKeyGradients(model).norms().values()) == {0.0}
    assert list(QueryKeyGradients(model).norms())[:3] == ["query_1", "key_1", "query_2"]


def test_an_unknown_projection_is_refused() -> None:
    model = tiny_model("mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, state_size=4)
    with pytest.raises(
        ValueError, match="does not know where a 'mamba' model keeps its query and key weights"
    ):
        QueryKeyGradients(model)


@pytest.mark.parametrize("wanted", [False, True])
def test_they_are_recorded_at_validation_steps_if_wanted(tmp_path: Path, wanted: bool) -> None:
    data = write_shards(tmp_path / "data", train=4000, validation=500)
    settings = training(steps=10, validation={"every": 4}, gradient_norms=wanted)
    run(recipe(data, training=settings), tmp_path / "run")
    rows = read(tmp_path / "run" / "reference" / "metrics.jsonl")
    found = [row for row in rows if row["kind"] == "gradients"]
    assert [row["step"] for row in found] == ([4, 8, 10] if wanted else [])
    for row in found:
        assert set(row) == {"kind", "step"} | {
            f"{what}_{i}" for what in ("query", "key") for i in range(1, 5)
        }
        assert all(value > 0 for name, value in row.items() if name[0] in "qk" and name != "kind")
    json.dumps(rows, allow_nan=False)
