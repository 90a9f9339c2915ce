"""Projecting conflicting gradients, the surgery that others are measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.aggregator import GramianAggregator
from ...core.checks import check_choice


class PCGrad(GramianAggregator):
    r"""Each gradient loses its part against every other one that it conflicts with, one after the other.

    .. math:: g_i \leftarrow g_i - \frac{\min(0, g_i \cdot g_j)}{\|g_j\|^2} g_j \quad \text{for } j \ne i
        \text{ in random order}, \qquad d = \sum_i g_i

    Worked out on coefficients of the rows: the gradients themselves are read twice, whatever m is.

    Args:
        reduction: ``"sum"`` as published and in TorchJD, or ``"mean"``.
        generator: of the orders; None is torch's own. With two losses there is one order.

    Raises:
        ValueError: another reduction.

    Example:
        >>> PCGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])

    Source: Gradient Surgery for Multi-Task Learning, arXiv:2001.06782.
    """

    name = "pcgrad"
    properties = frozenset({"homogeneous", "in_span", "linear_under_scaling"})

    def __init__(self, reduction: str = "sum", generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("sum", "mean"))
        self.reduction, self.generator = reduction, generator

    def _weigh_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        rows = len(lengths)
        orders = torch.rand(rows, rows, generator=self.generator)
        orders.fill_diagonal_(2.0)  # itself comes last, and is left out
        coefficients = torch.eye(rows, dtype=cosines.dtype, device=cosines.device)
        for rival in orders.argsort(1)[:, : rows - 1].T.to(cosines.device):
            along = (coefficients * cosines[rival]).sum(1).clamp_max(0.0)
            coefficients.scatter_add_(1, rival.unsqueeze(1), -along.unsqueeze(1))
        weights = lengths @ coefficients
        return weights if self.reduction == "sum" else weights / rows
