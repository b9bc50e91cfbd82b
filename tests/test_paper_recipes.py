"""The paper's recipes: every row is planned, and has the parameters, steps and tokens that the paper tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from inheritune import planning
from inheritune.config import Study
from inheritune.planning import Stage, plan
from inheritune.recipe_file import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
PAPER = RECIPES / "paper"

LLAMAS = {
    "openlm-research/open_llama_3b": (3200, 26, 32, 8640),
    "openlm-research/open_llama_7b": (4096, 32, 32, 11008),
    "meta-llama/Llama-2-7b-hf": (4096, 32, 32, 11008),
}
KNOWN = {
    name: LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=32_000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    for name, (hidden, layers, heads, inner) in LLAMAS.items()
}


def planned(name: str) -> dict[str, Stage]:
    study = load_recipe(PAPER / f"{name}.yaml", Study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "source_config", lambda source: KNOWN[source.pretrained])
        return {stage.name: stage for stage in plan(study, without_data=True).stages}


def gpt2(layers: int, hidden: int) -> int:
    """Parameters of a GPT-2 without biases: tied embedding of 50,304, 1,024 positions."""
    return layers * (12 * hidden**2 + 2 * hidden) + hidden + (50_304 + 1024) * hidden


def llama(layers: int, hidden: int, inner: int) -> int:
    return layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden + 2 * 32_000 * hidden


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "about", "tokens_per_step"),
    [
        ("gpt2-medium-openwebtext", 24, 1024, 355e6, 49_152),
        ("gpt2-large-openwebtext", 36, 1280, 774e6, 16_384),
        ("gpt2-xlarge-openwebtext", 48, 1600, 1.56e9, 16_384),
        ("gpt2-medium-fineweb-edu", 24, 1024, 355e6, 49_152),
        ("gpt2-large-32-fineweb-edu", 32, 1280, 695e6, 16_384),
    ],
)
def test_the_references(name: str, layers: int, hidden: int, about: float, tokens_per_step: int) -> None:
    reference = planned(name)["reference"]
    assert reference.layers == layers
    assert reference.parameters == gpt2(layers, hidden) == pytest.approx(about, rel=0.005)
    assert reference.steps == 100_000
    assert reference.tokens == 100_000 * tokens_per_step


MEDIUM = {  # row: layers, steps
    "random-16": (16, 100_000),
    "random-16-double": (16, 200_000),
    "inheritune, round 1": (12, 100_000),
    "inheritune, round 2": (14, 100_000),
    "inheritune, round 3": (16, 100_000),
    "stacking-round-1": (8, 100_000),
    "stacking-16": (16, 100_000),
    "hybrid-round-1": (8, 100_000),
    "hybrid-stacking-16": (16, 100_000),
    "distillation-16": (16, 50_000),
    "distilbert-16": (16, 50_000),
    "distilbert-12": (12, 50_000),
    "attention-layernorm-16": (16, 100_000),
    "mlp-layernorm-16": (16, 100_000),
    "attention-mlp-16": (16, 100_000),
    "inheritune-append, round 2": (14, 100_000),
}


def test_every_row_of_medium() -> None:
    stages = planned("gpt2-medium-openwebtext")
    for name, (layers, steps) in MEDIUM.items():
        stage = stages[name]
        assert (stage.layers, stage.steps) == (layers, steps), name
        assert stage.tokens == steps * 49_152, name
        assert stage.parameters == gpt2(layers, 1024), name
    assert stages["half-width"].parameters == gpt2(24, 512)
    # The teacher's forward pass is paid for, and its weights are held.
    assert stages["distillation-16"].flops > 0.5 * stages["random-16"].flops
    assert stages["distillation-16"].memory == stages["random-16"].memory + 4 * gpt2(24, 1024)


@pytest.mark.parametrize(
    ("name", "depth", "hidden"), [("gpt2-large-openwebtext", 36, 1280), ("gpt2-xlarge-openwebtext", 48, 1600)]
)
def test_every_row_of_the_larger_ones(name: str, depth: int, hidden: int) -> None:
    stages, small = planned(name), depth // 2
    rows = (f"random-{small}", "inheritune, round 1", f"stacking-{small}", f"hybrid-stacking-{small}")
    for row in (*rows, f"random-{small}-double"):
        assert stages[row].parameters == gpt2(small, hidden), row
        assert stages[row].tokens == (2 if row.endswith("double") else 1) * 100_000 * 16_384, row
    for row in ("stacking-round-1", "hybrid-round-1"):
        assert stages[row].layers == small // 2
    assert stages["half-width"].parameters == gpt2(depth, hidden // 2)


@pytest.mark.parametrize(
    ("name", "hidden"), [("gpt2-medium-fineweb-edu", 1024), ("gpt2-large-32-fineweb-edu", 1280)]
)
def test_fineweb_is_read_once_and_in_order(name: str, hidden: int) -> None:
    study, stages = load_recipe(PAPER / f"{name}.yaml", Study), planned(name)
    assert study.shared["data"]["order"] == "sequential"
    assert study.shared["training"]["optimizer"]["beta2"] == 0.999
    for row in ("random-16", "inheritune-16, round 1"):
        assert stages[row].parameters == gpt2(16, hidden)


def test_the_low_data_rows() -> None:
    stages = planned("openllama-3b")
    # The paper calls it "1.5B"; with both embeddings, which it inherits, it has 1.8.
    assert stages["layers-13"].parameters == llama(13, 3200, 8640) == 1_815_638_400
    for layers in (4, 6, 8, 10, 13, 16, 18, 20):
        assert stages[f"layers-{layers}"].parameters == llama(layers, 3200, 8640)
        assert stages[f"layers-{layers}"].steps == 64_000
        assert stages[f"layers-{layers}"].tokens == 64_000 * 131_072
    for epochs in (1, 2, 3, 4, 5, 10, 15, 20):
        assert stages[f"epochs-{epochs}"].tokens == pytest.approx(epochs * 1e9, rel=1e-4)
    assert stages["fresh-10"].epochs == pytest.approx(1, rel=1e-4)
    assert stages["fresh-50"].tokens == pytest.approx(50e9, rel=0.005)


@pytest.mark.parametrize("name", ["openllama-7b", "llama2-7b"])
def test_seven_layers_of_the_7b_models(name: str) -> None:
    stages = planned(name)
    assert stages["layers-7"].parameters == llama(7, 4096, 11008) == pytest.approx(1.6e9, rel=0.06)
    assert stages["fresh-50"].tokens == pytest.approx(50e9, rel=0.005)


def test_all_recipes_are_tested() -> None:
    assert {path.stem for path in PAPER.glob("*.yaml")} == {
        "gpt2-medium-openwebtext",
        "gpt2-large-openwebtext",
        "gpt2-xlarge-openwebtext",
        "gpt2-medium-fineweb-edu",
        "gpt2-large-32-fineweb-edu",
        "openllama-3b",
        "openllama-7b",
        "llama2-7b",
    }


def test_the_study_for_a_cpu_has_ten_tokens_for_each_parameter_of_the_reference() -> None:
    study = load_recipe(RECIPES / "study-cpu.yaml", Study)
    stages = {stage.name: stage for stage in plan(study, without_data=True).stages}
    assert stages["reference"].tokens > 10 * stages["reference"].parameters
    both = stages["reference"].flops + stages["inheritune-6, round 1"].flops
    assert stages["random-6-flops"].flops == pytest.approx(both, rel=1e-3)
    assert stages["reference-continued"].flops == pytest.approx(
        stages["inheritune-6, round 1"].flops, rel=1e-3
    )
