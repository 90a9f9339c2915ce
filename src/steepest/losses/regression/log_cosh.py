"""Log-cosh loss: a smooth Huber loss whose gradient is tanh."""

from __future__ import annotations

from jaxtyping import Float as F
from torch import Tensor

from ...core.objective import Objective
from .survey import log_cosh


class LogCoshLoss(Objective):
    r"""The log-cosh loss as a module; the function is :func:`~steepest.losses.regression.survey.log_cosh`.

    .. math:: \ell = \log \cosh (y - f)

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> import torch
        >>> LogCoshLoss()(torch.tensor([0.0]), torch.tensor([1.0]))
        tensor(0.4338)

    Source: Green, Bayesian Reconstructions from Emission Tomography Data Using a Modified EM Algorithm (1990).
    """

    name = "log_cosh"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of real predictions and targets."""
        self.check_call(outputs, target, weight)
        return log_cosh(outputs, target, weight=weight, reduction=self.reduction)
