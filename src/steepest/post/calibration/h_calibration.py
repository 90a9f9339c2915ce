"""h-calibration: where class probabilities are nearly equal, does the mean outcome match the mean probability?

All (sample, class) probabilities are sorted, and residuals averaged in a sliding window: a differentiable stand-in for
error-bounded canonical calibration, to train calibrators with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Self, TypedDict, Unpack

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.calibrator import Calibrator
from ...core.checks import (
    check_choice,
    check_index,
    check_logits,
    check_number,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ._h_windows import WEIGHTINGS, pass_sizes, window_within, windowed_error

LOGIT_RANGE = 100.0
_ROUNDING = 1e-3
"""A weighted sum of softmaxes can end just above 1."""
Trained = Callable[[Tensor, Tensor], Tensor]


def h_calibration_loss(
    probabilities: F[Tensor, "samples classes"],
    target: I[Tensor, " samples"],
    *,
    window: int = 200,
    eps: float = 1e-20,
    clusters: int = 15,
    weighting: str = "cluster",
    leave_one_out: bool = True,
    scale: float = 1e5,
) -> Tensor:
    r"""The mean windowed calibration error beyond a bound, over all (sample, class) probabilities.

    For each class e the samples of other classes are taken, their probabilities sorted, :math:`p_1 \le \dots \le p_n`,
    with outcomes o; then

    .. math:: w_j = \frac{1}{V + 1} \sum_{|i - j| \le V/2} (p_i - o_i), \qquad t_j = \max(|w_j| - \epsilon, 0)

    with zeros beyond both ends, and the t are averaged by ``weighting`` and over the classes e.

    Args:
        probabilities: ``[N, C]``, N >= 1, values in 0..1.
        target: class indices ``[N]``.
        window: V, even, >= 0. With fewer than V + 1 entries it is reduced, with a warning.
        eps: the bound, >= 0.
        clusters: groups of the weightings "cluster" and "width", >= 1.
        weighting: ``"cluster"`` averages t inside each group of a one-dimensional k-means of p, then over the groups;
            ``"width"`` over groups of equal width; ``"mean"`` is the plain mean; ``"density"`` weighs by the range of p
            in the window, over V; ``"distance"`` by the mean distance to the p in the window.
        leave_one_out: one pass for each class without its samples; else, and for two classes, one pass over all.
        scale: factor of the result, > 0.

    Returns:
        A scalar >= 0, float32 or wider. The order, the groups and the weights are constants: with "density" and
        "distance" the gradient leaves out how the weights change with p.

    Raises:
        ValueError: no rows, wrong shapes, an odd window, values outside 0..1, an unknown weighting.

    Example:
        >>> p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
        >>> kind = dict(window=2, weighting="mean", leave_one_out=False, scale=1.0)
        >>> h_calibration_loss(p, torch.tensor([0, 1]), **kind)
        tensor(0.0889)

    Source: h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective,
    arXiv:2506.17968.
    """
    _check(window, eps, clusters, weighting, leave_one_out, scale)
    check_logits(probabilities, argument="probabilities")
    check_index(target, probabilities)
    if not len(probabilities):
        refuse("probabilities", "at least one row", probabilities)
    if values_visible(probabilities):
        low, high = map(float, probabilities.detach().aminmax())
        if low < 0 or high > 1 + _ROUNDING:
            refuse("probabilities", "values in 0..1", [low, high])
    wide, labels = widen(probabilities), target.long()
    leave_one_out = leave_one_out and wide.shape[1] > 2
    if values_visible(labels):
        sizes = pass_sizes(labels, wide.shape[1], leave_one_out)
        within = window_within(window, sizes)
        if within < window:
            least = int(sizes[sizes > 0].min())
            warnings.warn(f"window: {window} is more than {least} entries allow, {within} is used", stacklevel=2)
    p = wide.double()
    value, slope = windowed_error(p.detach(), labels, window, float(eps), clusters, weighting, leave_one_out)
    # the second term is zero and carries the slope
    return (scale * (value + ((p - p.detach()) * slope).sum())).to(wide.dtype)


def _check(window: int, eps: float, clusters: int, weighting: str, leave_one_out: bool, scale: float) -> None:
    check_number("window", window, low=0, integer=True)
    if window % 2:
        refuse("window", "an even number", window)
    check_number("eps", eps, low=0.0)
    check_number("clusters", clusters, low=1, integer=True)
    check_choice("weighting", weighting, WEIGHTINGS)
    if not isinstance(leave_one_out, bool):
        refuse_type("leave_one_out", "True or False", leave_one_out)
    check_number("scale", scale, low=0.0, open_low=True)


class HCalibrationLoss(Loss):
    """The windowed calibration error as a module; see :func:`h_calibration_loss` for the arguments.

    Example:
        >>> loss = HCalibrationLoss(window=2, weighting="mean", scale=1.0)
        >>> loss(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.3, 0.3, 0.4]]), torch.tensor([0, 1, 2]))
        tensor(0.1407)

    Source: h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective,
    arXiv:2506.17968.
    """

    name = "h_calibration"

    def __init__(
        self,
        window: int = 200,
        eps: float = 1e-20,
        clusters: int = 15,
        weighting: str = "cluster",
        leave_one_out: bool = True,
        scale: float = 1e5,
    ) -> None:
        super().__init__()
        _check(window, eps, clusters, weighting, leave_one_out, scale)
        self.window, self.eps, self.clusters = window, eps, clusters
        self.weighting, self.leave_one_out, self.scale = weighting, leave_one_out, scale

    def forward(self, probabilities: F[Tensor, "samples classes"], target: I[Tensor, " samples"]) -> Tensor:
        """The loss of probabilities and class indices."""
        return h_calibration_loss(
            probabilities,
            target,
            window=self.window,
            eps=self.eps,
            clusters=self.clusters,
            weighting=self.weighting,
            leave_one_out=self.leave_one_out,
            scale=self.scale,
        )

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The weightings whose gradient is exact, with small windows; two classes."""
        p = torch.randn(8, 3, generator=generator).softmax(1).to(dtype).to(device)
        y = torch.randint(3, (8,), generator=generator).to(device)
        cases = [
            (cls(4, 0.01, 3, weighting=kind, scale=1.0, leave_one_out=kind != "width"), ((p, y), {}))
            for kind in ("cluster", "mean", "width")
        ]
        two = p[:, :2].float()
        return [*cases, (cls(window=2), (((two / two.sum(1, keepdim=True)).to(dtype), y % 2), {}))]


