"""The multi-similarity loss: soft maxima over the positives and over the negatives of each row, hard pairs alone."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number
from ...core.cosine import unit_rows
from ...core.log_one_plus import log_one_plus_sum
from ...core.pair_loss import PairLoss
from ...core.search import Float
from ...core.triplets import check_rows, pair_masks


def multi_similarity_loss(
    embeddings: F[Tensor, "batch width"],
    labels: I[Tensor, " batch"],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
) -> F[Tensor, ""]:
    r"""Mean over rows of soft maxima of what lies below a base among positives and above it among negatives.

    .. math:: L_i = \frac{1}{\alpha} \log\left(1 + \sum_{p} e^{-\alpha (s_{ip} - \lambda)}\right)
        + \frac{1}{\beta} \log\left(1 + \sum_{n} e^{\beta (s_{in} - \lambda)}\right)

    with cosines s. Mining leaves positives with :math:`s_{ip} < \max_n s_{in} + \epsilon` and negatives with
    :math:`s_{in} > \min_p s_{ip} - \epsilon`; a row without one or the other has no pairs then.

    Args:
        embeddings: ``[B, d]``, of any length.
        labels: ``[B]``.
        alpha, beta: > 0, sharpness among positives and negatives.
        base: lambda.
        epsilon: of the mining, None for all pairs.

    Returns:
        The mean over all B rows in float32 or wider; 0 where there are no pairs.

    Raises:
        ValueError: another shape, a number out of range.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> multi_similarity_loss(z, torch.tensor([0, 0, 1]))
        tensor(0.1997)

    Source: Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, arXiv:1904.06627.
    """
    check_rows(embeddings, labels)
    _check(alpha, beta, base, epsilon)
    rows = unit_rows(embeddings)
    if not len(labels):
        return rows.sum()
    s = rows @ rows.mT
    positive, negative = pair_masks(labels)
    if epsilon is not None:
        fixed = s.detach()
        nearest = fixed.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        farthest = fixed.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        # what cannot be compared stays, so that a number that is none is not passed over
        positive, negative = positive & ~(fixed - epsilon >= nearest), negative & ~(fixed + epsilon <= farthest)
    low = log_one_plus_sum(-alpha * (s - base), positive) / alpha
    return (low + log_one_plus_sum(beta * (s - base), negative) / beta).mean()


def _check(alpha: float, beta: float, base: float, epsilon: float | None) -> None:
    check_number("alpha", alpha, low=0.0, open_low=True)
    check_number("beta", beta, low=0.0, open_low=True)
    check_number("base", base)
    if epsilon is not None:
        check_number("epsilon", epsilon)


class MultiSimilarityLoss(PairLoss):
    """See :func:`multi_similarity_loss`.

    Args:
        alpha, beta: > 0, sharpness among positives and negatives.
        base: the similarity beyond which pairs weigh.
        epsilon: of the mining, None for all pairs.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> MultiSimilarityLoss()(z, torch.tensor([0, 0, 1]))
        tensor(0.1997)
    """

    name = "multi_similarity"
    search = {
        "alpha": Float(0.5, 20.0, log=True), "beta": Float(5.0, 100.0, log=True), "base": Float(0.2, 0.9),
        "epsilon": Float(0.01, 0.5, log=True),
    }  # fmt: skip
    alternatives = {"alpha": 5.0, "beta": 20.0, "base": 0.8, "epsilon": None}

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1) -> None:
        super().__init__()
        _check(alpha, beta, base, epsilon)
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of embeddings and labels."""
        return multi_similarity_loss(
            outputs, target, alpha=self.alpha, beta=self.beta, base=self.base, epsilon=self.epsilon
        )

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[Any]:
        """The defaults, on rows at random and on rows near those of their label, of which few pairs are hard."""
        ((_, ((outputs, target), kwargs)),) = super().samples(generator, torch.float64, device)
        near = 0.3 * outputs + torch.eye(3, outputs.shape[1], dtype=torch.float64, device=device)[target]
        return [(cls().to(device), ((rows.to(dtype), target), kwargs)) for rows in (outputs, near)]
