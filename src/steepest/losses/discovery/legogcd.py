"""Discovery of new classes beside known ones: the parametric classifier of SimGCD, and LegoGCD that keeps the known."""

from __future__ import annotations

import math
from typing import Self

import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_index, check_logits, check_number, check_tensor, refuse, refuse_type
from ...core.cosine import unit_rows
from ...core.kl_estimators import at_least_zero, kl_of_logits
from ...core.label_groups import group_numbers, group_sums
from ...core.logpartition import log_softmax, target_log_probability
from ...core.loss import Loss, Sample
from ...core.pair_loss import mean_of_counted
from ...core.reductions import widen
from ...core.terms import kept_terms
from ...kernels.pair_log_partition import pair_log_partition

SHARP = 0.05
"""The temperature of the entropy of confident rows."""


def _mean(rows: Tensor) -> Tensor:
    """The mean over dimension 0, 0 with a graph where there is no row."""
    return rows.sum(0) / max(len(rows), 1)


def dual_view_kl(
    first: F[Tensor, "batch classes"], second: F[Tensor, "batch classes"], *, temperature: float = 0.1
) -> F[Tensor, ""]:
    r"""The mean divergence of the second view's classes from the first's, with a gradient to both.

    .. math:: \frac{1}{B} \sum_i \mathrm{KL}\big(\mathrm{softmax}(o_i / \tau) \,\|\, \mathrm{softmax}(o_i' / \tau)\big)

    Args:
        first: logits o ``[B, C]`` of a view.
        second: logits o' ``[B, C]`` of the other.
        temperature: tau > 0.

    Returns:
        A scalar >= 0 in float32 or wider; 0 where there is no row.

    Raises:
        ValueError: shapes that differ, a temperature that is not positive.

    Example:
        >>> dual_view_kl(torch.tensor([[0.3, 0.05, 0.02]]), torch.tensor([[0.2, 0.1, 0.0]]))
        tensor(0.1237)

    Source: Solving the Catastrophic Forgetting Problem in Generalized Category Discovery (CVPR 2024).
    """
    check_logits(first, argument="first")
    check_tensor("second", second, floating=True, shape=tuple(first.shape))
    check_number("temperature", temperature, low=0.0, open_low=True)
    return _mean(kl_of_logits(widen(first) / temperature, widen(second) / temperature, stop_reference=False))


def local_entropy_regularization(
    logits: F[Tensor, "rows classes"],
    labeled: B[Tensor, " rows"],
    prior: F[Tensor, " classes"],
    num_old: int,
    *,
    threshold: float = 0.7,
    adjust: float = 0.4,
    temperature: float = 0.1,
) -> F[Tensor, ""]:
    r"""The entropy of unlabeled rows that are confidently of a known class, corrected by how frequent classes are.

    .. math:: \frac{1}{N} \sum_{i \in A} e_i, \qquad e_i = -\sum_c p_{ic} \log q_{ic}, \qquad
        p_i = \mathrm{softmax}(o_i / 0.05), \quad q_i = \mathrm{softmax}(o_i / 0.05 + a \log r)

    A are the unlabeled rows whose largest probability at ``temperature`` is at least ``threshold`` and of one of the
    first ``num_old`` classes. The mean is over all N rows, not those of A; both p and q have a gradient.

    Args:
        logits: o ``[N, C]``, cosines of features and prototypes.
        labeled: which rows have a label, boolean ``[N]``.
        prior: r ``[C]``, shares of the classes > 0.
        num_old: known classes, the first ones, in 1..C.
        threshold: in [0, 1].
        adjust: a >= 0; 0 leaves the prior out.
        temperature: of the confidences, > 0.

    Returns:
        A scalar >= 0 in float32 or wider; 0 with a graph where A is empty.

    Raises:
        ValueError: wrong shapes, numbers out of range.
        TypeError: ``labeled`` is not boolean.

    Example:
        >>> logits = torch.tensor([[0.30, 0.05, 0.02], [0.04, 0.06, 0.25]])
        >>> prior = torch.tensor([0.5, 0.3, 0.2])
        >>> local_entropy_regularization(logits, torch.tensor([False, False]), prior, num_old=2)
        tensor(0.0323)

    Source: Solving the Catastrophic Forgetting Problem in Generalized Category Discovery (CVPR 2024).
    """
    check_logits(logits)
    _check_flags(labeled, len(logits))
    check_tensor("prior", prior, floating=True, shape=(logits.shape[1],))
    check_number("num_old", num_old, low=1, high=logits.shape[1], integer=True)
    check_number("threshold", threshold, low=0.0, high=1.0)
    check_number("adjust", adjust, low=0.0)
    check_number("temperature", temperature, low=0.0, open_low=True)
    o = widen(logits)
    confidence, place = (o.detach() / temperature).softmax(-1).max(-1)
    chosen = ~labeled & (confidence >= threshold) & (place < num_old)
    shift = adjust * prior.detach().to(o).clamp_min(torch.finfo(o.dtype).tiny).log()
    p = (o / SHARP).softmax(-1)
    entropy = -(p * log_softmax(o / SHARP + shift)).sum(-1)
    # the rows that are left out are multiplied by 0, so that a NaN among them stays one
    return _mean(entropy * chosen.to(o))


