"""ListMLE: the likelihood of the order of grades under the Plackett-Luce model of scores."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, has_order, reduce_lists


def listmle_loss(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Minus the log-likelihood of the list in the order of its grades.

    .. math:: \ell = \sum_j \log \sum_{k:\, y_k \le y_j} e^{s_k} - s_j

    Documents of one grade share the sum over all that are not above them (Breslow's form); without ties it is the
    likelihood of Plackett and Luce. Computed in n log n by running log-sums from the lowest grade up.

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
        >>> listmle_loss(torch.tensor([[1.5, 0.3]]), torch.tensor([[2.0, 1.0]]))
        tensor(0.2633)

    Source: Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, ICML 2008.
    """
    scores, grades, mask = check_lists(scores, grades, mask)
    arranged, order = torch.where(mask, grades, -1.0).sort(-1)  # where there is no document: first
    there, by_grade = mask.gather(-1, order), scores.gather(-1, order)
    # far below every score, and finite: a difference of two infinities would be none
    running = torch.where(there, by_grade, torch.finfo(scores.dtype).min / 4).logcumsumexp(-1)
    place = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    last = torch.cat([arranged[..., 1:] != arranged[..., :-1], torch.ones_like(mask[..., :1])], -1)
    upto = torch.where(last, place, scores.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    losses = torch.where(there, running.gather(-1, upto) - by_grade, 0.0).sum(-1)
    return reduce_lists(losses, has_order(grades, mask), reduction)


class ListMLELoss(ListLoss):
    """ListMLE as a module over flat scores; see :func:`listmle_loss`.

    Example:
        >>> query = torch.tensor([0, 0, 1, 1])
        >>> ListMLELoss()(torch.tensor([1.5, 0.3, 0.0, 1.0]), torch.tensor([2.0, 1.0, 1.0, 0.0]), query=query)
        tensor(0.7883)
    """

    name = "listmle"

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        return listmle_loss(scores, grades, mask=mask, reduction="none")
