"""Losses of many true labels a sample: a softmax in which they don't compete, and a soft top-k."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import (
    check_binary,
    check_choice,
    check_logits,
    check_number,
    check_tensor,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.loss import Sample
from ...core.objective import Objective, TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Choice, Float
from ...core.sorting import soft_top_k

REDUCTIONS_OF_POSITIVES = ("mean", "sum")


def decoupled_softmax_loss(
    scores: F[Tensor, "batch labels"],
    positives: Tensor,
    *,
    valid: Bool[Tensor, "batch labels"] | None = None,
    positive_reduction: str = "mean",
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Each true label against the false ones alone.

    .. math:: \ell = \frac{1}{|P|} \sum_{l \in P} \log\Big(1 + \sum_{n \in N} e^{s_n - s_l}\Big)

    The gradient is never positive on a true label, where that of the softmax loss pushes down those that are already
    more probable than their share; it is never negative on a false one. With one true label it is cross-entropy.

    Args:
        scores: s ``[B, L]``.
        positives: ``[B, L]`` in {0, 1} or boolean.
        valid: boolean ``[B, L]``, False for labels that stand on neither side, such as true ones that were not sampled;
            None: all are valid.
        positive_reduction: ``"mean"`` over a sample's true labels, as the published code has it, or ``"sum"``, as the
            publication displays it.
        weight: sample weights ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over samples.

    Returns:
        The loss in float32 or wider; a sample without a true label has 0.

    Raises:
        ValueError: wrong shapes, labels that are not 0 or 1, an unknown reduction.

    Example:
        >>> decoupled_softmax_loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[1, 1, 0, 0]]))
        tensor(0.2887)

    Source: Dual-Encoders for Extreme Multi-Label Classification, arXiv:2310.10636.
    """
    check_choice("positive_reduction", positive_reduction, REDUCTIONS_OF_POSITIVES)
    check_logits(scores, argument="scores", classes=1)
    check_binary(positives, scores, argument="positives")
    true, s = positives == 1, widen(scores)
    false = ~true
    if valid is not None:
        check_tensor("valid", valid, shape=tuple(scores.shape))
        if valid.dtype != torch.bool:
            refuse_type("valid", "a boolean tensor", valid)
        true, false = true & valid, false & valid
        s = torch.where(valid, s, 0.0)
    against = torch.where(false, s, torch.finfo(s.dtype).min).logsumexp(1, keepdim=True)
    # of a sample without a false label the difference is -inf, and its softplus 0
    losses = torch.where(true, nnf.softplus(against - s, threshold=40.0), 0.0).sum(1)
    if positive_reduction == "mean":
        losses = losses / true.sum(1).clamp_min(1)
    return reduce(losses, reduction, weight)


def log_soft_topk(scores: F[Tensor, "batch labels"], k: int | Tensor, *, alpha: float = 1.0) -> Tensor:
    r"""Logarithms of a soft indicator of the k largest scores.

    .. math:: q_l = \frac{1}{1 + e^{-\alpha (s_l + t)}}, \qquad t:\ \sum_l q_l = k

    The shift t is bracketed and then found by Newton's rule; the gradient is that of the equation, not of its solver.
    At k = 1 it is no softmax.

    Args:
        scores: s ``[B, L]``.
        k: an integer in 1..L-1, or a number in (0, L) for each row ``[B]``.
        alpha: > 0, how steep.

    Returns:
        log q ``[B, L]``, in float32 or wider.

    Raises:
        ValueError: wrong shapes, ``k`` or ``alpha`` outside their range.

    Example:
        >>> log_soft_topk(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 2).exp()
        tensor([[0.8176, 0.6225, 0.3775, 0.1824]])

    Source: Dual-Encoders for Extreme Multi-Label Classification, arXiv:2310.10636.
    """
    check_number("alpha", alpha, low=0.0, open_low=True, open_high=True)
    check_logits(scores, argument="scores")
    s, labels = widen(scores), scores.shape[1]
    if isinstance(k, Tensor):
        check_tensor("k", k, shape=(scores.shape[0],))
        _check_numbers(k, labels)
        share = k.to(s.dtype).unsqueeze(1)
    else:
        check_number("k", k, low=1, high=labels - 1, integer=True)
        share = torch.full_like(s[:, :1], k)
    return nnf.logsigmoid(alpha * (s + soft_top_k(s, share, alpha)))


def _check_numbers(k: Tensor, labels: int) -> None:
    if k.numel() and values_visible(k) and not bool(((k > 0) & (k < labels)).all()):
        refuse("k", f"numbers above 0 and below {labels}", k)


