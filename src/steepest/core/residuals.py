"""Losses of a residual, of which several families of losses make use, and what all of them share.

Every function takes predictions and targets of one shape [N, ...]. The loss of a sample is the mean over its entries,
which then meets `weight` [N] and `reduction`; with [N] nothing is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from .checks import check_choice, check_number, check_tensor, check_weight, refuse, values_visible
from .reductions import REDUCTIONS, reduce, widen
from .scalars import plain


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


def norm(value: Tensor) -> Tensor:
    """The root of the sum of squares, whose slope at 0 torch takes as 0 where that of a square root is infinite."""
    length: Tensor = torch.linalg.vector_norm(value)
    return length


def constant(value: Tensor) -> Tensor:
    """Whether all of one or more values are the same: their spread is 0, whatever rounding leaves of it."""
    return (value == value.flatten()[0]).all()


def about_mean(value: Tensor) -> Tensor:
    """Deviations ``[N, ...]`` of one or more values from their mean; those of equal values are exactly 0.

    >>> about_mean(torch.full((3,), 0.1))
    tensor([0., 0., 0.])
    """
    return torch.where(constant(value), 0.0, value - value.mean())


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

    Source of all losses here: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
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
    q = plain(q)
    levels = (q,) if isinstance(q, (int, float)) else tuple(q)
    for one in levels:
        check_number("q", one, low=0.0, high=1.0, open_low=True, open_high=True)
    if not levels:
        refuse("q", "at least one quantile", q)
    check_tensor("outputs", outputs, floating=True)
    check_tensor("target", target, floating=True)
    if isinstance(q, (int, float)):
        outputs, target = pair(outputs, target)
        outputs = outputs.unsqueeze(-1)
    else:
        check_tensor("outputs", outputs, shape=(*target.shape, len(levels)))
        outputs, target = widen(outputs), widen(target)
    error = target.unsqueeze(-1) - outputs
    level = torch.tensor(levels, dtype=error.dtype, device=error.device)
    return per_sample(torch.maximum(level * error, (level - 1) * error).sum(-1), weight, reduction)


def rmse(outputs: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Root mean squared error, :math:`\sqrt{\mathrm{mean}\,(y - f)^2}`; the gradient at 0 is 0.

    >>> rmse(torch.tensor([1.5, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    tensor(0.7500)
    """
    mean_only(reduction)
    outputs, target = pair(outputs, target)
    return norm(target - outputs) / math.sqrt(target.numel())
