"""`search: frugal`: rounds that end when they are decided."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inheritune import UserError
from inheritune.algorithm import run
from inheritune.config import Recipe, Training, TrainRecipe
from inheritune.frugal import (
    AGAIN,
    RATIOS,
    SURE,
    Round,
    UntilDecided,
    decisions_in,
    expected_gain,
    planned_ends,
)
from inheritune.recipe_file import parse_recipe, to_yaml
from inheritune.report.run_report import write_report
from inheritune.run_directory import Decision, RunDirectory
from inheritune.runtime.world import ALONE
from inheritune.single_model import train_model
from inheritune.training.schedule import learning_rate, next_decay
from inheritune.training.validation import WindowLosses
from tiny_data import write_shards
from tiny_recipes import recipe, training, values

STEPS = 64
NEVER, ALWAYS = {"margin": -1e9}, {"margin": 1e9}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def frugal(data: Path, **changes: Any) -> Recipe:
    """A run that is cooled after 6, 16 and all of 64 steps."""
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


@given(st.integers(20, 3000), st.floats(0.05, 0.5), st.floats(0, 0.99))
def test_every_planned_end_has_room_for_its_whole_decay(steps: int, share: float, warmup: float) -> None:
    planned = settings(steps, decay_fraction=share, warmup_steps=int(warmup * steps))
    ends = planned_ends(planned)
    for end in ends:
        assert next_decay(end - 1, planned, ends)[0] == pytest.approx(end - share * end, abs=1)
    assert all(later >= 2.5 * earlier - 2 for earlier, later in pairwise(ends))


@pytest.mark.parametrize(
    ("warmup", "share", "ends"),
    [
        (20, 0.4, [100, 250]),
        (60, 0.4, [100, 250]),
        (None, 0.4, [167, 418]),
        (247, 0.4, [412]),
        (600, 0.4, []),
        (1, 1.0, []),
        (0, 1.0, [100, 250]),
    ],
)
def test_the_planned_ends(warmup: int | None, share: float, ends: list[int]) -> None:
    own = {} if warmup is None else {"warmup_steps": warmup}
    assert planned_ends(settings(1000, decay_fraction=share, **own)) == ends


# what is decided


def frugal_training(steps: int = 1000) -> Training:
    return settings(steps, decay_fraction=0.4, warmup_steps=20)


def cooled(step: int, loss: float, target: float = 2.9, **more: Any) -> Decision:
    return Decision(step=step, loss=loss, target=target, what="train on", **more)


def at(
    loss: float,
    target: float,
    as_good: bool = False,
    before: Sequence[Decision] = (),
    may_grow: bool = True,
) -> Decision:
    """What follows from a loss after 250 of 1,000 steps."""
    return Round(frugal_training(), may_grow, before).when_cooled(250, loss, loss, target, as_good)


def test_where_it_is_cooled_parity_growth_or_neither() -> None:
    before = [cooled(125, 3.1, target=2.9)]  # so a doubling gained 0.1, and there are two more
    assert at(3.0, 3.0, as_good=True, before=before).what == "parity"
    assert at(3.0, 2.9).expected is None, "one loss says nothing of how it falls"
    found = at(3.0, 2.9, before=before)
    assert found.what == "train on"
    wanted = [3 - 0.1 * (ratio + ratio**2) for ratio in RATIOS]
    assert [found.low, found.expected, found.high] == pytest.approx(wanted)
    low = 3 - 0.1 * (1.4 + 1.4**2)
    near, far = ([cooled(125, 3.1, target=low + some)] for some in (1e-6, -1e-6))
    assert at(3.0, low + 1e-6, before=near).what == "train on"
    assert at(3.0, low - 1e-6, before=far).what == "grow"
    assert at(3.0, low - 1e-6, before=far, may_grow=False).what == "give up"
    assert at(3.0, 2.9, before=[cooled(125, 2.9)]).what == "grow", "it does not fall"


def test_what_the_decay_gained_is_on_the_same_windows() -> None:
    hot = Decision(step=150, loss=3.4, target=0.0, what="cool down", next=250)
    found = Round(frugal_training(), True, [hot]).when_cooled(250, 3.0, 3.1, 2.0, False)
    assert found.gain == pytest.approx(0.3) and found.loss == 3.0


def test_a_decay_that_begins_with_the_end_of_another_has_no_gain_of_its_own() -> None:
    training = frugal_training()
    long = training.model_copy(
        update={"schedule": training.schedule.model_copy(update={"decay_fraction": 0.7})}
    )
    hot = Decision(step=30, loss=3.4, target=0.0, what="cool down", next=100)
    first = Round(long, True, [hot]).when_cooled(100, 3.0, 3.0, 2.0, False)
    assert first.gain == pytest.approx(0.4) and first.what == "train on"
    assert Round(long, True, [hot, first]).when_cooled(250, 2.7, 2.7, 2.6, False).gain is None


def test_a_longer_decay_gains_more() -> None:
    assert expected_gain([(100, 0.2)], 900) == 0.2
    assert expected_gain([(100, 0.2), (200, 0.25)], 800) == pytest.approx(0.35)
    assert expected_gain([(100, 0.2), (200, 0.15)], 800) == 0.15


@pytest.mark.parametrize(
    ("step", "loss", "following"),
    [
        (59, 9.0, None),
        (60, 9.0, 100),  # a planned one begins
        (80, 0.0, None),  # in its decay
        (120, 0.0, None),  # the second planned one comes first
        (150, 9.0, 250),
        (300, 3.195, 500),  # 0.2 is gained by then, and 3.0 the target
        (300, 3.197, None),  # by a hair, which is not sure
        (160, 0.0, None),  # in the second
        (535, 0.0, None),  # the last decay is as near
        (600, 9.0, 1000),
    ],
)
def test_while_it_is_hot(step: int, loss: float, following: int | None) -> None:
    earlier = [cooled(100, 4.0, gain=0.2), cooled(250, 3.9, gain=0.2)]
    found = Round(frugal_training(), False, earlier).before(step).when_hot(step, loss, 3.0)
    assert (None if found is None else (found.what, found.next)) == (following and ("cool down", following))


@pytest.mark.parametrize("harder", [0.0, 0.05, -0.05])
def test_without_hope_it_grows_as_it_is(harder: float) -> None:
    """After 300 steps: cooled at 500 it should be 0.2 lower, and from 250 to 500 is one doubling, as from 500 on.

    It does not depend on how much harder the few windows are that it is validated on while it is hot.
    """
    target = 3.0
    earlier = [cooled(100, 4.3, target, gain=0.2), cooled(250, 3.9, target, gain=0.2)]

    def found(cool: float, may_grow: bool = True) -> Decision | None:
        hot = cool + 0.2 * (1 + SURE) + harder
        return Round(frugal_training(), may_grow, earlier).when_hot(300, hot, target + harder)

    # The loss at 500 from which on the most hopeful answer misses the target.
    edge = (target + 3.9 * RATIOS[0]) / (1 + RATIOS[0])
    assert found(edge - 1e-6) is None and found(edge + 1e-6, may_grow=False) is None
    hopeless = found(edge + 1e-6)
    assert hopeless is not None and (hopeless.what, hopeless.next, hopeless.hot) == ("grow", None, True)
    wanted = [edge - (3.9 - edge) * ratio + harder for ratio in RATIOS]
    assert [hopeless.low, hopeless.expected, hopeless.high] == pytest.approx(wanted, abs=1e-5)


@given(
    st.integers(20, 3000),
    st.floats(0.0, 3.5),
    st.floats(0.1, 0.9),
    st.integers(0, 18),
    st.floats(0, 0.6),
    st.booleans(),
)
def test_a_round_always_ends(
    steps: int, target: float, share: float, warmup: int, gained: float, may_grow: bool
) -> None:
    """Of a loss that falls as a power of the steps, and by as much more in a decay."""
    training = settings(steps, decay_fraction=share, warmup_steps=warmup)
    known = Round(training, may_grow)
    for step in range(1, steps):
        loss = 2.0 + step**-0.2
        if step in known.ends:
            found = known.when_cooled(step, loss, loss, target, loss <= target)
        else:
            before = known.when_hot(step, loss + gained, target)
            if before is None:
                continue
            found = before
        if found.what == "cool down" and found.next not in known.ends and found.next != steps:
            assert found.next is not None and step < found.next < steps
        known = known.and_then(found)
        if found.what in ("parity", "grow", "give up"):
            assert may_grow or not found.hot
            break
    assert len(known.decisions) < 60
    cooled_at = [one.step for one in known.decisions if one.what != "cool down"]
    assert all(later >= AGAIN * earlier - 1 for earlier, later in pairwise(cooled_at[2:]))
    assert learning_rate(steps - 1, training, known.ends) == pytest.approx(
        training.schedule.final_learning_rate
    )


# runs


def test_what_is_left_is_a_training_that_was_planned_to_end_there(data: Path, tmp_path: Path) -> None:
    """Bit for bit: the model of a round that ends at its first decision, and one trained for as many steps."""
    summary = run(
        frugal(data, parity=ALWAYS, training=training(steps=STEPS, dtype="bfloat16")), tmp_path / "run"
    )
    only = summary.rounds[0]
    assert summary.verdict == "parity" and only.steps == 6 and only.layers == 2
    assert [(one.step, one.what) for one in only.decisions] == [(4, "cool down"), (6, "parity")]
    assert only.decisions[1].loss == only.loss, "it was measured with the weights that are left"
    same = {
        "data": {"path": str(data), "window": 32},
        "model": {"pretrained": str(tmp_path / "run/reference/model")},
        "initialization": {"layers": "first 2"},
        "training": training(
            steps=6,
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
        last = entry.decisions[-1]
        whats = [(one.step, one.what) for one in entry.decisions]
        end = "give up" if entry is summary.rounds[-1] else "grow"
        assert whats == [(4, "cool down"), (6, "train on"), (10, "cool down"), (16, end)] and entry.cooled
        assert entry.steps == 16 and entry.decisions == decisions_in(tmp_path / "run" / entry.directory)
        assert last.low is not None and last.high is not None and last.expected is not None
        assert last.low <= last.expected <= last.high
    first, second = summary.rounds[:2]
    assert second.total_training_flops == first.training_flops + second.training_flops
    assert second.loss < first.loss
    page = write_report(tmp_path / "run").read_text("utf-8")
    assert "What was decided, and when" in page and page.count("cool down to step") == 6


def test_what_is_hopeless_later_grows_uncooled(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last round, which nothing follows, is cooled in the end."""

    def answers(known: Round, step: int, loss: float, target: float) -> dict[str, float]:
        low = -1e10 if step in planned_ends(known.training) else 1e10
        return {"low": low, "expected": max(low, 0.0), "high": max(low, 0.0)}

    monkeypatch.setattr("inheritune.frugal.Round.in_the_end", answers)
    often = training(steps=STEPS, validation={"every": 2})
    summary = run(frugal(data, start_layers=1, parity=NEVER, training=often), tmp_path / "run")
    assert [entry.layers for entry in summary.rounds] == [1, 2, 3] and summary.verdict == "no parity"
    for entry in summary.rounds[:2]:
        last, before = entry.decisions[-1], entry.decisions[-2]
        assert (before.step, before.what, last.what, last.next) == (16, "train on", "grow", None)
        assert entry.steps == last.step > 16 and not entry.cooled and entry.worth is None
    assert summary.rounds[2].steps == STEPS and summary.rounds[2].cooled
    assert "losses are high: round 1, 2." in write_report(tmp_path / "run").read_text("utf-8")


