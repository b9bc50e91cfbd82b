import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune.analysis import mass
from inheritune.analysis.rank import TOLERANCE, decide_rank


def column_mass(attention: torch.Tensor, fraction: float = 0.90) -> torch.Tensor:
    return mass.column_mass(decide_rank(attention).columns, fraction)


def heads(count: int, T: int, scale: float, seed: int) -> torch.Tensor:
    logits = scale * torch.randn(count, T, T, generator=torch.Generator().manual_seed(seed))
    return logits.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


@settings(max_examples=60)
@given(
    T=st.integers(1, 100),
    scale=st.sampled_from([0.0, 1.0, 5.0, 50.0]),
    fraction=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equals_the_definition(T, scale, fraction, seed, dtype):
    attention = heads(3, T, scale, seed).to(dtype)
    found = column_mass(attention, fraction).tolist()
    for head, columns in zip(attention.double(), found, strict=True):
        masses = sorted((float(head[:, j] @ head[:, j]) for j in range(T)), reverse=True)
        wanted = fraction * (1 - TOLERANCE) * sum(masses)
        assert sum(masses[:columns]) >= wanted * (1 - 1e-13)
        assert sum(masses[: columns - 1]) < wanted * (1 + 1e-13)


@settings(max_examples=60)
@given(T=st.integers(1, 64), scale=st.sampled_from([0.0, 1.0, 5.0]), seed=st.integers(0, 2**16))
def test_is_never_below_the_rank(T, scale, seed):
    """Ky Fan: the m heaviest columns hold no more than the m largest squared singular values."""
    attention = heads(3, T, scale, seed)
    assert (column_mass(attention) >= decide_rank(attention).rank).all()


def test_known_masses():
    one_column = torch.eye(10)[torch.zeros(10, dtype=torch.int64)]
    assert column_mass(torch.stack([torch.eye(10), one_column, torch.zeros(10, 10)])).tolist() == [9, 1, 0]
    assert column_mass(torch.eye(10), 0.91) == 10
    assert column_mass(torch.ones(7, 7), 1.0) == 7


def test_shape_and_type():
    masses = column_mass(heads(6, 8, 1.0, 0).view(2, 3, 8, 8))
    assert masses.shape == (2, 3) and masses.dtype == torch.int64


@pytest.mark.parametrize(
    ("attention", "fraction", "sentence"),
    [
        (torch.eye(4), 0.0, "fraction is 0.0"),
        (torch.eye(4), 1.5, "fraction is 1.5"),
    ],
)
def test_bad_input_is_one_clear_sentence(attention, fraction, sentence):
    with pytest.raises(ValueError, match=sentence):
        column_mass(attention, fraction)
