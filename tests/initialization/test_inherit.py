"""The cut, on every architecture: exact, tied, saved and read back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from inheritune import inherit
from inheritune.initialization import append
from inheritune.models.architecture import PER_LAYER_FIELDS, blocks, layer_count
from tiny_models import ARCHITECTURES, LAYERS, tiny_model, tokens

CUTS = (1, 2, 3, LAYERS)


def output_of_last_block(model: PreTrainedModel, count: int) -> torch.Tensor:
    """The hidden state after block `count`, before any norm: [batch, tokens, hidden]."""
    seen: list[torch.Tensor] = []

    def record(module: nn.Module, inputs: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[index, arg-type]

    handle = blocks(model)[count - 1].register_forward_hook(record)
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    handle.remove()
    return seen[0]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Path]:
    model = tiny_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("layers", CUTS)
def test_hidden_state_after_the_cut_is_the_references(
    saved: tuple[PreTrainedModel, Path], layers: int
) -> None:
    reference, folder = saved
    expected = output_of_last_block(reference, layers)
    for source in (reference, folder):
        small = inherit(source, layers)
        assert len(blocks(small)) == layer_count(small.config) == layers
        assert torch.equal(output_of_last_block(small, layers), expected)


def test_everything_but_the_later_blocks_is_inherited(saved: tuple[PreTrainedModel, Path]) -> None:
    reference, folder = saved
    all_weights = reference.state_dict()
    for source in (reference, folder):
        weights = inherit(source, 2).state_dict()
        for name, value in weights.items():
            assert torch.equal(value, all_weights[name]), name
        left_out = all_weights.keys() - weights.keys()
        assert left_out
        assert all(any(f".{i}." in name for i in range(2, LAYERS)) for name in left_out)


def test_tied_weights_stay_tied(saved: tuple[PreTrainedModel, Path]) -> None:
    reference, folder = saved
    tied = reference.get_input_embeddings().weight is reference.get_output_embeddings().weight
    for source in (reference, folder):
        small = inherit(source, 2)
        assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == tied


def test_per_layer_fields_are_cut(saved: tuple[PreTrainedModel, Path]) -> None:
    reference, folder = saved
    small = inherit(folder, 2)
    for field in PER_LAYER_FIELDS:
        values = getattr(reference.config, field, None)
        if values is not None:
            assert list(getattr(small.config, field)) == list(values)[:2]
            assert len(getattr(reference.config, field)) == LAYERS, (
                "the reference's configuration was changed"
            )


def test_saved_and_loaded_it_gives_the_same_logits(
    saved: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    small = inherit(saved[1], 3)
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(small(tokens()).logits, again(tokens()).logits)


def test_the_reference_is_not_changed_and_not_shared(saved: tuple[PreTrainedModel, Path]) -> None:
    reference, _ = saved
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    small = inherit(reference, 2)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1.0)
    for name, value in reference.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_append_keeps_what_was_trained_and_adds_the_references_next_blocks(
    saved: tuple[PreTrainedModel, Path],
) -> None:
    reference, folder = saved
    small = inherit(folder, 2)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.25)
    grown = append(small, folder, 4)
    assert layer_count(grown.config) == 4
    trained, original = small.state_dict(), reference.state_dict()
    for name, value in grown.state_dict().items():
        assert torch.equal(value, trained[name] if name in trained else original[name]), name
    with pytest.raises(ValueError, match="must become deeper"):
        append(small, folder, 2)


@pytest.mark.parametrize("layers", [0, -1, LAYERS + 1])
def test_layers_out_of_range(layers: int) -> None:
    with pytest.raises(
        ValueError, match=f"cannot keep {layers} layers of a model with {LAYERS}: choose 1 to 4"
    ):
        inherit(tiny_model("gpt2"), layers)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin only: pickle files can run code"):
        inherit(tmp_path, 2)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: model\.norm\.weight"):
        inherit(tmp_path, 2)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(ValueError, match=r"has the shape 32 x 64, but its configuration asks for 32 x 48"):
        inherit(tmp_path, 2)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        inherit(tmp_path / "nowhere", 2)
    with pytest.raises(ValueError, match=r"no config\.json"):
        inherit(tmp_path, 2)
    shutil.rmtree(tmp_path)


def test_an_unlisted_architecture_is_found_by_structure(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("smollm3")
    small = inherit(model, 2)
    assert torch.equal(output_of_last_block(small, 2), output_of_last_block(model, 2))
    assert "not in the table" in caplog.text


def test_a_model_without_one_list_of_blocks_is_refused() -> None:
    model = tiny_model("smollm3")
    model.model.second_tower = nn.ModuleList([nn.Linear(2, 2) for _ in range(LAYERS)])
    with pytest.raises(ValueError, match="2 module lists of 4 entries"):
        blocks(model)
