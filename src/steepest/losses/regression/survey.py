"""Fourteen regression losses of forecasting as plain functions, and a catalogue that says when each is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse, values_visible
from ...core.reductions import widen
from ...core.scalars import is_number
from ._residuals import divisor, mean_only, pair, per_sample
from .survey_cards import CARDS, SurveyCard

# Every function takes predictions and targets of one shape [N, ...]. The loss of a sample is the mean over its entries,
# which then meets `weight` [N] and `reduction`; with [N] nothing is averaged.


def mae(
    outputs: F[Tensor, "batch ..."],
    target: F[Tensor, "batch ..."],
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean absolute error, :math:`\mathrm{mean}\,|y - f|`; its best constant is the median.

    Args:
        outputs: predictions f ``[N, ...]``.
        target: y, of the same shape.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Example:
        >>> mae(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
        tensor(0.6250)

    Source of all functions here: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
    arXiv:2211.02989.
    """
    outputs, target = pair(outputs, target)
    return per_sample((target - outputs).abs(), weight, reduction)


def mse(outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Mean squared error, :math:`\mathrm{mean}\,(y - f)^2`; its best constant is the mean.

    Arguments as of :func:`mae`.

    >>> mse(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.5625)
    """
    outputs, target = pair(outputs, target)
    return per_sample((target - outputs).square(), weight, reduction)


def mbe(outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Mean bias error, :math:`\mathrm{mean}\,(y - f)`: a measure only, it has no minimum. Arguments as of :func:`mae`.

    >>> mbe(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(-0.1250)
    """
    outputs, target = pair(outputs, target)
    return per_sample(target - outputs, weight, reduction)


def mape(
    outputs: Tensor, target: Tensor, *, eps: float = 0.0, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Mean absolute percentage error, :math:`100\,\mathrm{mean}\,|(y - f) / y|`. Further arguments as of :func:`mae`.

    Args:
        outputs, target: as of :func:`mae`; y != 0, unless ``eps`` > 0.
        eps: least denominator: \|y\| is held at it or above.
        weight, reduction: as of :func:`mae`.

    Raises:
        ValueError: a target of 0 while ``eps`` is 0.

    >>> mape(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(23.7500)
    """
    outputs, target = pair(outputs, target)
    below = divisor("target", "values other than 0", target.abs(), eps)
    return per_sample(100 * (target - outputs).abs() / below, weight, reduction)


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


def huber(
    outputs: Tensor, target: Tensor, *, delta: float = 1.0, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Huber loss, :math:`e^2/2` for :math:`|e| \le \delta`, else :math:`\delta(|e| - \delta/2)`, with e = y - f.

    Args:
        outputs, target: as of :func:`mae`.
        delta: > 0, in units of the target, where the loss turns from square to linear (the survey's code has 0.5).
        weight, reduction: as of :func:`mae`.

    >>> huber(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]), delta=0.5)
    tensor(0.2188)
    """
    check_number("delta", delta, low=0.0, open_low=True)
    outputs, target = pair(outputs, target)
    size = (target - outputs).abs()
    inner = size.clamp_max(delta)
    return per_sample(inner * (size - 0.5 * inner), weight, reduction)


def log_cosh(outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Log-cosh loss, :math:`\log\cosh e = |e| + \mathrm{softplus}(-2|e|) - \log 2`. Arguments as of :func:`mae`.

    Finite for every finite error; its gradient is tanh.

    >>> log_cosh(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.2469)
    """
    outputs, target = pair(outputs, target)
    size = (target - outputs).abs()
    return per_sample(size + nnf.softplus(-2 * size) - math.log(2), weight, reduction)


def quantile_loss(
    outputs: Tensor,
    target: Tensor,
    *,
    q: float | Sequence[float] = 0.5,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Quantile (pinball) loss, :math:`\max(q e, (q - 1) e)` with e = y - f; at 0.5 half the absolute error.

    Args:
        outputs: as of :func:`mae`; for several quantiles ``[N, ..., Q]``, one column each.
        target: ``[N, ...]``.
        q: the quantile, in (0, 1), or Q of them, whose losses are added.
        weight, reduction: as of :func:`mae`.

    >>> quantile_loss(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]), q=0.9)
    tensor(0.2625)
    """
    levels = (q,) if is_number(q) else tuple(q)
    for level in levels:
        check_number("q", level, low=0.0, high=1.0, open_low=True, open_high=True)
    if not levels:
        refuse("q", "at least one quantile", q)
    check_tensor("outputs", outputs, floating=True)
    check_tensor("target", target, floating=True)
    if is_number(q):
        outputs, target = pair(outputs, target)
        outputs = outputs.unsqueeze(-1)
    else:
        check_tensor("outputs", outputs, shape=(*target.shape, len(levels)))
        outputs, target = widen(outputs), widen(target)
    error = target.unsqueeze(-1) - outputs
    level = torch.tensor(levels, dtype=error.dtype, device=error.device)
    return per_sample(torch.maximum(level * error, (level - 1) * error).sum(-1), weight, reduction)


# ------------------------------------------------------------------------- of the whole batch: roots and ratios of sums


def _norm(value: Tensor) -> Tensor:
    # the root of a sum of squares, whose slope at 0 torch takes as 0 where sqrt's is infinite
    return torch.linalg.vector_norm(value)


def rmse(outputs: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Root mean squared error, :math:`\sqrt{\mathrm{mean}\,(y - f)^2}`; the gradient at 0 is 0.

    >>> rmse(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.7500)
    """
    mean_only(reduction)
    outputs, target = pair(outputs, target)
    return _norm(target - outputs) / math.sqrt(target.numel())


def rmsle(outputs: Tensor, target: Tensor, *, eps: float = 0.0, reduction: str = "mean") -> Tensor:
    """Root mean squared logarithmic error, the root of :func:`msle` (with its ``eps``); the gradient at 0 is 0.

    >>> rmsle(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.1756)
    """
    mean_only(reduction)
    outputs, target = _log_pair(outputs, target, eps)
    return _norm(target - outputs) / math.sqrt(target.numel())


def rae(outputs: Tensor, target: Tensor, *, eps: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""Relative absolute error, :math:`\sum|y - f| / \sum|y - \bar y|`; 1 for the mean of the targets.

    Args:
        outputs, target: ``[N, ...]``; over a mini-batch the ratio is biased.
        eps: least denominator; with 0, constant targets are refused (where values may be looked at).
        reduction: ``"mean"`` only, as for every ratio of the batch.

    >>> rae(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.4167)
    """
    mean_only(reduction)
    outputs, target = pair(outputs, target)
    if target.numel() == 0:
        return (target - outputs).mean()
    below = divisor("target", "values that differ", (target - target.mean()).abs().sum(), eps)
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
    below = divisor("target", "values that differ", (target - target.mean()).square().sum(), eps)
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
        size = target.std(correction=0)
    else:
        size = target.mean().abs() if scale == "mean" else target.amax() - target.amin()
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
    size = _norm(outputs if by == "outputs" else target)
    return _norm(target - outputs) / divisor(by, "a value other than 0", size, eps)


def regression_loss_catalogue() -> tuple[SurveyCard, ...]:
    """The cards of the fourteen losses: function, range, unit, optimum, outliers, gradient bound, domain.

    >>> [card.name for card in regression_loss_catalogue() if card.optimum == "the median"]
    ['mae', 'rae']
    >>> regression_loss_catalogue()[0].module()(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor(2.)
    """
    functions = (mae, mse, mbe, rae, rse, mape, rmse, msle, rmsle, nrmse, rrmse, huber, log_cosh, quantile_loss)
    return tuple(SurveyCard(f, *CARDS[f.__name__]) for f in functions)
