"""`search: frugal`: rounds that end when they are decided."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inheritune import UserError
from inheritune.algorithm import run
from inheritune.config import Recipe, Training, TrainRecipe
from inheritune.frugal import LEAST, MOST, decide, decisions_in, expected_loss, first_end
from inheritune.recipe_file import parse_recipe, to_yaml
from inheritune.report.run_report import write_report
from inheritune.run_directory import RunDirectory
from inheritune.train import train_model
from inheritune.training.schedule import learning_rate
from tiny_data import write_shards
from tiny_recipes import recipe, training, values

STEPS = 64
NEVER, ALWAYS = {"margin": -1e9}, {"margin": 1e9}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def frugal(data: Path, **changes: Any) -> Recipe:
    """A run whose first decision is after four steps of 64."""
    changes = {"grow": {"layers": 1}, "training": training(steps=STEPS), **changes}
    return recipe(data, search="frugal", **changes)


def settings(steps: int, **schedule: Any) -> Training:
    return parse_recipe(training(steps=steps, schedule={"kind": "warmup-stable-decay", **schedule}), Training)


# the learning rate


@given(st.integers(40, 200), st.floats(0.05, 1))
def test_until_its_first_end_a_training_is_one_that_was_planned_to_end_there(end: int, share: float) -> None:
    long, short = (settings(n, decay_fraction=share, warmup_steps=10) for n in (400, end))
    rates = [learning_rate(step, long, [end]) for step in range(end)]
    assert rates == [learning_rate(step, short) for step in range(end)]
    assert rates[-1] == pytest.approx(short.schedule.final_learning_rate)


def test_after_an_end_the_rate_is_the_constant_one_again() -> None:
    long = settings(400, decay_fraction=0.5, warmup_steps=10)
    rates = [learning_rate(step, long, [100, 160]) for step in range(400)]
    peak, low = long.optimizer.learning_rate, long.schedule.final_learning_rate
    assert rates[49] == peak > rates[51] > rates[98]
    assert rates[100] == peak, "the decay to 160 would begin at 80, before the first has ended"
    assert [rates[end - 1] for end in (100, 160, 400)] == pytest.approx([low] * 3)
    assert all(rate == peak for rate in rates[160:200])


# what is decided


def law(ratio: float, points: Sequence[int] = (16, 32, 64)) -> list[tuple[int, float]]:
    """Losses of which each doubling gains `ratio` times what the one before did, the last one 0.1."""
    losses = [3.0]
    for back in range(len(points) - 1):
        losses.insert(0, losses[0] + 0.1 / ratio**back)
    return list(zip(points, losses, strict=True))


@given(st.floats(0.5, 1.4))
def test_losses_on_such_a_law_are_expected_exactly(ratio: float) -> None:
    assert expected_loss(law(ratio), 128) == pytest.approx(3.0 - 0.1 * ratio)
    assert expected_loss(law(ratio), 256) == pytest.approx(3.0 - 0.1 * (ratio + ratio**2))


def test_a_power_law_is_expected_exactly() -> None:
    cooled = [(n, 2.0 + 5 * n**-0.28) for n in (100, 200, 400)]
    assert expected_loss(cooled, 3000) == pytest.approx(2.0 + 5 * 3000**-0.28)


def test_a_loss_that_rises_is_not_expected_to_fall() -> None:
    assert expected_loss([(1, 3.0), (2, 3.1), (4, 3.2)], 1000) == 3.2


@pytest.mark.parametrize(
    ("target", "as_good", "what", "following"),
    [
        (3.2, True, "parity", None),
        (2.0, False, "grow", None),
        (2.7, False, "train on", 128),
        # a tenth more than a doubling of gains of 0.1 is needed
        (2.93, False, "train on", round(1.02 * 104)),
        (2.999, False, "train on", round(1.02 * LEAST * 64)),
    ],
)
def test_parity_growth_or_more_steps(target: float, as_good: bool, what: str, following: int | None) -> None:
    found = decide(law(1.0), 1000, target, as_good)
    assert (found.what, found.next) == (what, following)


def test_it_is_too_early_to_say_before_two_doublings() -> None:
    found = decide([(16, 9.0), (32, 8.9)], 1000, 1.0, False)
    assert (found.what, found.next, found.expected) == ("train on", 64, None)


@given(
    st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=8), st.floats(0, 5), st.integers(0, 40), st.booleans()
)
def test_a_round_always_comes_to_its_end(drops: list[float], target: float, warmup: int, odd: bool) -> None:
    steps = 1000 + odd
    end, cooled, loss = first_end(settings(steps, warmup_steps=warmup)), list[tuple[int, float]](), 4.0
    for drop in [*drops, *[0.1] * 60]:
        loss -= drop
        cooled.append((end, loss))
        if end == steps:
            return
        found = decide(cooled, steps, target, loss <= target)
        if found.next is None:
            return
        assert end < found.next <= steps and found.next <= MOST * end + 1
        assert found.next == steps or steps - found.next >= (1 - 1 / LEAST) * steps - 1
        end = found.next
    pytest.fail("it never ends")


# runs


def test_what_is_left_is_a_training_that_was_planned_to_end_there(data: Path, tmp_path: Path) -> None:
    """Bit for bit: the model of a round that ends at its first decision, and one trained for as many steps."""
    summary = run(
        frugal(data, parity=ALWAYS, training=training(steps=STEPS, dtype="bfloat16")), tmp_path / "run"
    )
    only = summary.rounds[0]
    assert summary.verdict == "parity" and only.steps == 4 and only.layers == 2
    assert [(one.step, one.what, one.next) for one in only.decisions] == [(4, "parity", None)]
    assert only.decisions[0].loss == only.loss, "it was measured with the weights that are left"
    same = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(tmp_path / "run/reference/model")},
        "initialization": {"layers": "first 2"},
        "training": training(
            steps=4,
            dtype="bfloat16",
            schedule={
                **training()["schedule"],
                **{"kind": "warmup-stable-decay", "decay_fraction": 0.4},
            },
        ),
    }
    losses = train_model(parse_recipe(same, TrainRecipe), tmp_path / "same")
    assert losses.mean == only.loss
    ours, theirs = (
        (tmp_path / name / "model/model.safetensors").read_bytes()
        for name in (f"run/{only.directory}", "same")
    )
    assert ours == theirs


def test_growth_keeps_what_was_trained(data: Path, tmp_path: Path) -> None:
    summary = run(frugal(data, start_layers=1, parity=NEVER), tmp_path / "run")
    assert summary.verdict == "no parity" and [entry.layers for entry in summary.rounds] == [1, 2, 3]
    for entry in summary.rounds:
        *before, last = entry.decisions
        assert [one.step for one in entry.decisions] == [4, 8, 16], "two doublings, then it is hopeless"
        assert {one.what for one in before} == {"train on"} and last.what == "grow"
        assert entry.steps == 16 and entry.decisions == decisions_in(tmp_path / "run" / entry.directory)
        assert last.low is not None and last.high is not None and last.expected is not None
        assert last.low <= last.expected <= last.high
    first, second = summary.rounds[:2]
    assert second.total_training_flops == first.training_flops + second.training_flops
    assert second.loss < first.loss
    page = write_report(tmp_path / "run").read_text("utf-8")
    assert "What was decided, and when" in page and page.count("train on to step") == 6


def test_the_steps_of_a_round_are_its_most(data: Path, tmp_path: Path) -> None:
    """With growth out of question it trains to its end, cooled there as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inheritune.frugal.OPEN", 1e6)
        summary = run(frugal(data, start_layers=3, parity={"margin": -1.5}), tmp_path / "run")
    assert summary.rounds[0].steps == STEPS
    assert [one.step for one in summary.rounds[0].decisions] == [4, 8, 16, 32]


