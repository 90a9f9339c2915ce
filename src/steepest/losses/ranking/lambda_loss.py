"""LambdaLoss: logistic losses of pairs, weighed by what they change in NDCG at the present ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, option_of
from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, discounts_of, gains_of, has_order, ideal_dcg, reduce_lists
from ...core.search import Choice, Float

SCHEMES = ("ndcg_loss1", "ndcg_loss2", "lambda_rank", "ndcg_loss2++", "ranknet", "difference", "squares")
LN2 = 0.6931471805599453


def lambda_loss(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    scheme: str = "ndcg_loss2++",
    k: int | None = None,
    sigma: float = 1.0,
    mu: float | None = None,
    natural: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""A sum over pairs of ranks i, j, of documents in the order of their scores.

    .. math:: \ell = -\sum_{y_i > y_j} w_{ij} \log_2 \frac{1}{1 + e^{-\sigma (s_i - s_j)}}

    With gains G = (2^y - 1) / maxDCG@k and discounts d_r = 1 / log2(r + 1), the weights, constants in the gradient, are

    - ``"ndcg_loss1"``: G_i d_i, over all pairs, also those of equal grades and i = j;
    - ``"ndcg_loss2"``: \|d_m - d_{m+1}\| \|G_i - G_j\| with m = \|i - j\|;
    - ``"lambda_rank"``: \|d_i - d_j\| \|G_i - G_j\|;
    - ``"ndcg_loss2++"``: mu times the second plus the third;
    - ``"ranknet"``: 1; ``"difference"``: \|y_i - y_j\|; ``"squares"``: \|y_i^2 - y_j^2\|.

    Documents of equal scores are ranked as the worst order of their grades.

    Args:
        scores: s ``[Q, n]``.
        grades: y ``[Q, n]`` >= 0.
        mask: boolean ``[Q, n]``, True where there is a document; None: everywhere.
        scheme: of the weights.
        k: pairs of ranks 1..k alone; None: all.
        sigma: factor of the difference, > 0.
        mu: > 0, of ``"ndcg_loss2++"``; None: 10.
        natural: the natural logarithm in place of that to base 2.
        reduction: ``"none"`` (one number a list), ``"mean"`` (over lists whose grades differ) or ``"sum"``.

    Returns:
        The loss in float32 or wider; 0 for lists whose grades don't differ.

    Raises:
        ValueError: wrong shapes, negative grades, an unknown scheme, numbers outside their ranges.

    Example:
        >>> lambda_loss(torch.tensor([[0.5, 0.2]]), torch.tensor([[1.0, 0.0]]), scheme="lambda_rank")
        tensor(0.2952)

    Source: Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018.
    """
    factor = _check(scheme, k, sigma, mu)
    scores, grades, mask = check_lists(scores, grades, mask)
    order = _ranked(scores.detach(), grades, mask)
    s, y, there = scores.gather(-1, order), grades.gather(-1, order), mask.gather(-1, order)
    ideal = ideal_dcg(gains_of(grades), k).unsqueeze(-1)
    gains = gains_of(y) / torch.where(ideal > 0, ideal, 1.0)
    weight = _weights(scheme, gains, y, factor)
    pairs = there.unsqueeze(-1) & there.unsqueeze(-2)
    if scheme != "ndcg_loss1":
        pairs = pairs & (y.unsqueeze(-1) > y.unsqueeze(-2))
    if k is not None:
        top = torch.arange(s.shape[-1], device=s.device) < k
        pairs = pairs & (top.unsqueeze(-1) & top)
    losses = weight * nnf.softplus(sigma * (s.unsqueeze(-2) - s.unsqueeze(-1)), threshold=40.0)
    total = torch.where(pairs, losses, 0.0).sum((-2, -1))
    return reduce_lists(total if natural else total / LN2, has_order(grades, mask), reduction)


