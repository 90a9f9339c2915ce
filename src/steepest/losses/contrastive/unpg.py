"""Unified negative pairs: similarities of a batch's own rows as further negatives of a margin softmax."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_index, check_logits, check_number, check_tensor
from ...core.cosine import unit_rows
from ...core.cosine_softmax import SoftmaxOfCosines
from ...core.logpartition import class_mask, target_log_probability
from ...core.loss import Sample
from ...core.margins import angular_margin, check_margin
from ...core.reductions import reduce, widen
from ...core.search import Choice, Float
from ...core.terms import kept_terms

MARGINS = ("cosine", "angle")


def box_whisker_filter(values: F[Tensor, " values"], whisker: float = 1.5) -> F[Tensor, " inside"]:
    r"""The values that a box plot would not call outliers.

    .. math:: q_1 - r\,(q_3 - q_1) \le v \le q_3 + r\,(q_3 - q_1), \qquad
        q_1 = v_{(\lfloor l / 4 \rfloor)}, \quad q_3 = v_{(\lfloor 3 l / 4 \rfloor)}

    with ranks from 0 and no interpolation. The limits are compared, not differentiated.

    Args:
        values: v ``[l]``.
        whisker: r >= 0; infinity leaves all.

    Returns:
        Those inside, in their order.

    Raises:
        ValueError: another shape, a number out of range.

    Example:
        >>> box_whisker_filter(torch.tensor([-0.9, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.95]))
        tensor([-0.1000,  0.0000,  0.0500,  0.1000,  0.1500,  0.2000])

    Source: Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition,
    arXiv:2203.11593.
    """
    check_tensor("values", values, ndim=1, floating=True)
    check_number("whisker", whisker, low=0.0)
    return values[_inside(values, torch.ones_like(values, dtype=torch.bool), whisker)]


def unpg_loss(
    margin_cosines: F[Tensor, "batch classes"],
    embeddings: F[Tensor, "batch width"],
    labels: I[Tensor, " batch"],
    *,
    scale: float = 64.0,
    whisker: float = 1.5,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""A margin softmax whose denominator also has the batch's similarities of different classes.

    .. math:: L_i = \log \left( 1 + \sum_{k \ne y_i} e^{s (\tilde c_{ik} - \tilde c_{i y_i})}
        + \sum_{v \in S} e^{s (v - \tilde c_{i y_i})} \right), \qquad
        S = \mathrm{filter} \{ z_i^\top z_j : i < j,\ y_i \ne y_j \}

    S is the same for all samples, each unordered pair once, without outliers (:func:`box_whisker_filter`): its
    log-partition is one further logit. Its gradient reaches both rows of a pair.

    Args:
        margin_cosines: c~ ``[B, C]``: cosines with the class directions, that of the target with a margin.
        embeddings: z ``[B, d]``, of any norm.
        labels: class indices ``[B]``.
        scale: s > 0.
        whisker: r >= 0; infinity filters nothing.
        weight: sample weights ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider. Without a pair of different classes it is the margin softmax.

    Raises:
        ValueError: wrong shapes, a class out of range, a number out of range.

    Example:
        >>> unpg_loss(torch.tensor([[0.45, 0.2], [0.1, 0.5]]), torch.eye(2), torch.tensor([0, 1]), scale=8.0)
        tensor(0.1041)

    Source: Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition,
    arXiv:2203.11593.
    """
    check_logits(margin_cosines, argument="margin_cosines")
    check_index(labels, margin_cosines, argument="labels")
    check_tensor("embeddings", embeddings, floating=True, shape=(len(labels), None))
    check_number("scale", scale, low=0.0, open_low=True)
    check_number("whisker", whisker, low=0.0)
    z = scale * widen(margin_cosines)
    pairs = _negatives_logit(embeddings, labels, scale, whisker).to(z.dtype)
    return reduce(-target_log_probability(torch.cat([z, pairs.expand(len(z), 1)], 1), labels), reduction, weight)


