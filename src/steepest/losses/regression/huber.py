"""Huber loss: squared for small errors, absolute for large ones."""

from __future__ import annotations

from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number
from ...core.objective import Objective
from ...core.search import Float
from .survey import huber


class HuberLoss(Objective):
    r"""The Huber loss as a module; the function is :func:`~steepest.losses.regression.survey.huber`.

    .. math:: \ell = e^2 / 2 \text{ for } |e| \le \delta, \qquad \ell = \delta (|e| - \delta / 2) \text{ beyond}

    Args:
        delta: > 0, in units of the target; search ranges suppose targets of standard deviation 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: ``delta`` <= 0, wrong shapes.

    Example:
        >>> import torch
        >>> HuberLoss(delta=1.0)(torch.tensor([0.5, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(0.8125)

    Source: Huber, Robust Estimation of a Location Parameter (1964).
    """

    name = "huber"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)
    search = {"delta": Float(0.05, 3.0, log=True)}

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("delta", delta, low=0.0, open_low=True)
        self.delta = delta

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of real predictions and targets."""
        self.check_call(outputs, target, weight)
        return huber(outputs, target, delta=self.delta, weight=weight, reduction=self.reduction)
