"""Linear regression by few gradient steps whose path a Kalman filter continues, and a choice by areas on that path."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.reductions import widen

LOSSES = ("full", "mean_input")


def kalman_extrapolate(series: F[Tensor, "T p"], steps: int, q: float = 1e-3, r: float = 1e-2) -> F[Tensor, "steps p"]:
    r"""Each column continued by a Kalman filter of constant velocity.

    .. math::
        F = \begin{pmatrix} 1 & 1 \\ 0 & 1 \end{pmatrix}, \quad H = (1, 0), \quad Q = q I, \quad R = r; \qquad
        s \leftarrow F s, \; P \leftarrow F P F^T + Q, \; k = \frac{P H^T}{P_{00} + R}, \;
        s \leftarrow s + k (z_t - s_0), \; P \leftarrow (I - k H) P

    from s = (z_0, 0) and P = I; then s is propagated without measurements. The gains don't depend on the values, so
    that all columns are filtered at once.

    Args:
        series: measurements in order, ``[T, p]``, T >= 1.
        steps: predictions, >= 0.
        q: variance of the process noise, >= 0.
        r: variance of the measurement noise, > 0, or 0 where q > 0.

    Returns:
        the predicted values, ``[steps, p]``, in float64.

    Raises:
        ValueError: wrong shapes, numbers outside their range.

    Example:
        >>> kalman_extrapolate(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), 2)
        tensor([[3.9901],
                [4.9850]], dtype=torch.float64)

    Source: Extended Linear Regression: A Kalman Filter Approach, arXiv:2308.12280.
    """
    check_tensor("series", series, ndim=2, floating=True)
    if not len(series):
        refuse("series", "at least one measurement", series)
    check_number("steps", steps, low=0, integer=True)
    check_number("q", q, low=0.0)
    check_number("r", r, low=0.0, open_low=q == 0)
    z = series.detach().double()
    value, velocity = z[0].clone(), torch.zeros_like(z[0])
    p00, p01, p11 = 1.0, 0.0, 1.0  # the covariance is symmetric
    for measured in z[1:]:
        value = value + velocity
        p00, p01, p11 = p00 + 2 * p01 + p11 + q, p01 + p11, p11 + q
        gain, gain_of_velocity = p00 / (p00 + r), p01 / (p00 + r)
        surprise = measured - value
        value, velocity = value + gain * surprise, velocity + gain_of_velocity * surprise
        p00, p01, p11 = p00 - gain * p00, p01 - gain * p01, p11 - gain_of_velocity * p01
    ahead = torch.arange(1, steps + 1, dtype=z.dtype, device=z.device)
    return value + ahead[:, None] * velocity


def two_point_area(
    u: F[Tensor, " K"], losses: F[Tensor, " K"]
) -> tuple[F[Tensor, " K_minus_1"], F[Tensor, " K_minus_1"], F[Tensor, " K_minus_1"]]:
    r"""Area, slope and intercept of the line between each two consecutive points.

    .. math:: m = \frac{l_b - l_a}{u_b - u_a}, \qquad c = l_a - m u_a, \qquad
        A = \Bigl|\frac{l_a + l_b}{2} (u_b - u_a)\Bigr|

    Points at the same place have no line: their area is infinite, slope and intercept are NaN.

    Args:
        u: coordinates, ``[K]``, K >= 2.
        losses: at these, ``[K]``.

    Returns:
        areas, slopes and intercepts, each ``[K - 1]``.

    Raises:
        ValueError: fewer than two points, shapes that differ.

    Example:
        >>> two_point_area(torch.tensor([1.0, 1.5, 2.2]), torch.tensor([4.0, 1.0, 0.5]))[0]
        tensor([1.2500, 0.5250])

    Source: Extended Linear Regression: A Kalman Filter Approach, arXiv:2308.12280.
    """
    check_tensor("u", u, ndim=1, floating=True)
    check_tensor("losses", losses, floating=True, shape=tuple(u.shape))
    if len(u) < 2:
        refuse("u", "at least 2 points", u)
    u, losses = widen(u), widen(losses)
    width, rise = u.diff(), losses.diff()
    flat: Bool[Tensor, " K_minus_1"] = width == 0
    slopes = torch.where(flat, torch.nan, rise / width)
    areas = (0.5 * (losses[1:] + losses[:-1]) * width).abs()
    return areas.masked_fill(flat, torch.inf), slopes, losses[:-1] - slopes * u[:-1]


class KalmanAreaRegression:
    r"""Linear regression: SGD steps, their path continued by :func:`kalman_extrapolate`, the pair of least area chosen.

    SGD on half the squared error runs from zero, in batches. Each weight's path is filtered alone and continued for
    ``horizon`` steps; losses of the predicted weights are computed anew. Of consecutive predictions the segment with
    the least area under its line (:func:`two_point_area`, over the distance along the path) is taken, and of its ends
    the one of lower loss. A horizon up to ``sgd_steps`` is worth about as many plain steps; beyond that, and close to
    convergence, it harms. The least area favours predictions that lie close together, not the lowest loss.

    What the publication leaves open (filters of single weights, noise levels, several features, the loss of all data)
    is chosen here.

    Args:
        lr: of SGD, > 0. sgd_steps: >= 2. horizon: predictions, >= 2; or 0, which is plain SGD. batch: rows of a step;
        all where there are fewer. loss: ``"full"``, the mean squared error of the training rows; or ``"mean_input"``,
        the squared error at the mean
            row, as published, which can be zero for a poor fit.
        choice: ``"area"``, or ``"last"``: the prediction at the horizon.
        q, r: variances of the filter.
        generator: of the batches; torch's own by default.

    Attributes:
        weight, bias: of the fit, ``[d]`` and a scalar.
        path: weights and bias of SGD after each step, ``[sgd_steps, d + 1]``.
        batch_losses: mean squared error of each step's batch, before the step.
        predicted: the continued path, ``[horizon, d + 1]``.
        areas: of its segments, ``[horizon - 1]``.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = KalmanAreaRegression(lr=0.1, sgd_steps=20, horizon=10, batch=50).fit(x, 2 * x[:, 0] + 1)
        >>> plain = KalmanAreaRegression(lr=0.1, sgd_steps=20, horizon=0, batch=50).fit(x, 2 * x[:, 0] + 1)
        >>> bool(abs(model.weight - 2) < abs(plain.weight - 2))
        True

    Source: Extended Linear Regression: A Kalman Filter Approach, arXiv:2308.12280.
    """

    def __init__(
        self,
        lr: float = 0.01,
        sgd_steps: int = 50,
        horizon: int = 10,
        *,
        batch: int = 32,
        loss: str = "full",
        choice: str = "area",
        q: float = 1e-3,
        r: float = 1e-2,
        generator: torch.Generator | None = None,
    ) -> None:
        check_number("lr", lr, low=0.0, open_low=True)
        check_number("sgd_steps", sgd_steps, low=2, integer=True)
        check_number("horizon", horizon, low=0, integer=True)
        if horizon == 1:
            refuse("horizon", "at least 2 predicted points, or 0", horizon)
        check_number("batch", batch, low=1, integer=True)
        check_choice("loss", loss, LOSSES)
        check_choice("choice", choice, ("area", "last"))
        check_number("q", q, low=0.0)
        check_number("r", r, low=0.0, open_low=q == 0)
        self.lr, self.sgd_steps, self.horizon, self.batch = lr, sgd_steps, horizon, batch
        self.loss, self.choice, self.q, self.r, self.generator = loss, choice, q, r, generator
        self.weight = self.bias = torch.zeros(0)

    def fit(self, x: F[Tensor, "n d"], y: F[Tensor, " n"]) -> Self:
        """Fit rows ``[n, d]`` to ``[n]`` numbers; both are best standardised.

        Raises:
            ValueError: wrong shapes, or no row.
        """
        check_tensor("x", x, ndim=2, floating=True)
        check_tensor("y", y, shape=(len(x),), floating=True)
        if not len(x):
            refuse("x", "at least one row", x)
        rows = torch.cat([x.detach().double(), x.new_ones(len(x), 1).double()], 1)
        target = y.detach().double()
        self.path, self.batch_losses = self._descend(rows, target)
        self.predicted = kalman_extrapolate(self.path, self.horizon, self.q, self.r)
        self.areas = rows.new_zeros(0)
        end = self.path[-1]
        if self.horizon:
            end = self.predicted[-1 if self.choice == "last" else self._least_area(rows, target)]
        self.weight, self.bias = end[:-1], end[-1]
        return self

    def _descend(self, rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        theta: Any = torch.zeros_like(rows[0])
        path, losses, order = [], [], rows.new_zeros(0).long()
        for _ in range(self.sgd_steps):
            if not len(order):
                order = torch.randperm(len(rows), generator=self.generator).to(rows.device)
            own, order = order[: self.batch], order[self.batch :]
            residual = rows[own] @ theta - target[own]
            losses.append(residual.square().mean())
            theta = theta - self.lr * (residual @ rows[own]) / len(own)
            path.append(theta)
        return torch.stack(path), torch.stack(losses)

    def _least_area(self, rows: Tensor, target: Tensor) -> int:
        if self.loss == "full":
            losses = (self.predicted @ rows.T - target).square().mean(1)
        else:
            losses = (self.predicted @ rows.mean(0) - target.mean()).square()
        along = torch.cat([losses.new_zeros(1), self.predicted.diff(dim=0).norm(dim=1).cumsum(0)])
        self.areas, _, _ = two_point_area(along, losses)
        if not bool(self.areas.isfinite().any()):
            return 0  # the path stands still: all predictions are one
        first = int(self.areas.argmin())
        return first + int(losses[first + 1] < losses[first])

    def predict(self, x: F[Tensor, "n d"]) -> F[Tensor, " n"]:
        """Predictions ``[n]`` in float64.

        Raises:
            ValueError: before a fit, or rows of another width.
        """
        if not len(self.weight):
            refuse("predict", "fit before it", "none")
        check_tensor("x", x, floating=True, shape=(None, len(self.weight)))
        return x.double() @ self.weight + self.bias
