"""Where a loss curve bends in log-log axes, and how far the changes of single losses cancel from there on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.probe import Moment, Probe, Reading, call_arguments
from ...core.reductions import widen
from ...core.sample_gradients import count_samples, frozen_samples, loss_of_moment, sample_losses

SHARPEST, WIDEST = 0.05, 2.0
"""Bounds of f1: a wider break is collinear with the slopes."""
START = 0.3
"""f1 at the start, where the bend is guessed."""
FLATTER, BETTER = 0.9, 0.9
"""A curve decelerates where it keeps at most this share of its slope, and of the error of a straight line."""
LARGEST_UNIT = 3
"""Steps are thinned to multiples of at most ten to this power."""
PER = ("token", "sample")


@dataclass(frozen=True)
class BNSLFit:
    r"""A smoothly broken power law with one break (a broken neural scaling law) of a loss over steps.

    .. math:: L(t) = b\, t^{-c_0} \bigl(1 + (t / d_1)^{1 / f_1}\bigr)^{-c_1 f_1}

    Args:
        b: level, > 0.
        c0: minus the slope in log-log axes before the break.
        c1: what the break adds to it; negative where the loss decelerates.
        d1: step of the break.
        f1: its width: the slope changes over a factor of about exp(4 f1) in steps.
        rsle: root of the mean squared error of the log loss.
        straight: the same of a power law without a break.
        first, last: steps between which it was fitted.

    >>> fit = BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=5000.0, f1=0.3)
    >>> round(fit.L_d, 6), round(fit.r_d, 6), round(float(fit.predict(1e5)), 6), round(float(fit.extrapolate(1e5)), 6)
    (3.965657, 0.04, 3.517827, 3.517823)
    """

    b: float
    c0: float
    c1: float
    d1: float
    f1: float
    rsle: float = 0.0
    straight: float = math.inf
    first: float = 0.0
    last: float = math.inf

    @property
    def t_d(self) -> float:
        """The step at which the loss decelerates."""
        return self.d1

    @property
    def L_d(self) -> float:
        """The loss at which it decelerates: where the two straight lines meet, below the curve."""
        return self.b * self.d1**-self.c0  # type: ignore[no-any-return]

    @property
    def r_d(self) -> float:
        """Minus the log-log slope after the break."""
        return self.c0 + self.c1

    @property
    def decelerates(self) -> bool:
        """Whether the curve bends upwards within its steps.

        It does where the slope after the break is at most 0.9 of that before, the break is no end of the range, and the
        error is at most 0.9 of that of a straight line. The three levels are this library's.
        """
        inside = 1.001 * self.first < self.d1 < self.last / 1.001
        return inside and self.c0 > 0 and self.r_d <= FLATTER * self.c0 and self.rsle <= BETTER * self.straight

    def predict(self, steps: Any) -> np.ndarray:
        """The loss at steps > 0, of any shape."""
        x = np.log(np.asarray(steps, dtype=np.float64))
        bend = np.logaddexp(0.0, (x - math.log(self.d1)) / self.f1)
        return np.exp(math.log(self.b) - self.c0 * x - self.c1 * self.f1 * bend)

    def extrapolate(self, steps: Any) -> np.ndarray:
        r"""The straight line after the break: :math:`L_d (t / t_d)^{-r_d}`, at steps > 0 of any shape."""
        return self.L_d * (np.asarray(steps, dtype=np.float64) / self.t_d) ** -self.r_d


def fit_broken_power_law(
    steps: Sequence[float] | np.ndarray | Tensor,
    loss: Sequence[float] | np.ndarray | Tensor,
    guess: float | None = None,
    transient: float = 100.0,
) -> BNSLFit:
    r"""The smoothly broken power law that fits a loss curve best, by least squares of the log loss.

    .. math:: \ln L = \ln b - c_0 \ln t - c_1 f_1 \ln\bigl(1 + e^{(\ln t - \ln d_1) / f_1}\bigr)

    with d1 between the first and the last step and f1 in [0.05, 2]. Every point counts alike: a curve with one point a
    step is first to be smoothed and thinned, which :func:`loss_deceleration` does.

    Args:
        steps: rising, > 0 after the transient, ``[N]``.
        loss: at these, > 0, ``[N]``.
        guess: a step near the break, from which the search starts, with f1 = 0.3; None takes the best of a grid.
        transient: points up to this step are left out, >= 0.

    Raises:
        ValueError: columns of different lengths, fewer than six points after the transient, steps that do not rise, a
            loss that is not positive and finite, a guess that is not positive.

    Example:
        >>> steps = np.geomspace(101, 1e5, 200)
        >>> fit = fit_broken_power_law(steps, BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=5000.0, f1=0.3).predict(steps))
        >>> round(fit.t_d), round(fit.r_d, 4), fit.decelerates
        (5000, 0.04, True)

    Source: Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration and Zero-Sum Learning,
    arXiv:2506.05447; code mirandrom/zsl. Bounds and the grid are this library's.
    """
    from scipy.optimize import least_squares

    t, values = _curve(steps, loss)
    if guess is not None:
        check_number("guess", guess, low=0.0, open_low=True, high=math.inf, open_high=True)
    check_number("transient", transient, low=0.0)
    t, values = t[t > transient], values[t > transient]
    if len(t) < 6:
        refuse("steps", f"at least 6 of them after step {transient:g}", len(t))
    x, y = np.log(t), np.log(values)
    low, high = float(x[0]), float(x[-1])
    if guess is None:
        inner = np.linspace(low, high, 34)[1:-1]
        places, widths = (axis.ravel() for axis in np.meshgrid(inner, np.geomspace(SHARPEST, WIDEST, 8)[1:-1]))
    else:
        margin = 1e-3 * (high - low)
        places, widths = np.array([min(max(math.log(guess), low + margin), high - margin)]), np.array([START])
    # given place and width of the break, what remains is linear
    columns = _columns(x, places[:, None], widths[:, None])
    basis, _ = np.linalg.qr(columns)
    errors = np.square(y - (basis @ (basis.mT @ y[:, None]))[..., 0]).sum(1)
    best = int(errors.argmin())
    linear = np.linalg.lstsq(columns[best], y, rcond=None)[0]
    start = [*linear, places[best], widths[best]]
    solution = least_squares(
        lambda p: _log_loss(x, p) - y,
        start,
        jac=lambda p: _slopes(x, p),
        bounds=([-np.inf] * 3 + [low, SHARPEST], [np.inf] * 3 + [high, WIDEST]),
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
        max_nfev=500,
    )
    log_b, c0, c1, log_d1, f1 = (float(value) for value in solution.x)
    line = np.polynomial.Polynomial.fit(x, y, 1)
    return BNSLFit(
        math.exp(log_b),
        c0,
        c1,
        math.exp(log_d1),
        f1,
        float(np.sqrt(np.square(solution.fun).mean())),
        float(np.sqrt(np.square(line(x) - y).mean())),
        float(t[0]),
        float(t[-1]),
    )


def loss_deceleration(
    steps: Sequence[float] | np.ndarray | Tensor,
    losses: Sequence[float] | np.ndarray | Tensor,
    window: float = 1.2,
    *,
    guess: float | None = None,
    transient: float = 100.0,
) -> BNSLFit:
    r"""Where and at which loss a run decelerates, from its losses at even distances of steps.

    Losses are smoothed in windows that are of one length in log steps, the mean of those from number
    :math:`\lfloor j / \text{window} \rfloor` to j; thinned to 90 a decade (the first at or after each multiple of 10
    from step 100, of 100 from step 1,000, of 1,000 from step 10,000 on; and the last one), so that late steps, of
    which there are more, don't decide alone; and fitted by :func:`fit_broken_power_law`. The smoothed curve lags
    behind, which raises ``b`` and moves the break to slightly later steps: compare runs that are smoothed alike.

    Args:
        steps: rising, >= 0, ``[N]``, evenly spaced, from the first one of the run.
        losses: mean training loss at each, > 0, ``[N]``.
        window: ratio of the last to the first number of a window, >= 1; 1 smooths nothing.
        guess, transient: as for :func:`fit_broken_power_law`.

    Raises:
        ValueError: as :func:`fit_broken_power_law`, a window below 1.

    Example:
        >>> steps = np.arange(1, 20_001)
        >>> fit = loss_deceleration(steps, BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=2000.0, f1=0.1).predict(steps))
        >>> round(fit.r_d, 2), fit.decelerates
        (0.04, True)

    Source: Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration and Zero-Sum Learning,
    arXiv:2506.05447; code mirandrom/zsl.
    """
    t, values = _curve(steps, losses)
    check_number("window", window, low=1.0, high=math.inf, open_high=True)
    number = np.arange(len(t))
    begin = np.floor_divide(number, window).astype(int)
    sums = np.concatenate([[0.0], values.cumsum()])
    smooth = (sums[number + 1] - sums[begin]) / (number + 1 - begin)
    unit = 10.0 ** np.clip(np.floor(np.log10(np.maximum(t, 1.0)) - 1), 0, LARGEST_UNIT)
    multiple = unit * np.floor(t / unit)
    chosen = np.ones(len(t), dtype=bool)
    chosen[1:-1] = multiple[1:-1] != multiple[:-2]
    return fit_broken_power_law(t[chosen], smooth[chosen], guess, transient)


def destructive_interference(delta: F[Tensor, "*any"], dim: int | tuple[int, ...] = 0) -> F[Tensor, "*rest"]:
    r"""How far changes of losses cancel: 0 where all have one sign, 1 where gains and losses are equal (zero-sum).

    .. math:: D = 1 - \frac{\bigl|\sum_i \Delta_i\bigr|}{\sum_i |\Delta_i|}

    so that \|mean\| = (1 - D) mean\|.\|: a loss stops falling because single ones change less, or because they cancel.
    Of gradients of samples ``[N, ...]`` it is one number a coordinate; their mean is the gradient's interference.

    Args:
        delta: changes of the losses of samples or tokens over one step, or their gradients.
        dim: dimensions of the samples.

    Returns:
        Without these dimensions, in [0, 1], in float32 or wider; NaN where all changes are 0, where there are none, or
        where one is not finite.

    Raises:
        TypeError: no floating tensor.
        ValueError: no dimension, or one that it lacks.

    Example:
        >>> round(float(destructive_interference(torch.tensor([-0.5, 0.2, -0.1, 0.3]))), 6)
        0.909091

    Source: Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration and Zero-Sum Learning,
    arXiv:2506.05447; code mirandrom/zsl.
    """
    check_tensor("delta", delta, floating=True)
    if delta.ndim == 0:
        refuse("delta", "at least one dimension", delta)
    for one in (dim,) if isinstance(dim, int) else dim:
        check_number("dim", one, low=-delta.ndim, high=delta.ndim - 1, integer=True)
    values = widen(delta.detach())
    if values.numel():  # sums of small changes leave float32
        largest = values.abs().amax(dim, keepdim=True)
        values = torch.where(largest > 0, values / largest, values)
    return 1 - values.sum(dim).abs() / values.abs().sum(dim)


class ZeroSumMonitor(Probe):
    r"""Measures how the losses of single tokens or samples change over a step, and how far these changes cancel.

    Their losses are computed with the weights before and after the step, in evaluation mode and with the same random
    numbers. Before the loss curve bends, most losses fall together; from there on one token's gain is another's loss.

    Numbers of its reading: ``interference``, D of :func:`destructive_interference`; ``magnitude``, the mean size of a
    change; ``change``, the mean change, of size (1 - D) ``magnitude``; ``falling``, the share of losses that fall;
    ``count``. Without any loss they are NaN and 0.

    Args:
        data: ``(inputs, targets)`` on which losses are measured: best a fixed batch of held-out text. None takes the
            training batch.
        per: ``"token"``: the cross-entropy of each target, of outputs ``[..., C]`` and integer targets ``[...]``;
            ``"sample"``: the objective of each sample by itself.
        ignore_index: tokens with this target are left out.
        every: steps between readings, >= 1.

    Raises:
        ValueError: another ``per``, an ``every`` below 1; when it measures, outputs and targets of other shapes, or no
            weights from before the step.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.load_state_dict({"weight": torch.eye(2)})
        >>> data = (torch.eye(2), torch.tensor([0, 1]))
        >>> moment = Moment(1, "stepped", model, before={"weight": torch.tensor([[0.0, 0.0], [0.0, 2.0]])})
        >>> numbers = ZeroSumMonitor(data).measure(moment).numbers
        >>> round(float(numbers["interference"]), 4), float(numbers["falling"])
        (0.6582, 0.5)

    Source: Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration and Zero-Sum Learning,
    arXiv:2506.05447; code mirandrom/zsl.
    """

    name: ClassVar[str] = "zero_sum"
    phases: ClassVar[tuple[str, ...]] = ("stepped",)
    needs: ClassVar[tuple[str, ...]] = ("batch",)
    cost: ClassVar[str] = "two forward passes over its data without gradient, a copy of the weights"

    def __init__(
        self,
        data: tuple[Any, Any] | None = None,
        per: str = "token",
        *,
        ignore_index: int = -100,
        every: int = 50,
    ) -> None:
        check_choice("per", per, PER)
        check_number("ignore_index", ignore_index, integer=True)
        check_number("every", every, low=1, integer=True)
        if data is not None and not (isinstance(data, tuple) and len(data) == 2):
            refuse_type("data", "a pair of inputs and targets", data)
        self.data, self.per, self.ignore_index, self.every = data, per, ignore_index, every
        if data is not None:
            self.needs = ()

    def measure(self, moment: Moment) -> Reading:
        """Losses before and after this step, and how far their changes cancel."""
        before = moment.before
        if before is None:
            refuse("before", "the weights before the step", None)
        inputs, targets = (moment.inputs, moment.targets) if self.data is None else self.data
        if count_samples(inputs, targets) == 0:
            delta = torch.zeros(0)
        else:
            old = self._losses(moment, inputs, targets, dict(before))
            delta = self._losses(moment, inputs, targets, {}) - old
        size, count = delta.abs(), max(1, delta.numel())
        nothing = math.nan if delta.numel() == 0 else 0.0
        return Reading(
            {
                "interference": destructive_interference(delta),
                "magnitude": size.sum() / count + nothing,
                "change": delta.sum() / count + nothing,
                "falling": (delta < 0).sum() / count + nothing,
                "count": float(delta.numel()),
            }
        )

    def _losses(self, moment: Moment, inputs: Any, targets: Any, weights: dict[str, Tensor]) -> Tensor:
        """Of each token or sample, ``[N]``, in float32 or wider; the next call draws the same random numbers."""
        with frozen_samples(moment) as model:
            if self.per == "sample":
                return widen(sample_losses(model, loss_of_moment(moment), inputs, targets, weights=weights))
            args, kwargs = call_arguments(inputs)
            with torch.no_grad():
                outputs = torch.func.functional_call(model, weights, args, kwargs)
            fits = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point()
            if not fits or outputs.shape[:-1] != targets.shape:
                refuse("per", "'sample', because outputs are no logits [..., C] of integer targets [...]", self.per)
            logits, labels = widen(outputs).flatten(0, -2), targets.flatten().long()
            losses = cross_entropy(logits, labels, reduction="none", ignore_index=self.ignore_index)
            return losses[labels != self.ignore_index]

    @classmethod
    def instances(cls) -> list[ZeroSumMonitor]:
        """One of the tokens of a batch, one of its samples."""
        return [cls(), cls(per="sample")]


def _curve(steps: Any, loss: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as columns of float64."""
    columns = []
    for argument, values in (("steps", steps), ("loss", loss)):
        column = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, float)
        if column.ndim != 1 or not np.isfinite(column).all():
            refuse(argument, "finite numbers in one dimension", values)
        columns.append(column)
    t, values = columns
    if len(t) != len(values):
        refuse("loss", f"one for each of {len(t)} steps", len(values))
    if len(t) and (t[0] < 0 or (np.diff(t) <= 0).any()):
        refuse("steps", "steps >= 0 that rise", steps)
    if (values <= 0).any():
        refuse("loss", "losses > 0", float(values.min()))
    return t, values


def _columns(x: np.ndarray, place: Any, width: Any) -> np.ndarray:
    """Of ln b, c0 and c1 in the log loss at log steps x, ``[..., N, 3]``."""
    bend = -width * np.logaddexp(0.0, (x - place) / width)
    return np.stack(np.broadcast_arrays(1.0, -x, bend), -1)


def _log_loss(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """At log steps x, of ln b, c0, c1, ln d1, f1."""
    logs: np.ndarray = _columns(x, p[3], p[4]) @ p[:3]
    return logs


def _slopes(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Derivatives of the log loss, ``[N, 5]``."""
    c1, place, width = p[2:]
    z = (x - place) / width
    rising = np.exp(-np.logaddexp(0.0, -z))
    by_width = c1 * (rising * z - np.logaddexp(0.0, z))
    return np.concatenate([_columns(x, place, width), np.stack([c1 * rising, by_width], 1)], 1)
