"""Gradient descent on the logistic loss with huge steps, normalised so that it separates in few iterations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from torch.optim import Optimizer

from ...core.checks import check_flag, check_number, check_tensor, refuse
from ...core.wrapper import Params


@dataclass(frozen=True)
class Separation:
    """Where a search for a separating direction ended.

    Args:
        theta: the weights, ``[d]``, in float64.
        iterations: steps that were taken.
        losses: mean logistic loss before each step and at the end, ``[iterations + 1]``.
        separated: whether all margins are positive; otherwise the steps ran out.
    """

    theta: Tensor
    iterations: int
    losses: Tensor
    separated: bool


def logistic_gd(
    a: F[Tensor, "n d"],
    y: F[Tensor, " n"],
    gamma: float,
    normalize: bool = False,
    max_iter: int = 10_000,
    *,
    start: F[Tensor, " d"] | None = None,
) -> Separation:
    r"""Gradient descent on the logistic loss until every point is on its side.

    .. math::
        s_i = \frac{1}{1 + \exp(y_i a_i^T \theta)}, \qquad
        \theta \leftarrow \theta + \frac{\gamma}{n} \sum_i s_i y_i a_i, \qquad
        \text{normalised: } \theta \leftarrow \theta + \gamma \frac{\sum_i s_i y_i a_i}{\sum_i s_i}

    For large gamma, theta / gamma follows :func:`batch_perceptron`. The normalised step is at most gamma times the
    longest :math:`a_i`, never shrinks, and finds a separator; it does not minimise the loss, and where classes cannot
    be separated it does not converge. There is no intercept: give the points a column of ones.

    Args:
        a: points, one a row.
        y: labels, -1 or 1.
        gamma: step size > 0.
        normalize: divide by the mean of s.
        max_iter: steps at most.
        start: first weights; zeros by default.

    Returns:
        weights, iterations, losses, and whether it separated.

    Raises:
        ValueError: wrong shapes, labels other than -1 and 1, a gamma that is not above 0.

    Example:
        >>> points, labels = torch.tensor([[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0]]), torch.tensor([1.0, 1.0, -1.0])
        >>> logistic_gd(points, labels, 1.0).iterations
        1
        >>> logistic_gd(points, labels, 1.0, max_iter=1, start=torch.tensor([0.0, 0.5])).theta
        tensor([0.7121, 0.2643], dtype=torch.float64)

    Source: From Logistic Regression to the Perceptron Algorithm, arXiv:2412.08424.
    """
    check_number("gamma", gamma, low=0.0, open_low=True)
    check_flag("normalize", normalize)

    def weights(margins: Tensor) -> Tensor:
        return gamma * (_shares(margins) if normalize else torch.sigmoid(-margins) / len(margins))

    return _separate(a, y, weights, max_iter, start)


def batch_perceptron(
    a: F[Tensor, "n d"],
    y: F[Tensor, " n"],
    normalize: bool = False,
    max_iter: int = 10_000,
    *,
    start: F[Tensor, " d"] | None = None,
) -> Separation:
    r"""The perceptron that adds all points on the wrong side at once: the limit of :func:`logistic_gd` for large steps.

    .. math::
        \theta \leftarrow \theta + \frac1n \sum_{i \in M} y_i a_i, \qquad
        \text{normalised: } \theta \leftarrow \theta + \frac{1}{|M|} \sum_{i \in M} y_i a_i, \qquad
        M = \{i : y_i a_i^T \theta < 0\}

    A point with a margin of exactly 0, as all have at the start, counts half, as in the limit. With R the longest point
    and mu the largest margin of a unit vector it takes up to the order of :math:`n R^2 / \mu^2` iterations, normalised
    at most :math:`R^2 / \mu^2` from zero.

    Args:
        a: points, one a row.
        y: labels, -1 or 1.
        normalize: divide by the number of points that are added.
        max_iter: steps at most.
        start: first weights; zeros by default.

    Returns:
        weights, iterations, losses, and whether it separated.

    Raises:
        ValueError: wrong shapes, labels other than -1 and 1.

    Example:
        >>> points, labels = torch.tensor([[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0]]), torch.tensor([1.0, 1.0, -1.0])
        >>> batch_perceptron(points, labels, True, max_iter=1, start=torch.tensor([0.0, 0.5])).theta
        tensor([ 1.5000, -0.5000], dtype=torch.float64)

    Source: From Logistic Regression to the Perceptron Algorithm, arXiv:2412.08424.
    """
    check_flag("normalize", normalize)

    def weights(margins: Tensor) -> Tensor:
        wrong = torch.heaviside(-margins, margins.new_tensor(0.5))
        return wrong / (wrong.sum() if normalize else len(margins))

    return _separate(a, y, weights, max_iter, start)


class NormalizedLogisticGD(Optimizer):
    r"""Normalised gradient descent on the logistic loss of margins, for a linear layer, or whatever gives margins.

    .. math:: \theta \leftarrow \theta + \gamma \sum_i p_i \nabla_\theta m_i, \qquad
        p = \operatorname{softmax}(\log \sigma(-m))

    which is the gradient of the mean logistic loss divided by the mean of :math:`\sigma(-m)`. ``step`` needs the
    margins and not a closure, so it is called by a loop of its own. Groups have rates of their own, which schedules
    set.

    Args:
        params: parameters or groups.
        lr: gamma > 0, or 0, which moves nothing.

    Raises:
        ValueError: a rate below 0.

    Example:
        >>> points, labels = torch.tensor([[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0]]), torch.tensor([1.0, 1.0, -1.0])
        >>> theta = torch.nn.Parameter(torch.tensor([0.0, 0.5]))
        >>> loss = NormalizedLogisticGD([theta], lr=1.0).step(labels * (points @ theta))
        >>> theta.data
        tensor([1.4112, 0.0330])

    Source: From Logistic Regression to the Perceptron Algorithm, arXiv:2412.08424.
    """

    def __init__(self, params: Params, lr: float) -> None:
        check_number("lr", lr, low=0.0)
        super().__init__(params, {"lr": lr})

    def step(self, margins: Tensor) -> Tensor:  # type: ignore[override]
        """One step.

        Args:
            margins: label times output of each sample, ``[n]``, with their graph.

        Returns:
            The mean logistic loss before the step, detached.

        Raises:
            ValueError: margins of another shape, or none.
        """
        check_tensor("margins", margins, ndim=1, floating=True)
        if not len(margins) or not margins.requires_grad:
            refuse("margins", "at least one, with a graph", margins)
        pairs = [(group["lr"], p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        here = margins.detach()
        slopes = torch.autograd.grad(
            margins, [p for _, p in pairs], _shares(here.double()).to(here.dtype), allow_unused=True
        )
        with torch.no_grad():
            for (rate, p), slope in zip(pairs, slopes):
                if slope is not None:
                    p.add_(slope, alpha=float(rate))
        return softplus(-here).mean()


def _shares(margins: Tensor) -> Tensor:
    """s_i / sum s, also where every s underflows."""
    return torch.softmax(logsigmoid(-margins), 0)


def _separate(
    a: Tensor, y: Tensor, weights: Callable[[Tensor], Tensor], max_iter: int, start: Tensor | None
) -> Separation:
    check_tensor("a", a, ndim=2, floating=True)
    check_tensor("y", y, shape=(a.shape[0],))
    check_number("max_iter", max_iter, low=0, integer=True)
    if not len(a):
        refuse("a", "at least one point", a)
    if not bool(((y == 1) | (y == -1)).all()):
        refuse("y", "labels in {-1, 1}", y.unique().tolist())
    signed = y.double()[:, None] * a.detach().double()
    theta: Any = torch.zeros_like(signed[0])
    if start is not None:
        check_tensor("start", start, floating=True, shape=(a.shape[1],))
        theta = start.detach().double()
    losses, iterations = [], 0
    while True:
        margins = signed @ theta
        losses.append(softplus(-margins).mean())
        separated = bool((margins > 0).all())
        if separated or iterations == max_iter:
            return Separation(theta, iterations, torch.stack(losses), separated)
        theta = theta + weights(margins) @ signed
        iterations += 1
