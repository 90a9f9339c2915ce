"""Ratios of probabilities from their logarithms, finite in value and gradient however large."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SATURATION = 20.0
"""Log-ratio above which a ratio grows linearly."""


def saturating_exp(log_ratio: Tensor) -> Tensor:
    r"""The exponential, continued by its tangent above 20.

    .. math:: w(d) = e^d \text{ for } d \le 20, \qquad w(d) = e^{20} (1 + d - 20) \text{ beyond}

    Value and slope are continuous; the slope beyond is e^20 and never 0, as it is where a log-ratio is clamped.

    >>> saturating_exp(torch.tensor([0.0, 1.0, 200.0]))
    tensor([1.0000e+00, 2.7183e+00, 8.7815e+10])
    """
    tangent = math.exp(SATURATION) * (1.0 + (log_ratio - SATURATION))
    return torch.where(log_ratio <= SATURATION, log_ratio.clamp(max=SATURATION).exp(), tangent)


def saturating_expm1(log_ratio: Tensor) -> Tensor:
    """:func:`saturating_exp` less 1, exact near 0.

    >>> saturating_expm1(torch.tensor([1e-6, 1.0]))
    tensor([1.0000e-06, 1.7183e+00])
    """
    tangent = math.exp(SATURATION) * (1.0 + (log_ratio - SATURATION)) - 1.0
    return torch.where(log_ratio <= SATURATION, log_ratio.clamp(max=SATURATION).expm1(), tangent)
