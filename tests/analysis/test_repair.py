"""Repair of a cut: linear maps in the place of the blocks that were dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.analysis.kept import CHOICE
from inheritune.analysis.repair import repair
from inheritune.analysis.sequences import Text, text_of
from inheritune.config import TrainRecipe
from inheritune.data.shards import open_split
from inheritune.initialization import select
from inheritune.models.architecture import blocks
from inheritune.models.blockwise import Blockwise
from inheritune.recipe_file import parse_recipe
from inheritune.train import train_model
from tiny_data import write_shards
from tiny_models import LAYERS, tiny_model
from tiny_recipes import training

KEPT = [0, 1, LAYERS - 1]
"""With one gap, behind block 1."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return text_of(open_split(write_shards(tmp_path_factory.mktemp("data")), "train"))


def lively(kind: str) -> PreTrainedModel:
    """A model whose blocks all matter."""
    model = tiny_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@torch.no_grad()
def distance(small: PreTrainedModel, model: PreTrainedModel, text: Text) -> float:
    """Mean square between what the last block is given in both."""
    inputs_bt = text.choose(8, 16, None, 1).inputs_nt

    def given(rows: Blockwise) -> torch.Tensor:
        entry = rows.enter(inputs_bt)
        hidden_btd = entry.hidden_btd
        for layer in range(rows.depth - 1):
            hidden_btd = entry.run(layer, hidden_btd)
        return hidden_btd

    return float((given(Blockwise(small)) - given(Blockwise(model))).square().mean())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "phi"])
def test_hidden_states_behind_a_gap_come_closer(kind: str, text: Text) -> None:
    model = lively(kind)
    small = select(model, KEPT)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    far = distance(small, model, text)
    assert repair(small, model, KEPT, text, 0) == [1]
    assert distance(small, model, text) < 0.9 * far
    changed = [name for name, value in small.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.rpartition(".")[0] for name in changed} <= {
        name for name, _ in small.named_modules() if ".1." in name
    }
    assert len({name.rpartition(".")[0] for name in changed}) == 1


def test_a_block_that_is_linear_is_replaced_exactly(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the dropped block only adds what its predecessor wrote once more, the map is two times the identity."""
    model = lively("llama")
    module = blocks(model)[2]
    first = {}
    blocks(model)[1].mlp.down_proj.register_forward_hook(lambda _m, _i, out: first.update(y=out))
    monkeypatch.setattr(module, "forward", lambda hidden_states, **_: hidden_states + first["y"])
    small, kept = select(model, [0, 1, *range(3, LAYERS)]), [0, 1, *range(3, LAYERS)]
    before = blocks(small)[1].mlp.down_proj.weight.clone()
    monkeypatch.setattr("inheritune.analysis.repair.RIDGE", 1e-9)
    assert repair(small, model, kept, text, 0) == [1]
    torch.testing.assert_close(blocks(small)[1].mlp.down_proj.weight, 2 * before, atol=1e-4, rtol=1e-4)


def test_nothing_is_changed_without_a_gap_or_where_a_norm_follows(text: Text) -> None:
    for kind, kept in (("llama", list(range(LAYERS))), ("gemma2", KEPT), ("llama", list(range(1, LAYERS)))):
        model = lively(kind)
        small = select(model, kept)
        before = {name: value.clone() for name, value in small.state_dict().items()}
        assert repair(small, model, kept, text, 0) == []
        assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_a_cut_without_the_last_blocks_comes_closer_to_what_they_return(text: Text) -> None:
    model, kept = lively("gpt2"), [0, 1]
    small = select(model, kept)
    assert repair(small, model, kept, text, 0) == [1]


def test_in_a_recipe(tmp_path: Path, text: Text) -> None:
    lively("llama").save_pretrained(tmp_path / "large")
    values = {
        "data": {"path": str(text.source), "window": 32},
        "model": {"pretrained": str(tmp_path / "large")},
        "training": training(steps=4),
    }
    losses = {}
    for name, repaired in (("plain", False), ("repaired", True), ("again", True)):
        initialization = {"layers": KEPT, "repair": repaired}
        recipe = parse_recipe({**values, "initialization": initialization}, TrainRecipe)
        losses[name] = train_model(recipe, tmp_path / name).mean
    assert losses["repaired"] == losses["again"] != losses["plain"]
    assert (tmp_path / "repaired" / CHOICE).exists()


@pytest.mark.parametrize(
    ("initialization", "sentence"),
    [
        ({"layers": "first 2", "repair": True, "stack_to": 4}, "`repair` cannot be combined with `stack_to`"),
        ({"layers": "first 2", "repair": True, "hidden": 16}, "`repair` cannot be combined with `hidden`"),
        ({"mlp": 16, "repair": True}, "`repair` belongs to `layers`"),
    ],
)
def test_what_cannot_be_repaired(initialization: dict[str, object], sentence: str) -> None:
    values = {"data": {"path": "x"}, "model": {"pretrained": "y"}, "initialization": initialization}
    with pytest.raises(UserError, match=sentence):
        parse_recipe(values, TrainRecipe)
