"""Pairs of documents of a list of which one has the higher grade."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

WEIGHINGS = (None, "difference", "squares")


def ordered_pairs(grades: Tensor, mask: Tensor) -> Tensor:
    """Where document i has a higher grade than document j, ``[Q, n, n]``."""
    both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    return both & (grades.unsqueeze(-1) > grades.unsqueeze(-2))


def logistic_pairs(scores: Tensor, sigma: float = 1.0) -> Tensor:
    """log(1 + exp(-sigma (s_i - s_j))) of all pairs, ``[Q, n, n]``."""
    return nnf.softplus(sigma * (scores.unsqueeze(-2) - scores.unsqueeze(-1)), threshold=40.0)


def grade_weights(grades: Tensor, weighing: str | None) -> Tensor | None:
    """|y_i - y_j| or |y_i^2 - y_j^2| of all pairs, or None for ones."""
    if weighing is None:
        return None
    values = grades.square() if weighing == "squares" else grades
    return (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()


def sum_of_pairs(losses: Tensor, pairs: Tensor, weight: Tensor | None, mean: bool) -> Tensor:
    """Of each list the sum, or the mean over its pairs, of weighted losses ``[Q, n, n]``."""
    weighted = losses if weight is None else weight * losses
    total = torch.where(pairs, weighted, 0.0).sum((-2, -1))
    return total / pairs.sum((-2, -1)).clamp_min(1) if mean else total
