import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inheritune import UserError
from inheritune.analysis import rank
from inheritune.analysis.rank import (
    TOLERANCE,
    DecidedBy,
    decide_rank,
    float32_sums,
    gram_matrix,
)

TAUS = st.sampled_from([0.1, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])


def approximate_rank(attention: torch.Tensor, tau: float = 0.90) -> torch.Tensor:
    return decide_rank(attention, tau).rank


def exact_rank(attention: Tensor, tau: float = 0.90) -> Tensor:
    """The definition, by a float64 SVD."""
    energies = torch.linalg.svdvals(attention.double()).square().cumsum(-1)
    rank = 1 + (energies < tau * (1 - TOLERANCE) * energies[..., -1:]).sum(-1)
    return rank.where(energies[..., -1] > 0, 0)


def causal_softmax(logits: Tensor) -> Tensor:
    mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def content(T: int, rank: int, scale: float, generator: torch.Generator) -> Tensor:
    query, key = (torch.randn(T, rank, generator=generator) for _ in range(2))
    return scale / rank**0.5 * query @ key.T


def sink(T: int, strength: float) -> Tensor:
    return strength * (torch.arange(T) == 0) * torch.log(torch.arange(2.0, T + 2))[:, None]


def structured(kind: str, T: int, scale: float, rank: int, generator: torch.Generator) -> Tensor:
    position = torch.arange(T, dtype=torch.float32)
    distance = position[:, None] - position
    blocks = torch.zeros(T, T)
    for start in range(0, T, rank):
        blocks[start : start + rank, start : start + rank] = 1
    rows = causal_softmax(content(T, 4, scale, generator))
    return {
        "content": lambda: causal_softmax(content(T, rank, scale, generator)),
        "random": lambda: causal_softmax(scale * torch.randn(T, T, generator=generator)),
        "sink": lambda: causal_softmax(sink(T, scale) + content(T, rank, 1.0, generator)),
        "local": lambda: causal_softmax(-distance / rank + 0.1 * torch.randn(T, T, generator=generator)),
        "previous": lambda: causal_softmax(-scale * (distance - 1).abs()),
        "uniform": lambda: causal_softmax(torch.zeros(T, T)),
        "one column": lambda: torch.eye(T)[torch.zeros(T, dtype=torch.int64)],
        "one-hot": lambda: torch.eye(T)[(position.long() * rank) // (T + rank)],
        "identity": lambda: torch.eye(T),
        "diagonal": lambda: torch.diag(torch.rand(T, generator=generator)),
        "blocks": lambda: blocks / blocks.sum(-1, keepdim=True),
        "repeated rows": lambda: rows[torch.arange(T) // rank * rank],
        "not causal": lambda: (scale * torch.randn(T, T, generator=generator)).softmax(-1),
        "signed": lambda: (
            torch.randn(T, rank, generator=generator) @ torch.randn(rank, T, generator=generator)
        ),
        "masked": lambda: torch.zeros(T, T),
    }[kind]()


KINDS = [
    "content",
    "random",
    "sink",
    "local",
    "previous",
    "uniform",
    "one column",
    "one-hot",
    "identity",
    "diagonal",
]
KINDS += ["blocks", "repeated rows", "not causal", "signed", "masked"]


def with_spectrum(energies: Tensor, generator: torch.Generator) -> Tensor:
    """A float64 matrix with these squared singular values."""
    T = len(energies)
    left, right = (
        torch.linalg.qr(torch.randn(T, T, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    return left * energies.sqrt() @ right


@settings(max_examples=150)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    T=st.integers(1, 128),
    scale=st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    rank=st.integers(1, 128),
    tau=TAUS,
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equals_a_float64_svd(kinds, T, scale, rank, tau, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    heads = torch.stack([structured(kind, T, scale, min(rank, T), generator) for kind in kinds]).to(dtype)
    assert approximate_rank(heads, tau).tolist() == exact_rank(heads, tau).tolist()


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    T=st.sampled_from([256, 300, 384]),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
    rank=st.integers(1, 256),
    tau=TAUS,
    seed=st.integers(0, 2**16),
)
def test_equals_a_float64_svd_where_float32_decides(kinds, T, scale, rank, tau, seed):
    generator = torch.Generator().manual_seed(seed)
    heads = torch.stack([structured(kind, T, scale, min(rank, T), generator) for kind in kinds])
    assert approximate_rank(heads, tau).tolist() == exact_rank(heads, tau).tolist()


@pytest.mark.parametrize("T", [512, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_float64_svd_at_full_size(kind, T):
    head = structured(kind, T, 1.0, 16, torch.Generator().manual_seed(T))
    assert approximate_rank(head) == exact_rank(head)


@settings(max_examples=80)
@given(
    T=st.sampled_from([3, 20, 64, 256, 520]),
    lead=st.integers(1, 12),
    off=st.sampled_from([-1e-3, -1e-6, -1e-7, -1e-8, -1e-10, 0.0, 1e-10, 1e-8, 1e-7, 1e-6, 1e-3]),
    decay=st.sampled_from([1.0, 0.8, 0.3]),
    tau=st.sampled_from([0.5, 0.9, 0.99]),
    seed=st.integers(0, 2**16),
)
def test_spectra_whose_energy_is_near_tau(T, lead, off, decay, tau, seed):
    """The first `lead` eigenvalues hold tau * (1 + off) of the energy, so k* is lead or the one after."""
    lead = min(lead, T - 1)
    first = decay ** torch.arange(lead, dtype=torch.float64)
    rest = decay ** torch.arange(T - lead, dtype=torch.float64)
    share = tau * (1 + off)
    smallest = share * first[-1] / first.sum()
    rest = rest * (1 - share) / rest.sum()
    energies = torch.cat([first * share / first.sum(), rest]).sort(descending=True)[0]
    matrix = with_spectrum(energies, torch.Generator().manual_seed(seed))
    found = approximate_rank(matrix, tau)
    assert found == exact_rank(matrix, tau)
    if rest[0] < smallest:  # the order is as built: the answer is known without any decomposition
        assert found == (lead if off >= -TOLERANCE else lead + 1)


@pytest.mark.parametrize("T", [10, 100, 640])
def test_ties_count_as_reached(T):
    """With equal singular values S_k / F is exactly k / T: 0.9 is reached at 0.9 T, not one later."""
    assert approximate_rank(torch.eye(T)) == T * 9 // 10
    rotated = with_spectrum(torch.ones(T, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert approximate_rank(rotated) == T * 9 // 10


def test_each_proof_decides_what_it_should():
    T, generator = 1024, torch.Generator().manual_seed(0)
    heads = {
        DecidedBy.ZERO: torch.zeros(T, T),
        DecidedBy.COLUMN: causal_softmax(sink(T, 2.0)),
        DecidedBy.EIGENVALUES_FLOAT32: causal_softmax(0.5 * torch.randn(T, T, generator=generator)),
        DecidedBy.EIGENVALUES: with_spectrum(torch.ones(T, dtype=torch.float64), generator).float(),
    }
    # 1000 equal eigenvalues tie at 0.9, which float32 must not decide.
    heads[DecidedBy.EIGENVALUES][1000:] = 0
    heads[DecidedBy.EIGENVALUES][:1000] = torch.eye(1000, T)
    decision = decide_rank(torch.stack(list(heads.values())))
    assert [DecidedBy(by) for by in decision.decided_by.tolist()] == list(heads)
    assert decision.rank.tolist() == exact_rank(torch.stack(list(heads.values()))).tolist()


def test_answer_does_not_depend_on_the_batch():
    T, generator = 256, torch.Generator().manual_seed(2)
    heads = torch.stack([structured(kind, T, 1.0, 8, generator) for kind in KINDS])
    alone = [int(approximate_rank(head)) for head in heads]
    assert approximate_rank(heads).tolist() == alone
    assert approximate_rank(heads.view(3, 5, T, T)).tolist() == torch.tensor(alone).view(3, 5).tolist()
    assert approximate_rank(heads.mT).tolist() == alone


@pytest.mark.parametrize("T", [64, 512])
def test_float32_bound_is_far_above_the_error(T):
    generator = torch.Generator().manual_seed(T)
    heads = torch.stack(
        [structured(kind, T, 1.0, 8, generator) for kind in KINDS if kind != "masked"]
    ).double()
    gram = heads.mT @ heads
    exact = torch.linalg.eigvalsh(gram).flip(-1).cumsum(-1)
    sums, error = float32_sums(gram, exact[:, -1])
    off = (sums - exact).abs()
    assert (off <= error).all()
    assert (off <= error / 4)[:, : T // 2].all()


@pytest.mark.parametrize("T", [256, 300, 1000])
def test_gram_matrix_by_blocks(T):
    generator = torch.Generator().manual_seed(T)
    a = torch.randn(2, T, T, generator=generator, dtype=torch.float64)
    for matrices in (a, a.tril(), a.tril(1), a.triu()):
        expected = matrices.mT @ matrices
        assert torch.allclose(gram_matrix(matrices, torch.empty_like(a)), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_scale_does_not_matter(factor):
    head = structured("content", 64, 1.0, 8, torch.Generator().manual_seed(0)).double()
    assert approximate_rank(head * factor) == exact_rank(head)


@pytest.mark.parametrize("inference", [False, True])
def test_many_parts_in_few_threads(inference, monkeypatch):
    """The same ranks as one by one; and torch computes in as many threads as before, after an error too."""
    monkeypatch.setattr(rank, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(rank, "_WORKSPACE_BYTES", 3 * 2 * 8 * 48**2)
    threads = torch.get_num_threads()
    heads = torch.softmax(4 * torch.randn(11, 48, 48, generator=torch.Generator().manual_seed(3)), -1)
    alone = torch.stack([approximate_rank(head) for head in heads])
    with torch.inference_mode(inference):
        found = approximate_rank(heads.clone())
    assert torch.equal(found, alone) and torch.get_num_threads() == threads
    heads[7, 3, 3] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        approximate_rank(heads)
    assert torch.get_num_threads() == threads


def test_empty_batch_and_gradients():
    assert approximate_rank(torch.zeros(0, 3, 8, 8)).shape == (0, 3)
    rank = approximate_rank(torch.eye(8, requires_grad=True))
    assert rank.dtype == torch.int64 and rank.shape == () and not rank.requires_grad


@pytest.mark.parametrize(
    ("attention", "tau", "sentence"),
    [
        (torch.full((2, 4, 4), torch.nan), 0.9, "NaN or infinity"),
        (torch.full((4, 4), torch.inf), 0.9, "NaN or infinity"),
        (-torch.full((4, 4), torch.inf), 0.9, "NaN or infinity"),
        (torch.ones(4, 5), 0.9, r"shape \(4, 5\)"),
        (torch.ones(4), 0.9, r"shape \(4,\)"),
        (torch.ones(2, 0, 0), 0.9, "not empty"),
        (torch.ones(4, 4, dtype=torch.int64), 0.9, "dtype torch.int64"),
        (torch.eye(4), 0.0, "tau is 0.0"),
        (torch.eye(4), 1.1, "tau is 1.1"),
        (torch.eye(4), float("nan"), "tau is nan"),
    ],
)
def test_bad_input_is_one_clear_sentence(attention, tau, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        approximate_rank(attention, tau)
    assert "\n" not in str(error.value)
