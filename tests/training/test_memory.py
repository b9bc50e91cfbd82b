"""The formula of a step's memory: against what models keep, against a GPU's peaks, and what must be more or less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from inheritune import UserError
from inheritune.models.architecture import blocks
from inheritune.models.presets import architecture_config, from_config
from inheritune.models.size import on_meta
from inheritune.training.loss import NextTokenLoss
from inheritune.training.memory import How, Step, kept_of_a_token, memory_per_process, shape_of
from tiny_models import ARCHITECTURES, tiny_model

WIDE = {
    "hidden_size": 64,
    "n_embd": 64,
    "intermediate_size": 176,
    "ffn_dim": 256,
    "word_embed_proj_dim": 64,
    "sliding_window": 512,
}


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    """Wide enough for what a block keeps beside numbers of tokens not to show."""
    fields = {k: WIDE.get(k, v) for k, v in ARCHITECTURES[model_type].items() if k != "pad_token_id"}
    return AutoConfig.for_model(
        model_type, **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **fields, **changes}
    )


def kept(config: PretrainedConfig, how: How, windows: int = 8) -> float:
    """Bytes of a token that a block really keeps: what is saved for the backward pass, weights apart."""
    model = from_config(config, seed=0).train()
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(windows, how.window, dtype=torch.long)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=how.bf16),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        hidden_btd = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    own = [p.untyped_storage().data_ptr() for p in model.parameters()]
    casts = 2 * sum(p.numel() for p in blocks(model).parameters() if p.dim() >= 2) if how.bf16 else 0
    total = sum(s.nbytes() for pointer, s in storages.items() if pointer not in own) - casts
    assert hidden_btd.requires_grad
    return total / tokens.numel() / len(blocks(model))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gpt2", {}),  # dropout everywhere, and an activation in steps
        ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu"}),
        ("llama", {}),
        ("qwen3", {}),
        ("gemma3_text", {}),
        ("olmo2", {}),
        ("gpt_neox", {}),
        ("phi", {}),
        ("gpt_neo", {}),
        ("bloom", {}),
    ],
)
def test_what_eager_blocks_keep(model_type: str, changes: dict[str, Any], bf16: bool) -> None:
    config, how = config_of(model_type, **changes), How(window=48, bf16=bf16)
    model = on_meta(config)
    ours = kept_of_a_token(blocks(model)[0], model.config.get_text_config(), how)
    assert ours == pytest.approx(kept(config, how), rel=0.25)


GPT2 = {"preset": "gpt2-medium"}
LARGE, XLARGE = {"preset": "gpt2-large", "n_layer": 18}, {"preset": "gpt2-xlarge", "n_layer": 24}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 13,
    "vocab_size": 32_000,
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize(
    ("architecture", "window", "windows", "float8", "measured"),
    [
        ({**GPT2, "n_layer": 16}, 1024, 24, False, 20.4),
        (GPT2, 1024, 24, False, 28.9),
        (GPT2, 1024, 24, True, 21.5),
        (GPT2, 1024, 16, False, 21.3),
        (LARGE, 1024, 24, False, 28.8),
        (XLARGE, 1024, 24, False, 48.3),
        (XLARGE, 1024, 24, True, 37.1),
        (XLARGE, 1024, 16, False, 36.9),
        (LLAMA, 2048, 8, False, 56.2),
        (LLAMA, 2048, 8, True, 46.8),
    ],
)
def test_compiled_steps_on_a_gpu(
    architecture: dict[str, Any], window: int, windows: int, float8: bool, measured: float
) -> None:
    """Peaks of `benchmarks/gpu.py`, GiB."""
    how = How(window, bf16=True, float8=float8, gpu=True, compiled=True)
    step = Step(how, shape_of(on_meta(architecture_config(architecture)), how), windows, accumulates=True)
    assert memory_per_process(step, "single") / 2**30 == pytest.approx(measured, rel=0.05)


def step_of(model_type: str = "llama", how: How | None = None, **changes: Any) -> Step:
    how = how or How(window=48)
    return Step(how, shape_of(on_meta(config_of(model_type)), how), micro_batch=4, **changes)


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, "mamba", "gpt_bigcode"])
def test_every_architecture_has_a_figure(model_type: str) -> None:
    """Also one without attention."""
    how = How(window=48, bf16=True)
    shape = shape_of(
        tiny_model(model_type, **({} if model_type in ARCHITECTURES else {"num_hidden_layers": 2})), how
    )
    assert memory_per_process(Step(how, shape, micro_batch=1), "single") > 16 * shape.trained


def test_what_takes_more_and_what_less() -> None:
    step = step_of()
    single = memory_per_process(step, "single")
    shares = [memory_per_process(step, "fsdp", processes) for processes in (2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] < single <= memory_per_process(step, "ddp", 2) == memory_per_process(step, "ddp", 8)
    more = [{"accumulates": True}, {"teacher": step.model}, {"micro_batch": 5}]
    assert all(memory_per_process(replace(step, **change), "single") > single for change in more)
    less = [{"checkpointed": 2}, {"checkpointed": 4}, {"micro_batch": 3}, {"optimizer": "muon"}]
    found = [memory_per_process(replace(step, **change), "single") for change in less]
    assert max(found) < single and found[1] < found[0]


def test_what_fsdp_keeps_gathered() -> None:
    """Weights as they are sent; with several micro-batches also whole gradients, in the place of shares."""
    how = How(window=48, bf16=True, gpu=True, compiled=True)
    shape = shape_of(on_meta(architecture_config(GPT2)), how)
    assert shape.group == 5 * shape.in_blocks // 24
    once, several = (Step(how, shape, micro_batch=1, accumulates=more) for more in (False, True))
    taken, kept = (
        [memory_per_process(replace(step, keeps=keeps), "fsdp", 8) for step in (once, several)]
        for keeps in (False, True)
    )
    assert 0 < kept[0] - taken[0] <= 2 * shape.in_blocks
    assert 4 * shape.in_blocks < kept[1] - taken[1] < 6 * shape.trained


def test_a_gpu_never_holds_all_logits_in_eager_code() -> None:
    how = How(window=1024)
    shape = shape_of(on_meta(config_of("llama", vocab_size=50_000)), how)
    sizes = [
        memory_per_process(Step(replace(how, gpu=gpu), shape, micro_batch=16), "single")
        for gpu in (False, True)
    ]
    assert sizes[1] < sizes[0] / 2


def test_a_model_that_is_placed_has_the_sizes_of_its_configuration() -> None:
    model = from_config(config_of("mixtral"), seed=0)
    how = How(window=48, bf16=True)
    assert shape_of(NextTokenLoss(model).model, how) == shape_of(on_meta(config_of("mixtral")), how)


@pytest.mark.parametrize(("strategy", "processes"), [("single", 2), ("ddp", 1), ("fsdp", 0)])
def test_a_strategy_that_does_not_go_with_the_processes(strategy: Any, processes: int) -> None:
    with pytest.raises(UserError, match=f"'{strategy}' does not go with {processes} processes"):
        memory_per_process(step_of(), strategy, processes)