def _check(scheme: str, k: int | None, sigma: float, mu: float | None) -> float:
    """The factor mu, and nothing wrong with the others.

    Raises:
        ValueError: an option out of range or of another scheme.
    """
    check_choice("scheme", scheme, SCHEMES)
    check_number("sigma", sigma, low=0.0, open_low=True, open_high=True)
    if k is not None:
        check_number("k", k, low=1, integer=True)
    only = 'scheme="ndcg_loss2++"'
    return option_of(
        "mu", mu, 10.0, applies=scheme == "ndcg_loss2++", only=only, low=0.0, open_low=True, open_high=True
    )


def _ranked(scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
    """Documents by falling score, equal scores by rising grade, and those that are none last."""
    by_grade = torch.where(mask, grades, torch.inf).argsort(dim=-1, stable=True)
    first = torch.where(scores.isnan(), -torch.inf, -scores)  # so that a score that is not a number counts
    falling = torch.where(mask, first, torch.inf).gather(-1, by_grade)
    return by_grade.gather(-1, falling.argsort(dim=-1, stable=True))


def _weights(scheme: str, gains: Tensor, grades: Tensor, mu: float) -> Tensor:
    """``[Q, n, n]``, or what broadcasts to it."""
    size = gains.shape[-1]
    discount = discounts_of(gains)
    if scheme == "ranknet":
        return torch.ones_like(gains).unsqueeze(-1)
    if scheme in ("difference", "squares"):
        return _gaps(grades if scheme == "difference" else grades.square())
    if scheme == "ndcg_loss1":
        return (gains * discount).unsqueeze(-1)
    weight = torch.zeros_like(gains).unsqueeze(-1)
    if scheme != "lambda_rank":
        rank = torch.arange(size, device=gains.device)
        distance = (rank.unsqueeze(-1) - rank).abs()
        longer = torch.log2(torch.arange(2, size + 2, device=gains.device).to(gains.dtype) + 1).reciprocal()
        steps = torch.cat([torch.zeros_like(discount[:1]), (discount - longer)[: max(size - 1, 0)]])[:size]
        weight = steps[distance] * (mu if scheme == "ndcg_loss2++" else 1.0)
    if scheme != "ndcg_loss2":
        weight = weight + _gaps(discount)
    return weight * _gaps(gains)


def _gaps(values: Tensor) -> Tensor:
    return (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()


class LambdaLoss(ListLoss):
    """LambdaLoss as a module over flat scores; see :func:`lambda_loss`.

    Args:
        scheme: of the weights.
        k: pairs of ranks 1..k alone; None: all.
        sigma: factor of the difference, > 0.
        mu: > 0, of ``"ndcg_loss2++"``; None: 10.
        natural: the natural logarithm in place of that to base 2.

    Example:
        >>> query = torch.tensor([0, 0, 1, 1])
        >>> scores, grades = torch.tensor([0.5, 0.2, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> LambdaLoss("lambda_rank")(scores, grades, query=query)
        tensor(0.4972)
    """

    name = "lambda_loss"
    alternatives = {"scheme": "ndcg_loss1", "k": 1, "sigma": 2.0, "mu": 3.0, "natural": True}
    search = {"scheme": Choice(SCHEMES), "sigma": Float(0.25, 4.0, log=True)}

    def __init__(
        self,
        scheme: str = "ndcg_loss2++",
        k: int | None = None,
        sigma: float = 1.0,
        mu: float | None = None,
        natural: bool = False,
    ) -> None:
        super().__init__()
        _check(scheme, k, sigma, mu)
        self.scheme, self.k, self.sigma, self.mu, self.natural = scheme, k, sigma, mu, natural

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        return lambda_loss(
            scores,
            grades,
            mask=mask,
            scheme=self.scheme,
            k=self.k,
            sigma=self.sigma,
            mu=self.mu,
            natural=self.natural,
            reduction="none",
        )

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """Every other scheme, one of them at the first three ranks."""
        return [{"scheme": scheme, "k": 3 if scheme == "lambda_rank" else None} for scheme in SCHEMES[:3]]