class _Training(TypedDict, total=False):
    """What every trained map is told about its training."""

    loss: Trained | None
    lr: float
    epochs: int
    patience: int


class _TrainedMap(Calibrator):
    """A calibrator whose ``probabilities`` map logits to probabilities and are trained by gradient descent."""

    def __init__(
        self, *, loss: Trained | None = None, lr: float = 5e-3, epochs: int = 2000, patience: int = 160
    ) -> None:
        super().__init__()
        check_number("lr", lr, low=0.0, open_low=True)
        check_number("epochs", epochs, low=1, integer=True)
        check_number("patience", patience, low=1, integer=True)
        self.loss = HCalibrationLoss() if loss is None else loss
        self.lr, self.epochs, self.patience = lr, epochs, patience

    def reset(self) -> None:
        """Parameters at their start."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities ``[N, C]`` of logits ``[N, C]``, differentiable in the parameters."""
        raise NotImplementedError

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        self.reset()
        parameters = list(self.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=max(1, self.patience // 8)
        )
        least, since = float("inf"), 0
        best = [p.detach().clone() for p in parameters]
        for _ in range(self.epochs):
            optimizer.zero_grad()
            loss = self.loss(self.probabilities(logits), target)
            value = float(loss.detach())
            if value < least:
                least, since = value, 0
                best = [p.detach().clone() for p in parameters]
            else:
                since += 1
                if since >= self.patience:
                    break
            loss.backward()
            optimizer.step()
            schedule.step(value)
        optimizer.zero_grad()
        with torch.no_grad():
            for parameter, best_value in zip(parameters, best):
                parameter.copy_(best_value)

    def _transform(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits)


class TemperatureEnsembleCalibrator(_TrainedMap):
    r"""A weighted mean of softmaxes at several temperatures.

    .. math:: P = \sum_s \frac{|b_s|}{\sum_r |b_r|}\, \mathrm{softmax}(|a_s| \log\mathrm{softmax}(z))

    Trained in full batches by Adam; the rate is halved where the loss stalls for an eighth of ``patience``, and the
    best parameters are kept.

    Args:
        members: S >= 1. 1 is a single temperature.
        loss: of probabilities and class indices; None for :class:`HCalibrationLoss`.
        lr: > 0.
        epochs: at most.
        patience: epochs without a lower loss after which training ends.

    Example:
        >>> calibrator = TemperatureEnsembleCalibrator(members=1)
        >>> calibrator.probabilities(torch.tensor([[1.0, 0.0]])), torch.tensor([[1.0, 0.0]]).softmax(1)
        (tensor([[0.7311, 0.2689]], grad_fn=...), tensor([[0.7311, 0.2689]]))

    Source: h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective,
    arXiv:2506.17968.
    """

    name = "temperature_ensemble"

    def __init__(self, members: int = 16, **training: Unpack[_Training]) -> None:
        super().__init__(**training)
        check_number("members", members, low=1, integer=True)
        self.inverse = nn.Parameter(torch.empty(members))
        self.weight = nn.Parameter(torch.empty(members))
        self.reset()

    def reset(self) -> None:
        """Inverse temperatures spread over 0.5..1.5 (a single one at 1), equal weights."""
        count = len(self.inverse)
        start = torch.linspace(0.5, 1.5, count) if count > 1 else torch.ones(1)
        with torch.no_grad():
            self.inverse.copy_(start)
            self.weight.fill_(1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities ``[N, C]`` of logits ``[N, C]``, differentiable in the parameters."""
        wide = widen(logits)
        inverse, weight = self.inverse.abs().to(wide), self.weight.abs().to(wide)
        of_members = (wide.log_softmax(1)[..., None] * inverse).softmax(1)
        return of_members @ (weight / weight.sum())

    @classmethod
    def instances(cls) -> list[Self]:
        """Few steps at a high rate."""
        return [cls(4, loss=HCalibrationLoss(window=60), lr=0.05, epochs=40)]


class MonotonePiecewiseLinearCalibrator(_TrainedMap):
    r"""Softmax of a non-decreasing piecewise linear map of log-probabilities.

    .. math:: P = \mathrm{softmax}(f(\log\mathrm{softmax}(z))), \qquad f(u) = -\int_0^{-u} |a_{s(v)}|\, dv

    with equal segments over 0..100; the last slope goes on beyond. Trained as :class:`TemperatureEnsembleCalibrator`.

    Args:
        segments: >= 1.
        loss: of probabilities and class indices; None for :class:`HCalibrationLoss`.
        lr, epochs, patience: of the training.

    Example:
        >>> calibrator = MonotonePiecewiseLinearCalibrator(segments=10)
        >>> calibrator.probabilities(torch.tensor([[1.0, 0.0]]))
        tensor([[0.7311, 0.2689]], grad_fn=...)

    Source: h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective,
    arXiv:2506.17968.
    """

    name = "monotone_piecewise_linear"

    def __init__(self, segments: int = 100, **training: Unpack[_Training]) -> None:
        super().__init__(**training)
        check_number("segments", segments, low=1, integer=True)
        self.slopes = nn.Parameter(torch.empty(segments))
        self.reset()

    def reset(self) -> None:
        """The identity."""
        nn.init.ones_(self.slopes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities ``[N, C]`` of logits ``[N, C]``, differentiable in the parameters."""
        depth = -widen(logits).log_softmax(1)
        slopes = self.slopes.abs().to(depth)
        width = LOGIT_RANGE / len(slopes)
        segment = (depth.detach() / width).floor().clamp(0, len(slopes) - 1).long()
        before = nn.functional.pad(slopes.cumsum(0) * width, (1, 0))
        return (-(before[segment] + slopes[segment] * (depth - segment * width))).softmax(1)

    @classmethod
    def instances(cls) -> list[Self]:
        """Few steps at a high rate."""
        return [cls(50, loss=HCalibrationLoss(window=60), lr=0.05, epochs=40)]