def _check_flags(labeled: object, rows: int) -> None:
    check_tensor("labeled", labeled, floating=False, shape=(rows,))
    assert isinstance(labeled, Tensor)
    if labeled.dtype != torch.bool:
        refuse_type("labeled", "a boolean tensor", labeled)


class SimGCDLoss(Loss):
    r"""The loss of a classifier of known and new classes that learns from labels and from its own other view.

    .. math:: (1 - \lambda) \left[ D + w_m (\log C - H(\bar p)) + I \right] + \lambda \left[ \mathrm{CE} + S \right]

    with CE the cross-entropy of labeled rows at ``temperature``; D the mean cross-entropy of each view's softmax at
    ``temperature`` under the other's at the teacher's temperature, which has no gradient; :math:`\bar p` the mean
    softmax of all rows; I the contrastive loss of two views (temperature 1) and S the supervised contrastive loss of
    labeled rows (temperature .07), both of normalised projections. The teacher's temperature falls linearly from
    ``teacher_start`` to ``teacher_end`` over the first ``warmup_epochs`` epochs (``start_epoch``).

    Logits are cosines of features and normalised prototypes (:class:`~steepest.core.heads.NormedLinear`), a column a
    class, known ones first. Over ranks each has its own batch.

    Args:
        num_classes: known and new ones, C >= 2.
        label_weight: :math:`\lambda` in [0, 1].
        memax_weight: :math:`w_m` >= 0.
        temperature: of the student, > 0.
        teacher_start, teacher_end: temperatures > 0.
        warmup_epochs: >= 0.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.1, 0.8], [0.8, 0.0, 0.1], [0.1, 0.0, 0.9]])
        >>> labels, labeled = torch.tensor([0, -1]), torch.tensor([True, False])
        >>> SimGCDLoss(num_classes=3)(logits, logits[:, :2], labels, labeled)
        tensor(1.2442)

    Source: Parametric Classification for Generalized Category Discovery: A Baseline Study, arXiv:2211.11727.
    """

    name = "simgcd"
    stateful = True
    differentiable = (0, 1)
    gradient = "surrogate"  # the teacher's side of the distillation is constant
    teacher_temperature: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        label_weight: float = 0.35,
        memax_weight: float = 2.0,
        temperature: float = 0.1,
        teacher_start: float = 0.07,
        teacher_end: float = 0.04,
        warmup_epochs: int = 30,
    ) -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=2, integer=True)
        check_number("label_weight", label_weight, low=0.0, high=1.0)
        check_number("memax_weight", memax_weight, low=0.0)
        for name, value in (
            ("temperature", temperature), ("teacher_start", teacher_start), ("teacher_end", teacher_end),
        ):  # fmt: skip
            check_number(name, value, low=0.0, open_low=True)
        check_number("warmup_epochs", warmup_epochs, low=0, integer=True)
        self.num_classes, self.label_weight, self.memax_weight = num_classes, label_weight, memax_weight
        self.temperature, self.warmup_epochs = temperature, warmup_epochs
        self.teacher_start, self.teacher_end = teacher_start, teacher_end
        self.register_buffer("teacher_temperature", torch.zeros((), dtype=torch.float64))
        self.start_epoch(1)

    def start_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Set the teacher's temperature of an epoch, 1-based."""
        share = 1.0 if self.warmup_epochs == 0 else min((epoch - 1) / max(self.warmup_epochs - 1, 1), 1.0)
        self.teacher_temperature.fill_(self.teacher_start + share * (self.teacher_end - self.teacher_start))

    def clustering(self, views: Tensor) -> dict[str, Tensor]:
        """The terms of both views' logits ``[2, B, C]`` that no label enters, with their weights."""
        log_p = log_softmax(views / self.temperature)
        teacher = (views.detach() / self.teacher_temperature.to(views)).softmax(-1)
        distilled = -(teacher.flip(0) * log_p).sum(-1).mean(0)
        rows = log_p.flatten(0, 1)
        log_mean = rows.logsumexp(0) - math.log(max(len(rows), 1))
        below = at_least_zero(math.log(self.num_classes) + (log_mean.exp() * log_mean).sum())
        return {"distillation": _mean(distilled), "mean entropy": self.memax_weight * below}

    def regularizer(self, views: Tensor, labeled: Tensor) -> Tensor | None:
        """What is added to the whole, or None."""
        return None

    def forward(
        self,
        logits: F[Tensor, "rows classes"],
        projections: F[Tensor, "rows width"],
        labels: I[Tensor, " batch"],
        labeled: B[Tensor, " batch"],
    ) -> Tensor:
        """The loss, a scalar in float32 or wider; 0 where there is no row.

        Args:
            logits: ``[2B, C]``, the first view of all samples, then the second.
            projections: ``[2B, d]`` in the same order, of any length.
            labels: ``[B]``, known classes where ``labeled``, else anything.
            labeled: boolean ``[B]``.
        """
        check_logits(logits)
        check_tensor("logits", logits, shape=(None, self.num_classes))
        if len(logits) % 2:
            refuse("logits", "an even number of rows, two views", logits)
        check_tensor("projections", projections, floating=True, shape=(len(logits), None))
        items = len(logits) // 2
        _check_flags(labeled, items)
        check_tensor("labels", labels, floating=False, shape=(items,))
        labels = torch.where(labeled, labels, 0)
        views = widen(logits).unflatten(0, (2, items))
        check_index(labels, views[0], argument="labels")
        if items == 0:
            return logits.sum() + projections.sum()
        labels, flags = labels.repeat(2), labeled.repeat(2)
        cross_entropy = -target_log_probability(widen(logits) / self.temperature, labels)
        terms = self.clustering(views)
        unsupervised, supervised = _contrastive_terms(projections, labels, flags)
        terms |= {"contrastive": unsupervised}
        free = torch.stack(list(terms.values())).sum()
        of_labels = {"cross-entropy": mean_of_counted(cross_entropy, flags), "supervised contrastive": supervised}
        total = (1 - self.label_weight) * free + self.label_weight * torch.stack(list(of_labels.values())).sum()
        terms |= of_labels
        extra = self.regularizer(views, labeled)
        if extra is not None:
            terms["local entropy"] = extra
            total = total + extra
        self.terms = kept_terms(terms)
        return total

    @classmethod
    def _instances(cls) -> list[Self]:
        return [cls(4), cls(4, label_weight=0.6, memax_weight=0.5, temperature=0.2, warmup_epochs=0)]

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Cosines of four samples and four classes, three of them labeled; then none labeled."""
        draws = torch.rand(8, 4, generator=generator, dtype=torch.float64) * 0.2
        draws[[0, 4], [0, 0]] += 0.7
        draws[[3, 7], [1, 1]] += 0.7
        projections = torch.randn(8, 3, generator=generator, dtype=torch.float64).to(device, dtype)
        labels, labeled = torch.tensor([0, 1, 1, -1]), torch.tensor([True, True, True, False])
        cases: list[tuple[Self, Sample]] = []
        for loss, flags in zip(cls._instances(), (labeled, torch.zeros_like(labeled))):
            args = (draws.to(device, dtype), projections, labels.to(device), flags.to(device))
            cases.append((loss.to(device), (args, {})))
        return cases


def _contrastive_terms(
    projections: F[Tensor, "rows width"], labels: I[Tensor, " rows"], labeled: B[Tensor, " rows"]
) -> tuple[F[Tensor, ""], F[Tensor, ""]]:
    """The contrastive loss of two views at temperature 1, and the supervised one of labeled rows at temperature .07.

    Args:
        projections: ``[2B, d]``, the first view of all samples, then the second.
        labels: ``[2B]``, not read where ``labeled`` is false.
        labeled: boolean ``[2B]``.
    """
    rows, items = unit_rows(projections), len(projections) // 2
    places = torch.arange(2 * items, device=rows.device)
    pairs = pair_log_partition(rows, rows, positive=places.roll(items), ids=places)
    assert pairs.log_p is not None
    several = pairs.count > 0
    unsupervised = mean_of_counted(-pairs.log_p, several)
    own = torch.where(labeled.unsqueeze(-1), rows, 0.0)
    labels_alone = group_numbers(torch.where(labeled, labels, -1))
    positives = group_sums(labels_alone, labeled.to(rows)) - 1
    scale = 1 / 0.07
    within = pair_log_partition(rows, rows, scale=scale, positive="none", ids=places, mask=labeled)
    near = (own * (group_sums(labels_alone, own) - own)).sum(-1) * scale / positives.clamp_min(1)
    return unsupervised, mean_of_counted(within.log_z - near, labeled & (positives > 0))


class LegoGCDLoss(SimGCDLoss):
    r"""SimGCD that does not forget the known classes: sharp predictions on confident ones, and views that agree.

    To :class:`SimGCDLoss` come :func:`dual_view_kl`, beside the distillation, and ``ler_weight`` times
    :func:`local_entropy_regularization`, whose prior follows the mean softmax of all rows at temperature 1,

    .. math:: r \leftarrow m r + (1 - m) \frac{1}{2B} \sum_i \mathrm{softmax}(o_i)

    after each call in training. It begins uniform and is in ``state_dict``.

    Args:
        num_old: known classes, in 1..C.
        num_classes: C >= 2.
        threshold, adjust: see :func:`local_entropy_regularization`.
        ler_weight: >= 0.
        kl_weight: of the divergence of views, >= 0; with both weights 0 it is SimGCD.
        momentum: m in [0, 1].
        label_weight, memax_weight, temperature, teacher_start, teacher_end, warmup_epochs: see :class:`SimGCDLoss`.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.1, 0.8], [0.8, 0.0, 0.1], [0.1, 0.0, 0.9]])
        >>> labels, labeled = torch.tensor([0, -1]), torch.tensor([True, False])
        >>> LegoGCDLoss(num_old=2, num_classes=3)(logits, logits[:, :2], labels, labeled)
        tensor(1.2457)

    Source: Solving the Catastrophic Forgetting Problem in Generalized Category Discovery (CVPR 2024).
    """

    name = "legogcd"
    prior: Tensor

    def __init__(
        self,
        num_old: int,
        num_classes: int,
        *,
        threshold: float = 0.7,
        ler_weight: float = 2.0,
        adjust: float = 0.4,
        kl_weight: float = 1.0,
        momentum: float = 0.999,
        label_weight: float = 0.35,
        memax_weight: float = 2.0,
        temperature: float = 0.1,
        teacher_start: float = 0.07,
        teacher_end: float = 0.04,
        warmup_epochs: int = 30,
    ) -> None:
        super().__init__(
            num_classes, label_weight=label_weight, memax_weight=memax_weight, temperature=temperature,
            teacher_start=teacher_start, teacher_end=teacher_end, warmup_epochs=warmup_epochs,
        )  # fmt: skip
        check_number("num_old", num_old, low=1, high=num_classes, integer=True)
        check_number("threshold", threshold, low=0.0, high=1.0)
        check_number("ler_weight", ler_weight, low=0.0)
        check_number("adjust", adjust, low=0.0)
        check_number("kl_weight", kl_weight, low=0.0)
        check_number("momentum", momentum, low=0.0, high=1.0)
        self.num_old, self.threshold, self.ler_weight, self.adjust = num_old, threshold, ler_weight, adjust
        self.kl_weight, self.momentum = kl_weight, momentum
        self.register_buffer("prior", torch.full((num_classes,), 1 / num_classes))

    def clustering(self, views: Tensor) -> dict[str, Tensor]:
        """With the divergence of the views."""
        divergence = dual_view_kl(views[0], views[1], temperature=self.temperature)
        return super().clustering(views) | {"views": self.kl_weight * divergence}

    def regularizer(self, views: Tensor, labeled: Tensor) -> Tensor:
        """The local entropy; in training the prior moves afterwards."""
        entropy = local_entropy_regularization(
            views.flatten(0, 1), labeled.repeat(2), self.prior, self.num_old,
            threshold=self.threshold, adjust=self.adjust, temperature=self.temperature,
        )  # fmt: skip
        if self.training:
            with torch.no_grad():
                mean = views.flatten(0, 1).softmax(-1).mean(0).to(self.prior)
                moved = self.momentum * self.prior + (1 - self.momentum) * mean
                self.prior.copy_(torch.where(mean.isfinite().all(), moved, self.prior))
        return self.ler_weight * entropy

    @classmethod
    def _instances(cls) -> list[Self]:
        return [cls(2, 4), cls(2, 4, threshold=0.5, ler_weight=1.0, adjust=0.8, kl_weight=0.5, label_weight=0.5)]
