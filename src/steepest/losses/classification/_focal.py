"""The rule of the focal loss, for one objective and for several in one call."""

from __future__ import annotations

import torch
from jaxtyping import Int as I
from torch import Tensor

from ...core.rowwise import Rule, at, mix, target_softmax


def focal_rule(target: I[Tensor, " batch"], gamma: float | Tensor) -> Rule:
    r"""Value and gradient of the focal loss of each row, with r = 1 - p_y summed over the other classes.

    .. math:: \frac{\partial \ell}{\partial \log p_y} = \gamma\, p_y\, r^{\gamma} \frac{\log p_y}{r} - r^{\gamma}

    Args:
        target: class indices ``[N]``.
        gamma: the exponent, a number or one a row ``[N, 1]``.
    """

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y = target[rows]
        softmax = target_softmax(z, g, y)
        log_p, rest = softmax.log_p, softmax.away
        power = rest.pow(gamma)
        # log p / r tends to -1 as the rest vanishes
        slope = gamma * at(g, y) * power * torch.where(rest > 0, log_p / rest, -1.0) - power
        mix(g, factor=-slope, target=y, value=slope * rest)
        return (-power * log_p).squeeze(1)

    return rule
