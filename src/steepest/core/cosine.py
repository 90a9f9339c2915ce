"""Cosines: rows on the unit sphere, safe at zero and in half precision."""

from __future__ import annotations

import torch
from torch import Tensor

from .reductions import widen


def unit_rows(value: Tensor, eps: float = 1e-12) -> Tensor:
    r""":math:`v / \|v\|_2` along the last dimension, in float32 or wider.

    The norm of a half tensor is taken in float32, where its square neither overflows nor vanishes. A row of norm
    ``eps`` or less has no direction: it gives 0, with a gradient of 0.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    value = widen(value)
    norm = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
    return value / torch.where(norm > eps, norm, torch.inf)
