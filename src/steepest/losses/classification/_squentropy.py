"""The rule of squentropy, for one objective and for several in one call."""

from __future__ import annotations

from jaxtyping import Int as I
from torch import Tensor

from ...core.rowwise import Rule, mix, moments, target_softmax


def squentropy_rule(target: I[Tensor, " batch"], square_weight: float) -> Rule:
    """Cross-entropy plus the mean of the squares of the other outputs, times a weight; value and gradient of each row.

    Args:
        target: class indices ``[N]``.
        square_weight: s >= 0.
    """

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y, factor = target[rows], square_weight / (z.shape[1] - 1)
        softmax = target_softmax(z, g, y)
        _, squares = moments(z, without=y, centre=0.0)
        mix(g, z=z, slope=2.0 * factor, target=y, value=-softmax.away)
        return (factor * squares - softmax.log_p).squeeze(1)

    return rule
