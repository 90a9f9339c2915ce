"""Margins on the cosine of a target class: an angle that is added, without the arccosine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_flag, check_number, check_tensor, refuse
from .reductions import widen


def angular_margin(cosines: Tensor, margin: float | Tensor, *, monotone: bool = False) -> Tensor:
    r"""The cosine of an angle that is larger by a margin.

    .. math:: \cos(\theta + m) = c \cos m - \sqrt{\max(1 - c^2, \epsilon)}\, \sin m, \qquad c = \cos \theta

    Beyond :math:`\theta = \pi - m` this rises again. With ``monotone`` it is :math:`c - m \sin m` there, which goes on
    falling.

    Args:
        cosines: c, of any shape; values a rounding beyond [-1, 1] are those at the end.
        margin: m in RADIANS, in [0, pi]; a number, or a tensor that broadcasts with the cosines.
        monotone: the other form beyond pi - m.

    Returns:
        In float32 or wider. The slope stays finite at c = -1 and 1, because epsilon is one unit of rounding.

    Raises:
        ValueError: a number below 0 or above pi, where degrees are usually meant.

    Example:
        >>> angular_margin(torch.tensor([-0.95, 0.5]), 0.5, monotone=True)
        tensor([-1.1897,  0.0236])
    """
    check_tensor("cosines", cosines, floating=True)
    check_flag("monotone", monotone)
    c = widen(cosines)
    if not isinstance(margin, Tensor):
        check_margin("margin", margin)
    m = torch.as_tensor(margin, dtype=c.dtype, device=c.device)
    cosine, sine = m.cos(), m.sin()
    root = (1 - c * c).clamp_min(torch.finfo(c.dtype).eps).sqrt()
    turned = c * cosine - root * sine
    return torch.where(c + cosine < 0, c - m * sine, turned) if monotone else turned


def check_margin(argument: str, margin: object) -> None:
    """Check an angle in radians."""
    check_number(argument, margin, low=0.0)
    if float(margin) > math.pi:  # type: ignore[arg-type]
        refuse(argument, "an angle in radians, at most pi", margin)
