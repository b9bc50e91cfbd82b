"""Proofs about sums of the largest eigenvalues of G = A^T A from a small subspace, for `rank`.

Write S_k for the sum of the k largest eigenvalues of G and F for its trace. Let Q have p orthonormal columns,
B = Q^T G Q and R = G Q - Q B. In the basis [Q, Q'], Q' spanning the complement, G = [[B, C^T], [C, D]] with
C^T C = R^T R.

Lower bound (Ky Fan). For k <= p the k largest eigenvalues of B sum to at most S_k.

Upper bound. For any x > 0, [[C^T C / x, -C^T], [-C, x I]] is positive semidefinite (its Schur complement is 0), so
G <= diag(B + R^T R / x, D + x I) and S_k is at most the sum of the k largest eigenvalues of the latter. With beta the
eigenvalues of B + R^T R / x, descending, and delta those of D, this is for any mu > x

    S_k <= sum_{i <= k} max(beta_i, mu) + sum_j max(delta_j - c, 0),   c = mu - x.

The error is quadratic in R. Of D, positive semidefinite of order N = T - p, the trace t = F - trace B is known, and
where G is formed ||D||_F^2 = ||G||_F^2 - ||B||_F^2 - 2 ||R||_F^2. So with mean m = t / N and s >= ||D||_F^2 - N m^2,
the sum over delta is

- 0 if c >= t, or if c >= m + sqrt((N - 1) s / N), which no delta exceeds (Samuelson);
- at most s / (4 (c - m)) if c > m, since delta - c <= (delta - m)^2 / (4 (c - m)) by the two means.

Rounding. All is float64, unit roundoff u = 2^-53. A matrix product over T terms errs by at most T u |X| |Y| entry
by entry. In the Frobenius norm that is T u F for G and 2 T u sqrt(p) F for B; it moves a sum of k <= p eigenvalues by
sqrt(p) times as much. Columns of Q orthonormal up to e = ||Q^T Q - I||_F move it by less than 3 e F. `slack`,
8 T p u F + 3 e F, is above their sum and is taken off every bound.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 16  # columns that one step of Lanczos adds


class Certificate(NamedTuple):
    """Per matrix: whether the rank is proven, the rank, and where it is not proven a guess. Tensors of shape [n]."""

    proven: Tensor
    rank: Tensor
    guess: Tensor


def rounding(T: int, p: int) -> float:
    """How far float64 rounding can move a sum of `p` eigenvalues, as a fraction of the trace."""
    return 8 * T * p * 2.0**-53


class Krylov:
    """Orthonormal bases Q of growing Krylov subspaces of G, and the images Y = G Q, for a batch of matrices.

    Block Lanczos with full reorthogonalisation (Golub and Van Loan, section 10.3). Where the directions of a matrix
    run out, as with low rank, random ones take their place. Until `form_gram`, G is applied as A^T (A q).
    `a` is [n, T, T]; the bases are [n, T, columns] with columns <= widest.
    """

    def __init__(self, a: Tensor, widest: int) -> None:
        T = a.shape[-1]
        generator = torch.Generator(a.device).manual_seed(0)
        self._random = torch.randn(T, BLOCK, generator=generator, dtype=a.dtype, device=a.device) / T**0.5
        self._next = a.mT @ self._random
        self._a = a
        self._gram: Tensor | None = None
        self._q, self._y = a.new_empty(2, len(a), T, widest)
        self._columns = 0

    def basis(self) -> tuple[Tensor, Tensor]:
        """Q and Y."""
        return self._q[..., : self._columns], self._y[..., : self._columns]

    def select(self, index: Tensor) -> None:
        """Continue with these matrices only."""
        if len(index) < len(self._q):
            self._a, self._next, self._q, self._y = (
                x[index] for x in (self._a, self._next, self._q, self._y)
            )
            self._gram = None if self._gram is None else self._gram[index]

    def form_gram(self, out: Tensor) -> Tensor:
        """G for each matrix, in `out`, and from now on used to grow the bases."""
        self._gram = gram_matrix(self._a, out)
        return self._gram

    def grow(self, columns: int) -> None:
        """Extend the bases to this many columns, a multiple of `BLOCK`."""
        while self._columns < columns:
            q, _ = self.basis()
            new = self._next - q @ (q.mT @ self._next)
            # A little noise bounds the condition number, so that two rounds of Cholesky QR are enough.
            new = (
                new / torch.linalg.vector_norm(new, dim=-2, keepdim=True).clamp_min(1e-300)
                + 1e-6 * self._random
            )
            for _ in range(2):
                new = new - q @ (q.mT @ new)
                factor, _ = torch.linalg.cholesky_ex(new.mT @ new)
                new = torch.linalg.solve_triangular(factor.mT, new, upper=True, left=False)
            self._next = self._a.mT @ (self._a @ new) if self._gram is None else self._gram @ new
            added = slice(self._columns, self._columns + BLOCK)
            self._q[..., added], self._y[..., added] = new, self._next
            self._columns += BLOCK


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


def certify(
    q: Tensor, y: Tensor, energy: Tensor, threshold: Tensor, square: Tensor | None = None
) -> Certificate:
    """Smallest k with S_k >= threshold, where the subspace proves it.

    `q` and `y` = G q are [n, T, p] with p < T, `energy` the traces F, `threshold` what to reach, `square` the squared
    Frobenius norms of G where known, all [n].
    """
    T, p = q.shape[-2:]
    b = q.mT @ y
    residual = y - q @ b
    residual = residual.mT @ residual
    defect = torch.linalg.matrix_norm(q.mT @ q - torch.eye(p, dtype=q.dtype, device=q.device))
    slack = (rounding(T, p) + 3 * defect) * energy

    theta = _eigenvalues(b)
    lower = theta.cumsum(-1)
    k = 1 + (lower < (threshold + slack)[:, None]).sum(-1)

    # The upper bound of S_{k-1}, with mu its last Ritz value (k = 1 needs none).
    mu = theta.gather(-1, (k - 2).clamp(0, p - 1)[:, None])[:, 0]
    norm = _trace(residual)
    trace = energy - _trace(b) + slack
    mean, least_mean = trace / (T - p), (trace - 2 * slack).clamp_min(0) / (T - p)
    squares = trace.square()
    if square is not None:
        squares = torch.minimum(squares, square - b.square().sum((-2, -1)) - 2 * norm + 8 * slack * energy)
    spread = (squares - (T - p) * least_mean.square()).clamp_min(0)
    largest = torch.minimum(trace, mean + ((T - p - 1) / (T - p) * spread).sqrt())

    x = torch.maximum(0.999 * (mu - largest), 0.1 * mu)
    c = mu - x
    usable = (k <= p) & (x > slack) & (c > mean)
    x = torch.where(usable, x, energy)
    beta = _eigenvalues(b + residual / x[:, None, None])
    inside = torch.arange(p, device=q.device) < (k - 1)[:, None]
    upper = (torch.maximum(beta, mu[:, None]) * inside).sum(-1)
    upper = upper + torch.where(c >= largest, 0, spread / (4 * (c - mean)))
    upper = upper + slack + (2 * norm.clamp_min(0).sqrt() + slack) * slack / x
    half = p // 2
    guess = torch.where(k <= half, k, half + (threshold - lower[:, half - 1]) / theta[:, half - 1])
    return Certificate((k <= p) & ((k == 1) | (usable & (upper < threshold))), k, guess)


def _eigenvalues(b: Tensor) -> Tensor:
    """Eigenvalues of the symmetric part, descending; zeros, which prove nothing, in place of what is not finite."""
    return torch.linalg.eigvalsh(torch.nan_to_num((b + b.mT) / 2, 0, 0, 0)).flip(-1)


def _trace(b: Tensor) -> Tensor:
    return b.diagonal(dim1=-2, dim2=-1).sum(-1)