def test_a_recipe_writes_down_what_frugal_stands_for(data: Path) -> None:
    found = frugal(data)
    assert found.grow.mode == "append" and found.training.schedule.kind == "warmup-stable-decay"
    reference = found.reference.training
    assert reference is not None and reference.schedule.kind == "cosine", "that is trained as by the paper"
    assert parse_recipe(yaml.safe_load(to_yaml(found)), Recipe) == found
    own = frugal(
        data,
        grow={"mode": "reinherit"},
        training=training(steps=64, schedule={"decay_fraction": 0.1, "warmup_steps": 2}),
    )
    assert own.grow.mode == "reinherit" and own.training.schedule.decay_fraction == 0.1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search": "cheap"}, "search"),
        ({"search": "frugal", "parity": {"stop_at_parity": True}}, "leave `parity.stop_at_parity` out"),
        (
            {"search": "frugal", "training": training(schedule={"kind": "cosine", "warmup_steps": 2})},
            "cannot be cosine",
        ),
    ],
)
def test_mistakes(data: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_recipe(values(data, **changes), Recipe)


def test_a_run_of_the_paper_does_not_become_a_frugal_one(data: Path, tmp_path: Path) -> None:
    run(recipe(data, parity=ALWAYS), tmp_path / "run")
    with pytest.raises(UserError, match="search: paper -> frugal"):
        RunDirectory(tmp_path / "run").check_recipe(frugal(data, parity=ALWAYS))


def test_what_was_decided_after_a_checkpoint_is_decided_again(data: Path, tmp_path: Path) -> None:
    """As after a kill: the file is ahead of the training."""
    summary = run(
        frugal(data, start_layers=1, parity=NEVER, grow={"layers": 1, "max_rounds": 1}), tmp_path / "a"
    )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = tmp_path / "b" / summary.rounds[0].directory
    shutil.rmtree(first / "model")
    (tmp_path / "b/state.json").write_text(json.dumps({"phase": "round", "round": 1}))
    again = run(
        frugal(data, start_layers=1, parity=NEVER, grow={"layers": 1, "max_rounds": 1}), tmp_path / "b"
    )
    assert again.rounds[0].decisions == summary.rounds[0].decisions
    assert again.rounds[0].loss == summary.rounds[0].loss
