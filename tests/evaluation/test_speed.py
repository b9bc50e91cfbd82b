"""What a smaller model saves: memory, cache, reading and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.evaluation import speed
from inheritune.evaluation.speed import (
    check_speed,
    checkpoint_bytes,
    joined,
    measure_speed,
    memory_bytes,
    read,
    write,
)
from tiny_models import LAYERS, VOCABULARY, tiny_model, tokens


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of six tokens, two new ones, one turn."""
    set_length(monkeypatch)


def set_length(patch: pytest.MonkeyPatch, prompt: int = 6, new: int = 2, turns: int = 1) -> None:
    for name, value in (("PROMPT_TOKENS", prompt), ("NEW_TOKENS", new), ("TURNS", turns)):
        patch.setattr(speed, name, value)


def record_runs(models: list[PreTrainedModel]) -> list[tuple[int, tuple[int, ...]]]:
    """Which model (its place) saw input of which shape, as it happens."""
    seen: list[tuple[int, tuple[int, ...]]] = []

    def record(place: int) -> Any:
        def hook(module: nn.Module, positional: Any, named: dict[str, Any]) -> None:
            assert torch.is_inference_mode_enabled()
            seen.append((place, tuple(named["input_ids"].shape)))

        return hook

    for place, model in enumerate(models):
        model.register_forward_pre_hook(record(place), with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("model_type", "key_value_heads"),
    [("gpt2", 4), ("llama", 2), ("mistral", 2), ("gemma2", 2)],  # the last two within their window of 8
)
def test_the_cache_is_measured(model_type: str, key_value_heads: int) -> None:
    whole, half = tiny_model(model_type), tiny_model(model_type, num_hidden_layers=LAYERS // 2)
    exact = 2 * LAYERS * key_value_heads * 8 * 4
    found = measure_speed([whole, half], [10, 5], 2)
    assert [model.cache_bytes_per_token for model in found.models] == [exact, exact / 2]
    halved = measure_speed([tiny_model(model_type).bfloat16()], [10], 2)
    assert halved.models[0].cache_bytes_per_token == exact / 2


def test_a_sliding_window_saves_cache_on_prompts_longer_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_length(monkeypatch, prompt=32)
    full, sliding = tiny_model("mistral", sliding_window=None), tiny_model("mistral")
    found = measure_speed([full, sliding], [1, 1], 2).models
    assert found[0].cache_bytes_per_token == 2 * LAYERS * 2 * 8 * 4
    assert found[1].cache_bytes_per_token <= found[0].cache_bytes_per_token * 8 / 32


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "bloom", "gpt_neo"])
def test_it_writes_what_generation_writes(model_type: str) -> None:
    model = tiny_model(model_type)
    model.generation_config.eos_token_id = None
    prompts = tokens(batch=3, length=12)
    with torch.no_grad():
        first, past = read(model, prompts)
        written = torch.cat([first, write(model, first, past, 9)], dim=1)
    expected = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=10, do_sample=False
    )
    assert written.tolist() == expected[:, 12:].tolist()


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    set_length(monkeypatch, new=3, turns=3)
    models = [tiny_model("gpt2"), tiny_model("llama")]
    seen = record_runs(models)
    found = joined([measure_speed(models, [7, 8], batch) for batch in (1, 4)])
    assert [place for place, shape in seen if shape[1] == 6] == 2 * [0, 1, 1, 0, 0, 1, 1, 0]
    assert [shape for _, shape in seen[:32]] == 8 * [(1, 6), (1, 1), (1, 1), (1, 1)]
    assert [shape for _, shape in seen[32:]] == 8 * [(4, 6), (4, 1), (4, 1), (4, 1)]
    assert (found.prompt_tokens, found.new_tokens, found.turns) == (6, 3, 3)
    assert [model.checkpoint_bytes for model in found.models] == [7, 8]
    for model in found.models:
        assert [rate.batch for rate in model.rates] == [1, 4]
        for spread in [spread for rate in model.rates for spread in (rate.prefill, rate.decode)]:
            assert 0 < spread.lowest <= spread.median <= spread.highest


def test_rates_are_tokens_of_all_sequences_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 9, 99, 100, 102, 102, 106, 110, 111, 111, 113, 120, 124, 124, 125])
    monkeypatch.setattr(speed, "_now", lambda device: float(next(clock)))
    set_length(monkeypatch, prompt=8, new=4, turns=3)
    rate = measure_speed([tiny_model("gpt2")], [1], 2)
    found = rate.models[0].rates[0]
    assert (found.prefill.median, found.prefill.lowest, found.prefill.highest) == (8, 4, 16)
    assert (found.decode.median, found.decode.lowest, found.decode.highest) == (4, 2, 8)


