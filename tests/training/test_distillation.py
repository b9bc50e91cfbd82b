"""Distillation: the loss and its gradient, and a teacher that stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_data
from inheritune.algorithm import run
from inheritune.config import Distillation, TrainRecipe
from inheritune.models.load import save_model
from inheritune.recipe_file import parse_recipe
from inheritune.single_model import train_model
from inheritune.training import distillation, final_model
from inheritune.training.distillation import DistillationLoss
from tiny_models import VOCABULARY, tiny_model, tokens
from tiny_recipes import recipe, training

NAMES = (
    "gpt2",
    "llama",
    "gpt_neox",
    "phi",
    "gemma2",
)  # tied; grouped queries; untied; head with bias; soft-capped


def formula(student: np.ndarray, teacher: np.ndarray, targets: np.ndarray, alpha: float, t: float) -> float:
    """alpha * t^2 * KL(teacher || student at temperature t) + (1 - alpha) * cross entropy, in float64."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        shifted = x - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    p, log_q = np.exp(log_softmax(teacher / t)), log_softmax(student / t)
    divergence = (p * (log_softmax(teacher / t) - log_q)).sum(-1)
    entropy = -log_softmax(student)[np.arange(len(targets)), targets]
    return float((alpha * t**2 * divergence + (1 - alpha) * entropy).mean())


def logits(model: Any, inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).double().numpy()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_formula(name: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(distillation.CHUNK, "cpu", 7)  # so that the last chunk is a shorter one
    student, teacher = tiny_model(name).eval(), tiny_model(name, seed=1)
    inputs, targets = tokens(2, 9), tokens(2, 9, seed=3)
    loss = DistillationLoss(student, teacher, Distillation(alpha=0.6, temperature=temperature)).eval()
    expected = formula(
        logits(student, inputs), logits(teacher, inputs), targets.flatten().numpy(), 0.6, temperature
    )
    assert loss(inputs, targets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_formula_in_float64(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(distillation.CHUNK, "cpu", 7)
    student, teacher = tiny_model(name).double().eval(), tiny_model(name, seed=1).double().eval()
    inputs, targets = tokens(2, 9), tokens(2, 9, seed=3)

    ours = DistillationLoss(student, teacher, Distillation(alpha=0.3, temperature=temperature)).eval()
    (3 * ours(inputs, targets)).backward()
    gradients = {key: p.grad.clone() for key, p in student.named_parameters() if p.grad is not None}
    assert any("head" in key or "embed" in key or "wte" in key for key in gradients)
    assert all(p.grad is None for p in teacher.parameters())

    student.zero_grad()
    scores = student(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
    with torch.no_grad():
        taught = teacher(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
    p = (taught / temperature).softmax(-1)
    divergence = (p * (p.log() - (scores / temperature).log_softmax(-1))).sum(-1)
    entropy = -scores.log_softmax(-1).gather(1, targets.flatten()[:, None])[:, 0]
    (3 * (0.3 * temperature**2 * divergence + 0.7 * entropy).mean()).backward()
    tolerance = 1e-5 if name == "gemma2" else 1e-6  # the loss itself is float32
    for key, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=tolerance, msg=key)


def test_the_teacher_stays_in_evaluation_mode_and_frozen() -> None:
    student, teacher = tiny_model("gpt2"), tiny_model("gpt2", seed=1, resid_pdrop=0.5, embd_pdrop=0.5)
    loss = DistillationLoss(student, teacher, Distillation()).train()
    assert student.training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    student.config.resid_pdrop = 0.0
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs, targets = tokens(2, 8), tokens(2, 8, seed=1)
    assert loss(inputs, targets).item() == loss(inputs, targets).item()  # no dropout in the teacher


def test_flops_count_the_teachers_forward_pass() -> None:
    student, teacher = tiny_model("llama"), tiny_model("llama", seed=1)
    loss = DistillationLoss(student, teacher, Distillation())
    alone = distillation.NextTokenLoss(student).flops_per_token(32)
    assert loss.flops_per_token(32) == pytest.approx(alone * 4 / 3)


def test_a_teacher_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(
        ValueError, match=f"the teacher predicts {VOCABULARY + 3} tokens and the student {VOCABULARY}"
    ):
        DistillationLoss(tiny_model("gpt2"), tiny_model("gpt2", vocab_size=VOCABULARY + 3), Distillation())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("data"))


def test_a_recipe_distils_and_leaves_no_teacher_in_its_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_model, "_remove_checkpoints", lambda directory: None)  # to look at them
    teacher = tiny_model("llama", num_hidden_layers=4, max_position_embeddings=64)
    save_model(teacher, tmp_path / "teacher")
    values = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(tmp_path / "teacher")},
        "initialization": {"layers": "every 2"},
        "distillation": {},
        "training": training(),
    }
    losses = train_model(parse_recipe(values, TrainRecipe), tmp_path / "taught")
    plain = train_model(parse_recipe({**values, "distillation": None}, TrainRecipe), tmp_path / "plain")
    assert losses.mean != plain.mean
    outcome = json.loads((tmp_path / "taught" / "training.json").read_text())
    alone = json.loads((tmp_path / "plain" / "training.json").read_text())
    assert outcome["layers"] == 2
    assert outcome["flops"] > 1.3 * alone["flops"]
    checkpoints = list((tmp_path / "taught" / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    for folder in (*checkpoints, tmp_path / "taught" / "model"):
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        twin = tmp_path / "plain" / folder.relative_to(tmp_path / "taught")
        assert size == sum(file.stat().st_size for file in twin.rglob("*.safetensors"))


def test_inheriting_and_distilling_together(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"start_layers": 2, "grow": {"max_rounds": 1}}
    plain = run(recipe(data, **changes), tmp_path / "plain")
    taught = run(recipe(data, **changes, distillation={"temperature": 2.0}), tmp_path / "taught")
    assert plain.reference == taught.reference
    assert taught.rounds[0].loss != plain.rounds[0].loss
    assert taught.rounds[0].training_flops > 1.3 * plain.rounds[0].training_flops
