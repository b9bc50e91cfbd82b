"""Mass of attention matrices: how many columns, that is attended tokens, hold most of it (paper.md, section 3)."""

import torch
from torch import Tensor

from inheritune import UserError
from inheritune.analysis.rank import TOLERANCE, as_batch, as_float64, column_energies


@torch.no_grad()
def column_mass(attention_bhtt: Tensor, fraction: float = 0.90) -> Tensor:
    """Smallest number of columns that hold the fraction `fraction` of the mass, for each matrix.

    The mass of column j is ||A_{.,j}||^2 / ||A||_F^2, summed in float64. `attention_bhtt` is [..., T, T] in any
    floating dtype; the result is int64 [...]. A mass within a relative 1e-9 below `fraction` counts as reached. A
    matrix of zeros has mass 0. Never below `approximate_rank` for the same fraction. UserError for anything but
    finite square matrices and 0 < fraction <= 1. Source: paper.md, section 3 (m*, with 0.90).
    """
    heads = as_batch(attention_bhtt)
    chunk = max(1, 2**26 // (8 * heads.shape[-1] ** 2))
    energies = torch.cat([column_energies(as_float64(part)) for part in heads.split(chunk)])
    return columns_holding(energies, fraction).view(attention_bhtt.shape[:-2])


def columns_holding(energies: Tensor, fraction: float = 0.90) -> Tensor:
    """`column_mass` of matrices the energies of whose columns are known, float64 [..., T]: int64 [...]."""
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: it must be a fraction of the mass, above 0 and at most 1")
    reached = energies.sort(-1, descending=True)[0].cumsum(-1)
    total = reached[..., -1:]
    columns = 1 + (reached < fraction * (1 - TOLERANCE) * total).sum(-1)
    return torch.where(total[..., 0] > 0, columns, 0)
