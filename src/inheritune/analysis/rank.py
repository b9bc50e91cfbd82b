"""Approximate rank of attention matrices (paper.md, section 3): exact, and seldom by a full decomposition.

With lambda_i = sigma_i^2 the eigenvalues of G = A^T A in descending order, S_k = lambda_1 + ... + lambda_k and the
energy F = ||A||_F^2 = trace G, the approximate rank k* is the smallest k with

    S_k >= tau * (1 - TOLERANCE) * F.

The tolerance says what a tie is: equal singular values often put S_k / F on tau itself (ten equal ones, tau 0.9),
and there the rounding of any decomposition would decide. A float64 SVD errs by about 1e-13, well inside it.

A matrix is asked the cheapest question first, and a question answers only where it proves its answer:

1. Heaviest column: ||A e_j||^2 <= lambda_1, so one column that holds tau of the energy proves k* = 1.
2. Small subspaces: bounds of S_k and S_{k-1} from Ritz values (`subspace`), first without G, then with it.
3. All eigenvalues of G in float32, for sums that are clear of the threshold by the solver's error bound.
4. All eigenvalues of G in float64.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from inheritune import UserError
from inheritune.analysis.subspace import BLOCK, Krylov, certify, gram_matrix, rounding

TOLERANCE = 1e-9
_FIRST_SUBSPACE = (
    32  # columns tried before G is formed; matrices for which T / 8 is less go straight to eigenvalues
)
_CHUNK_BYTES = {
    "cpu": 2**23,
    "cuda": 2**30,
}  # one float64 copy of a chunk: near the cache, or enough to fill a GPU
_WIDEST = {"cpu": 6, "cuda": 4}  # subspaces wider than T over this cost as much as all eigenvalues
_HOPEFUL = 0.35  # ranks up to this fraction of the widest subspace tend to be proven by it
_FLOAT32_FROM = 512  # orders from which eigenvalues in float32 are worth a try
_OPEN = -1


class DecidedBy(IntEnum):
    """What settled the rank of a matrix, cheapest first."""

    ZERO = 0
    COLUMN = 1
    SMALL_SUBSPACE = 2
    SUBSPACE = 3
    EIGENVALUES_FLOAT32 = 4
    EIGENVALUES = 5


class RankDecision(NamedTuple):
    """Ranks, and for each the `DecidedBy` that settled it: int64 tensors of the batch's shape."""

    rank: Tensor
    decided_by: Tensor


def approximate_rank(attention_bhtt: Tensor, tau: float = 0.90) -> Tensor:
    """Smallest number of singular values that hold the fraction `tau` of the energy, for each matrix.

    `attention_bhtt` is [..., T, T] in any floating dtype, its values taken as exact; the result is int64 [...].
    Equal to what a float64 SVD gives, where a fraction within a relative 1e-9 below `tau` counts as reached.
    A matrix of zeros (a fully masked head) has rank 0. UserError for anything but finite square matrices and
    0 < tau <= 1. Source: paper.md, section 3 (explained variance with tau = 0.90).
    """
    return decide_rank(attention_bhtt, tau).rank


