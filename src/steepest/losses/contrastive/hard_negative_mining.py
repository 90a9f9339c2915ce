"""Hard negative mining as an approximate isometry: the batch-hard triplet loss, and how far a batch is from ideal."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.distances import distances
from ...core.pair_loss import PairLoss
from ...core.reductions import widen
from ...core.search import Choice, Float
from ...core.terms import kept_terms
from ...core.triplets import check_triplets, hardest, triplet_mean


class BatchHardTripletLoss(PairLoss):
    r"""The triplet loss of each anchor with its farthest positive and its nearest negative.

    .. math:: L = \frac{1}{A} \sum_i \max(0, p_i - n_i + a), \qquad
        p_i = \max_{y_j = y_i, j \ne i} d_{ij}, \quad n_i = \min_{y_j \ne y_i} d_{ij}

    over the anchors that have both, with Euclidean distances of the rows as they are. Twice
    :func:`isometric_distance` is the largest of these hinges where no n is small. ``terms`` has
    :func:`collapse_score` and the share of hinges above 0: a loss that stays at the margin with a score near 0 has
    collapsed.

    Args:
        margin: a >= 0; None for 0.2, or 0 with ``soft``.
        soft: :math:`\log(1 + e^{p_i - n_i + a})` in place of the hinge.
        squared: squared distances.

    Example:
        >>> z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9, 0.5], [2.0, 0.5]])
        >>> BatchHardTripletLoss(margin=0.2)(z, torch.tensor([0, 0, 1, 1]))
        tensor(0.4581)

    Source: Mathematical Justification of Hard Negative Mining via Isometric Approximation Theorem, arXiv:2210.11173.
    """

    name = "batch_hard_triplet"
    search = {"margin": Float(0.05, 1.0, log=True), "soft": Choice((False, True))}
    alternatives = {"margin": 0.7, "soft": True, "squared": True}

    def __init__(self, margin: float | None = None, soft: bool = False, squared: bool = False) -> None:
        super().__init__()
        check_triplets(margin, "hard", squared, soft, "all")
        self.margin, self.soft, self.squared = margin, soft, squared

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of embeddings and labels."""
        margin = check_triplets(self.margin, "hard", self.squared, self.soft, "all")
        mean = triplet_mean(outputs, target, margin=margin, mining="hard", squared=self.squared, soft=self.soft)
        terms = {"violating": mean.violating}
        self.terms = kept_terms(terms | ({"collapse_score": mean.mean_distance / margin} if margin else {}))
        return mean.loss


def isometric_distance(d: F[Tensor, "rows rows"], labels: I[Tensor, " rows"], margin: float = 0.2) -> F[Tensor, ""]:
    r"""The least change of pairwise distances after which every negative is farther than every positive by a margin.

    .. math:: \min_{D'} \max_{ij} |D'_{ij} - d_{ij}| = \max_i \max\left( 0, \frac{p_i - n_i + a}{2}, a - n_i \right)

    over symmetric D' >= 0 with p'_i + a <= n'_i for all i, p and n as in :class:`BatchHardTripletLoss`. Of embeddings
    it is a lower bound, because distances in a space keep the triangle inequality too, and at most twice the
    :func:`hausdorff_like_distance` to any embedding that separates the triplets.

    Args:
        d: distances ``[n, n]``, symmetric, >= 0.
        labels: ``[n]``.
        margin: a >= 0.

    Returns:
        In float32 or wider; 0 where no anchor has a positive and a negative.

    Raises:
        ValueError: another shape, a negative margin.

    Example:
        >>> z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9, 0.5], [2.0, 0.5]])
        >>> isometric_distance(torch.cdist(z, z), torch.tensor([0, 0, 1, 1]))
        tensor(0.3950)
    """
    check_tensor("d", d, ndim=2, floating=True)
    if d.shape[0] != d.shape[1]:
        refuse("d", "a square matrix", d)
    check_tensor("labels", labels, floating=False, shape=tuple(d.shape[:1]))
    check_number("margin", margin, low=0.0)
    d = widen(d)
    if not len(labels):
        return d.sum()
    far, near, counts = hardest(d, labels)
    errors = torch.maximum((far - near + margin) / 2, margin - near)
    return torch.where(counts, errors, 0.0).amax().clamp_min(0.0)


def collapse_score(embeddings: F[Tensor, "rows width"], margin: float = 0.2) -> F[Tensor, ""]:
    r"""The mean distance of two different rows, in units of the margin: 0 where all rows are one point.

    Args:
        embeddings: ``[n, d]``.
        margin: > 0.

    Returns:
        In float32 or wider; 0 of fewer than two rows.

    Raises:
        ValueError: another shape, a margin that is not positive.

    Example:
        >>> collapse_score(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), margin=0.5)
        tensor(10.)
    """
    check_tensor("embeddings", embeddings, ndim=2, floating=True)
    check_number("margin", margin, low=0.0, open_low=True)
    rows = len(embeddings)
    return distances(embeddings, embeddings).sum() / (max(rows * (rows - 1), 1) * margin)


def hausdorff_like_distance(
    embeddings: F[Tensor, "rows width"], ideals: F[Tensor, "ideals rows width"]
) -> F[Tensor, ""]:
    r"""How far an embedding is from a set of embeddings of the same items: the least over the set of the worst row.

    .. math:: \min_{h} \max_x \|f(x) - h(x)\|

    Args:
        embeddings: f ``[n, d]``.
        ideals: h ``[m, n, d]``, at least one.

    Returns:
        In float32 or wider. It is at least half the largest change of a distance, :math:`|d_f(x, x') - d_h(x, x')|`.

    Raises:
        ValueError: shapes that don't belong together, no ideal.

    Example:
        >>> f = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> hausdorff_like_distance(f, torch.stack([f + 1, f + 0.5]))
        tensor(0.7071)
    """
    check_tensor("embeddings", embeddings, ndim=2, floating=True)
    check_tensor("ideals", ideals, floating=True, shape=(None, *embeddings.shape))
    if not ideals.shape[0] or not embeddings.shape[0]:
        refuse("ideals", "at least one, of at least one row", ideals)
    worst: Tensor = torch.linalg.vector_norm(widen(ideals) - widen(embeddings), dim=-1).amax(1)
    return worst.amin()
