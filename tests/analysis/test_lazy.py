"""Degenerate heads, lazy layers, and what they mean for the cut."""

from __future__ import annotations

import statistics

import pytest
import torch

from handmade_attention import all_alike, handmade_model
from inheritune.analysis.lazy import Heads, batch_size, judge_cut, layer_figures, measure_heads
from inheritune.analysis.mass import column_mass
from inheritune.analysis.rank import decide_rank
from tiny_models import tiny_model, tokens


def test_known_heads() -> None:
    """A head on the first token has k* = m* = 1; a uniform one what the singular values of its matrix say."""
    heads = measure_heads(handmade_model([(0, 2), ()]), tokens(3, 40), tau=0.9, mass=0.9)
    singular = torch.linalg.svdvals(all_alike(40).double()).square()
    uniform = 1 + int((singular.cumsum(0) / singular.sum() < 0.9).sum())
    assert uniform > 1
    assert heads.ranks[0].tolist() == [[1] * 3, [uniform] * 3, [1] * 3, [uniform] * 3]
    assert heads.ranks[1].tolist() == [[uniform] * 3] * 4
    columns = all_alike(40).double().square().sum(0).sort(descending=True)[0]
    alike = 1 + int((columns.cumsum(0) / columns.sum() < 0.9).sum())
    assert heads.masses[0].tolist() == [[1] * 3, [alike] * 3, [1] * 3, [alike] * 3]


