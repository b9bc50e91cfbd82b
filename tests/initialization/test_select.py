"""Any choice of layers, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import tiny_data
from inheritune.config import Part, TrainRecipe
from inheritune.cut import inherit
from inheritune.initialization import select
from inheritune.models.architecture import blocks_name, choose_layers
from inheritune.models.presets import architecture_config, from_config
from inheritune.recipe_file import parse_recipe
from inheritune.single_model import train_model
from inheritune.training import metrics
from tiny_models import ARCHITECTURES, tiny_model, tokens
from tiny_recipes import training


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_blocks_come_from_the_layers_named(model_type: str) -> None:
    reference = tiny_model(model_type)
    weights, prefix = reference.state_dict(), blocks_name(reference)
    layers = (3, 1, 1)
    for name, value in select(reference, layers).state_dict().items():
        source = name
        for place, layer in enumerate(layers):
            if name.startswith(f"{prefix}.{place}."):
                source = name.replace(f"{prefix}.{place}.", f"{prefix}.{layer}.", 1)
        assert torch.equal(value, weights[source]), name


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_first_layers_are_what_inherit_takes(model_type: str) -> None:
    reference = tiny_model(model_type)
    with torch.no_grad():
        assert torch.equal(
            select(reference, range(2))(tokens()).logits, inherit(reference, 2)(tokens()).logits
        )


def test_random_blocks_keep_only_what_is_around_them() -> None:
    reference, around = tiny_model("gpt2"), ("embeddings", "final_norm", "head")
    weights, small = reference.state_dict(), select(reference, (0, 1), parts=around, seed=5).state_dict()
    for name, value in small.items():
        if "h." not in name:
            assert torch.equal(value, weights[name]), name
        elif name.endswith("c_fc.weight"):
            assert not torch.equal(value, weights[name]), name
    again = select(reference, (0, 1), parts=around, seed=5).state_dict()
    assert all(torch.equal(again[name], value) for name, value in small.items())


MODULES = {
    "gpt2": {"attention": (".attn.",), "mlp": (".mlp.",), "layernorm": (".ln_1.", ".ln_2.")},
    "llama": {
        "attention": (".self_attn.",),
        "mlp": (".mlp.",),
        "layernorm": (".input_layernorm.", ".post_attention_layernorm."),
    },
    "gpt_neox": {
        "attention": (".attention.",),
        "mlp": (".mlp.",),
        "layernorm": (".input_layernorm.", ".post_attention_layernorm."),
    },
}


@pytest.mark.parametrize("parts", [("attention", "layernorm"), ("mlp", "layernorm"), ("attention", "mlp")])
@pytest.mark.parametrize("model_type", sorted(MODULES))
def test_parts_that_are_not_taken_stay_random(model_type: str, parts: tuple[Part, ...]) -> None:
    reference, layers = _shaken(model_type), (2, 0)
    weights, prefix = reference.state_dict(), blocks_name(reference)
    random = from_config(choose_layers(reference.config, layers), seed=5).state_dict()
    taken = 0
    for name, value in select(reference, layers, parts=parts, seed=5).state_dict().items():
        place = int(name.removeprefix(f"{prefix}.")[0]) if name.startswith(f"{prefix}.") else 0
        source = name.replace(f"{prefix}.{place}.", f"{prefix}.{layers[place]}.", 1)
        if any(module in name for part in parts for module in MODULES[model_type][part]):
            assert torch.equal(value, weights[source]), name
            assert not torch.equal(value, random[name]), name
            taken += 1
        else:
            assert torch.equal(value, random[name]), name
            assert not torch.equal(value, weights[source]), name
    assert 0 < taken < len(weights)


@pytest.mark.parametrize("part", ["embeddings", "head"])
def test_either_name_of_a_tied_tensor_takes_it(part: Part) -> None:
    reference = _shaken("gpt2")
    small = select(reference, (0,), parts=(part,), seed=5)
    assert small.lm_head.weight is small.transformer.wte.weight
    assert torch.equal(small.lm_head.weight, reference.lm_head.weight)
    took_positions = torch.equal(small.transformer.wpe.weight, reference.transformer.wpe.weight)
    assert took_positions == (part == "embeddings")
    assert not torch.equal(small.transformer.ln_f.weight, reference.transformer.ln_f.weight)


def test_an_untied_head_is_apart_from_the_embeddings() -> None:
    reference = _shaken("llama")
    small = select(reference, (0,), parts=("head",), seed=5)
    assert torch.equal(small.lm_head.weight, reference.lm_head.weight)
    assert not torch.equal(small.model.embed_tokens.weight, reference.model.embed_tokens.weight)


def test_biases_that_were_frozen_stay_zero_and_frozen() -> None:
    fields = {"preset": "gpt2-small", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 11}
    reference = from_config(architecture_config(fields), seed=0)
    for parts in (("attention", "layernorm"), ("embeddings",)):
        small = select(reference, (1, 0, 1), parts=parts)
        biases = [value for name, value in small.named_parameters() if name.endswith(".bias")]
        assert len(biases) == 3 * 6 + 1
        assert all(not value.requires_grad and not value.any() for value in biases)


def test_a_folder_gives_what_the_model_in_memory_does(tmp_path: Path) -> None:
    """Fewer blocks are read from a folder than there are; which ones must not matter."""
    reference = _shaken("llama")
    reference.save_pretrained(tmp_path)
    for layers in ((1, 0, 1), (3, 1)):
        expected = select(reference, layers, parts=("attention", "head"), seed=3).state_dict()
        found = select(tmp_path, layers, parts=("attention", "head"), seed=3).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_parts_that_are_none() -> None:
    with pytest.raises(
        ValueError, match="no parts are named; choose one or more of attention, mlp, layernorm"
    ):
        select(tiny_model("gpt2"), (0,), parts=())
    with pytest.raises(ValueError, match="unknown part 'attn'; choose one or more of attention"):
        select(tiny_model("gpt2"), (0,), parts=("mlp", "attn"))  # type: ignore[arg-type]


def _shaken(model_type: str) -> PreTrainedModel:
    """A tiny model whose norms and biases are not what random weights give them."""
    model = tiny_model(model_type)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="cannot take layer 4 of a model with 4: its layers are 0 to 3"):
        select(tiny_model("gpt2"), (0, 4))
    with pytest.raises(ValueError, match="cannot take an empty list of layers"):
        select(tiny_model("gpt2"), ())


def test_a_recipe_can_train_part_of_a_model(tmp_path: Path) -> None:
    data = tiny_data.write_shards(tmp_path / "data")
    tiny_model("llama").save_pretrained(tmp_path / "large")
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(tmp_path / "large")},
        "initialization": {"layers": [2, 3]},
        "training": training(steps=3),
    }
    train_model(parse_recipe(values, TrainRecipe), tmp_path / "run")
    assert metrics.read(tmp_path / "run/metrics.jsonl")
    wrong = {**values, "initialization": {"layers": [7]}}
    with pytest.raises(ValueError, match="layer 7"):
        train_model(parse_recipe(wrong, TrainRecipe), tmp_path / "wrong")
    scratch = {**values, "model": {"architecture": {"model_type": "gpt2"}}}
    with pytest.raises(ValueError, match="of a `pretrained` model, and `model` names none"):
        parse_recipe(scratch, TrainRecipe)
