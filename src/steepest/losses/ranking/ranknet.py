"""RankNet: logistic loss of the score difference of every pair of different grades."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number
from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, has_order, reduce_lists
from ...core.search import Choice, Float
from ._pairs import WEIGHINGS, grade_weights, logistic_pairs, ordered_pairs, sum_of_pairs


def ranknet_loss(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    sigma: float = 1.0,
    weighing: str | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The mean over pairs of a list, the better document first.

    .. math:: \ell = \frac{1}{|\{y_i > y_j\}|} \sum_{y_i > y_j} w_{ij} \log\big(1 + e^{-\sigma (s_i - s_j)}\big)

    Args:
        scores: s ``[Q, n]``.
        grades: y ``[Q, n]`` >= 0.
        mask: boolean ``[Q, n]``, True where there is a document; None: everywhere.
        sigma: factor of the difference, > 0.
        weighing: None (w = 1), ``"difference"`` (w = \|y_i - y_j\|) or ``"squares"`` (w = \|y_i^2 - y_j^2\|).
        reduction: ``"none"`` (one number a list), ``"mean"`` (over lists whose grades differ) or ``"sum"``.

    Returns:
        The loss in float32 or wider; 0 for lists whose grades don't differ.

    Raises:
        ValueError: wrong shapes, negative grades, an unknown weighing.

    Example:
        >>> import torch
        >>> ranknet_loss(torch.tensor([[0.5, 0.2]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.5544)

    Source: Burges et al., Learning to Rank using Gradient Descent, ICML 2005.
    """
    check_number("sigma", sigma, low=0.0, open_low=True, open_high=True)
    check_choice("weighing", weighing, WEIGHINGS)
    scores, grades, mask = check_lists(scores, grades, mask)
    pairs = ordered_pairs(grades, mask)
    losses = sum_of_pairs(logistic_pairs(scores, sigma), pairs, grade_weights(grades, weighing), mean=True)
    return reduce_lists(losses, has_order(grades, mask), reduction)


class RankNetLoss(ListLoss):
    r"""RankNet as a module over flat scores; see :func:`ranknet_loss`.

    Args:
        sigma: factor of the difference, > 0.
        weighing: None, ``"difference"`` or ``"squares"``.

    Example:
        >>> import torch
        >>> query = torch.tensor([0, 0, 1, 1])
        >>> RankNetLoss()(torch.tensor([0.5, 0.2, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]), query=query)
        tensor(0.9338)
    """

    name = "ranknet"
    alternatives = {"sigma": 2.0, "weighing": "squares"}
    search = {"sigma": Float(0.25, 4.0, log=True), "weighing": Choice(WEIGHINGS)}

    def __init__(self, sigma: float = 1.0, weighing: str | None = None) -> None:
        super().__init__()
        check_number("sigma", sigma, low=0.0, open_low=True, open_high=True)
        check_choice("weighing", weighing, WEIGHINGS)
        self.sigma, self.weighing = sigma, weighing

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        return ranknet_loss(scores, grades, mask=mask, sigma=self.sigma, weighing=self.weighing, reduction="none")

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """Weighed by the difference of grades."""
        return [{"sigma": 0.5, "weighing": "difference"}]
