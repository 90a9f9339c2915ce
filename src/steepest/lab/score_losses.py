"""The fixed binary losses of one score that experiments compare with: logistic, hinge, exponential, squared."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..core.checks import check_choice
from ..core.objective import Objective
from ..core.reductions import reduce

KINDS = ("logistic", "hinge", "exponential", "squared")


class ScoreLoss(Objective):
    r"""A fixed loss of scores f and labels in {0, 1}, with s = (2 y - 1) f.

    .. math:: \log(1 + e^{-s}), \quad \max(0, 1 - s), \quad e^{-s}, \quad (\sigma(f) - y)^2

    Args:
        kind: ``"logistic"`` (binary cross-entropy), ``"hinge"``, ``"exponential"`` or ``"squared"`` (of the sigmoid).
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> ScoreLoss("hinge", reduction="none")(torch.tensor([2.0, 0.5]), torch.tensor([1, 0]))
        tensor([0.0000, 1.5000])
    """

    name = "score_loss"
    tasks = ("binary",)
    domain = "score"

    def __init__(self, kind: str = "logistic", reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_choice("kind", kind, KINDS)
        self.kind = kind

    def forward(self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of scores and labels ``[N]``."""
        self.check_call(outputs, target, weight)
        y = target.to(outputs.dtype)
        margin = (2 * y - 1) * outputs
        if self.kind == "logistic":
            loss = nnf.softplus(-margin)
        elif self.kind == "hinge":
            loss = (1 - margin).clamp_min(0)
        elif self.kind == "exponential":
            loss = torch.exp(-margin)
        else:
            loss = (torch.sigmoid(outputs) - y).square()
        return reduce(loss, self.reduction, weight)