def test_prompts_are_the_same_every_time_and_known_to_every_model() -> None:
    models = [tiny_model("gpt2"), tiny_model("llama", vocab_size=50)]
    seen: list[torch.Tensor] = []
    models[0].register_forward_pre_hook(lambda *args: seen.append(args[-1]["input_ids"]), with_kwargs=True)
    state = torch.get_rng_state()
    for _ in range(2):
        measure_speed(models, [1, 1], 2)
    assert torch.equal(torch.get_rng_state(), state)
    prompts = [ids for ids in seen if ids.shape[1] == 6]
    assert len(prompts) == 4 and all(torch.equal(prompts[0], other) for other in prompts)
    assert prompts[0].max() < 50


def test_sizes(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert memory_bytes(model) == 4 * sum(p.numel() for p in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )
    assert memory_bytes(tiny_model("gpt2").bfloat16()) < memory_bytes(model)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    shards = list((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 1
    assert checkpoint_bytes(tmp_path / "one") == (tmp_path / "one" / "model.safetensors").stat().st_size
    assert checkpoint_bytes(tmp_path / "many") == sum(file.stat().st_size for file in shards)
    (tmp_path / "one" / "consolidated.safetensors").write_bytes(b"the same weights in another form")
    assert checkpoint_bytes(tmp_path / "one") == (tmp_path / "one" / "model.safetensors").stat().st_size


def test_weights_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (repository / "blob").write_bytes(bytes(123))
    (snapshot / "model.safetensors").symlink_to(repository / "blob")
    assert checkpoint_bytes("some/model") == 123
    assert checkpoint_bytes(Pretrained("some/model", "another-branch")) is None
    assert checkpoint_bytes("some/other-model") is None
    assert checkpoint_bytes("no/such/folder") is None
    assert checkpoint_bytes(snapshot.parent) is None, "a folder without weights"


def test_the_prompt_fits_every_context(monkeypatch: pytest.MonkeyPatch) -> None:
    set_length(monkeypatch, prompt=512, new=24)
    models = [tiny_model("gpt2", n_positions=2048), tiny_model("bloom")]
    names = ["one", "two", "three"]
    assert check_speed(models, names[:2]) == 512
    assert check_speed(models[1:], names[:1]) == 512, "a model without an end"
    assert check_speed([*models, tiny_model("llama")], names) == 40
    set_length(monkeypatch, prompt=512, new=64)
    with pytest.raises(UserError, match="writing 64 tokens after a prompt, and a model's context has 64"):
        check_speed([*models, tiny_model("llama")], names)


def test_models_that_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny_model("gpt2"), tiny_model("llama")
    recurrent = tiny_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY)
    with pytest.raises(UserError, match=r"model 2 \(mamba\), of type 'mamba', keeps no keys and values"):
        measure_speed([model, recurrent], [1, 1], 2)
    with monkeypatch.context() as patch:
        forward = other.forward

        def forgetful(past_key_values: Any = None, use_cache: bool = True, **named: Any) -> Any:
            return forward(**named, use_cache=False)

        patch.setattr(other, "forward", forgetful)
        with pytest.raises(UserError, match=r"model 2 \(llama\), of type 'llama', keeps no keys and values"):
            measure_speed([model, other], [1, 1], 2)

    def too_large(past_key_values: Any = None, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(other, "forward", too_large)
    with pytest.raises(
        UserError, match=r"too little memory for model 2 \(llama\) at a batch of 2 with 6 \+ 2"
    ):
        measure_speed([model, other], [1, 1], 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny_model("gpt2").cuda(), tiny_model("llama").cuda()]
    found = measure_speed(models, [1, 1], 2)
    assert found.models[1].cache_bytes_per_token == 2 * LAYERS * 2 * 8 * 4
    wide = tiny_model("gpt2", n_positions=1_000_000, vocab_size=VOCABULARY).cuda()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(500e6 / total)
    set_length(monkeypatch, prompt=65536, new=1)
    try:
        with pytest.raises(UserError, match=r"model 1 \(gpt2\) at a batch of 64 with 65536 \+ 1 tokens"):
            measure_speed([wide], [1], 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
