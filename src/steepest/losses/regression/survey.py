"""Fourteen regression losses of forecasting as plain functions, and a catalogue that says when each is right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.checks import check_choice, check_number, refuse, values_visible
from ...core.reductions import widen
from ...core.residuals import (
    about_mean,
    constant,
    divisor,
    huber,
    log_cosh,
    mae,
    mape,
    mean_only,
    mse,
    norm,
    pair,
    per_sample,
    quantile_loss,
    rmse,
)
from .survey_cards import CARDS, SurveyCard

__all__ = [
    "huber",
    "log_cosh",
    "mae",
    "mape",
    "mbe",
    "mse",
    "msle",
    "nrmse",
    "quantile_loss",
    "rae",
    "regression_loss_catalogue",
    "rmse",
    "rmsle",
    "rrmse",
    "rse",
]


def mbe(outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Mean bias error, :math:`\mathrm{mean}\,(y - f)`: a measure only, it has no minimum. Arguments as of :func:`mae`.

    >>> mbe(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(-0.1250)
    """
    outputs, target = pair(outputs, target)
    return per_sample(target - outputs, weight, reduction)


def _log_pair(outputs: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    outputs, target = pair(outputs, target)
    check_number("eps", eps, low=0.0, high=1.0)
    for argument, value in (("outputs", outputs), ("target", target)):
        if not eps and value.numel() and values_visible(value) and bool((value <= -1).any()):
            refuse(argument, "values > -1, or eps > 0", float(value.min()))
    if eps:
        outputs, target = outputs.clamp_min(eps - 1), target.clamp_min(eps - 1)
    return outputs.log1p(), target.log1p()


def msle(
    outputs: Tensor, target: Tensor, *, eps: float = 0.0, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Mean squared logarithmic error, :math:`\mathrm{mean}\,(\log(1 + y) - \log(1 + f))^2`.

    Args:
        outputs, target: as of :func:`mae`, > -1 unless ``eps`` > 0.
        eps: in [0, 1]; 1 + y and 1 + f are held at it or above, and below it the gradient is 0.
        weight, reduction: as of :func:`mae`.

    Raises:
        ValueError: a value <= -1 while ``eps`` is 0.

    >>> msle(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.0308)
    """
    outputs, target = _log_pair(outputs, target, eps)
    return per_sample((target - outputs).square(), weight, reduction)


# ------------------------------------------------------------------------- of the whole batch: roots and ratios of sums


def rmsle(outputs: Tensor, target: Tensor, *, eps: float = 0.0, reduction: str = "mean") -> Tensor:
    """Root mean squared logarithmic error, the root of :func:`msle` (with its ``eps``); the gradient at 0 is 0.

    >>> rmsle(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.1756)
    """
    mean_only(reduction)
    outputs, target = _log_pair(outputs, target, eps)
    return norm(target - outputs) / math.sqrt(target.numel())


def rae(outputs: Tensor, target: Tensor, *, eps: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""Relative absolute error, :math:`\sum|y - f| / \sum|y - \bar y|`; 1 for the mean of the targets.

    Args:
        outputs, target: ``[N, ...]``; over a mini-batch the ratio is biased.
        eps: least denominator; with 0, constant targets are refused (where values may be looked at, else the ratio is
            infinite, or NaN for predictions without an error).
        reduction: ``"mean"`` only, as for every ratio of the batch.

    >>> rae(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.4167)
    """
    mean_only(reduction)
    outputs, target = pair(outputs, target)
    if target.numel() == 0:
        return (target - outputs).mean()
    below = divisor("target", "values that differ", about_mean(target).abs().sum(), eps)
    return (target - outputs).abs().sum() / below


def rse(outputs: Tensor, target: Tensor, *, eps: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""Relative squared error, :math:`\sum(y - f)^2 / \sum(y - \bar y)^2 = 1 - R^2`. Arguments as of :func:`rae`.

    >>> rse(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.2250)
    """
    mean_only(reduction)
    outputs, target = pair(outputs, target)
    if target.numel() == 0:
        return (target - outputs).mean()
    below = divisor("target", "values that differ", about_mean(target).square().sum(), eps)
    return (target - outputs).square().sum() / below


def nrmse(outputs: Tensor, target: Tensor, *, scale: str = "std", eps: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""RMSE over a scale of the *targets*: dividing by one of the predictions would reward inflating them.

    Args:
        outputs, target, eps, reduction: as of :func:`rae`.
        scale: ``"std"`` (with 1/n, so that the square is :func:`rse`), ``"range"`` or ``"mean"`` (its absolute value).

    >>> nrmse(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]), scale="range")
    tensor(0.1875)
    """
    check_choice("scale", scale, ("std", "range", "mean"))
    error = rmse(outputs, target, reduction=reduction)
    target = widen(target)
    if target.numel() == 0:
        return error
    if scale == "std":
        size = torch.where(constant(target), 0.0, target.std(correction=0))
    elif scale == "range":
        size = target.amax() - target.amin()
    else:
        size = target.mean().abs()
        # what the rounding of a sum can leave of targets that cancel is no scale
        noise = 8 * torch.finfo(target.dtype).eps * target.abs().mean()
        size = torch.where(size <= noise, 0.0, size)
    return error / divisor("target", f"a {scale} other than 0", size, eps)


def rrmse(outputs: Tensor, target: Tensor, *, by: str = "outputs", eps: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""Relative RMSE, :math:`\sqrt{\sum (y - f)^2 / \sum f^2}`.

    Args:
        outputs, target, eps, reduction: as of :func:`rae`.
        by: ``"outputs"``, the survey's formula, which rewards inflated predictions; or ``"target"``, sum of y^2.

    >>> rrmse(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.2095)
    """
    check_choice("by", by, ("outputs", "target"))
    mean_only(reduction)
    outputs, target = pair(outputs, target)
    if target.numel() == 0:
        return (target - outputs).mean()
    size = norm(outputs if by == "outputs" else target)
    return norm(target - outputs) / divisor(by, "a value other than 0", size, eps)


def regression_loss_catalogue() -> tuple[SurveyCard, ...]:
    """The cards of the fourteen losses: function, range, unit, optimum, outliers, gradient bound, domain.

    >>> [card.name for card in regression_loss_catalogue() if card.optimum == "the median"]
    ['mae', 'rae']
    >>> regression_loss_catalogue()[0].module()(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor(2.)
    """
    functions = (mae, mse, mbe, rae, rse, mape, rmse, msle, rmsle, nrmse, rrmse, huber, log_cosh, quantile_loss)
    return tuple(SurveyCard(f, *CARDS[f.__name__]) for f in functions)
