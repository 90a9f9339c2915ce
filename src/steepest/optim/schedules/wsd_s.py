"""Stable rates with a decay before each budget, and the river valley that explains why this works."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.checks import check_number, refuse
from ...core.schedule import Curve, Piece, Schedule, check_optimizer, check_steps, falling


def inverse_decay(u: float, eta_max: float, eta_min: float) -> float:
    r"""The rate after a share u of a decay along which the inverse rate grows in a straight line.

    .. math:: \eta^{-1} = (1 - u)\, \eta_{max}^{-1} + u\, \eta_{min}^{-1}

    Args:
        u: in [0, 1].
        eta_max, eta_min: rates at both ends, 0 < eta_min <= eta_max.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> round(inverse_decay(0.25, 1.0, 0.1), 6)
        0.307692

    Source: Understanding Warmup-Stable-Decay Learning Rates, arXiv:2410.05192.
    """
    check_number("u", u, low=0.0, high=1.0)
    check_number("eta_max", eta_max, low=0.0, high=math.inf, open_low=True, open_high=True)
    check_number("eta_min", eta_min, low=0.0, high=eta_max, open_low=True)
    return falling("inverse", u, eta_max, eta_min)


def wsd_s_schedule(
    t: int, budgets: Sequence[int], warmup: int = 0, decay: float = 0.1, min_ratio: float = 0.1, start: float = 0.01
) -> float:
    r"""The share of the stable rate at step t of WSD-S.

    .. math:: u = \frac{t - T_{k-1} - (1 - p)\, l}{p\, l}, \quad l = T_k - T_{k-1}, \quad T_{k-1} < t \le T_k

    once u is positive the rate decays by :func:`inverse_decay` to its least at t = T_k, from where the checkpoint of
    that budget is taken; step T_k + 1 has the stable rate again. After the last budget the least rate is held.

    Args:
        t: step >= 0.
        budgets: T_1 < T_2 < ..., steps >= 1.
        warmup: steps >= 0 of a straight line from ``start``; it ends before the first decay.
        decay: p in (0, 1), the share of each interval.
        min_ratio: least share, in (0, 1].
        start: share at step 0.

    Raises:
        ValueError: budgets that don't grow, a warm-up into the first decay, a value outside its range.

    Example:
        >>> [round(wsd_s_schedule(t, [1000]), 6) for t in (900, 925, 950, 975, 1000)]
        [1.0, 0.307692, 0.181818, 0.129032, 0.1]

    Source: Understanding Warmup-Stable-Decay Learning Rates, arXiv:2410.05192.
    """
    check_steps("t", t, low=0)
    return _curve(budgets, warmup, decay, min_ratio, start)(t)


def _curve(budgets: Sequence[int], warmup: int, decay: float, min_ratio: float, start: float) -> Curve:
    if isinstance(budgets, (str, bytes)) or not isinstance(budgets, Sequence) or not budgets:
        refuse("budgets", "at least one number of steps", budgets)
    for budget in budgets:
        check_steps("budgets", budget)
    if any(b <= a for a, b in pairwise(budgets)):
        refuse("budgets", "numbers of steps that grow", list(budgets))
    check_steps("warmup", warmup, low=0)
    check_number("decay", decay, low=0.0, high=1.0, open_low=True, open_high=True)
    check_number("min_ratio", min_ratio, low=0.0, high=1.0, open_low=True)
    check_number("start", start, low=0.0, high=1.0)
    if warmup > (1.0 - decay) * budgets[0]:
        refuse("warmup", f"at most {(1.0 - decay) * budgets[0]:g} steps, where the first decay begins", warmup)
    pieces = [Piece(warmup, start, 1.0)] if warmup else []
    for before, budget in zip((0, *budgets), budgets):
        begin = before + (1.0 - decay) * (budget - before)
        pieces += [
            Piece(begin, 1.0, 1.0, "constant"),
            Piece(budget, 1.0, min_ratio, "inverse", closed=True),
        ]
    return Curve(pieces)


class WSDS(Schedule):
    """Warm-up, then for each budget a stable rate and a decay, after which training goes on from the decayed weights.

    One run gives a model for each budget; the rates are those of :func:`wsd_s_schedule`. With one budget it is
    ``WSD(..., shape="inverse")`` that ends there. WSD itself would branch from the weights before each decay.

    Args:
        optimizer: any; each group's own rate is its stable one.
        warmup: steps >= 0.
        budgets: T_1 < T_2 < ..., steps at which a checkpoint is taken, after the step of that index.
        decay: share in (0, 1) of each interval that decays.
        min_ratio: least share of the rate, in (0, 1].
        start: share at step 0.
        last_epoch: None goes on where the optimizer is; see :class:`steepest.core.schedule.Schedule`.

    Raises:
        ValueError: budgets that don't grow, a warm-up into the first decay, a value outside its range.
        TypeError: not an optimizer.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> schedule = WSDS(optimizer, warmup=0, budgets=[1000, 2000])
        >>> schedule.factor(1000), schedule.factor(1001)
        (0.1, 1.0)

    Source: Understanding Warmup-Stable-Decay Learning Rates, arXiv:2410.05192.
    """

    name = "wsd_s"

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int,
        budgets: Sequence[int],
        decay: float = 0.1,
        min_ratio: float = 0.1,
        *,
        start: float = 0.01,
        last_epoch: int | None = None,
    ) -> None:
        check_optimizer(optimizer)
        self.curve = _curve(budgets, warmup, decay, min_ratio, start)
        super().__init__(optimizer, last_epoch)

    @classmethod
    def spanning(cls, optimizer: Optimizer, steps: int) -> Self:
        """Budgets at a quarter, half and all of the steps, a warm-up of at most a twentieth of the first."""
        check_steps("steps", steps)
        budgets = sorted({max(1, steps // 4), max(1, steps // 2), steps})
        return cls(optimizer, budgets[0] // 20, budgets)

    @classmethod
    def samples(cls) -> list[tuple[int, dict[str, Any]]]:
        return [
            (60, {"warmup": 4, "budgets": [20, 40, 60]}),
            (30, {"warmup": 0, "budgets": [7, 30], "decay": 0.5, "min_ratio": 1.0}),
            (5, {"warmup": 0, "budgets": [1, 2, 5], "decay": 0.9, "start": 0.0}),
        ]


class RiverValley:
    r"""A steep valley with a slow river at its bottom.

    .. math:: L(x, y) = c(x) + \tfrac{1}{2} \gamma(x)\, y^2

    Args:
        c: height of the river at x, of tensors.
        gamma: curvature across it, of tensors.

    >>> valley = river_valley(lambda x: -0.01 * x, lambda x: 20.0 + 0 * x)
    >>> valley(torch.tensor(2.0), torch.tensor(0.5))
    tensor(2.4800)
    """

    def __init__(self, c: Callable[[Tensor], Tensor], gamma: Callable[[Tensor], Tensor]) -> None:
        self.c, self.gamma = c, gamma

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, elementwise."""
        return self.c(x) + 0.5 * self.gamma(x) * y.square()


