"""Quantile loss: its minimiser is a quantile of the target."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number
from ...core.objective import Objective, Sample
from .survey import quantile_loss


class QuantileLoss(Objective):
    r"""The quantile (pinball) loss as a module; the function is
    :func:`~steepest.losses.regression.survey.quantile_loss`.

    .. math:: \ell = \max(q (y - f), (q - 1)(y - f))

    Args:
        q: the quantile, in (0, 1). It says what is predicted, so it isn't tuned.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: ``q`` outside (0, 1), wrong shapes.

    Example:
        >>> QuantileLoss(0.9)(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]))
        tensor(0.5500)

    Source: Koenker and Bassett, Regression Quantiles (1978).
    """

    name = "quantile"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)

    def __init__(self, q: float = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("q", q, low=0.0, high=1.0, open_low=True, open_high=True)
        self.q = q

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of real predictions and targets."""
        self.check_call(outputs, target, weight)
        return quantile_loss(outputs, target, q=self.q, weight=weight, reduction=self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[QuantileLoss, Sample]]:
        """The median, and an upper quantile."""
        cases = super().samples(generator, dtype, device)
        return [*cases, (cls(q=0.9), cases[0][1])]