@torch.no_grad()
def decide_rank(attention_bhtt: Tensor, tau: float = 0.90) -> RankDecision:
    """`approximate_rank` that also returns what settled each matrix."""
    if not 0 < tau <= 1:
        raise UserError(f"tau is {tau}: it must be a fraction of the energy, above 0 and at most 1")
    heads = as_batch(attention_bhtt)
    chunk = max(1, _CHUNK_BYTES.get(heads.device.type, 2**28) // (8 * heads.shape[-1] ** 2))
    # The two large intermediates of all chunks: fresh memory costs as much time as the arithmetic of a lazy head.
    workspace = heads.new_empty(2, min(chunk, len(heads)), *heads.shape[1:], dtype=torch.float64)
    parts = [_decide(part, tau, workspace[:, : len(part)]) for part in heads.split(chunk)]
    rank, by = (torch.cat(x).view(attention_bhtt.shape[:-2]) for x in zip(*parts, strict=True))
    return RankDecision(rank, by)


def as_batch(attention_bhtt: Tensor) -> Tensor:
    """The matrices as one batch [n, T, T], in their own dtype. UserError if not square and floating."""
    shape = attention_bhtt.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise UserError(f"attention has shape {tuple(shape)}: it must be [..., T, T], square and not empty")
    if not attention_bhtt.is_floating_point():
        raise UserError(f"attention has dtype {attention_bhtt.dtype}: it must be floating, such as float32")
    return attention_bhtt.detach().reshape(-1, shape[-1], shape[-1])


def as_float64(heads: Tensor, out: Tensor | None = None) -> Tensor:
    """The batch [n, T, T] in float64, each matrix times the power of two that puts its largest entry in [0.5, 1).

    Such a factor is exact, and keeps squares from over- and underflowing. UserError for NaN or infinity.
    """
    largest = torch.maximum(heads.amax((-2, -1)), -heads.amin((-2, -1))).double()
    if not bool(torch.isfinite(largest).all()):
        raise UserError("attention holds NaN or infinity: every value must be finite")
    exponent = torch.frexp(largest).exponent.double().clamp(-1000, 1000)  # 2^1024 would overflow
    return torch.mul(heads, torch.pow(2.0, -exponent)[:, None, None], out=out)


def column_energies(a: Tensor) -> Tensor:
    """||A e_j||^2 for each column of matrices [n, T, T]: [n, T]. A few rows at a time, which stay in the cache."""
    return torch.stack([rows.square().sum(-2) for rows in a.split(128, -2)]).sum(0)


class _Chunk:
    """Matrices being decided: float64 copies, what their partial sums must reach, and the answers so far."""

    def __init__(self, heads: Tensor, tau: float, workspace: Tensor) -> None:
        self.a = as_float64(heads, workspace[0])
        self.workspace = workspace[1]
        self.T = heads.shape[-1]
        self.columns = column_energies(self.a)
        self.energy = self.columns.sum(-1)
        self.threshold = tau * (1 - TOLERANCE) * self.energy
        self.rank = torch.zeros_like(self.energy, dtype=torch.int64)
        self.by = torch.where(self.energy > 0, _OPEN, int(DecidedBy.ZERO))

    def open(self) -> Tensor:
        """Indices of the matrices still to decide."""
        return (self.by == _OPEN).nonzero()[:, 0]

    def settle(self, index: Tensor, proven: Tensor, rank: Tensor, by: DecidedBy) -> None:
        """Write down the ranks of those matrices among `index` for which they are proven."""
        self.rank[index[proven]] = rank[proven]
        self.by[index[proven]] = int(by)


def _decide(heads: Tensor, tau: float, workspace: Tensor) -> RankDecision:
    """`decide_rank` of one batch [n, T, T]."""
    chunk = _Chunk(heads, tau, workspace)
    index = chunk.open()
    heavy = chunk.columns.amax(-1) >= chunk.threshold + rounding(chunk.T, 1) * chunk.energy
    chunk.settle(index, heavy[index], torch.ones_like(index), DecidedBy.COLUMN)
    widest = chunk.T // _WIDEST.get(heads.device.type, 6) // BLOCK * BLOCK
    if widest <= _FIRST_SUBSPACE:
        index = chunk.open()
        _by_eigenvalues(chunk, index, gram_matrix(_take(chunk.a, index), chunk.workspace[: len(index)]))
    else:
        _by_subspace(chunk, widest)
    return RankDecision(chunk.rank, chunk.by)


def _by_subspace(chunk: _Chunk, widest: int) -> None:
    """Grow Krylov subspaces while they are likely to prove a rank, then leave what remains to the eigenvalues."""
    index = chunk.open()
    if len(index) == 0:
        return
    krylov = Krylov(_take(chunk.a, index), widest)
    krylov.grow(_FIRST_SUBSPACE)
    proof = certify(*krylov.basis(), chunk.energy[index], chunk.threshold[index])
    chunk.settle(index, proof.proven, proof.rank, DecidedBy.SMALL_SUBSPACE)
    left = (~proof.proven).nonzero()[:, 0]
    if len(left) == 0:
        return
    index, guess = index[left], proof.guess[left]
    krylov.select(left)
    gram = krylov.form_gram(chunk.workspace[: len(index)])
    square = torch.linalg.vector_norm(gram, dim=(-2, -1)).square()

    some = (guess <= _HOPEFUL * widest).nonzero()[:, 0]  # positions in index and gram
    krylov.select(some)
    width = _FIRST_SUBSPACE
    while len(some) and width < widest:
        wanted = int(4 * guess[some].median()) // BLOCK * BLOCK
        width = min(max(wanted, width + BLOCK), widest)
        krylov.grow(width)
        which = index[some]
        proof = certify(*krylov.basis(), chunk.energy[which], chunk.threshold[which], square[some])
        chunk.settle(which, proof.proven, proof.rank, DecidedBy.SUBSPACE)
        guess[some] = proof.guess
        left = (~proof.proven & (proof.guess <= _HOPEFUL * widest)).nonzero()[:, 0]
        some = some[left]
        krylov.select(left)
    rest = (chunk.by[index] == _OPEN).nonzero()[:, 0]
    _by_eigenvalues(chunk, index[rest], _take(gram, rest))


def _by_eigenvalues(chunk: _Chunk, index: Tensor, gram: Tensor) -> None:
    """Settle the matrices `index`, whose Gram matrices are given."""
    some = _promising(chunk, index, gram)
    if len(some):
        which = index[some]
        sums, error = float32_sums(_take(gram, some), chunk.energy[which])
        least, most = (1 + (sums + e < chunk.threshold[which, None]).sum(-1) for e in (error, -error))
        chunk.settle(which, least == most, least, DecidedBy.EIGENVALUES_FLOAT32)
        rest = (chunk.by[index] == _OPEN).nonzero()[:, 0]
        index, gram = index[rest], _take(gram, rest)
    if len(index):
        sums = torch.linalg.eigvalsh(gram).flip(-1).cumsum(-1)
        rank = 1 + (sums < chunk.threshold[index, None]).sum(-1)
        chunk.settle(index, rank > 0, rank.clamp_max(chunk.T), DecidedBy.EIGENVALUES)


def _promising(chunk: _Chunk, index: Tensor, gram: Tensor) -> Tensor:
    """Positions in `index` where the error of float32 is well below the eigenvalues near the threshold.

    Those are put at twice the mean of the tail, (1 - tau) F / T, and the error at that of a sum of T / 4.
    """
    if chunk.T < _FLOAT32_FROM:
        return index[:0]
    error = 0.5 * chunk.T**0.5 * _float32_error(gram, chunk.energy[index])
    tail = (chunk.energy[index] - chunk.threshold[index]) / chunk.T
    return (error < tail).nonzero()[:, 0]


def float32_sums(gram: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """S_k for every k from eigenvalues in float32, and bounds of their errors: two float64 tensors [n, T].

    `gram` [n, T, T] with traces `energy` [n]. The mean m of the eigenvalues is taken off the diagonal first, which
    leaves little of a head close to the identity. The solver returns eigenvalues of G - m I + E. That moves S_k by
    at most a trace of E over k dimensions: at most sqrt(k) ||E||_F, or the whole trace of E, which is known, and
    sqrt(T - k) ||E||_F for the complement. Rounding to float32 adds at most 2 u ||G||_F to ||E||_F, u = 2^-24; for
    the solver T u ||G - m I||_F is taken. This is the one bound here not proven from scratch: it is the normwise
    backward error p(T) u of a Householder eigensolver (LAPACK Users' Guide, section 4.7) with p(T) = T, the order
    that probabilistic analysis gives for Householder QR (Connolly and Higham 2023). Up to T = 1024, p(T) was seen to
    stay below 12.
    """
    T = gram.shape[-1]
    mean = energy / T
    shifted = gram.float()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(mean[:, None].float())
    eigenvalues = torch.linalg.eigvalsh(shifted).double().flip(-1) + mean.float().double()[:, None]
    drift = (eigenvalues.sum(-1) - energy).abs() + rounding(T, 1) * energy
    norm = _float32_error(gram, energy)[:, None]
    k = torch.arange(1, T + 1, dtype=gram.dtype, device=gram.device)
    error = torch.minimum(k.sqrt() * norm, (T - k).sqrt() * norm + drift[:, None])
    return eigenvalues.cumsum(-1), error + rounding(T, 1) * energy[:, None]


def _float32_error(gram: Tensor, energy: Tensor) -> Tensor:
    """The bound of ||E||_F in `float32_sums`: [n]."""
    T = gram.shape[-1]
    square = torch.linalg.vector_norm(gram, dim=(-2, -1)).square()
    shifted = square - energy.square() / T + rounding(T, 1) * energy.square()  # ||G - m I||_F^2
    return 2.0**-24 * (T * shifted.clamp_min(0).sqrt() + 2 * square.sqrt())


def _take(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]` for ascending indices, without a copy where that is everything."""
    return x if len(index) == len(x) else x[index]
