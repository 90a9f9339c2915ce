"""Absolute error: the loss of the median."""

from __future__ import annotations

from jaxtyping import Float as F
from torch import Tensor

from ...core.objective import Objective
from .survey import mae


def absolute_error(
    outputs: F[Tensor, "batch ..."],
    target: F[Tensor, "batch ..."],
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Absolute error, :math:`|y - f|`: the survey's :func:`~steepest.losses.regression.survey.mae`.

    Args:
        outputs: predictions f ``[N]``; ``[N, ...]`` is averaged over each sample.
        target: y, of the same shape.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> import torch
        >>> absolute_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)

    Source: Boscovich, De litteraria expeditione per pontificiam ditionem (1757).
    """
    return mae(outputs, target, weight=weight, reduction=reduction)


class AbsoluteErrorLoss(Objective):
    """Absolute error as a module; see :func:`absolute_error`.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> import torch
        >>> AbsoluteErrorLoss()(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)
    """

    name = "absolute_error"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of real predictions and targets."""
        self.check_call(outputs, target, weight)
        return absolute_error(outputs, target, weight=weight, reduction=self.reduction)
