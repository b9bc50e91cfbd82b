"""Loss per window and paired comparison."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tiny_data
from inheritune import UserError
from inheritune.config import Training
from inheritune.data.shards import DataIdentity, open_split
from inheritune.runtime.hardware import choose_hardware
from inheritune.training.loss import NextTokenLoss
from inheritune.training.validation import (
    MANY,
    Z95,
    WindowLosses,
    compare,
    compare_per_byte,
    interval_of,
    standard_error,
    t95,
    validate,
)
from tiny_models import tiny_model
from tiny_recipes import training

HARDWARE = choose_hardware(Training.model_validate(training()))


def test_every_window_is_measured_once_and_alone(tmp_path: Path) -> None:
    split = open_split(tiny_data.write_shards(tmp_path, validation=1000), "validation")
    model = tiny_model("gpt2").train()
    losses = validate(NextTokenLoss(model), split, 32, HARDWARE)
    assert model.training, "the mode is put back"
    tokens = torch.from_numpy(split.read(0, split.tokens))
    expected = []
    for start in range(0, 31 * 32, 32):
        window = tokens[start : start + 33]
        with torch.no_grad():
            logits = tiny_model("gpt2")(window[None, :-1]).logits[0]
        expected.append(F.cross_entropy(logits, window[1:]).item())
    assert losses.losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.mean == pytest.approx(np.mean(expected))
    some = validate(NextTokenLoss(model), split, 32, HARDWARE, windows=5)
    assert some.losses.tolist() == pytest.approx([expected[i * 31 // 5] for i in range(5)], rel=1e-5)
    assert losses.thinned(5).losses.tolist() == pytest.approx(some.losses.tolist(), rel=1e-5)
    assert np.array_equal(losses.thinned("all").losses, losses.losses)


def test_a_split_shorter_than_a_window(tmp_path: Path) -> None:
    split = open_split(tiny_data.write_shards(tmp_path, validation=32), "validation")
    with pytest.raises(ValueError, match="32 tokens, fewer than one window of 32"):
        validate(NextTokenLoss(tiny_model("gpt2")), split, 32, HARDWARE)


losses = st.lists(st.floats(0, 20), min_size=2, max_size=50)


@given(losses, st.floats(-3, 3))
def test_a_constant_difference_is_certain(reference: list[float], shift: float) -> None:
    base = np.array(reference)
    comparison = compare(WindowLosses(base + shift, 8), WindowLosses(base, 8))
    assert comparison.difference == pytest.approx(shift, abs=1e-9)
    assert comparison.standard_error == pytest.approx(0, abs=1e-9)
    assert comparison.parity == (comparison.difference <= 0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(4000):
        base = generator.normal(3, 1, 100)
        low, high = compare(
            WindowLosses(base + generator.normal(0.1, 0.5, 100), 8), WindowLosses(base, 8)
        ).interval
        covered += low <= 0.1 <= high
    assert 0.93 < covered / 4000 < 0.96


@pytest.mark.parametrize("windows", [2, 3, 5, 20])
def test_the_interval_of_a_few_windows_covers_the_truth_as_often(windows: int) -> None:
    samples = np.random.default_rng(0).normal(size=(10_000, windows))
    ends = (interval_of(float(row.mean()), standard_error(row), windows) for row in samples)
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.01)


def test_t_is_that_of_tables() -> None:
    ppf = pytest.importorskip("scipy.stats").t.ppf
    for degrees in range(1, MANY):
        assert t95(degrees) == pytest.approx(ppf(0.975, degrees), rel=2e-3)
    assert t95(MANY - 1) == pytest.approx(Z95, rel=0.013)
    assert interval_of(1.0, 2.0, MANY) == (1.0 - 2 * Z95, 1.0 + 2 * Z95)


def test_the_margin_decides_parity() -> None:
    base = np.array([3.0, 3.0, 4.0])
    worse = WindowLosses(base + 0.01, 8)
    assert not compare(worse, WindowLosses(base, 8)).parity
    assert compare(worse, WindowLosses(base, 8), margin=0.02).parity


def test_other_windows_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot pair 3 windows of 8 tokens with 2 of 8"):
        compare(WindowLosses(np.zeros(3), 8), WindowLosses(np.zeros(2), 8))


def test_losses_survive_the_disk_exactly(tmp_path: Path) -> None:
    values = WindowLosses(np.random.default_rng(0).normal(3, 1, 17), 64)
    values.save(tmp_path / "validation.json")
    again = WindowLosses.load(tmp_path / "validation.json")
    assert np.array_equal(again.losses, values.losses)
    assert again.window == 64


def of_text(losses: np.ndarray, sha256: str, tokens: int, text_bytes: int | None = 3000) -> WindowLosses:
    data = DataIdentity(sha256=sha256, split="validation", path="data", tokens=tokens, text_bytes=text_bytes)
    return WindowLosses(losses, 8, data)


def test_bits_per_byte_by_hand_and_from_the_disk(tmp_path: Path) -> None:
    values = of_text(np.array([2.0, 4.0]), "a", 1000)
    assert values.bits_per_byte == pytest.approx(3 / math.log(2) * 1000 / 3000)
    values.save(tmp_path / "validation.json")
    assert WindowLosses.load(tmp_path / "validation.json").bits_per_byte == values.bits_per_byte
    assert json.loads((tmp_path / "validation.json").read_text())["bits_per_byte"] == values.bits_per_byte
    assert WindowLosses(np.ones(2), 8).bits_per_byte is None
    assert of_text(np.ones(2), "a", 1000, None).bits_per_byte is None


def test_one_text_in_other_tokens_is_compared_per_byte() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):  # per byte the second is worse by 0.05 bits
        one = of_text(generator.normal(3 * math.log(2), 0.5, 100), "a", 1000)
        other = of_text(generator.normal(4.2 * math.log(2), 0.5, 80), "b", 750)
        found = compare_per_byte(other, one)
        assert found is not None
        low, high = found[1]
        covered += low <= 0.05 <= high
    assert 0.93 < covered / 2000 < 0.97
    same_tokens, other_text = of_text(np.ones(3), "a", 1000), of_text(np.ones(3), "b", 1000, 2999)
    unknown = of_text(np.ones(3), "b", 1000, None)
    for reference in (same_tokens, other_text, unknown, WindowLosses(np.ones(3), 8)):
        assert compare_per_byte(of_text(np.ones(3), "a", 1000), reference) is None


def test_a_loss_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the validation loss is not finite"):
        WindowLosses(np.array([1.0, np.nan]), 32).save(tmp_path / "validation.json")
    assert not any(tmp_path.iterdir())
