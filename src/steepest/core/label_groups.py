"""Rows of one label as groups, by sorting: sums over those that share a label, without a matrix of pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def group_numbers(labels: Tensor) -> Tensor:
    """Labels ``[N]`` renumbered 0, 1, ... in their order; the shape of no result depends on values.

    >>> group_numbers(torch.tensor([7, 3, 7, 9]))
    tensor([1, 0, 1, 2])
    """
    if not labels.shape[0]:
        return labels.long()
    order = labels.argsort(stable=True)
    ordered = labels.gather(0, order)
    new = torch.cat([torch.zeros_like(order[:1]), (ordered[1:] != ordered[:-1]).long()]).cumsum(0)
    return torch.zeros_like(order).scatter(0, order, new)


def group_sums(groups: Tensor, rows: Tensor) -> Tensor:
    """Of each row ``[N, ...]`` the sum over the rows of its group ``[N]``, numbered in 0..N-1.

    >>> group_sums(torch.tensor([1, 0, 1]), torch.tensor([1.0, 2.0, 3.0]))
    tensor([4., 2., 4.])
    """
    return torch.zeros_like(rows).index_add(0, groups, rows).index_select(0, groups)
