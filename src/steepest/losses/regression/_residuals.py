"""Shared by the regression losses: argument checks, precision, one loss for each sample."""

from __future__ import annotations

from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, check_weight, refuse, values_visible
from ...core.reductions import REDUCTIONS, reduce, widen


def pair(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and targets of one shape ``[N, ...]``, in float32 or wider."""
    check_tensor("outputs", outputs, floating=True)
    if outputs.ndim == 0:
        refuse("outputs", "at least 1 dimension", outputs)
    check_tensor("target", target, floating=True, shape=tuple(outputs.shape))
    return widen(outputs), widen(target)


def per_sample(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Reduce losses ``[N, ...]``: the loss of a sample is the mean over its entries."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_weight(weight, loss.shape[0])
    return reduce(loss.flatten(1).mean(1) if loss.ndim > 1 else loss, reduction, weight)


def mean_only(reduction: str) -> None:
    """Refuse every reduction but the mean: a ratio or a root of sums over the batch has no other."""
    check_choice("reduction", reduction, ("mean",))


def divisor(argument: str, what: str, value: Tensor, eps: float) -> Tensor:
    """``value`` held at ``eps`` or above; with ``eps = 0`` a zero is refused where it may be looked at."""
    check_number("eps", eps, low=0.0)
    if eps:
        return value.clamp_min(eps)
    if value.numel() and values_visible(value) and bool((value == 0).any()):
        refuse(argument, f"{what}, or eps > 0", 0.0)
    return value
