"""The check of a cut: what it lets through, what it refuses, and that nothing is left behind or changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from inheritune import UserError, inherit
from inheritune.cut import Parts, cut_to_folder
from inheritune.initialization import append, select
from inheritune.models import layer_fields
from inheritune.models.architecture import blocks
from inheritune.models.blockwise import Blockwise
from inheritune.models.exactness import check_exact
from inheritune.models.load import load_model
from inheritune.models.presets import architecture_config, from_config
from tiny_models import shaken, tiny_model, tokens
from tiny_types import tiny_of_type


def paper_model(layers: int = 8) -> PreTrainedModel:
    """The paper's GPT-2, with attention logits divided by the number of the layer, in small."""
    fields = {"preset": "gpt2-small", "n_layer": layers, "n_embd": 32, "n_head": 4, "vocab_size": 97}
    return shaken(from_config(architecture_config({**fields, "n_positions": 64}), seed=0)).eval()


@torch.no_grad()
def by_hand(reference: PreTrainedModel, layers: Sequence[int]) -> Tensor:
    """Logits of GPT-2 or Llama with these blocks in this order, run one by one outside of the model."""
    inputs, base = tokens(), reference.base_model
    if reference.config.model_type == "gpt2":
        hidden = base.wte(inputs) + base.wpe(torch.arange(inputs.shape[1]))
        for layer in layers:
            hidden = _first(base.h[layer](hidden))
        return reference.lm_head(base.ln_f(hidden))
    hidden, places = base.embed_tokens(inputs), torch.arange(inputs.shape[1])[None]
    cosines = base.rotary_emb(hidden, places)
    for layer in layers:
        hidden = _first(base.layers[layer](hidden, position_embeddings=cosines, position_ids=places))
    return reference.lm_head(base.norm(hidden))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("layers", [(0, 1), (1, 3), (3, 1)])
@torch.no_grad()
def test_numbers_that_are_not_finite_are_named(number: float, layers: tuple[int, ...]) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight[3, 4] = number
    sentence = r"^model.layers.1.mlp.up_proj.weight of this 'llama' model has numbers that are not finite \("
    with pytest.raises(UserError, match=sentence):
        select(model, layers)
    with pytest.raises(UserError, match=sentence):
        Blockwise(model)
    select(model, (0, 2))  # which does without


ORDERS = [(0, 2, 4, 6), (4, 5, 6, 7), (3, 1, 1), (0, 1, 0, 1), (7,)]


@pytest.mark.parametrize("layers", ORDERS)
@pytest.mark.parametrize("make", [paper_model, lambda: tiny_model("llama", num_hidden_layers=8)])
def test_blocks_compute_at_new_places_what_they_did(
    make: Callable[[], PreTrainedModel], layers: tuple[int, ...], tmp_path: Path
) -> None:
    reference = make()
    reference.save_pretrained(tmp_path / "large")
    for source in (reference, tmp_path / "large"):
        small = select(source, layers)
        small.save_pretrained(tmp_path / "small")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
        for model in (small, again):
            with torch.no_grad():
                logits = model(tokens(), use_cache=False).logits
            torch.testing.assert_close(logits, by_hand(reference, layers), rtol=1e-5, atol=1e-5)


def test_scaling_by_layer_is_folded_into_the_queries_and_nothing_else() -> None:
    reference, small = paper_model(), select(paper_model(), (0, 2, 4, 6))
    for place, (block, old) in enumerate(zip(small.transformer.h, reference.transformer.h[::2], strict=True)):
        expected = old.attn.c_attn.weight.clone()
        expected[:, :32] *= (place + 1) / (2 * place + 1)
        torch.testing.assert_close(block.attn.c_attn.weight, expected)
        assert not block.attn.c_attn.bias.any() and not block.attn.c_attn.bias.requires_grad
        assert torch.equal(block.attn.c_proj.weight, old.attn.c_proj.weight)


