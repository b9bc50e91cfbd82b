"""Reading checkpoints: what may be left over in them, what survives, and what counts as no tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from inheritune import UserError, inherit
from inheritune.config import Pretrained
from inheritune.initialization.narrow import half_width
from inheritune.initialization.select import select
from inheritune.models.load import load_config, load_model, load_tokenizer
from inheritune.models.size import on_meta
from tiny_checkpoints import INDEX, WEIGHTS, change_json, change_weights, write_checkpoint, write_tokenizer
from tiny_models import LAYERS, tiny_model, tokens


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(), use_cache=False).logits


def with_masks(prefix: str, attention: str, layers: int = LAYERS) -> Callable[[dict[str, Tensor]], None]:
    """Causal masks as buffers, which older versions of transformers saved with the weights."""

    def change(weights: dict[str, Tensor]) -> None:
        for layer in range(layers):
            mask = torch.ones(64, 64, dtype=torch.bool).tril()[None, None]
            weights[f"{prefix}{layer}.{attention}.bias"] = mask
            weights[f"{prefix}{layer}.{attention}.masked_bias"] = torch.tensor(-1e9)

    return change


def without_prefix(weights: dict[str, Tensor]) -> None:
    """As the hub has GPT-2: the base model's names."""
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)


def frequencies(weights: dict[str, Tensor]) -> None:
    for layer in range(LAYERS):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def tied_head(weights: dict[str, Tensor]) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def further_tokens(names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        weights[f"{names}eh_proj.weight"] = torch.ones(32, 64)
        weights[f"{names}self_attn.q_proj.weight"] = torch.ones(32, 32)

    return change


HARMLESS: dict[str, tuple[str, dict[str, Any], list[Callable[[dict[str, Tensor]], None]], bool]] = {
    "masks of GPT-2, with the hub's names": ("gpt2", {}, [without_prefix, with_masks("h.", "attn")], False),
    "masks of GPT-2": ("gpt2", {}, [with_masks("transformer.h.", "attn")], False),
    "masks of GPT-Neo": ("gpt_neo", {}, [with_masks("transformer.h.", "attn.attention")], False),
    "masks of GPT-NeoX": ("gpt_neox", {}, [with_masks("gpt_neox.layers.", "attention")], False),
    "frequencies of every layer": (
        "llama",
        {},
        [frequencies],
        False,
    ),
    "a head that is the embedding": ("llama", {"tie_word_embeddings": True}, [tied_head], False),
    "a block for the token after the next": (
        "llama",
        {"num_nextn_predict_layers": 1},
        [further_tokens("model.layers.4.")],
        True,
    ),
    "a head for the token after the next": ("qwen3", {}, [further_tokens("mtp.layers.0.")], True),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
@pytest.mark.parametrize("layers", [2, LAYERS])
def test_what_may_be_left_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str, layers: int
) -> None:
    model_type, fields, changes, told = HARMLESS[case]
    folder = write_checkpoint(tmp_path / "model", model_type, **fields)
    before = logits(inherit(folder, layers))
    caplog.clear()
    for change in changes:
        change_weights(folder / WEIGHTS, change)
    assert torch.equal(logits(inherit(folder, layers)), before)
    assert ("are left out" in caplog.text) == told


def test_a_block_for_the_token_after_the_next_is_only_as_many_as_the_configuration_says(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path / "model", num_nextn_predict_layers=1)
    change_weights(folder / WEIGHTS, further_tokens("model.layers.5."))
    with pytest.raises(
        UserError, match=r"has weights of layer 5, but its config\.json says that it has 4 layers"
    ):
        inherit(folder, 2)


@pytest.mark.parametrize(
    ("model_type", "kind", "sight", "fields"),
    [
        ("gemma3", "gemma3_text", "siglip_vision_model", {"mm_tokens_per_image": 4}),
        ("llava", "llama", "clip_vision_model", {}),
        ("mistral3", "mistral", "pixtral", {}),
    ],
)
@pytest.mark.parametrize("layout", ["the hub's", "the model's own"])
def test_the_language_model_of_a_multimodal_one_is_the_same_function(
    tmp_path: Path, model_type: str, kind: str, sight: str, fields: dict[str, Any], layout: str
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"model_type": sight, **sizes, "image_size": 28, "patch_size": 14}
    text = {**tiny_model(kind).config.to_dict(), "model_type": kind}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **fields)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path / "whole", save_original_format=layout == "the hub's")
    names = load_file(tmp_path / "whole" / WEIGHTS).keys()
    assert any(name.startswith("language_model.model.layers.") for name in names) == (layout == "the hub's")
    assert torch.equal(logits(inherit(tmp_path / "whole", LAYERS)), logits(whole))

    small = inherit(tmp_path / "whole", 2)
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert again.config.model_type == kind
    assert torch.equal(logits(again), logits(small))
    assert all(name.startswith(("model.", "lm_head.")) for name in load_file(tmp_path / "small" / WEIGHTS))


