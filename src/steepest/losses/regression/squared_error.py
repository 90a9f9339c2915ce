"""Squared error, for real targets and for classes by their one-hot code."""

from __future__ import annotations

from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_index, check_logits, check_tensor
from ...core.objective import Objective
from ...core.reductions import reduce, widen
from ...core.rowwise import rowwise
from ._one_hot import one_hot_forms
from .survey import mse


def squared_error(
    outputs: F[Tensor, "batch ..."],
    target: Tensor,
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared error of real targets or, on ``[N, C]`` outputs, of one-hot class indices.

    .. math:: \ell = (f - y)^2, \qquad \ell = \frac1C \sum_k (f_k - \mathbb 1[k = y])^2

    For classes it is the *mean* over the C outputs (not the sum), which is the mean squared error on one-hot codes.

    Args:
        outputs: predictions ``[N]``, or ``[N, C]`` with C >= 2 for classes.
        target: real, of the shape of ``outputs`` (also rows of class probabilities); or class indices ``[N]``.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range.

    Example:
        >>> import torch
        >>> squared_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(2.)
        >>> squared_error(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
        tensor(0.1250)

    Source: Legendre, Nouvelles méthodes pour la détermination des orbites des comètes (1805).
    """
    check_tensor("outputs", outputs, floating=True)
    check_tensor("target", target)
    if not target.is_floating_point():
        check_logits(outputs)
        check_index(target, outputs)
        return reduce(rowwise(widen(outputs), *one_hot_forms(target.long())), reduction, weight)
    return mse(outputs, target, weight=weight, reduction=reduction)


class SquaredErrorLoss(Objective):
    """Squared error as a module; see :func:`squared_error`.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> import torch
        >>> SquaredErrorLoss()(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
        tensor(0.1250)
    """

    name = "squared_error"
    tasks = ("binary", "multiclass", "regression")
    domain = "real"
    targets = ("index", "soft", "real")

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of predictions and real targets or class indices."""
        self.check_call(outputs, target, weight)
        return squared_error(outputs, target, weight=weight, reduction=self.reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        """The real prediction of outputs ``[N]``, the largest output of ``[N, C]``."""
        return outputs if outputs.ndim == 1 else outputs.argmax(-1)