def test_biases_of_queries_are_scaled_as_well() -> None:
    reference = shaken(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True))
    small = select(reference, (1, 3))
    old, new = reference.transformer.h[3].attn.c_attn.bias, small.transformer.h[1].attn.c_attn.bias
    torch.testing.assert_close(new[:32], old[:32] / 2)
    assert torch.equal(new[32:], old[32:])


def test_first_layers_of_the_papers_model_keep_every_bit() -> None:
    reference = paper_model()
    weights = reference.state_dict()
    for small in (inherit(reference, 4), select(reference, (0, 1, 2, 3))):
        assert all(torch.equal(value, weights[name]) for name, value in small.state_dict().items())


def test_diffllama_is_mended_where_that_is_possible() -> None:
    reference = tiny_of_type("diffllama")
    assert select(reference, (1, 3)).config.num_hidden_layers == 2
    with torch.no_grad():  # exp(q k) is next to nothing, and at a later place it would have to be less
        for block in blocks(reference):
            block.self_attn.lambda_q1.fill_(-8.0)
            block.self_attn.lambda_k1.fill_(8.0)
    with pytest.raises(UserError, match="layers 0, 0 of this 'diffllama' model that computes what they do"):
        select(reference, (0, 0))


def wrong_weight(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.01)


def wrong_norm(model: PreTrainedModel) -> None:
    model.model.norm.weight.data.add_(0.5)


def wrong_order(model: PreTrainedModel) -> None:
    model.model.layers[0], model.model.layers[1] = model.model.layers[1], model.model.layers[0]


def wrong_scale(model: PreTrainedModel) -> None:
    model.model.layers[0].self_attn.scaling *= 1.01


def no_number(model: PreTrainedModel) -> None:
    model.model.norm.weight.data.fill_(float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (wrong_weight, "hidden state after layer 2 would be off by"),
        (wrong_norm, "logits would be off by"),
        (wrong_order, "hidden state after layer 1 would be off by"),
        (wrong_scale, "hidden state after layer 1 would be off by"),
        (no_number, "logits would be off by nan"),
    ],
)
def test_what_computes_something_else_is_refused(
    spoil: Callable[[PreTrainedModel], None], where: str, dtype: torch.dtype
) -> None:
    reference = shaken(tiny_model("llama")).to(dtype)
    small = inherit(reference, 2)
    check_exact(small, reference, (0, 1))
    spoil(small)
    with pytest.raises(
        UserError, match=f"layers 0, 1 of this 'llama' model that computes what they do: its {where}"
    ):
        check_exact(small, reference, (0, 1))


def test_another_window_shows_though_the_tokens_are_few() -> None:
    reference = tiny_model("gemma2", sliding_window=4096)
    small = inherit(reference, 2)
    small.config.layer_types = ["full_attention", "full_attention"]
    with pytest.raises(UserError, match="hidden state after layer 1 would be off"):
        check_exact(small, reference, (0, 1))
    neo = tiny_model("gpt_neo", window_size=1000)
    reordered = inherit(neo, 2)
    with pytest.raises(
        UserError, match=r"layer 1 would look at tokens in another way at its new place 0|off by"
    ):
        check_exact(reordered, neo, (1, 0))


def test_experts_summed_in_another_order_are_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tiny_model("mixtral")
    small = inherit(reference, 2)
    with torch.no_grad():
        small.model.norm.weight.mul_(1 + 3e-6)
    check_exact(small, reference, (0, 1))


def test_neither_model_is_changed() -> None:
    reference, small = tiny_model("gemma2").train(), inherit(tiny_model("gemma2"), 2)
    reference.model.layers[1].eval()
    before = [
        (m.config.to_dict(), [x.training for x in m.modules()], [sorted(vars(b)) for b in blocks(m)])
        for m in (reference, small)
    ]
    state = torch.random.get_rng_state()
    check_exact(small, reference, (0, 1))
    after = [
        (m.config.to_dict(), [x.training for x in m.modules()], [sorted(vars(b)) for b in blocks(m)])
        for m in (reference, small)
    ]
    assert after == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all("forward" not in vars(block) for block in blocks(reference))


