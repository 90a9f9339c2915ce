"""How many directions a spectrum has: effective ranks of singular values, eigenvalues, or other shares of a whole."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float as F
from torch import Tensor

from .checks import check_choice, check_number, check_tensor, refuse, values_visible
from .reductions import widen

RankKind = Literal["entropy", "participation", "stable"]


def effective_rank(values: F[Tensor, "... r"], kind: RankKind = "entropy", *, cut: float = 1e-12) -> F[Tensor, " ..."]:
    r"""The effective rank of a spectrum, between 1 and the number of its values; the same for any multiple of it.

    .. math::
        p_i = \frac{s_i}{\sum_j s_j}, \qquad
        \text{entropy: } \exp\Bigl(-\sum_i p_i \ln p_i\Bigr), \qquad
        \text{participation: } \frac{1}{\sum_i p_i^2}, \qquad
        \text{stable: } \frac{\sum_i s_i^2}{\max_i s_i^2}

    Entropy of singular values is RankMe, and of eigenvalues of a covariance the exponential of von Neumann's entropy.
    Participation is meant for eigenvalues, stable for singular values.

    Args:
        values: singular values or eigenvalues >= 0, in the last dimension, in any order.
        kind: ``"entropy"``, ``"participation"`` or ``"stable"``.
        cut: values below this share of their sum are rounding, and count as 0; in [0, 1).

    Returns:
        One rank for each spectrum, in float32 or wider. NaN where all values are 0, or one is not finite: such a
        spectrum has no rank.

    Raises:
        ValueError: no values, one below 0, another kind, a cut outside its range.

    Example:
        >>> effective_rank(torch.tensor([[3.0, 1.0], [2.0, 2.0], [5.0, 0.0], [0.0, 0.0]]))
        tensor([1.7548, 2.0000, 1.0000,    nan])
        >>> [round(float(effective_rank(torch.tensor([3.0, 1.0]), kind)), 4) for kind in ("participation", "stable")]
        [1.6, 1.1111]
    """
    check_tensor("values", values, floating=True)
    check_choice("kind", kind, get_args(RankKind))
    check_number("cut", cut, low=0.0, high=1.0, open_high=True)
    if not values.ndim or not values.shape[-1]:
        refuse("values", "at least one value in the last dimension", values)
    values = widen(values)
    if values_visible(values) and bool((values < 0).any()):
        refuse("values", "values >= 0", float(values[values < 0][0]))
    # Divided by the largest first: neither sums nor squares leave the type, whatever the scale of a loss.
    shares = values / values.amax(-1, keepdim=True)
    shares = torch.where(shares < cut * shares.sum(-1, keepdim=True), 0.0, shares)
    if kind == "stable":
        return shares.square().sum(-1)
    shares = shares / shares.sum(-1, keepdim=True)
    if kind == "participation":
        return 1.0 / shares.square().sum(-1)
    return torch.exp(-torch.special.xlogy(shares, shares).sum(-1))