def river_valley(c: Callable[[Tensor], Tensor], gamma: Callable[[Tensor], Tensor]) -> RiverValley:
    """The loss of :class:`RiverValley`.

    Example:
        >>> river_valley(torch.sin, torch.exp)(torch.zeros(1), torch.ones(1))
        tensor([0.5000])

    Source: Understanding Warmup-Stable-Decay Learning Rates, arXiv:2410.05192.
    """
    return RiverValley(c, gamma)


def hill_excess(eta: float, gamma: float, noise: float) -> tuple[float, float]:
    r"""The stationary variance across the river, and the loss that it costs.

    .. math:: E\,y^2 = \frac{\eta s^2}{\gamma (2 - \eta \gamma)}, \qquad
        \tfrac{1}{2} \gamma\, E\,y^2 = \frac{\eta s^2}{2 (2 - \eta \gamma)}

    of y' = (1 - eta gamma) y - eta s xi with xi ~ N(0, 1).

    Args:
        eta: rate > 0, with eta gamma < 2.
        gamma: curvature > 0.
        noise: s >= 0, standard deviation of the gradient.

    Raises:
        ValueError: a value outside its range; eta gamma >= 2, where y diverges.

    Example:
        >>> [round(value, 6) for value in hill_excess(0.1, 2.0, 1.0)]
        [0.027778, 0.027778]

    Source: Understanding Warmup-Stable-Decay Learning Rates, arXiv:2410.05192.
    """
    for name, value in (("eta", eta), ("gamma", gamma)):
        check_number(name, value, low=0.0, high=math.inf, open_low=True, open_high=True)
    check_number("noise", noise, low=0.0, high=math.inf, open_high=True)
    _check_stable(eta * gamma)
    variance = eta * noise**2 / (gamma * (2.0 - eta * gamma))
    return variance, 0.5 * gamma * variance


def _check_stable(product: float) -> None:
    if product >= 2.0:
        refuse("eta", "a rate with eta * gamma < 2, above which the valley is left", f"eta * gamma = {product:g}")


class RiverRun(NamedTuple):
    """Means over the runs after the last step: the loss, the part of it up the hill, the way along the river."""

    loss: float
    hill: float
    river: float


def simulate_river(
    schedule: Callable[[int], float],
    steps: int,
    *,
    valley: RiverValley | None = None,
    noise: float = 10.0,
    runs: int = 200,
    generator: torch.Generator | None = None,
) -> RiverRun:
    r"""Stochastic gradient descent in a river valley, with Gaussian noise on the gradient across the river.

    .. math:: x' = x - \eta\, \partial_x L, \qquad y' = y - \eta\, (\gamma(x)\, y + s\, \xi)

    Args:
        schedule: the rate of each step, ``schedule(t) -> eta``.
        steps: >= 1.
        valley: default c = -0.01 x, gamma = 20, the one that is known here by numbers.
        noise: s >= 0.
        runs: >= 1, all from (0, 0).
        generator: of the noise; None is torch's own.

    Raises:
        ValueError: a value outside its range; eta gamma >= 2 at some step.

    Example:
        >>> run = simulate_river(lambda t: 0.05, 200, generator=torch.Generator().manual_seed(0))
        >>> abs(run.river - 0.1) < 1e-9, 1.5 < run.hill < 3.5
        (True, True)

    Source: Understanding Warmup-Stable-Decay Learning Rates, arXiv:2410.05192.
    """
    check_steps("steps", steps)
    check_steps("runs", runs)
    check_number("noise", noise, low=0.0, high=math.inf, open_high=True)
    valley = river_valley(lambda x: -0.01 * x, lambda x: torch.full_like(x, 20.0)) if valley is None else valley
    x = torch.zeros(runs, dtype=torch.float64)
    y = torch.zeros(runs, dtype=torch.float64)
    for t in range(steps):
        eta = float(schedule(t))
        check_number("schedule", eta, low=0.0)
        at = x.detach().requires_grad_()
        with torch.enable_grad():
            slope, gamma = torch.autograd.grad(valley(at, y).sum(), at)[0], valley.gamma(at).detach()
        _check_stable(eta * float(gamma.max()))
        xi = torch.randn(runs, generator=generator, dtype=torch.float64)
        x, y = x - eta * slope, y - eta * (gamma * y + noise * xi)
    hill = 0.5 * valley.gamma(x) * y.square()
    return RiverRun(float(valley(x, y).mean()), float(hill.mean()), float(x.mean()))
