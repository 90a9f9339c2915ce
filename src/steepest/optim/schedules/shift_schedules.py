"""Learning rates for a target that moves: they fall as the error does and rise after each shift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch.optim import Optimizer

from ...core.checks import check_choice, check_number
from ...core.schedule import Schedule, check_optimizer, check_steps

MODES = ("regression", "convex", "nonconvex")


def _check_problem(dim: object, batch: object, noise: object) -> None:
    check_steps("dim", dim)
    check_steps("batch", batch)
    check_number("noise", noise, low=0.0, high=math.inf, open_high=True)


def _check_error(v: object) -> None:
    check_number("v", v, low=0.0, high=math.inf, open_high=True)


def optimal_regression_rate(v: float, dim: int, batch: int, noise: float) -> float:
    r"""The rate that lowers the tracking error of online linear regression most.

    .. math:: \eta^*(v) = \frac{v}{v\, (1 + (d + 1) / B) + s^2 d / B}

    for x ~ N(0, I_d), y = x' theta* + e, e ~ N(0, s^2), batches of B, and v = E||theta - theta*||^2. It is the best at
    every step for all that come, since the next error rises with this one.

    Args:
        v: squared distance from the target >= 0.
        dim: d >= 1.
        batch: B >= 1.
        noise: s^2 >= 0.

    Returns:
        in [0, 1 / (1 + (d + 1) / B)]; 0 where v is.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> round(optimal_regression_rate(1.0, dim=20, batch=5, noise=1.0), 6)
        0.108696

    Source: Learning Rate Schedules in the Presence of Distribution Shift, arXiv:2303.15634.
    """
    _check_problem(dim, batch, noise)
    _check_error(v)
    return 0.0 if v == 0.0 else v / (v * (1.0 + (dim + 1) / batch) + noise * dim / batch)


def propagate_error(v: float, eta: float, dim: int, batch: int, noise: float, shift: float = 0.0) -> float:
    r"""The tracking error after one step of online linear regression, exact for Gaussian inputs.

    .. math:: v^+ = v\, \big(1 - 2 \eta + \eta^2 (1 + (d + 1) / B)\big) + \eta^2 s^2 d / B + \gamma^2

    Args:
        v: squared distance from the target >= 0.
        eta: rate >= 0.
        dim, batch, noise: as for :func:`optimal_regression_rate`.
        shift: gamma >= 0, how far the target moves, in a direction without regard to the error.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> round(propagate_error(1.0, 0.108696, dim=20, batch=5, noise=1.0), 6)
        0.891304

    Source: Learning Rate Schedules in the Presence of Distribution Shift, arXiv:2303.15634.
    """
    _check_problem(dim, batch, noise)
    _check_error(v)
    check_number("eta", eta, low=0.0, high=math.inf, open_high=True)
    check_number("shift", shift, low=0.0, high=math.inf, open_high=True)
    remaining = 1.0 - 2.0 * eta + eta**2 * (1.0 + (dim + 1) / batch)
    return v * remaining + eta**2 * noise * dim / batch + shift**2


def dynamic_regret(errors: Sequence[float]) -> float:
    r"""What tracking costs: the excess loss over the moving target, summed over the steps.

    .. math:: \sum_t E[\ell_t(\theta_t) - \ell_t(\theta^*_t)] = \tfrac{1}{2} \sum_t v_t

    Args:
        errors: v_t >= 0 of each step, of the squared loss with x ~ N(0, I).

    Raises:
        ValueError: an error below 0.

    Example:
        >>> dynamic_regret([1.0, 0.5, 0.25])
        0.875

    Source: Learning Rate Schedules in the Presence of Distribution Shift, arXiv:2303.15634.
    """
    for v in errors:
        _check_error(v)
    return 0.5 * math.fsum(errors)


class ShiftAwareSchedule(Schedule):
    r"""The rate follows an estimate of the distance to a target that moves, and jumps up after a shift.

    ``"regression"`` takes :func:`optimal_regression_rate` and moves v by :func:`propagate_error`.

    ``"convex"``, for losses that are mu-strongly convex and L-smooth with gradient noise s^2:

    .. math:: \eta = \frac{\mu v}{L^2 v + s^2 / B}, \qquad
        v^+ = \Big(\sqrt{v\, (1 - 2 \eta \mu + \eta^2 L^2) + \eta^2 s^2 / B} + \gamma\Big)^2

    ``"nonconvex"``, for windows of n steps: with the gap F of the loss to its lowest value, and the shifts of the
    window in the loss,

    .. math:: \eta = \min\Big(\frac{1}{L}, \sqrt{\frac{2 (F + \sum \gamma)}{L s^2 n}}\Big)

    These two follow from standard bounds of one step, not from the text of the publication. Each group's rate is its
    own times eta, so that a rate of 1 is the published one. With shifts that are known beforehand, the rate depends on
    the step alone; :meth:`observe` makes it depend on what was seen, which ``state_dict`` keeps.

    Args:
        optimizer: any; its rate multiplies eta.
        mode: one of the three.
        dim: d >= 1, of ``"regression"``.
        batch: B >= 1.
        noise: s^2 >= 0; above 0 for ``"nonconvex"``.
        error: v of the first step, or F of ``"nonconvex"``, >= 0.
        shifts: gamma of the steps at which the target moves, ``{step: gamma}``; none by default.
        strength: mu > 0, at most L.
        smoothness: L > 0.
        window: n >= 1 of ``"nonconvex"``.
        smoothing: of the losses that :meth:`observe` averages, in [0, 1).
        last_epoch: None goes on where the optimizer is; see :class:`steepest.core.schedule.Schedule`.

    Raises:
        ValueError: a value outside its range.
        TypeError: not an optimizer.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> schedule = ShiftAwareSchedule(optimizer, "regression", dim=20, batch=5, noise=1.0, shifts={30: 1.0})
        >>> [round(schedule.factor(step), 3) for step in (0, 30, 31)]
        [0.109, 0.032, 0.115]

    Source: Learning Rate Schedules in the Presence of Distribution Shift, arXiv:2303.15634.
    """

    name = "shift_aware"

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "regression",
        *,
        dim: int = 1,
        batch: int = 1,
        noise: float = 1.0,
        error: float = 1.0,
        shifts: Mapping[int, float] | None = None,
        strength: float = 1.0,
        smoothness: float = 1.0,
        window: int = 100,
        smoothing: float = 0.9,
        last_epoch: int | None = None,
    ) -> None:
        check_optimizer(optimizer)
        check_choice("mode", mode, MODES)
        _check_problem(dim, batch, noise)
        check_number("error", error, low=0.0, high=math.inf, open_high=True)
        check_number("smoothness", smoothness, low=0.0, high=math.inf, open_low=True, open_high=True)
        check_number("strength", strength, low=0.0, high=smoothness, open_low=True)
        check_steps("window", window)
        check_number("smoothing", smoothing, low=0.0, high=1.0, open_high=True)
        if mode == "nonconvex":
            check_number("noise", noise, low=0.0, open_low=True)
        self.shifts = {} if shifts is None else dict(shifts)
        for step, gamma in self.shifts.items():
            check_steps("shifts", step, low=0)
            check_number("shifts", gamma, low=0.0, high=math.inf, open_high=True)
        self.mode, self.dim, self.batch, self.noise, self.error = mode, dim, batch, noise, error
        self.strength, self.smoothness, self.window, self.smoothing = strength, smoothness, window, smoothing
        self._known = (0, float(error))
        self._last = self._known
        self._seen: list[float] = []
        super().__init__(optimizer, last_epoch)

    def rate(self, v: float, step: int) -> float:
        """eta at an error v; the step chooses the window of ``"nonconvex"``."""
        if self.mode == "regression":
            return optimal_regression_rate(v, self.dim, self.batch, self.noise)
        if self.mode == "convex":
            return 0.0 if v == 0.0 else self.strength * v / (self.smoothness**2 * v + self.noise / self.batch)
        begin = step // self.window * self.window
        moved = math.fsum(gamma for at, gamma in self.shifts.items() if begin <= at < begin + self.window)
        return min(1.0 / self.smoothness, math.sqrt(2.0 * (v + moved) / (self.smoothness * self.noise * self.window)))

    def _next(self, v: float, step: int, shift: float) -> float:
        eta = self.rate(v, step)
        if self.mode == "regression":
            return propagate_error(v, eta, self.dim, self.batch, self.noise, shift)
        if self.mode == "convex":
            remaining = 1.0 - 2.0 * eta * self.strength + (eta * self.smoothness) ** 2
            return (math.sqrt(v * remaining + eta**2 * self.noise / self.batch) + shift) ** 2
        return v

    def error_at(self, step: int) -> float:
        """The error v that the schedule reckons with at a step: the recursion from the latest that was observed.

        Steps before that one are those of the recursion from the start.
        """
        at, v = self._last
        if step < at:
            at, v = self._known if step >= self._known[0] else (0, float(self.error))
        for passed in range(at, step):
            v = self._next(v, passed, self.shifts.get(passed, 0.0))
        if step >= self._known[0]:
            self._last = (step, v)
        return v

    def factor(self, step: int) -> float:
        return self.rate(self.error_at(step), step)

    @property
    def bounds(self) -> tuple[float, float]:
        if self.mode == "regression":
            return 0.0, 1.0 / (1.0 + (self.dim + 1) / self.batch)
        return 0.0, self.strength / self.smoothness**2 if self.mode == "convex" else 1.0 / self.smoothness

    def observe(self, loss: float, shift: float | None = None) -> None:
        r"""Tell it what was seen at the present step; the error of the next step follows from that.

        .. math:: \hat v = \max(0, 2 \bar L - s^2)

        with the running mean of the batches' losses 0.5 r^2, or, where the shift is known, by the recursion.

        Args:
            loss: mean loss of the batch; for ``"convex"`` and ``"nonconvex"`` its excess over the lowest one.
            shift: gamma of this step >= 0, or None where it is not known.

        Raises:
            ValueError: a loss that is no number, a shift below 0.
        """
        check_number("loss", loss, low=-math.inf, high=math.inf, open_low=True, open_high=True)
        step = self.last_epoch
        if shift is not None:
            check_number("shift", shift, low=0.0, high=math.inf, open_high=True)
            following = self._next(self.error_at(step), step, shift)
        else:
            self._seen = [self.smoothing * self._seen[0] + (1.0 - self.smoothing) * loss] if self._seen else [loss]
            floor = self.noise if self.mode == "regression" else 0.0
            following = max(0.0, (1.0 if self.mode == "nonconvex" else 2.0) * self._seen[0] - floor)
        self._known = self._last = (step + 1, following)

    def state_dict(self) -> dict[str, Any]:
        """The step, the groups' own rates, the latest error that was observed and the mean of the losses."""
        return super().state_dict() | {"known": list(self._known), "seen": list(self._seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        step, error = state_dict["known"]
        self._known = self._last = (int(step), float(error))
        self._seen = list(state_dict["seen"])
        super().load_state_dict(state_dict)

    @classmethod
    def spanning(cls, optimizer: Optimizer, steps: int) -> Self:
        """For an error that falls from 1 and shifts by 1 after a third and two thirds of the steps."""
        check_steps("steps", steps)
        return cls(optimizer, dim=20, batch=5, shifts=dict.fromkeys((steps // 3, 2 * steps // 3), 1.0))

    @classmethod
    def samples(cls) -> list[tuple[int, dict[str, Any]]]:
        return [
            (40, {"mode": "regression", "dim": 20, "batch": 5, "shifts": {13: 1.0, 26: 0.5}}),
            (12, {"mode": "regression", "dim": 3, "noise": 0.0}),
            (30, {"mode": "convex", "strength": 0.5, "smoothness": 2.0, "shifts": {10: 0.3}}),
            (30, {"mode": "nonconvex", "window": 10, "smoothness": 4.0, "error": 0.2, "shifts": {15: 2.0}}),
        ]
