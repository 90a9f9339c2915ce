"""Two losses of few-shot episodes: triplets of queries and prototypes, and a score of nearest neighbours."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_range, check_tensor, refuse
from ...core.loss import Loss, Sample
from ...core.pair_loss import PairLoss
from ...core.reductions import widen
from ...core.search import Int

FLOOR = 1e-6
"""What is added to a squared distance, whose root has a slope at 0 then."""


def _roots(x: Tensor, reference: Tensor) -> Tensor:
    """Square roots of squared distances and the floor, ``[n, m]``."""
    apart = x.unsqueeze(1) - reference
    return (apart.square().sum(-1) + FLOOR).sqrt()


def proto_triplet_loss(
    queries: F[Tensor, "queries width"],
    labels: I[Tensor, " queries"],
    prototypes: F[Tensor, "classes width"],
    margin: float = 0.5,
) -> F[Tensor, ""]:
    r"""Mean hinge of the distance of a query to its own prototype less that to the nearest other one.

    .. math:: L = \frac{1}{Q} \sum_q \max\left(0, d(q, c_{y_q}) - \min_{c \ne c_{y_q}} d(q, c) + m\right), \qquad
        d(a, b) = \sqrt{\|a - b\|^2 + 10^{-6}}

    Args:
        queries: embeddings ``[Q, d]``.
        labels: the prototype of each ``[Q]``, in 0..C-1.
        prototypes: means of the support embeddings of each class ``[C, d]``, C >= 2.
        margin: m >= 0.

    Returns:
        The loss in float32 or wider; 0 of no queries.

    Raises:
        ValueError: another shape, a label out of range, a prototype without a competitor.

    Example:
        >>> queries, prototypes = torch.tensor([[1.4, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> proto_triplet_loss(queries, torch.tensor([0, 1]), prototypes)
        tensor(0.1929)

    Source: SuSana Distancia is all you need, arXiv:2305.09062.
    """
    check_tensor("queries", queries, ndim=2, floating=True)
    check_tensor("prototypes", prototypes, floating=True, shape=(None, queries.shape[1]))
    if len(prototypes) < 2:
        refuse("prototypes", "at least two", prototypes)
    check_tensor("labels", labels, floating=False, shape=tuple(queries.shape[:1]))
    check_range("labels", labels, 0, len(prototypes) - 1)
    check_number("margin", margin, low=0.0)
    d = _roots(widen(queries), widen(prototypes))
    own = labels.long().unsqueeze(1)
    near = d.gather(1, own).squeeze(1)
    rival = d.scatter(1, own, torch.inf).amin(1)
    return (near - rival + margin).relu().sum() / max(len(queries), 1)


class ProtoTripletLoss(Loss):
    """See :func:`proto_triplet_loss`.

    Args:
        margin: m >= 0.

    Example:
        >>> queries, prototypes = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> ProtoTripletLoss()(queries, torch.tensor([0, 1]), prototypes)
        tensor(0.)
    """

    name = "proto_triplet"
    differentiable = (0, 2)

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        check_number("margin", margin, low=0.0)
        self.margin = margin

    def forward(self, queries: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
        """The loss of queries ``[Q, d]``, their classes ``[Q]`` and prototypes ``[C, d]``."""
        return proto_triplet_loss(queries, labels, prototypes, self.margin)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Queries of three classes."""
        queries, prototypes = (
            torch.randn(n, 4, generator=generator, dtype=torch.float64).to(device, dtype) for n in (7, 3)
        )
        labels = (torch.arange(7) % 3).to(device)
        return [(cls().to(device), ((queries, labels, prototypes), {}))]


def icnn_score(
    x: F[Tensor, "rows width"],
    y: I[Tensor, " rows"],
    reference: F[Tensor, "references width"] | None = None,
    reference_labels: I[Tensor, " references"] | None = None,
    k: int = 4,
    neighbours: int | None = None,
) -> F[Tensor, ""]:
    r"""The inter- and intra-class nearest neighbours score in (0, 1]: near neighbours of the same class, far ones of
    others, pure neighbourhoods.

    Of each row the p nearest are looked at, its k nearest are scored. With distances D in units of the nearest of
    another class among the p, cut to a maximum of 1, s_i the mean over neighbours of the row's class; with D over its
    largest value, e_i the mean over neighbours of other classes:

    .. math:: \frac12 \left( \frac{(1 - \bar s) + \bar e}{2} + \frac1n \sum_i \frac{\#\text{same}_i}{k} \right)

    Means over rows are over those that have such a neighbour; where none has one of another class, the mean of e is 1.
    Which rows are neighbours has no gradient, their distances have.

    Args:
        x: embeddings ``[n, d]``.
        y: labels ``[n]``.
        reference: among which neighbours are looked for ``[m, d]``; None for the other rows of x.
        reference_labels: theirs ``[m]``.
        k: neighbours that are scored, >= 1; at most m - 2 rows, where purity counts 1.
        neighbours: p >= k, how far another class is looked for, of at most all; None for k + 1.

    Returns:
        In float32 or wider.

    Raises:
        ValueError: shapes that don't belong together, numbers out of range, fewer than three rows to be neighbours of.

    Example:
        >>> x = torch.tensor([[0.0], [0.5], [1.0], [1.5], [2.0], [2.6]])
        >>> icnn_score(x, torch.tensor([0, 1, 0, 1, 0, 1]), k=2, neighbours=3)
        tensor(0.3021)

    Source: SuSana Distancia is all you need, arXiv:2305.09062.
    """
    check_tensor("x", x, ndim=2, floating=True)
    check_tensor("y", y, floating=False, shape=tuple(x.shape[:1]))
    if (reference is None) != (reference_labels is None):
        refuse("reference_labels", "labels of the reference, and None without one", reference_labels)
    own = reference is None
    among, among_labels = (x, y) if reference is None or reference_labels is None else (reference, reference_labels)
    check_tensor("reference", among, floating=True, shape=(None, x.shape[1]))
    check_tensor("reference_labels", among_labels, floating=False, shape=tuple(among.shape[:1]))
    check_number("k", k, low=1, integer=True)
    if neighbours is not None:
        check_number("neighbours", neighbours, low=k, integer=True)
    size = len(among)
    if size < 3 or not len(x):
        refuse("reference" if not own else "x", "at least three rows to be neighbours of", among)
    few = k + 2 >= size
    k = min(k, size - 2)
    d = _roots(widen(x), widen(among).to(widen(x).dtype))
    sought = d.detach()
    if own:
        sought = sought.masked_fill(torch.eye(size, dtype=torch.bool, device=d.device), torch.inf)
    number = min(neighbours or k + 1, size - 1 if own else size)
    place = sought.topk(number, 1, largest=False).indices
    d = d.gather(1, place)
    same = among_labels[place] == y.unsqueeze(1)
    edge = d.masked_fill(same, torch.inf).amin(1, keepdim=True)
    near, same = d[:, :k], same[:, :k]
    scaled = near / (edge + 1e-7)
    scaled = scaled / scaled.amax(1, keepdim=True).clamp_min(1.0)
    tight = 1 - _mean_of_means(scaled, same)
    if_none = torch.where(same.all(), 1.0, 0.0)
    wide = if_none + _mean_of_means(near / torch.where(same, 0.0, near).amax().clamp_min(1e-7), ~same)
    pure = torch.ones_like(tight) if few else same.to(d.dtype).mean()
    return ((tight + wide) / 2 + pure) / 2


def _mean_of_means(values: Tensor, counts: Tensor) -> Tensor:
    """The mean over rows that have one of the mean over values that count; 0 where no row has."""
    number = counts.sum(1)
    of_rows = torch.where(counts, values, 0.0).sum(1) / number.clamp_min(1)
    return of_rows.sum() / (number > 0).sum().clamp_min(1)


class ICNNLoss(PairLoss):
    r"""Minus the logarithm of :func:`icnn_score` of a batch; 0 of fewer than three rows.

    Args:
        k: neighbours that are scored, >= 1.
        neighbours: p >= k, how far another class is looked for; None for k + 1. Rows of a class in the batch are usual.

    Example:
        >>> x = torch.tensor([[0.0], [0.5], [1.0], [1.5], [2.0], [2.6]])
        >>> ICNNLoss(k=2, neighbours=3)(x, torch.tensor([0, 1, 0, 1, 0, 1]))
        tensor(1.1971)
    """

    name = "icnn"
    search = {"k": Int(1, 8)}
    alternatives = {"k": 2, "neighbours": 6}

    def __init__(self, k: int = 4, neighbours: int | None = None) -> None:
        super().__init__()
        check_number("k", k, low=1, integer=True)
        if neighbours is not None:
            check_number("neighbours", neighbours, low=k, integer=True)
        self.k, self.neighbours = k, neighbours

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of embeddings and labels."""
        if len(target) < 3:
            return 0.0 * widen(outputs).tanh().sum()
        return -icnn_score(outputs, target, k=self.k, neighbours=self.neighbours).log()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The defaults on rows at random, and one neighbour of rows that lie with their label."""
        ((loss, ((outputs, target), kwargs)),) = super().samples(generator, torch.float64, device)
        near = 0.3 * outputs + torch.eye(3, outputs.shape[1], dtype=torch.float64, device=device)[target]
        both = ((loss, outputs), (cls(k=1).to(device), near))
        return [(own, ((rows.to(dtype), target), kwargs)) for own, rows in both]
