"""Approximate rank of attention matrices (paper.md, section 3): exact, and float64 only where it decides.

With lambda_i = sigma_i^2 the eigenvalues of G = A^T A in descending order, S_k = lambda_1 + ... + lambda_k and the
energy F = ||A||_F^2 = trace G, the approximate rank k* is the smallest k with

    S_k >= tau * (1 - TOLERANCE) * F.

The tolerance says what a tie is: equal singular values often put S_k / F on tau itself (ten equal ones, tau 0.9),
and there the rounding of any decomposition would decide. A float64 SVD errs by about 1e-13, well inside it.

A matrix is asked the cheapest question first, and a question answers only where it proves its answer:

1. Heaviest column: ||A e_j||^2 <= lambda_1, so one column that holds tau of the energy proves k* = 1.
2. All eigenvalues of G in float32, for sums that are clear of the threshold by the solver's error bound.
3. All eigenvalues of G in float64.

A few matrices at a time are one thread's, and eigenvalues the CPU's, also of matrices on a GPU: for hundreds of rows
a solver in many threads, or a GPU's, takes several times as long.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from inheritune import UserError

TOLERANCE = 1e-9
_CHUNK_BYTES = 2**23
"""One float64 copy of what a thread computes at once: near the cache."""
_WORKSPACE_BYTES = 2**31
"""What the two of each thread may take together."""
_FLOAT32_FROM = 256
"""Orders from which eigenvalues in float32 are enough faster to be tried."""


class DecidedBy(IntEnum):
    """What settled the rank of a matrix, cheapest first."""

    ZERO = 0
    COLUMN = 1
    EIGENVALUES_FLOAT32 = 2
    EIGENVALUES = 3


class RankDecision(NamedTuple):
    """Ranks, and for each the `DecidedBy` that settled it: int64 tensors of the batch's shape.

    `columns`: energies ||A e_j||^2 of each matrix's columns, float64 [..., T], up to a factor of each matrix.
    """

    rank: Tensor
    decided_by: Tensor
    columns: Tensor


def decide_rank(attention_bhtt: Tensor, tau: float = 0.90) -> RankDecision:
    """Smallest number of singular values that hold the fraction `tau` of the energy, for each matrix.

    `attention_bhtt` is [..., T, T] in any floating dtype, its values taken as exact. Equal to what a float64 SVD
    gives, where a fraction within a relative 1e-9 below `tau` counts as reached. A matrix of zeros (a fully masked
    head) has rank 0. UserError for anything but finite square matrices and 0 < tau <= 1. Source: paper.md, section 3
    (explained variance with tau = 0.90).
    """
    if not 0 < tau <= 1:
        raise UserError(f"tau is {tau}: it must be a fraction of the energy, above 0 and at most 1")
    heads = as_batch(attention_bhtt)
    parts = heads.split(max(1, _CHUNK_BYTES // (8 * heads.shape[-1] ** 2)))
    size = 2 * 8 * len(parts[0]) * heads.shape[-1] ** 2
    count = max(1, min(len(parts), torch.get_num_threads(), _WORKSPACE_BYTES // max(size, 1)))
    # The two large intermediates of each thread: fresh memory costs as much time as the arithmetic of a lazy head.
    spaces = SimpleQueue[Tensor]()

    def decide(part: Tensor) -> RankDecision:
        space = spaces.get()
        try:
            return _decide(part, tau, space[:, : len(part)])
        finally:
            spaces.put(space)

    for _ in range(count):
        spaces.put(heads.new_empty(2, *parts[0].shape, dtype=torch.float64))
    with threads(count) as pool:
        rank, by, columns = map(torch.cat, zip(*pool.map(decide, parts), strict=True))
    shape = attention_bhtt.shape[:-2]
    return RankDecision(rank.view(shape), by.view(shape), columns.view(attention_bhtt.shape[:-1]))


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads each of which computes by itself; meanwhile so does all of torch in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


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


@torch.inference_mode()
def _decide(heads: Tensor, tau: float, workspace: Tensor) -> RankDecision:
    """`decide_rank` of one batch [n, T, T]."""
    T = heads.shape[-1]
    a = as_float64(heads, workspace[0])
    columns = column_energies(a)
    energy = columns.sum(-1)
    threshold = tau * (1 - TOLERANCE) * energy
    heavy = (energy > 0) & (columns.amax(-1) >= threshold + rounding(T) * energy)
    rank = heavy.long()
    by = torch.where(heavy, int(DecidedBy.COLUMN), int(DecidedBy.ZERO))

    index = ((energy > 0) & ~heavy).nonzero()[:, 0]
    gram = gram_matrix(_take(a, index), workspace[1, : len(index)])
    if T >= _FLOAT32_FROM and len(index):
        sums, error = float32_sums(gram, energy[index])
        least, most = (1 + (sums + e < threshold[index, None]).sum(-1) for e in (error, -error))
        rank[index], by[index] = least, int(DecidedBy.EIGENVALUES_FLOAT32)
        left = (least != most).nonzero()[:, 0]
        index, gram = index[left], _take(gram, left)
    if len(index):
        sums = eigenvalues(gram).flip(-1).cumsum(-1)
        rank[index] = (1 + (sums < threshold[index, None]).sum(-1)).clamp_max(T)
        by[index] = int(DecidedBy.EIGENVALUES)
    return RankDecision(rank, by, columns)


def gram_matrix(a: Tensor, out: Tensor) -> Tensor:
    """A^T A of matrices [n, T, T], in `out`. Where A is lower triangular, by a sixth of the multiplications."""
    T = a.shape[-1]
    step = max(32, T // 16)
    steps = range(0, T, step)
    if T < 256 or bool(torch.stack([a[:, :i, i : i + step].any() for i in steps[1:]]).any()):
        return torch.matmul(a.mT, a, out=out)
    for i in steps:
        j = i + step
        block = a[:, i:, i:j].mT @ a[:, i:, :j]
        out[:, i:j, :j] = block
        out[:, :i, i:j] = block[:, :, :i].mT
    return out


def rounding(T: int) -> float:
    """How far float64 rounding can move a sum of eigenvalues that come from products over T terms, of the trace."""
    return 8 * T * 2.0**-53


def float32_sums(gram: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """S_k for every k from eigenvalues in float32, and bounds of their errors: two float64 tensors [n, T].

    `gram` [n, T, T] with traces `energy` [n]. The mean m of the eigenvalues is taken off the diagonal first, which
    leaves little of a head close to the identity. The solver returns eigenvalues of G - m I + E. That moves S_k by
    at most a trace of E over k dimensions: at most sqrt(k) ||E||_F, or the whole trace of E, which is known, and
    sqrt(T - k) ||E||_F for the complement. Rounding to float32 adds at most 2 u ||G||_F to ||E||_F, u = 2^-24; for
    the solver 8 sqrt(T) u ||G - m I||_F is taken. This is the one bound here not proven: it is the normwise backward
    error p(T) u of a Householder eigensolver (LAPACK Users' Guide, section 4.7), whose roundings add up like a random
    walk (Connolly and Higham 2023). On 270 heads of SmolLM2-135M, T = 256 to 1024, p(T) was at most 2.1 sqrt(T).
    """
    T = gram.shape[-1]
    mean = energy / T
    shifted = gram.float()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(mean[:, None].float())
    found = eigenvalues(shifted).double().flip(-1) + mean.float().double()[:, None]
    drift = (found.sum(-1) - energy).abs() + rounding(T) * energy
    norm = _float32_error(gram, energy)[:, None]
    k = torch.arange(1, T + 1, dtype=gram.dtype, device=gram.device)
    error = torch.minimum(k.sqrt() * norm, (T - k).sqrt() * norm + drift[:, None])
    return found.cumsum(-1), error + rounding(T) * energy[:, None]


def eigenvalues(symmetric: Tensor) -> Tensor:
    """Of symmetric matrices [n, T, T], rising: [n, T]."""
    return torch.linalg.eigvalsh(symmetric.cpu()).to(symmetric.device)


def _float32_error(gram: Tensor, energy: Tensor) -> Tensor:
    """The bound of ||E||_F in `float32_sums`: [n]."""
    T = gram.shape[-1]
    square = torch.linalg.vector_norm(gram, dim=(-2, -1)).square()
    shifted = square - energy.square() / T + rounding(T) * energy.square()  # ||G - m I||_F^2
    return 2.0**-24 * (8 * T**0.5 * shifted.clamp_min(0).sqrt() + 2 * square.sqrt())


def _take(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]` for ascending indices, without a copy where that is everything."""
    return x if len(index) == len(x) else x[index]
