"""Schedule, optimizer, loss and step, each against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tiny_recipes
from inheritune.config import Optimizer, Training
from inheritune.runtime.hardware import choose_hardware
from inheritune.training.loss import NextTokenLoss, chunked_cross_entropy
from inheritune.training.micro_batch import TOKENS, sizes
from inheritune.training.optimizer import make_optimizer
from inheritune.training.schedule import learning_rate
from inheritune.training.step import NonFiniteError
from tiny_models import ARCHITECTURES, VOCABULARY, tiny_model, tokens
from tiny_recipes import make_stepper

CPU = torch.device("cpu")


def training(**changes: Any) -> Training:
    return Training.model_validate(tiny_recipes.training(**changes))


def test_cosine_warms_up_peaks_and_ends_at_the_final_rate() -> None:
    settings = training(
        steps=100,
        optimizer={"learning_rate": 1.0},
        schedule={"warmup_steps": 10, "final_learning_rate": 0.1},
    )
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (50 - 10) / 89))
    assert rates[50] == pytest.approx(middle)
    assert rates[99] == pytest.approx(0.1)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_warmup_stable_decay_is_constant_and_then_linear() -> None:
    schedule = {
        "kind": "warmup-stable-decay",
        "warmup_steps": 10,
        "final_learning_rate": 0.0,
        "decay_fraction": 0.2,
    }
    settings = training(steps=100, optimizer={"learning_rate": 1.0}, schedule=schedule)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - i / 19 for i in range(20)])


def test_only_matrices_that_are_no_embeddings_are_decayed() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    decayed, plain = make_optimizer(model, Optimizer()).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in plain["params"]} == {
        name for name in names.values() if "norm" in name or "embed" in name
    }
    assert "lm_head.weight" in {names[id(p)] for p in decayed["params"]}
    tied = tiny_model("gpt2")
    assert all(
        p is not tied.lm_head.weight for p in make_optimizer(tied, Optimizer()).param_groups[0]["params"]
    )


def test_frozen_parameters_are_not_optimized() -> None:
    model = tiny_model("gpt2")
    model.transformer.wpe.weight.requires_grad_(False)
    optimized = [p for group in make_optimizer(model, Optimizer()).param_groups for p in group["params"]]
    assert all(p is not model.transformer.wpe.weight for p in optimized)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_loss_is_the_models_own(model_type: str) -> None:
    model = tiny_model(model_type)
    inputs = tokens(3, 16)
    targets = tokens(3, 16, seed=1)
    loss = NextTokenLoss(model).eval()
    with torch.no_grad():
        logits = model(input_ids=inputs).logits.double()
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        assert loss(inputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)
        rows = [F.cross_entropy(row, t).item() for row, t in zip(logits, targets, strict=True)]
        assert loss.per_window(inputs, targets).tolist() == pytest.approx(rows, rel=1e-5)


def test_soft_capped_logits_are_left_to_the_model() -> None:
    assert not NextTokenLoss(tiny_model("gemma2")).linear_head
    assert NextTokenLoss(tiny_model("llama")).linear_head


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_cross_entropy_has_the_same_value_and_gradients(chunk: int) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((50, 8), (30, 8), (30,)))
    targets = torch.randint(30, (50,))
    results = []
    for form in ("plain", "chunked"):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        if form == "plain":
            loss = F.cross_entropy(F.linear(*leaves).float(), targets)
        else:
            loss = chunked_cross_entropy(*leaves, targets, chunk=chunk)
        loss.backward()
        results.append([loss.detach().double(), *(x.grad for x in leaves)])
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-6)


def test_accumulated_micro_batches_give_the_step_of_the_whole_batch() -> None:
    inputs, targets = tokens(8, 16), tokens(8, 16, seed=1)
    weights = []
    for size in (8, 4, 1):
        model, settings = tiny_model("llama"), training()
        stepper = make_stepper(model, make_optimizer(model, settings.optimizer), settings)
        parts = list(zip(inputs.split(size), targets.split(size), strict=True))
        for step in range(3):
            stepper(step, parts)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-4, atol=1e-5)


def test_one_step_is_adamw_with_clipping_by_hand() -> None:
    model, settings = tiny_model("llama"), training(optimizer={"learning_rate": 0.01, "gradient_clip": 0.05})
    inputs, targets = tokens(2, 16), tokens(2, 16, seed=1)
    by_hand = tiny_model("llama")
    logits = by_hand(input_ids=inputs).logits
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    parameters = [p for p in by_hand.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters))  # type: ignore[union-attr, arg-type]
    assert norm > 0.05, "the clip should bite"
    rate = 0.01 / 2  # first of two warm-up steps
    with torch.no_grad():
        for p in parameters:
            assert p.grad is not None
            gradient = p.grad * (0.05 / (norm + 1e-6)).float()
            decay = 0.1 if p.dim() >= 2 and p is not by_hand.model.embed_tokens.weight else 0.0
            # After one step the bias-corrected moments are the gradient and its square.
            p.mul_(1 - rate * decay).sub_(rate * gradient / (gradient.abs() + 1e-8))
    optimizer = make_optimizer(model, settings.optimizer)
    stepper = make_stepper(model, optimizer, settings)
    result = stepper(0, [(inputs, targets)])
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert result.learning_rate == pytest.approx(rate)
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights_alone(where: str) -> None:
    model, settings = tiny_model("gpt2"), training()
    if where == "loss":
        with torch.no_grad():
            model.transformer.ln_f.weight.fill_(float("nan"))
    else:
        model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, settings.optimizer)
    stepper = make_stepper(model, optimizer, settings)
    with pytest.raises(NonFiniteError, match=f"the {where} of step 7 is not finite"):
        stepper(7, [(tokens(2, 16), tokens(2, 16, seed=1))])
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name


def test_micro_batches_divide_the_step() -> None:
    assert sizes(training(tokens_per_step=128 * 48), 128, TOKENS["cpu"])[0] == 48
    assert sizes(training(tokens_per_step=1024 * 48), 1024, TOKENS["cpu"]) == [8, 6, 4, 3, 2, 1]
    assert sizes(training(tokens_per_step=128 * 6, micro_batch=3), 128, TOKENS["cpu"]) == [3]
    with pytest.raises(
        ValueError, match=r"tokens_per_step \(100\) must be a multiple of the window \(32 tokens\)"
    ):
        sizes(training(tokens_per_step=100), 32, TOKENS["cpu"])
    with pytest.raises(ValueError, match=r"micro_batch \(4\) must divide the 6 windows of a step"):
        sizes(training(tokens_per_step=32 * 6, micro_batch=4), 32, TOKENS["cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA GPU here"):
        choose_hardware(training(device="cuda"))


def test_the_vocabulary_of_the_tests_is_what_they_think() -> None:
    assert tokens(64, 64).max() == VOCABULARY - 1
