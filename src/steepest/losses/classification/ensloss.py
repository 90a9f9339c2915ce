"""EnsLoss: every step trains with the derivatives of another random convex, calibrated margin loss."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_binary, check_number, check_tensor, refuse, values_visible
from ...core.objective import Objective, TaskInfo
from ...core.random import RandomStream
from ...core.reductions import widen
from ...core.search import Int

_STRICT = 1e-6
"""Taken off every derivative, so that none is 0."""


def inverse_box_cox(z: F[Tensor, " batch"], lam: float) -> F[Tensor, " batch"]:
    r"""The inverse Box-Cox transform.

    .. math:: T(z) = \max(1 + \lambda z, 0)^{1/\lambda}, \qquad T(z) = e^z \text{ for } \lambda = 0

    Args:
        z: any reals.
        lam: lambda. Below 0, T is +inf where 1 + lambda z <= 0.

    Returns:
        T(z) >= 0, of the shape of ``z``; never NaN for finite ``z``.

    Example:
        >>> inverse_box_cox(torch.tensor([0.0, 0.5, 2.0]), -1.0)
        tensor([1., 2., inf])

    Source: EnsLoss, arXiv:2409.00908.
    """
    check_tensor("z", z, floating=True)
    check_number("lam", lam)
    if lam == 0:
        return torch.exp(z)
    # log1p(-1) is -inf, and exp(-inf / lam) is the 0 or the inf that is meant there
    return torch.exp(torch.log1p((lam * z).clamp_min(-1.0)) / lam)


def sample_loss_derivatives(
    margins: F[Tensor, " batch"], z: F[Tensor, " batch"], lam: float = 0.0
) -> F[Tensor, " batch"]:
    """Derivatives of a random convex, calibrated, superlinear margin loss at the margins of a batch.

    ``-T(z)`` is clipped at -1 and sorted; the r-th smallest goes to the r-th smallest margin s (a derivative that does
    not decrease is convexity), is divided by s where s > 1, and 1e-6 is taken off.

    Args:
        margins: y f ``[B]`` with y in {-1, +1}; ties keep their order.
        z: standard normal draws ``[B]``.
        lam: lambda of the transform.

    Returns:
        g ``[B]`` in [-1 - 1e-6, -1e-6], in the precision of ``z``, without a gradient. It does not decrease with the
        margin among margins <= 1; the division may break that across 1.

    Raises:
        ValueError: other shapes, NaN margins.

    Example:
        >>> s, z = torch.tensor([2.0, -0.5, -0.3, 1.0]), torch.tensor([0.5, -1.0, 0.0, -2.0])
        >>> sample_loss_derivatives(s, z)
        tensor([-0.0677, -1.0000, -1.0000, -0.3679])

    Source: EnsLoss, arXiv:2409.00908.
    """
    check_tensor("margins", margins, ndim=1, floating=True)
    check_tensor("z", z, floating=True, shape=tuple(margins.shape))
    _refuse_nan("margins", margins)
    with torch.no_grad():
        steps = (-inverse_box_cox(z, lam)).clamp_min(-1.0).sort().values
        rank = margins.argsort(stable=True).argsort()
        margins = margins.to(steps.dtype)
        return steps[rank] / margins.clamp_min(1.0) - _STRICT


def _refuse_nan(argument: str, value: Tensor) -> None:
    if value.numel() and values_visible(value) and bool(value.isnan().any()):
        refuse(argument, "numbers, not NaN", value)


class EnsLoss(Objective):
    r"""A stochastic ensemble of calibrated losses for two classes, by their derivatives alone.

    .. math:: \mathrm{surrogate} = \frac1B \sum_i \mathrm{stop}(g_i)\, y_i f_i, \qquad y_i = 2\, t_i - 1

    Its gradient in f_i is g_i y_i / B with the g of :func:`sample_loss_derivatives`. Its *value* means nothing: log
    binary cross-entropy or accuracy instead. Ranks say little in small batches; 64 or more are advised. In eval mode
    the stream does not move: repeated calls draw the same derivatives. Of several ranks each ranks its own batch.

    Args:
        period: epochs between two draws of lambda ~ U(-1, 1), >= 1; lambda is 0 in the first period.
        seed: seed of the objective's own random stream, or None to take one from torch's default generator.
        reduction: ``"mean"`` only.

    Raises:
        ValueError: outputs that aren't ``[N]`` or hold NaN, labels outside {0, 1}.

    Example:
        >>> loss = EnsLoss(seed=0)
        >>> scores = torch.zeros(3, requires_grad=True)
        >>> loss(scores, torch.tensor([1, 0, 1])).backward()
        >>> scores.grad.sign()
        tensor([-1.,  1., -1.])

    Source: EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification,
    arXiv:2409.00908.
    """

    name = "ensloss"
    tasks = ("binary",)
    domain = "score"
    unit = "batch"
    gradient = "surrogate"
    stateful = True
    search = {"period": Int(1, 20)}

    def __init__(self, period: int = 10, seed: int | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("period", period, low=1, integer=True)
        self.period = period
        self.lam = 0.0
        self.stream = RandomStream(seed)

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the seed of the task."""
        return cls(**{"seed": info.seed, **hyper})

    def resample(self) -> None:
        """Draw a new lambda."""
        self.lam = self.stream.uniform(-1.0, 1.0)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Draws a new lambda at epochs period + 1, 2 period + 1, ..., in training mode."""
        if self.training and epoch > 1 and (epoch - 1) % self.period == 0:
            self.resample()

    def forward(self, outputs: F[Tensor, " batch"], target: Tensor, *, weight: None = None) -> Tensor:
        """The surrogate of scores ``[N]`` and labels ``[N]`` in {0, 1}."""
        self.check_call(outputs, target, weight)
        check_tensor("outputs", outputs, ndim=1)
        check_binary(target, outputs)
        _refuse_nan("outputs", outputs)
        scores = widen(outputs)
        margins = (2 * target.to(scores.dtype) - 1) * scores
        g = sample_loss_derivatives(margins.detach(), self._draw(len(outputs)).to(outputs.device), self.lam)
        return (g.to(margins.dtype) * margins).mean()

    def _draw(self, rows: int) -> Tensor:
        # always in float64 on the CPU: every device and precision sees the same numbers
        stream = self.stream if self.training else copy.deepcopy(self.stream)
        return stream.normal(rows, dtype=torch.float64)

    def reference_gradient(self, outputs: Tensor, target: Tensor) -> Tensor:
        """g_i y_i / B, sample by sample in Python numbers: what ``backward`` must give."""
        z = self._draw(len(outputs)).tolist()
        signs = [1.0 if t else -1.0 for t in target.tolist()]
        margins = [y * f for y, f in zip(signs, outputs.tolist())]
        steps = []
        for value in z:
            base = 1 + self.lam * value
            if self.lam == 0:
                steps.append(max(-math.exp(value), -1.0))
            elif base <= 0:
                steps.append(0.0 if self.lam > 0 else -1.0)
            else:
                steps.append(max(-(base ** (1 / self.lam)), -1.0))
        gradient = [0.0] * len(z)
        for g, i in zip(sorted(steps), sorted(range(len(z)), key=margins.__getitem__)):
            gradient[i] = signs[i] * (g / max(margins[i], 1.0) - _STRICT) / len(z)
        return torch.tensor(gradient, dtype=outputs.dtype, device=outputs.device)

    def get_extra_state(self) -> Tensor:
        """The current lambda."""
        return torch.tensor(self.lam, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the current lambda."""
        self.lam = float(state)
