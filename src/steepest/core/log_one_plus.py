"""log(1 + sum e^x), the soft maximum of some numbers and 0."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def log_one_plus_sum(values: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    r""":math:`\log(1 + \sum_j e^{x_j})` over the values that count; 0 where none does.

    Args:
        values: x, of any shape.
        mask: boolean, of the same shape.
        dim: along which is summed.

    >>> import torch
    >>> log_one_plus_sum(torch.tensor([0.0, 1000.0]), torch.tensor([True, False]))
    tensor(0.6931)
    """
    summed = values.masked_fill(~mask, -float("inf")).movedim(dim, -1)
    total: Tensor = pad(summed, (0, 1)).logsumexp(-1)
    return total