@pytest.mark.parametrize("batch", [1, 2, 5, None])
def test_the_batch_changes_nothing(batch: int | None) -> None:
    model, inputs, ticks = tiny_model("llama"), tokens(5, 24), []
    expected = measure_heads(model, inputs, tau=0.9, mass=0.9, batch=3)
    found = measure_heads(
        model, inputs, tau=0.9, mass=0.9, batch=batch, tick=lambda *told: ticks.append(told)
    )
    for name in ("ranks", "masses"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert one.shape == (4, 5)
            assert torch.equal(one, other)
    assert sum(read for read, _ in ticks) == 4 * 5
    assert {wanted for _, wanted in ticks} == {5}


def test_sequences_are_read_until_ranks_are_known() -> None:
    model, inputs = tiny_model("llama"), tokens(40, 24)
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 30  # so that ranks vary
    whole = measure_heads(model, inputs, tau=0.9, mass=0.9)
    assert measure_heads(model, inputs, tau=0.9, mass=0.9, precision=1.0).ranks[0].shape[1] == 8, "the fewest"
    assert measure_heads(model, inputs, tau=0.9, mass=0.9, precision=1e-6).ranks[0].shape[1] == 40, (
        "all there are"
    )
    precision = 0.05
    ticks: list[tuple[int, int]] = []
    some = measure_heads(
        model,
        inputs,
        tau=0.9,
        mass=0.9,
        batch=3,
        precision=precision,
        tick=lambda *told: ticks.append(told),
    )
    read = some.ranks[0].shape[1]
    assert 8 < read < 40
    assert ticks[0] == (3, 8) and sum(layers for layers, _ in ticks) == 4 * read
    for one, other in zip(some.ranks, whole.ranks, strict=True):
        assert torch.equal(one, other[:, :read])
        means = one.double().mean(0)
        assert 1.96 * means.std() / read**0.5 <= precision * means.mean()


def test_padding_does_not_count() -> None:
    model, inputs = tiny_model("llama"), tokens(2, 24)
    mask = torch.ones_like(inputs)
    mask[:, 17:] = 0
    alone = measure_heads(model, inputs[:, :17], tau=0.9, mass=0.9)
    padded = measure_heads(model, inputs, tau=0.9, mass=0.9, padding_mask_nt=mask)
    whole = measure_heads(model, inputs, tau=0.9, mass=0.9)
    assert all(torch.equal(a, b) for a, b in zip(padded.ranks, alone.ranks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(padded.masses, alone.masses, strict=True))
    assert not torch.equal(whole.masses[0], alone.masses[0])


def test_tau_and_mass_are_used() -> None:
    model, inputs = handmade_model([()]), tokens(1, 40)
    found = measure_heads(model, inputs, tau=0.99, mass=0.5)
    decided = decide_rank(all_alike(40), 0.99)
    assert found.ranks[0][0, 0] == decided.rank
    assert found.masses[0][0, 0] == column_mass(decided.columns, 0.5)


def test_the_batch_fits_a_layer_of_matrices() -> None:
    model = tiny_model("gpt2", n_positions=2048)
    assert batch_size(model, 1024) == 2**28 // (4 * 1024**2 * 4)
    assert batch_size(model.to(torch.bfloat16), 1024) == 2**28 // (4 * 1024**2 * 2)
    assert batch_size(model, 100_000) == 1


def test_layer_figures() -> None:
    ranks = torch.tensor([[1, 2, 1, 2], [5, 7, 6, 10], [1, 1, 1, 1]])
    masses = torch.tensor([[3, 3, 3, 3], [9, 1, 2, 4], [1, 1, 1, 1]])
    lazy_ranks = torch.tensor([[1, 2, 1, 2], [1, 1, 1, 1], [2, 1, 1, 1]])
    first, second = layer_figures(Heads([ranks, lazy_ranks], [masses, masses]))
    assert (first.layer, second.layer) == (1, 2)
    assert first.max_rank.mean == 7
    assert first.max_rank.deviation == pytest.approx(statistics.stdev([5, 7, 6, 10]))
    assert first.mean_rank.mean == pytest.approx((1.5 + 7 + 1) / 3)
    assert first.mean_rank.deviation == pytest.approx(statistics.stdev([7 / 3, 10 / 3, 8 / 3, 13 / 3]))
    assert first.max_mass.mean == 4
    assert first.mean_mass.mean == pytest.approx((3 + 4 + 1) / 3)
    assert (first.degenerate_heads, first.lazy) == ([0, 2], False)
    assert (second.degenerate_heads, second.lazy) == ([0, 1, 2], True)
    assert not layer_figures(Heads([lazy_ranks], [masses]), degenerate=1.4)[0].lazy
    assert layer_figures(Heads([ranks[:, :1]], [masses[:, :1]]))[0].max_rank.deviation == 0


def cut(depth: int, *lazy: int) -> tuple[str, int, int, str]:
    found = judge_cut([layer in lazy for layer in range(1, depth + 1)])
    assert found.lazy_layers == sorted(lazy)
    assert found.half == max(1, depth // 2)
    return found.verdict, found.keeps_active, found.suggested, found.sentence


@pytest.mark.parametrize(
    ("depth", "lazy", "verdict", "keeps_active", "suggested", "sentence"),
    [
        (
            24,
            range(13, 25),
            "supported",
            12,
            12,
            "Layers 13-24 are lazy; a first cut at 12 is supported: all that it drops is lazy.",
        ),
        (
            24,
            [3, *range(9, 25)],
            "supported",
            8,
            8,
            "Layers 3, 9-24 are lazy; a first cut at 12 is supported: all that it drops is lazy, and 8 layers "
            "would keep every layer that is not.",
        ),
        (
            24,
            range(17, 25),
            "too deep",
            16,
            16,
            "Layers 17-24 are lazy; a first cut at 12 is too deep: it drops layers 13-16, which are not lazy; "
            "16 layers keep every layer that is not lazy.",
        ),
        (
            6,
            [4, 5],
            "too deep",
            6,
            3,
            "Layers 4-5 are lazy; a first cut at 3 is too deep: it drops layer 6, which is not lazy; "
            "no cut keeps every layer that is not lazy, since the last one is not.",
        ),
        (
            3,
            [3],
            "too deep",
            2,
            2,
            "Layer 3 is lazy; a first cut at 1 is too deep: it drops layer 2, which is not lazy; "
            "2 layers keep every layer that is not lazy.",
        ),
        (
            8,
            [],
            "undecided",
            8,
            4,
            "No layer is lazy: each has a head with a mean rank above 1.5. The ranks speak for no cut; "
            "a first cut at 4 would rest on the paper's k/2 alone.",
        ),
        (
            8,
            range(1, 9),
            "undecided",
            0,
            4,
            "Every layer is lazy: no head has a mean rank above 1.5. So this does not rank the layers; "
            "a first cut at 4 would rest on the paper's k/2 alone.",
        ),
        (1, [], "undecided", 1, 1, "A model of one layer cannot be cut."),
    ],
)
def test_what_lazy_layers_say_of_the_cut(
    depth: int, lazy: range | list[int], verdict: str, keeps_active: int, suggested: int, sentence: str
) -> None:
    assert cut(depth, *lazy) == (verdict, keeps_active, suggested, sentence)