def test_making_a_cut_takes_no_random_numbers(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    inherit(tmp_path, 2)
    select(tmp_path, (2, 1))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_short_dtypes_are_cut_exactly(dtype: str, tmp_path: Path) -> None:
    reference = shaken(tiny_model("mixtral")).to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "large")
    cut_to_folder(str(tmp_path / "large"), Parts(2), tmp_path / "small", dtype=dtype)
    small = load_model(tmp_path / "small", dtype="auto")
    assert small.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    weights = reference.state_dict()
    assert all(
        torch.equal(value.to(torch.bfloat16), weights[name]) for name, value in small.state_dict().items()
    )


def test_depth_in_a_factor_is_mended_and_found_if_it_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_of_type("minicpm3").save_pretrained(tmp_path / "large")
    cut_to_folder(str(tmp_path / "large"), Parts(1), tmp_path / "small")
    kept = json.loads((tmp_path / "small/config.json").read_text())["scale_depth"]
    assert kept == pytest.approx(1.4 / 2)
    monkeypatch.setattr(layer_fields, "RULES", ())
    with pytest.raises(UserError, match="hidden state after layer 1 would be off by 0"):
        cut_to_folder(str(tmp_path / "large"), Parts(1), tmp_path / "wrong")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]


def test_what_reads_back_as_another_model_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    save = PreTrainedModel.save_pretrained

    def forgetful(self: PreTrainedModel, folder: Path) -> None:
        save(self, folder)
        values = json.loads((folder / "config.json").read_text())
        values["rope_parameters"]["rope_theta"] = 100.0
        (folder / "config.json").write_text(json.dumps(values))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", forgetful)
    with pytest.raises(UserError, match="hidden state after layer 1 would be off"):
        cut_to_folder(str(tmp_path / "large"), Parts(2), tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_only_the_chosen_blocks_are_read(tmp_path: Path) -> None:
    reference = tiny_model("llama")
    reference.save_pretrained(tmp_path)
    sparse = load_model(tmp_path, layers=(1, 3))
    assert type(sparse) is type(reference)
    expected = {name for name in reference.state_dict() if ".0." not in name and ".2." not in name}
    assert set(sparse.state_dict()) == expected
    whole = load_model(tmp_path, layers=range(4)).state_dict()
    assert all(torch.equal(whole[name], value) for name, value in reference.state_dict().items())


def test_growing_is_checked(tmp_path: Path) -> None:
    reference = shaken(tiny_model("llama"))
    small = shaken(inherit(reference, 2))
    grown = append(small, reference, 3)
    with torch.no_grad():
        hidden = small.model(tokens(), output_hidden_states=True).hidden_states[1]
        assert torch.equal(grown.model(tokens(), output_hidden_states=True).hidden_states[1], hidden)
    other = tiny_model("llama", intermediate_size=32, num_hidden_layers=2)
    with pytest.raises(
        UserError, match="cannot grow this 'llama' model with layers of llama: it was not cut from it"
    ):
        append(other, reference, 3)
    positions = copy.deepcopy(small.config)
    positions.rope_parameters = {"rope_type": "default", "rope_theta": 100.0}
    turned = AutoModelForCausalLM.from_config(positions)
    with pytest.raises(UserError, match="layers 0, 1 of this 'llama' model that computes what they do"):
        append(turned, reference, 3)


def test_blocks_that_cannot_be_run_apart_are_refused_in_a_sentence() -> None:
    model = tiny_model("llama")

    class Numbered(torch.nn.Module):
        def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
            raise KeyError("shared")

    small = inherit(model, 2)
    model.model.layers[1] = Numbered()
    with pytest.raises(
        UserError, match=r"cannot check a model of layers 0, 1 .* its blocks cannot be run apart"
    ):
        check_exact(small, model, (0, 1))