def soft_topk_loss(
    scores: F[Tensor, "batch labels"],
    positives: Tensor,
    *,
    k: int | None = 5,
    alpha: float = 1.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the true labels with a soft top-k in place of the softmax: k labels can be on at once.

    .. math:: \ell = -\frac{1}{|P|} \sum_{l \in P} \log q_l

    Args:
        scores: s ``[B, L]``.
        positives: ``[B, L]`` in {0, 1} or boolean.
        k: in 1..L-1; None: of each sample the number of its true labels, at most L - 1.
        alpha: > 0, how steep.
        weight: sample weights ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over samples.

    Returns:
        The loss in float32 or wider; a sample without a true label has 0.

    Raises:
        ValueError: wrong shapes, labels that are not 0 or 1, numbers outside their range.

    Example:
        >>> soft_topk_loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[1, 1, 0, 0]]), k=2)
        tensor(0.3377)

    Source: Dual-Encoders for Extreme Multi-Label Classification, arXiv:2310.10636.
    """
    check_logits(scores, argument="scores")
    check_binary(positives, scores, argument="positives")
    true = positives == 1
    number = true.sum(1)
    share = number.clamp(1, scores.shape[1] - 1) if k is None else k
    log_q = log_soft_topk(scores, share, alpha=alpha)
    losses = -torch.where(true, log_q, 0.0).sum(1) / number.clamp_min(1)
    return reduce(losses, reduction, weight)


class _MultiLabelRanking(Objective):
    """What both share: scores ``[B, L]``, labels ``[B, L]`` in {0, 1}."""

    tasks = ("multilabel",)
    targets = ("multi_hot",)

    def predict(self, outputs: Tensor) -> Tensor:
        """``[B, L]`` integers: 1 where the score is above 0; the losses rank labels and set no threshold."""
        return (outputs > 0).long()

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """Hyper-parameters of further instances for the conformance suite."""
        return []

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """One sample has all labels, one has none."""
        rows, labels = 7, 6
        target = torch.rand(rows, labels, generator=generator) < 0.3
        target[0], target[1] = True, False
        info = TaskInfo("multilabel", rows, labels, tuple(target.sum(0).tolist()), feature_dim=6, seed=1)
        outputs = torch.randn(rows, labels, generator=generator, dtype=torch.float64).to(device, dtype)
        sample: Sample = ((outputs, target.long().to(device)), {})
        return [(cls.from_task(info, **hyper).to(device), sample) for hyper in ({}, *cls.variants())]


class DecoupledSoftmaxLoss(_MultiLabelRanking):
    """The decoupled softmax loss as a module; see :func:`decoupled_softmax_loss`.

    Args:
        positive_reduction: ``"mean"`` or ``"sum"`` over a sample's true labels.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over samples.

    Example:
        >>> DecoupledSoftmaxLoss()(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[1, 1, 0, 0]]))
        tensor(0.2887)
    """

    name = "decoupled_softmax"
    search = {"positive_reduction": Choice(REDUCTIONS_OF_POSITIVES)}

    def __init__(self, positive_reduction: str = "mean", reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_choice("positive_reduction", positive_reduction, REDUCTIONS_OF_POSITIVES)
        self.positive_reduction = positive_reduction

    def forward(  # type: ignore[override]
        self,
        outputs: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of scores and labels ``[B, L]``."""
        self.check_call(outputs, target, weight)
        return decoupled_softmax_loss(
            outputs,
            target,
            positive_reduction=self.positive_reduction,
            weight=weight,
            reduction=self.reduction,
        )

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """The sum over true labels."""
        return [{"positive_reduction": "sum"}]


class SoftTopKLoss(_MultiLabelRanking):
    """The soft top-k loss as a module; see :func:`soft_topk_loss`.

    Args:
        k: in 1..L-1; None: of each sample the number of its true labels.
        alpha: > 0, how steep.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over samples.

    Example:
        >>> SoftTopKLoss(k=2)(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[1, 1, 0, 0]]))
        tensor(0.3377)
    """

    name = "soft_top_k"
    search = {"alpha": Float(0.25, 4.0, log=True)}

    def __init__(self, k: int | None = 5, alpha: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if k is not None:
            check_number("k", k, low=1, integer=True)
        check_number("alpha", alpha, low=0.0, open_low=True, open_high=True)
        self.k, self.alpha = k, alpha

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With k = 5, or one less than the labels where these are no more than that."""
        return cls(**{"k": max(1, min(5, info.num_classes - 1)), **hyper})

    def forward(  # type: ignore[override]
        self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of scores and labels ``[B, L]``."""
        self.check_call(outputs, target, weight)
        return soft_topk_loss(outputs, target, k=self.k, alpha=self.alpha, weight=weight, reduction=self.reduction)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """As many as there are true labels, and steeper."""
        return [{"k": None, "alpha": 2.0}]
