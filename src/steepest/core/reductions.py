"""Precision and reductions: half inputs are widened, per-sample losses become one number."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_choice, check_weight

REDUCTIONS = ("none", "mean", "sum")
_HALF = (torch.float16, torch.bfloat16)


def widen(value: Tensor) -> Tensor:
    """``value`` in float32 if it is a half type, unchanged otherwise.

    >>> widen(torch.zeros(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return value.float() if value.dtype in _HALF else value


def reduce(
    loss: Tensor,
    reduction: str = "mean",
    weight: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    empty: str = "nan",
) -> Tensor:
    """Reduce per-sample losses.

    ``mean`` is sum_i w_i l_i / sum_i w_i over the valid samples, ``sum`` is sum_i w_i l_i, ``none`` is w_i l_i with
    0 where a sample is not valid. Nothing valid: the mean is NaN, as in torch, or with ``empty="zero"`` 0 with a graph.

    Args:
        loss: per-sample losses ``[N]`` (``[N, ...]`` where single numbers are weighed).
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: sample weights >= 0, of the shape of ``loss``, or None for ones.
        valid: boolean ``[N]``; samples that are False count neither above nor below the line.
        empty: "nan" or "zero", the mean of no samples, or of weights that are all 0.

    Returns:
        ``[N]`` for ``"none"``, else a scalar.

    Raises:
        ValueError: another reduction, weights of another shape, a negative one.
        TypeError: weights that are no floating tensor.

    >>> reduce(torch.tensor([1.0, 3.0]), "mean", torch.tensor([3.0, 1.0]))
    tensor(1.5000)
    >>> reduce(torch.zeros(0)), reduce(torch.zeros(0), empty="zero")
    (tensor(nan), tensor(0.))
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("empty", empty, ("nan", "zero"))
    check_weight(weight, *loss.shape)
    if weight is not None:
        weight = weight.to(loss.dtype)
    if valid is not None:
        loss = torch.where(valid, loss, 0.0)
        if weight is None and reduction == "mean":
            return loss.sum() / _divisor(valid.sum(), empty)
        weight = None if weight is None else weight * valid
    if weight is None:
        if reduction == "mean" and not loss.numel() and empty == "zero":
            return loss.sum()
        return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
    weighted = loss * weight
    if reduction == "none":
        return weighted
    return weighted.sum() / _divisor(weight.sum(), empty) if reduction == "mean" else weighted.sum()


def _divisor(total: Tensor, empty: str) -> Tensor:
    """What a mean is divided by: the sum of the weights, or 1 where that is 0 and the mean shall be 0."""
    return total if empty == "nan" else torch.where(total == 0, 1, total)