def test_a_model_of_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is read as a folder is: weights, tokenizer, and what is wrong with them."""
    cache = tmp_path / "cache" / "models--some-lab--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = write_checkpoint(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="there is no folder some-lab/other, and it cannot be loaded"):
        load_config("some-lab/other")
    assert torch.equal(logits(inherit("some-lab/tiny", 2)), logits(inherit(snapshot, 2)))
    tokenizer = load_tokenizer("some-lab/tiny")
    assert tokenizer is not None and tokenizer.get_vocab() == write_tokenizer(tmp_path / "t").get_vocab()
    assert load_tokenizer("some-lab/other") is None
    change_weights(snapshot / WEIGHTS, lambda weights: weights.update({"model.layers.0.x": torch.ones(1)}))
    with pytest.raises(UserError, match=r"does not use: model\.layers\.0\.x"):
        inherit("some-lab/tiny", 2)
    (snapshot / WEIGHTS).write_bytes((snapshot / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot load the model some-lab/tiny"):
        inherit("some-lab/tiny", 2)
    (snapshot / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer of some-lab/tiny cannot be read"):
        load_tokenizer("some-lab/tiny")
    (snapshot / WEIGHTS).unlink()
    with pytest.raises(
        UserError, match="some-lab/tiny has no safetensors on the hub, or they cannot be reached"
    ):
        inherit("some-lab/tiny", 2)


@pytest.mark.parametrize("how", ["from a folder", "in memory", "some layers", "half the width"])
def test_settings_of_generation_survive(tmp_path: Path, how: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    make: dict[str, Callable[[], Any]] = {
        "from a folder": lambda: inherit(folder, 2),
        "in memory": lambda: inherit(load_model(folder), 2),
        "some layers": lambda: select(folder, [0, 2]),
        "half the width": lambda: half_width(folder),
    }
    make[how]().save_pretrained(tmp_path / "small")
    saved = json.loads((tmp_path / "small" / "generation_config.json").read_text())
    assert {key: saved.get(key) for key in settings} == settings


@pytest.mark.parametrize("cut", [lambda m: inherit(m, 2), lambda m: select(m, [0, 2]), half_width])
def test_a_cut_reads_its_configuration_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: Callable[[Any], Any]
) -> None:
    model = Pretrained(write_checkpoint(tmp_path / "model"))
    read, names = AutoConfig.from_pretrained, []

    def counted(**how: Any) -> Any:
        names.append(how["pretrained_model_name_or_path"])
        return read(**how)

    monkeypatch.setattr(AutoConfig, "from_pretrained", counted)
    cut(model)
    assert names == [str(model.name)]


def test_settings_of_generation_that_cannot_be_saved_do_not_spoil_the_model(tmp_path: Path) -> None:
    """Sampling settings without `do_sample`, as of LLaMA 2, which some versions of transformers refuse to save."""
    folder = write_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    inherit(folder, 2).save_pretrained(tmp_path / "small")
    assert (tmp_path / "small" / "generation_config.json").is_file()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path, model_type: str) -> None:
    """transformers makes one of some architectures that knows special tokens only."""
    tiny_model(model_type).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) is None


def test_a_tokenizer_without_tokens_is_not_none(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UserError, match=r"has no tokens: there is tokenizer_config\.json, but"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_with_code_of_its_own_needs_leave(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "model" / "vocab.json")
    change_json(
        tmp_path / "model" / "tokenizer_config.json",
        tokenizer_class="MineTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]},
    )
    assert load_tokenizer(tmp_path / "model") is None
    assert "it needs code that comes with it (--trust-remote-code)" in caplog.text


def test_of_a_file_and_an_index_the_file_is_read(tmp_path: Path) -> None:
    """So does transformers; an index that is left from before does no harm."""
    folder = write_checkpoint(tmp_path / "model")
    before = logits(inherit(folder, 2))
    (folder / INDEX).write_text("{}")
    assert torch.equal(logits(inherit(folder, 2)), before)


def test_weights_under_a_name_of_their_own(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    before = logits(inherit(folder, 2))
    shutil.move(folder / WEIGHTS, folder / "mine.safetensors")
    change_json(folder / "config.json", transformers_weights="mine.safetensors")
    assert torch.equal(logits(inherit(folder, 2)), before)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_the_type_of_the_weights_is_the_checkpoints(tmp_path: Path, model_type: str) -> None:
    tiny_model(model_type).to(torch.bfloat16).save_pretrained(tmp_path)
    assert inherit(tmp_path, 2).dtype == torch.bfloat16
    change_json(tmp_path / "config.json", dtype=None)  # then the file says it
    config = load_config(tmp_path)
    before = config.to_dict()
    assert {p.dtype for p in inherit(tmp_path, 2).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(tmp_path, config=config, dtype="auto").parameters()} == {
        torch.bfloat16
    }
    on_meta(config)
    assert config.to_dict() == before


def test_fields_that_follow_from_the_number_of_layers(tmp_path: Path) -> None:
    """Mamba's `layer_types` is no field that can be set."""
    tiny_model("mamba", vocab_size=97, hidden_size=32, num_hidden_layers=4, state_size=4).save_pretrained(
        tmp_path
    )
    assert load_config(tmp_path).num_hidden_layers == 4