def rates(directory: Path) -> list[tuple[int, float]]:
    """Steps and learning rates of a training."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["learning_rate"]) for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize(("every", "steps"), [(5, 5), (40, 6)])
def test_the_control_is_cooled_as_the_round_was(every: int, steps: int, data: Path, tmp_path: Path) -> None:
    """Which has parity in its first decay, or at the end of that."""
    settings = training(steps=STEPS, validation={"every": every}, log_every=1)
    summary = run(frugal(data, parity={**ALWAYS, "control": True}, training=settings), tmp_path / "run")
    control, only = summary.control, summary.rounds[0]
    assert control is not None and control.steps == only.steps == steps
    assert only.decisions[-1].what == "parity" and only.decisions[-1].loss == pytest.approx(only.loss)
    assert rates(tmp_path / "run/control") == rates(tmp_path / "run" / only.directory)


def losses_of(*values: float) -> WindowLosses:
    return WindowLosses(np.array(values), 8, None)


@pytest.mark.parametrize(("few", "all_", "ends"), [(2.9, 2.9, True), (2.9, 3.1, False), (3.1, 2.9, False)])
def test_in_a_decay_parity_is_that_on_all_windows(
    few: float, all_: float, ends: bool, tmp_path: Path
) -> None:
    this: Any = SimpleNamespace(
        world=ALONE,
        recipe=SimpleNamespace(training=frugal_training(), parity=SimpleNamespace(margin=0.0)),
        data=SimpleNamespace(validation="all windows"),
    )
    reference: Any = SimpleNamespace(losses=losses_of(3.0, 3.0, 3.0, 3.0))
    measured: list[Any] = []

    def measure(split: Any, *, final: bool = False) -> WindowLosses:
        measured.append(split)
        return losses_of(all_, all_, all_, all_) if final else losses_of(few, few)

    stop = UntilDecided(this, reference, tmp_path, lambda losses, measure: losses.mean <= 3.0, True)
    assert stop(80, losses_of(few, few), measure) is ends
    assert measured == (["all windows"] if few < 3 else [])
    assert [one.what for one in decisions_in(tmp_path)] == (["parity"] if ends else [])


def test_the_steps_of_a_round_are_its_most(data: Path, tmp_path: Path) -> None:
    """With growth out of question it trains to its end, cooled there as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inheritune.frugal.RATIOS", (1e3, 1.0, 0.7))
        summary = run(frugal(data, start_layers=3, parity={"margin": -1.5}), tmp_path / "run")
    assert summary.rounds[0].steps == STEPS
    whats = [(one.step, one.what) for one in summary.rounds[0].decisions]
    assert whats[-2:] == [(16, "train on"), (38, "cool down")]


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
