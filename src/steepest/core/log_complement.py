"""Logarithms of one minus a probability, from its logarithm, exact at both ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log1mexp(a: Tensor) -> Tensor:
    r"""log(1 - e^a) of a <= 0, and its gradient -e^a / (1 - e^a), without cancellation.

    Near 0 it is log(-expm1(a)), else log1p(-exp(a)). At 0 it is minus infinity, as it must be, with the gradient of the
    smallest argument that is not 0; NaN stays NaN.

    Args:
        a: floating, <= 0.

    >>> log1mexp(torch.tensor([-1e-9, -1.0]))
    tensor([-20.7233,  -0.4587])
    """
    near = a > -math.log(2)
    below = a.clamp(max=-torch.finfo(a.dtype).tiny)
    small = torch.where(near, below, -1.0)
    large = torch.where(near, -1.0, a)
    value = torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
    return torch.where(a == 0, value - math.inf, value)
