"""ApproxNDCG: NDCG with sigmoids in place of the comparisons that make a rank."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number
from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, gains_of, has_order, ideal_dcg, reduce_lists
from ...core.search import Float


def approx_ndcg_loss(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    alpha: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Minus NDCG at approximate ranks.

    .. math:: \ell = -\frac{1}{\mathrm{maxDCG}} \sum_j \frac{2^{y_j} - 1}{\log_2(1 + \hat r_j)}, \qquad
        \hat r_j = 1 + \sum_{k \ne j} \frac{1}{1 + e^{\alpha (s_j - s_k)}}

    Args:
        scores: s ``[Q, n]``.
        grades: y ``[Q, n]`` >= 0.
        mask: boolean ``[Q, n]``, True where there is a document; None: everywhere.
        alpha: > 0, how steep; 10 is a temperature of 0.1.
        reduction: ``"none"`` (one number a list), ``"mean"`` (over lists whose grades differ) or ``"sum"``.

    Returns:
        The loss in float32 or wider; 0 for lists whose grades don't differ.

    Raises:
        ValueError: wrong shapes, negative grades, ``alpha`` not above 0.

    Example:
        >>> approx_ndcg_loss(torch.tensor([[0.5, 0.2]]), torch.tensor([[1.0, 0.0]]))
        tensor(-0.7823)

    Source: Qin et al., A General Approximation Framework for Direct Optimization of Information Retrieval Measures,
    Information Retrieval 13, 2010.
    """
    check_number("alpha", alpha, low=0.0, open_low=True, open_high=True)
    scores, grades, mask = check_lists(scores, grades, mask)
    ahead = torch.sigmoid(alpha * (scores.unsqueeze(-2) - scores.unsqueeze(-1)))
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    rank = 1 + torch.where(mask.unsqueeze(-2) & ~own, ahead, 0.0).sum(-1)
    gains = gains_of(grades)
    ideal = ideal_dcg(gains)
    value = torch.where(mask, gains / torch.log2(1 + rank), 0.0).sum(-1) / torch.where(ideal > 0, ideal, 1.0)
    return reduce_lists(-value, has_order(grades, mask), reduction)


class ApproxNDCGLoss(ListLoss):
    """ApproxNDCG as a module over flat scores; see :func:`approx_ndcg_loss`.

    Args:
        alpha: > 0, how steep.

    Example:
        >>> query = torch.tensor([0, 0, 1, 1])
        >>> ApproxNDCGLoss()(torch.tensor([0.5, 0.2, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]), query=query)
        tensor(-0.7361)
    """

    name = "approx_ndcg"
    alternatives = {"alpha": 10.0}
    search = {"alpha": Float(0.5, 20.0, log=True)}

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        check_number("alpha", alpha, low=0.0, open_low=True, open_high=True)
        self.alpha = alpha

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        return approx_ndcg_loss(scores, grades, mask=mask, alpha=self.alpha, reduction="none")

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """A steep one."""
        return [{"alpha": 10.0}]