def _negatives_logit(embeddings: Tensor, labels: Tensor, scale: float, whisker: float) -> Tensor:
    """The log-partition of the filtered similarities of different classes; -inf without a gradient where none is."""
    rows = unit_rows(embeddings)
    first, second = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    values = (rows @ rows.T)[first, second]
    if not len(values):
        return values.new_full((), -torch.inf)
    counts = labels[first] != labels[second]
    counts = _inside(values.detach(), counts, whisker)
    some = counts.any()
    log_z = torch.where(counts | ~some, scale * values, -torch.inf).logsumexp(0)
    return torch.where(some, log_z, -torch.inf)


def _inside(values: Tensor, counts: Tensor, whisker: float) -> Tensor:
    """Which of the values that count lie within the whiskers; NaN stays."""
    if not len(values):
        return counts
    wide = widen(values.detach())
    number = counts.sum()
    ordered = torch.where(counts, wide, torch.inf).sort().values
    places = torch.stack([number // 4, 3 * number // 4]).clamp_max(len(values) - 1)
    low, high = ordered.gather(0, places).unbind()
    reach = whisker * (high - low) if whisker < float("inf") else torch.inf
    return counts & ~((wide < low - reach) | (wide > high + reach))


class UnifiedNegativePairLoss(SoftmaxOfCosines):
    """CosFace or ArcFace with the batch's own negative pairs: see :func:`unpg_loss`. It wants the head of cosines.

    On several ranks each compares the rows of its own batch, as the publication's code does.

    Args:
        margin: what the target's cosine is lowered by, >= 0, or the angle in RADIANS in [0, pi] that is added to it.
        scale: s > 0.
        whisker: r >= 0; infinity filters nothing.
        kind: "cosine" (CosFace) or "angle" (ArcFace).
        reduction: ``"mean"`` only.

    Example:
        >>> loss = UnifiedNegativePairLoss(scale=8.0)
        >>> loss(torch.tensor([[0.8, 0.2], [0.1, 0.9]]), torch.tensor([0, 1]), features=torch.eye(2))
        tensor(0.0948)
    """

    name = "unpg"
    unit = "batch"
    ranks: ClassVar[str] = "local"
    needs = ("features",)
    search = {
        "margin": Float(0.05, 0.5), "scale": Float(8.0, 64.0, log=True), "whisker": Float(0.1, 2.0),
        "kind": Choice(MARGINS),
    }  # fmt: skip

    def __init__(
        self,
        margin: float = 0.35,
        scale: float = 64.0,
        whisker: float = 1.5,
        kind: str = "cosine",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_choice("kind", kind, MARGINS)
        check_margin("margin", margin) if kind == "angle" else check_number("margin", margin, low=0.0)
        check_number("scale", scale, low=0.0, open_low=True)
        check_number("whisker", whisker, low=0.0)
        self.margin, self.scale, self.whisker, self.kind = margin, scale, whisker, kind

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        features: F[Tensor, "batch width"],
        weight: None = None,
    ) -> Tensor:
        """The loss of cosines, class indices and the features whose cosines they are; 0 with a graph of no rows."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        c = widen(outputs)
        lowered = angular_margin(c, self.margin) if self.kind == "angle" else c - self.margin
        cosines = torch.where(class_mask(target.long(), c.shape[1]), lowered, c)
        losses = unpg_loss(cosines, features, target, scale=self.scale, whisker=self.whisker, reduction="none")
        with torch.no_grad():
            plain = -target_log_probability(self.scale * cosines, target)
            self.terms = kept_terms({"pairs": reduce(losses - plain, empty="zero")})
        return reduce(losses, empty="zero")

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Both kinds of margin, and a batch of one class."""
        cases = super().samples(generator, dtype, device)
        (outputs, target), named = cases[-1][1]
        alone: tuple[Any, ...] = (outputs, torch.zeros_like(target))
        return [
            *cases,
            (cls(scale=8.0, kind="angle", whisker=0.5).to(device), ((outputs, target), named)),
            (cls(scale=8.0).to(device), (alone, named)),
        ]
