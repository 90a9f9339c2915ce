"""Embeddings on a sphere: a normalised softmax for known classes, nearest class means for new ones."""

from __future__ import annotations

import math
from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import (
    check_choice,
    check_flag,
    check_index,
    check_logits,
    check_number,
    check_scalar,
    check_tensor,
    refuse,
    refuse_type,
)
from ...core.cosine import unit_rows
from ...core.cosine_softmax import SoftmaxOfCosines
from ...core.logpartition import target_log_probability
from ...core.loss import Sample
from ...core.reductions import reduce, widen
from ...core.search import Float

PROTOCOLS = ("disjoint", "joint")


def normalized_softmax_loss(
    cosines: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    scale: float | F[Tensor, ""] = 16.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of scaled cosines of normalised features and class vectors.

    .. math:: L = -\log \frac{e^{\lambda z^\top w_y}}{\sum_k e^{\lambda z^\top w_k}}

    Args:
        cosines: ``[N, C]``, as :class:`~steepest.core.heads.NormedLinear` gives them.
        target: class indices ``[N]``.
        scale: lambda > 0, one over the temperature; a number, or a tensor of no dimensions, which gets a gradient.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range, a number out of range.

    Example:
        >>> normalized_softmax_loss(torch.tensor([[0.6, 0.8]]), torch.tensor([1]), scale=10.0)
        tensor(0.1269)

    Source: Hyperspherical embedding for novel class classification, arXiv:2102.03243.
    """
    check_logits(cosines, argument="cosines")
    check_index(target, cosines)
    check_scalar("scale", scale, low=0.0, open_low=True)
    return reduce(-target_log_probability(scale * widen(cosines), target), reduction, weight)


def normalized_softmax_bound(classes: int, scale: float) -> float:
    r"""The least loss that a normalised softmax can reach: every class apart from all others by the same angle.

    .. math:: \log \left( 1 + (C - 1)\, e^{-\lambda C / (C - 1)} \right)

    A scale at which this is far from 0 is too small to train with.

    Args:
        classes: C >= 2.
        scale: lambda > 0.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> round(normalized_softmax_bound(10, 1.0), 4), round(normalized_softmax_bound(10, 10.0), 6)
        (1.3769, 0.000134)
    """
    check_number("classes", classes, low=2, integer=True)
    check_number("scale", scale, low=0.0, open_low=True)
    return math.log1p((classes - 1) * math.exp(-scale * classes / (classes - 1)))


class NormalizedSoftmaxLoss(SoftmaxOfCosines):
    """See :func:`normalized_softmax_loss`. It wants the head of cosines.

    Args:
        scale: lambda > 0, one over the temperature; the first one where it is learned.
        learn_scale: whether the logarithm of the scale is a parameter.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> NormalizedSoftmaxLoss(scale=1.0)(torch.tensor([[0.6, 0.8]]), torch.tensor([1]))
        tensor(0.5981)
    """

    name = "normalized_softmax"
    search = {"scale": Float(4.0, 64.0, log=True)}

    def __init__(self, scale: float = 16.0, learn_scale: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("scale", scale, low=0.0, open_low=True)
        check_flag("learn_scale", learn_scale)
        self.scale, self.learn_scale = scale, learn_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learn_scale else None

    def multiplier(self) -> float | Tensor:
        """The scale, as it is now."""
        return self.scale if self.log_scale is None else self.log_scale.exp()

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of cosines and class indices."""
        self.check_call(outputs, target, weight)
        return normalized_softmax_loss(
            outputs, target, scale=self.multiplier(), weight=weight, reduction=self.reduction
        )

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Fixed scales, and one that is learned."""
        cases = super().samples(generator, dtype, device)
        return [*cases, (cls(scale=6.0, learn_scale=True).to(device), cases[-1][1])]


class CentroidClassifier:
    r"""The nearest class mean on the sphere; classes can be added at any time, without training.

    .. math:: \mu_c = \frac{\sum_{i \in c} z_i}{\|\sum_{i \in c} z_i\|}, \qquad
        \hat y = \arg\max_c z^\top \mu_c, \qquad z = x / \|x\|

    Scores of a class depend on no other class. The largest score of a row tells how known it is: below a threshold it
    is of no class that was seen.

    Attributes:
        classes: labels in ascending order ``[C]``.
        centroids: mu ``[C, d]`` in float32 or wider.

    Example:
        >>> emb, labels = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([4, 7])
        >>> classifier = CentroidClassifier().fit(emb, labels)
        >>> classifier.predict(torch.tensor([[1.0, 5.0]]))
        tensor([7])

    Source: Hyperspherical embedding for novel class classification, arXiv:2102.03243.
    """

    classes: Tensor
    centroids: Tensor

    def fit(self, emb: F[Tensor, "rows width"], labels: I[Tensor, " rows"]) -> CentroidClassifier:
        """Class means of support embeddings; what was there before is forgotten.

        Args:
            emb: ``[N, d]``, of any norm but 0.
            labels: ``[N]``.

        Raises:
            ValueError: no row, rows without a direction, numbers that are not finite, a class whose rows cancel out.
        """
        self.classes, self.centroids = _centroids(emb, labels)
        return self

    def add_classes(self, emb: F[Tensor, "rows width"], labels: I[Tensor, " rows"]) -> CentroidClassifier:
        """Further classes beside those that are there, whose scores stay as they are.

        Raises:
            ValueError: as in :meth:`fit`; another width; a class that is there already.
        """
        self._fitted()
        classes, centroids = _centroids(emb, labels)
        if centroids.shape[1] != self.centroids.shape[1]:
            refuse("emb", f"width {self.centroids.shape[1]}", emb)
        again = classes[torch.isin(classes, self.classes)]
        if len(again):
            refuse("labels", "classes that are not there yet", again.tolist())
        order = torch.cat([self.classes, classes]).argsort()
        self.classes = torch.cat([self.classes, classes])[order]
        self.centroids = torch.cat([self.centroids, centroids.to(self.centroids)])[order]
        return self

    def similarities(self, emb: F[Tensor, "rows width"]) -> F[Tensor, "rows classes"]:
        """Cosines with the centroids ``[N, C]``; those of a row of zeros are 0."""
        self._fitted()
        check_tensor("emb", emb, floating=True, shape=(None, self.centroids.shape[1]))
        rows = unit_rows(emb)
        kind = torch.promote_types(rows.dtype, self.centroids.dtype)
        return rows.to(kind) @ self.centroids.to(kind).T

    def predict(self, emb: F[Tensor, "rows width"]) -> I[Tensor, " rows"]:
        """The label of the nearest centroid ``[N]``."""
        nearest = self.similarities(emb).argmax(1)
        return self.classes[nearest]

    def score(self, emb: F[Tensor, "rows width"]) -> F[Tensor, " rows"]:
        """The cosine with the nearest centroid ``[N]``: low where a row is of no class that was seen."""
        return self.similarities(emb).amax(1)

    def _fitted(self) -> None:
        if not hasattr(self, "centroids"):
            refuse("CentroidClassifier", "a call of fit first", "none")


def novel_class_accuracy(
    support: F[Tensor, "support width"],
    support_labels: I[Tensor, " support"],
    query: F[Tensor, "queries width"],
    query_labels: I[Tensor, " queries"],
    *,
    protocol: str = "disjoint",
    known: F[Tensor, "known width"] | None = None,
    known_labels: I[Tensor, " known"] | None = None,
) -> float:
    """Share of queries of new classes that the nearest class mean gets right, the means being of a few support rows.

    Args:
        support, support_labels: embeddings ``[N, d]`` and labels ``[N]`` of the new classes.
        query, query_labels: the rows that are classified ``[M, d]``, ``[M]``, M >= 1.
        protocol: "disjoint", where only new classes compete, or "joint", where known ones do as well.
        known, known_labels: for "joint" alone, what stands for the known classes ``[K, d]``, ``[K]``: their vectors of
            the head, or embeddings of their training rows.

    Returns:
        In [0, 1].

    Raises:
        ValueError: another protocol, known classes missing or given where none compete, a label that is both known and
            new, no query.

    Example:
        >>> eye = torch.eye(2)
        >>> novel_class_accuracy(eye, torch.tensor([5, 6]), eye + 0.1, torch.tensor([5, 6]))
        1.0
    """
    check_choice("protocol", protocol, PROTOCOLS)
    check_tensor("query_labels", query_labels, floating=False, ndim=1)
    check_tensor("query", query, floating=True, shape=(len(query_labels), None))
    if not len(query_labels):
        refuse("query", "one row and more", query)
    classifier = CentroidClassifier().fit(support, support_labels)
    joint = protocol == "joint"
    for argument, value in (("known", known), ("known_labels", known_labels)):
        if (value is not None) != joint:
            refuse(argument, 'a tensor with protocol="joint", else None', value)
    if known is not None and known_labels is not None:
        classifier.add_classes(known, known_labels)
    return float((classifier.predict(query) == query_labels).double().mean())


def _centroids(emb: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes in ascending order, and the direction of each one's mean of unit rows."""
    check_tensor("labels", labels, floating=False, ndim=1)
    if labels.dtype == torch.bool:
        refuse_type("labels", "labels of an integer type", labels)
    check_tensor("emb", emb, floating=True, shape=(len(labels), None))
    if not len(labels):
        refuse("emb", "one row and more", emb)
    if not bool(emb.isfinite().all()):
        refuse("emb", "finite numbers", emb)
    rows = unit_rows(emb.detach())
    if not bool(rows.any(1).all()):
        refuse("emb", "rows of which none is 0", emb)
    classes, places = labels.long().unique(return_inverse=True)
    sums = rows.new_zeros(len(classes), rows.shape[1]).index_add(0, places, rows)
    size = torch.linalg.vector_norm(sums, dim=1) / torch.bincount(places, minlength=len(classes))
    if bool((size <= 4 * torch.finfo(rows.dtype).eps).any()):
        refuse("emb", "classes whose rows do not cancel out", emb)
    return classes, unit_rows(sums)
