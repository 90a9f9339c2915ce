"""ListNet: cross-entropy between the softmax of grades and that of scores."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, has_order, reduce_lists


def listnet_loss(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the first place: who is best, drawn by the softmax of grades and of scores.

    .. math:: \ell = -\sum_j \mathrm{softmax}(y)_j \log \mathrm{softmax}(s)_j

    Args:
        scores: s ``[Q, n]``.
        grades: y ``[Q, n]`` >= 0.
        mask: boolean ``[Q, n]``, True where there is a document; None: everywhere.
        reduction: ``"none"`` (one number a list), ``"mean"`` (over lists whose grades differ) or ``"sum"``.

    Returns:
        The loss in float32 or wider; 0 for lists whose grades don't differ.

    Raises:
        ValueError: wrong shapes, negative grades.

    Example:
        >>> listnet_loss(torch.tensor([[0.5, 0.2]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.6350)

    Source: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007.
    """
    scores, grades, mask = check_lists(scores, grades, mask)
    lowest = torch.finfo(scores.dtype).min
    share = torch.where(mask, grades, lowest).softmax(-1)
    log_p = torch.where(mask, scores, lowest).log_softmax(-1)
    losses = -torch.where(mask, share * log_p, 0.0).sum(-1)
    return reduce_lists(losses, has_order(grades, mask), reduction)


class ListNetLoss(ListLoss):
    """ListNet as a module over flat scores; see :func:`listnet_loss`.

    Example:
        >>> query = torch.tensor([0, 0, 1, 1])
        >>> ListNetLoss()(torch.tensor([0.5, 0.2, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]), query=query)
        tensor(0.8397)
    """

    name = "listnet"

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        return listnet_loss(scores, grades, mask=mask, reduction="none")
