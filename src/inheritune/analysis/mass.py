"""Mass of attention matrices: how many columns, that is attended tokens, hold most of it (paper.md, section 3)."""

import torch
from torch import Tensor

from inheritune import UserError
from inheritune.analysis.rank import TOLERANCE


def column_mass(energies: Tensor, fraction: float = 0.90) -> Tensor:
    """Smallest number of columns that hold the fraction `fraction` of the mass, for each matrix.

    The mass of column j is ||A_{.,j}||^2 / ||A||_F^2. `energies` are the squared norms of the columns up to a
    factor of each matrix, float64 [..., T] (`RankDecision.columns`); the result is int64 [...]. A mass within a
    relative 1e-9 below `fraction` counts as reached. A matrix of zeros has mass 0. Never below the approximate rank
    for the same fraction. UserError for anything but 0 < fraction <= 1. Source: paper.md, section 3 (m*, with 0.90).
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: it must be a fraction of the mass, above 0 and at most 1")
    reached = energies.sort(-1, descending=True)[0].cumsum(-1)
    total = reached[..., -1:]
    columns = 1 + (reached < fraction * (1 - TOLERANCE) * total).sum(-1)
    return torch.where(total[..., 0] > 0, columns, 0)
