"""Losses of choices of blocks, and the search among them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune import UserError
from inheritune.analysis import choice as choice_module
from inheritune.analysis import layers as layers_module
from inheritune.analysis.choice import contiguous, put_back, race, search, with_each, without_each
from inheritune.analysis.importance import ChoiceLosses, Windows
from inheritune.analysis.kept import load_kept
from inheritune.analysis.layers import RULES, choose_kept, losses_on, recorded, searched, windows_of
from inheritune.analysis.sequences import text_of
from inheritune.data.shards import open_split
from inheritune.initialization import append, choose, select
from inheritune.runtime.progress import ProgressBar
from inheritune.training.loss import NextTokenLoss
from tiny_data import write_shards
from tiny_models import ARCHITECTURES, LAYERS, VOCABULARY, tiny_model


def some_windows(count: int = 8, length: int = 32) -> Windows:
    tokens = torch.randint(VOCABULARY, (count, length + 1), generator=torch.Generator().manual_seed(1))
    return Windows(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def lively(kind: str):
    """A model whose blocks all matter."""
    model = tiny_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


class Table:
    """Losses of a model that are made up: those of its choices come from a function."""

    def __init__(self, depth: int, windows: int, of) -> None:
        self.whole, self.windows, self.of = tuple(range(depth)), range(windows), of

    def __call__(self, choices, windows=None):
        return np.stack([self.of(c)[:windows] for c in choices])

    def mean(self, choice) -> float:
        return float(self([choice]).mean())


def random_table(depth: int, windows: int, seed: int) -> Table:
    def of(choice):
        generator = np.random.Generator(np.random.PCG64([seed, *choice]))
        return generator.normal(size=()) + 0.1 * generator.normal(size=windows)

    return Table(depth, windows, of)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_losses_are_those_of_the_model_without_the_other_blocks(kind: str) -> None:
    model, windows = lively(kind), some_windows()
    choices = [c for size in range(1, LAYERS + 1) for c in combinations(range(LAYERS), size)]
    measured = ChoiceLosses(model, windows, bf16=False)(choices)
    tried = 0
    for choice, losses in zip(choices, measured, strict=True):
        try:
            small = select(model, choice)
        except UserError:  # blocks of kinds that cannot stand at each other's places
            continue
        expected = NextTokenLoss(small).per_window(windows.inputs_nt, windows.targets_nt).numpy()
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
        tried += 1
    assert tried > LAYERS


def test_a_loss_does_not_depend_on_what_is_measured_with_it() -> None:
    model, windows = lively("llama"), some_windows()
    alone = ChoiceLosses(model, windows, bf16=False)([(0, 2, 3)])
    among = ChoiceLosses(model, windows, bf16=False)
    among([(0, 1), (1, 2), (0, 2, 3)], 4)
    together = among([(0, 3), (0, 2, 3), (0, 1, 2, 3)])
    np.testing.assert_array_equal(together[1], alone[0])


def test_similarities_are_between_hidden_states() -> None:
    model, windows = lively("llama"), some_windows()
    cosines, angles = ChoiceLosses(model, windows, bf16=False).similarities(8)
    states = model(windows.inputs_nt, output_hidden_states=True).hidden_states
    expected = torch.cosine_similarity(states[0], states[2], dim=-1)
    assert cosines[0, 2] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert angles[2, 0] == pytest.approx((expected.arccos() / np.pi).mean().item(), abs=1e-5)


def test_a_model_whose_blocks_cannot_be_run_apart_is_refused() -> None:
    model = lively("llama")
    model.model.layers[2].register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    with pytest.raises(
        UserError, match=r"its blocks cannot be run apart \(something is done to the hidden state"
    ):
        ChoiceLosses(model, some_windows())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(2, 7))
def test_where_all_choices_are_measured_the_search_is_exhaustive(seed: int, depth: int) -> None:
    losses = random_table(depth, 4, seed)
    found = search(losses, 1)
    for size in range(1, depth):
        assert losses.mean(found[size]) == min(map(losses.mean, combinations(range(depth), size)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_choice_is_worse_than_that_of_a_rule(seed: int) -> None:
    losses = random_table(12, 16, seed)
    found = search(losses, 4, rules=lambda size: [tuple(choose(f"ends {size}", 12))])
    assert set(found) == set(range(4, 12))
    for size, choice in found.items():
        assert len(choice) == size and sorted(set(choice)) == list(choice)
        assert losses.mean(choice) <= losses.mean(tuple(choose(f"ends {size}", 12)))


def test_a_race_finds_the_best_of_choices_that_differ_clearly() -> None:
    worth = np.array([0.1, 0.5, 0.02, 0.9, 0.3, 0.4])
    noise = np.random.Generator(np.random.PCG64(0)).normal(
        size=32
    )  # the same for all: windows differ, not choices
    losses = Table(6, 32, lambda choice: 3 - worth[list(choice)].sum() + noise)
    assert race(losses, without_each(losses.whole)) == (0, 1, 3, 4, 5)
    assert search(losses, 2)[2] == (1, 3)
    assert put_back(losses, (2,), 4) == (1, 2, 3, 5)


def test_dear_blocks_are_not_measured_at_every_size(monkeypatch) -> None:
    monkeypatch.setattr(choice_module, "ALL", 0)
    monkeypatch.setattr(choice_module, "NEAR", 2)
    seen: list[tuple[int, ...]] = []

    def of(choice: tuple[int, ...]) -> np.ndarray:
        seen.append(choice)
        worth = 0.1 * np.arange(1, 9)
        worth[1] += 9 * (0 not in choice)  # without block 0 its neighbour is dear
        return np.full(4, 9 - worth[list(choice)].sum())

    found = search(Table(8, 4, of), 5)
    assert found == {7: (1, 2, 3, 4, 5, 6, 7), 6: (1, 3, 4, 5, 6, 7), 5: (1, 4, 5, 6, 7)}
    assert all(set(choice) >= {5, 6, 7} for choice in seen if len(choice) < 7), "their absence costs more"


def test_choices_of_simple_rules_are_compared_too(monkeypatch) -> None:
    monkeypatch.setattr(choice_module, "ALL", 0)
    run = (0, 1, 4, 5, 6, 7)

    def of(choice: tuple[int, ...]) -> np.ndarray:
        return np.full(4, 1.0 if choice == run else 10.0 - len(choice) + 0.5 * (0 in choice))

    losses = Table(8, 4, of)
    assert search(losses, 5)[6] != run
    found = search(losses, 5, rules=lambda size: [run] if size == 6 else [])
    assert found[6] == run
    assert set(found[5]) < set(run), "what is dropped next is dropped from it"


def test_progress_counts_the_windows_that_choices_are_measured_on(text, monkeypatch) -> None:
    counts: list[tuple[int, int]] = []

    class Bar(ProgressBar):
        def update(self, done: int, note: str = "", total: int | None = None) -> None:
            super().update(done, note, total)
            counts.append((done, total or 0))

    monkeypatch.setattr(layers_module, "ProgressBar", Bar)
    losses, _ = losses_on(lively("llama"), text, 0)
    searched(losses, losses.similarities(4)[1], 2, "choosing")
    done = [at for at, _ in counts]
    assert done[0] == 4 and done[1] == 8, "from the first candidate on"
    assert done[-1] == sum(map(len, losses.known.values()))
    assert all(at < total for at, total in counts)


@pytest.mark.parametrize("fewest", [0, 5, 6])
def test_search_refuses_sizes_that_are_no_cut(fewest: int) -> None:
    with pytest.raises(UserError, match=f"cannot choose {fewest} of 5 layers"):
        search(random_table(5, 4, 0), fewest)


def test_search_refuses_too_few_windows() -> None:
    with pytest.raises(UserError, match="3 windows are too few"):
        search(random_table(5, 3, 0), 2)


def test_contiguous_drops_the_blocks_between_which_the_state_turns_least() -> None:
    angles = np.abs(np.subtract.outer([0.0, 0.3, 0.35, 0.4, 0.8], [0.0, 0.3, 0.35, 0.4, 0.8]))
    assert contiguous(angles, 2) == (0, 3)
    assert contiguous(angles, 3) == (0, 2, 3)
    assert contiguous(angles, 4) == (0, 1, 2, 3)


def test_with_and_without_each() -> None:
    assert without_each((0, 2, 3)) == [(2, 3), (0, 3), (0, 2)]
    assert with_each((1,), (0, 1, 2)) == [(0, 1), (1, 2)]


@pytest.fixture
def text(tmp_path: Path):
    return text_of(open_split(write_shards(tmp_path / "data"), "train"))


def test_a_measured_choice_is_deterministic_and_recorded(text, tmp_path: Path) -> None:
    model = lively("llama")

    def choice(seed: int = 0):
        return choose_kept("measured", 2, LAYERS, text, lambda: model, seed)

    kept = choice()
    assert kept == choice()
    assert tuple(kept.layers) == kept.path[-1] and len(kept.path) == LAYERS - 2
    assert kept.measured.windows == 32 and kept.measured.identity == text.tokens.identity
    assert kept.loss == ChoiceLosses(model, windows_of(text, 64, 0)[0]).mean(tuple(kept.layers))
    assert [figures.block for figures in kept.blocks] == list(range(LAYERS))
    points = {(point.keep, len(point.layers)): point.layers for point in kept.curve}
    assert set(points) == {(rule, size) for rule in RULES for size in (3, 2)}
    assert points["measured", 2] == kept.layers and points["first", 3] == [0, 1, 2]
    path = tmp_path / "choice.json"
    assert recorded(path, lambda: kept) == kept
    assert recorded(path, lambda: pytest.fail("it is recorded already")) == load_kept(path) == kept
    best = min(
        combinations(range(LAYERS), 2),
        key=ChoiceLosses(model, windows_of(text, 64, 0)[0]).mean,
    )
    assert tuple(kept.layers) == best


@pytest.mark.parametrize(
    ("keep", "layers", "message"),
    [
        ([0, 0], 2, "each once, in their order"),
        ([1, 0], 2, "each once, in their order"),
        ([0, 4], 2, "there is no layer 4"),
        ([0, 1, 2], 2, "keep names 3 layers, but 2 are to be kept"),
        ("measured", 5, "cannot keep 5 layers of a model with 4"),
        ("some", 2, "keep is 'some'"),
    ],
)
def test_choices_that_cannot_be(text, keep, layers: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_kept(keep, layers, LAYERS, text, lambda: pytest.fail("nothing has to be measured"), 0)


def test_without_text_nothing_is_measured() -> None:
    with pytest.raises(UserError, match="takes text to measure on"):
        choose_kept("measured", 2, LAYERS, None, lambda: pytest.fail("no text"), 0)


def test_too_little_text(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data", train=100, validation=100)
    with pytest.raises(UserError, match="has 100 tokens, too few to choose layers by"):
        windows_of(text_of(open_split(data, "train")), 64, 0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_growth_puts_blocks_back_between_the_trained_ones(kind: str) -> None:
    reference = lively(kind)
    trained = select(reference, [0, 3])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    grown = append(trained, reference, [0, 2, 3], [0, 3])
    ours = grown.state_dict()
    for name, value in trained.state_dict().items():
        moved = (
            name.replace(".1.", ".2.")
            if f".{1}." in name and ("h.1." in name or "layers.1." in name)
            else name
        )
        torch.testing.assert_close(ours[moved], value, rtol=0, atol=0)
    theirs = select(reference, [2]).state_dict()
    middle = [name for name in theirs if "h.0." in name or "layers.0." in name]
    assert middle
    for name in middle:
        torch.testing.assert_close(ours[name.replace(".0.", ".1.", 1)], theirs[name], rtol=0, atol=0)


def test_growth_keeps_what_there_is() -> None:
    reference = lively("llama")
    with pytest.raises(UserError, match="it must keep those it has"):
        append(select(reference, [0, 3]), reference, [0, 1, 2], [0, 3])
