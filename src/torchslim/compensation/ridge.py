"""Ridge regression from second moments, for all least-squares problems here."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_ridge(gram: Tensor, cross: Tensor, ridge: Tensor, prior: Tensor | None = None) -> Tensor:
    """The weights W that minimise E|y - W x|^2 + sum_f ridge_f |W_f - prior_f|^2 (Hoerl and Kennard 1970).

    Args:
        gram: E[x x^T], (..., F, F).
        cross: E[y x^T], (..., N, F).
        ridge: above 0 where the gram is singular, (..., F).
        prior: center of the penalty, (..., N, F); None for 0.

    Returns:
        (..., N, F).

    Raises:
        torch.linalg.LinAlgError: the gram is singular and the ridge is 0.
    """
    wanted = cross if prior is None else cross + ridge.unsqueeze(-2) * prior
    penalised = gram + torch.diag_embed(ridge)
    factor, failures = torch.linalg.cholesky_ex(penalised)
    # Rounding can make a gram matrix indefinite; LU with pivoting solves it still.
    solution = (torch.linalg.solve(penalised, wanted.mT) if bool(failures.any())
                else torch.cholesky_solve(wanted.mT, factor))
    return solution.mT
