"""How the contrastive loss spends its gradient: hard negatives, a loss of them alone, uniformity and tolerance."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.cosine import unit_rows
from ...core.label_groups import group_numbers, group_sums
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.reductions import widen
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition

Negatives = F[Tensor, "anchors negatives"]


def negative_penalty(negatives: Negatives, temperature: float) -> Negatives:
    r"""The share of each negative in the gradient of the contrastive loss, a Boltzmann distribution.

    .. math:: r_i(s_{ij}) = \left| \frac{\partial L / \partial s_{ij}}{\partial L / \partial s_{ii}} \right| =
        \frac{e^{s_{ij} / \tau}}{\sum_{k \ne i} e^{s_{ik} / \tau}}

    Its entropy grows with the temperature.

    Args:
        negatives: similarities s ``[A, N]`` of anchors and their negatives.
        temperature: tau > 0.

    Returns:
        ``[A, N]`` in float32 or wider, rows of sum 1.

    Raises:
        ValueError: another shape, a temperature that is not positive.

    Example:
        >>> negative_penalty(torch.tensor([[0.7, 0.2, -0.4]]), 1.0)
        tensor([[0.5156, 0.3127, 0.1716]])

    Source: Understanding the Behaviour of Contrastive Loss, arXiv:2012.09740.
    """
    check_tensor("negatives", negatives, ndim=2, floating=True)
    check_number("temperature", temperature, low=0.0, open_low=True)
    return (widen(negatives) / temperature).softmax(1)


def _checked(
    positive: Tensor, negatives: Tensor, keep_fraction: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities, and which negatives are chosen: constants of the gradient."""
    check_tensor("negatives", negatives, ndim=2, floating=True)
    check_tensor("positive", positive, floating=True, shape=tuple(negatives.shape[:1]))
    check_number("keep_fraction", keep_fraction, low=0.0, high=1.0, open_low=True)
    if mask is None:
        mask = torch.ones_like(negatives, dtype=torch.bool)
    check_tensor("mask", mask, shape=tuple(negatives.shape))
    if mask.dtype != torch.bool:
        refuse_type("mask", "a boolean tensor", mask)
    s = widen(negatives)
    if keep_fraction == 1.0 or not s.shape[1]:
        return widen(positive), s, mask
    ordered = s.detach().masked_fill(~mask, -torch.inf).sort(1, descending=True).values
    number = mask.sum(1, keepdim=True)
    # ceil, but for what rounding adds to a whole number
    last = (number.double() * keep_fraction - 1e-6).ceil().long().clamp(min=1) - 1
    return widen(positive), s, mask & ~(s.detach() < ordered.gather(1, last))  # what is not a number stays


def hard_contrastive_loss(
    positive: F[Tensor, " anchors"],
    negatives: Negatives,
    *,
    temperature: float,
    keep_fraction: float = 1.0,
    mask: Bool[Tensor, "anchors negatives"] | None = None,
) -> F[Tensor, ""]:
    r"""The contrastive loss over the hardest negatives of each anchor.

    .. math:: L = -\log \frac{e^{s_{ii} / \tau}}{e^{s_{ii} / \tau} + \sum_{j \in H_i} e^{s_{ij} / \tau}}, \qquad
        H_i = \{ j \ne i : s_{ij} \ge \text{the upper } \alpha \text{ quantile of the anchor's negatives} \}

    Which negatives these are carries no gradient. All of them give the contrastive loss.

    Args:
        positive: s_ii ``[A]``.
        negatives: s_ij ``[A, N]``.
        temperature: tau > 0.
        keep_fraction: alpha in (0, 1], the share of negatives (at least one) that is chosen; equal ones all are.
        mask: boolean ``[A, N]``, true for what is a negative; None: everything.

    Returns:
        The mean over anchors in float32 or wider; 0 where there is none.

    Raises:
        ValueError: other shapes, a number out of range.
        TypeError: a mask that is not boolean.

    Example:
        >>> s = torch.tensor([[0.7, 0.2, -0.4]])
        >>> hard_contrastive_loss(torch.tensor([0.9]), s, temperature=0.5)
        tensor(0.6887)

    Source: Understanding the Behaviour of Contrastive Loss, arXiv:2012.09740.
    """
    check_number("temperature", temperature, low=0.0, open_low=True)
    positive, s, chosen = _checked(positive, negatives, keep_fraction, mask)
    logits = torch.cat([positive.unsqueeze(1), s.masked_fill(~chosen, -torch.inf)], 1) / temperature
    losses = -logits.log_softmax(1)[:, 0]
    return mean_of_counted(losses, torch.ones_like(losses, dtype=torch.bool))


def simple_contrastive_loss(
    positive: F[Tensor, " anchors"],
    negatives: Negatives,
    *,
    lam: float = 1.0,
    keep_fraction: float = 1.0,
    mean: bool = False,
    mask: Bool[Tensor, "anchors negatives"] | None = None,
) -> F[Tensor, ""]:
    r"""A loss that treats negatives alike: :math:`-s_{ii} + \lambda \sum_j s_{ij}`, of all or of the hardest alone.

    Args:
        positive: s_ii ``[A]``.
        negatives: s_ij ``[A, N]``.
        lam: lambda >= 0.
        keep_fraction: as of :func:`hard_contrastive_loss`.
        mean: whether negatives are averaged in place of summed.
        mask: boolean ``[A, N]``, true for what is a negative; None: everything.

    Returns:
        The mean over anchors in float32 or wider; 0 where there is none.

    Raises:
        ValueError: other shapes, a number out of range.
        TypeError: a mask that is not boolean.

    Example:
        >>> s = torch.tensor([[0.7, 0.2, -0.4]])
        >>> simple_contrastive_loss(torch.tensor([0.9]), s), simple_contrastive_loss(torch.tensor([0.9]), s, mean=True)
        (tensor(-0.4000), tensor(-0.7333))

    Source: Understanding the Behaviour of Contrastive Loss, arXiv:2012.09740.
    """
    check_number("lam", lam, low=0.0)
    check_flag("mean", mean)
    positive, s, chosen = _checked(positive, negatives, keep_fraction, mask)
    total = s.masked_fill(~chosen, 0.0).sum(1)
    total = total / chosen.sum(1).clamp_min(1) if mean else total
    losses = lam * total - positive
    return mean_of_counted(losses, torch.ones_like(losses, dtype=torch.bool))


def uniformity(z: F[Tensor, "batch width"], t: float = 2.0) -> F[Tensor, ""]:
    r"""How evenly rows lie on the sphere: :math:`\log \operatorname{mean}_{x \ne y} e^{-t \|f(x) - f(y)\|^2}`.

    Lower is more even.

    Args:
        z: ``[N, d]``, of any length, N >= 2.
        t: > 0.

    Returns:
        A number in float32 or wider, <= 0.

    Raises:
        ValueError: another shape, fewer than two rows, t <= 0.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        tensor(-4.3963)

    Source: Understanding Contrastive Representation Learning through Alignment and Uniformity, arXiv:2005.10242.
    """
    check_tensor("z", z, ndim=2, floating=True)
    check_number("t", t, low=0.0, open_low=True)
    if len(z) < 2:
        refuse("z", "two rows and more", z)
    rows = unit_rows(z)
    places = torch.arange(len(rows), device=rows.device)
    log_z = pair_log_partition(rows, rows, scale=2 * t, positive="none", ids=places).log_z
    return log_z.logsumexp(0) - math.log(len(rows) * (len(rows) - 1)) - 2 * t


def tolerance(z: F[Tensor, "batch width"], labels: I[Tensor, " batch"]) -> F[Tensor, ""]:
    """How close rows of one label are: the mean cosine over pairs of different rows of the same label.

    Args:
        z: ``[N, d]``, of any length.
        labels: ``[N]``.

    Returns:
        A number in float32 or wider; 0 where there is no such pair.

    Raises:
        ValueError: other shapes.

    Example:
        >>> tolerance(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.6000)

    Source: Understanding the Behaviour of Contrastive Loss, arXiv:2012.09740.
    """
    check_tensor("z", z, ndim=2, floating=True)
    check_tensor("labels", labels, floating=False, shape=tuple(z.shape[:1]))
    rows, groups = unit_rows(z), group_numbers(labels)
    others = group_sums(groups, torch.ones_like(groups)) - 1
    return (rows * (group_sums(groups, rows) - rows)).sum() / others.sum().clamp_min(1)


class HardContrastiveLoss(PairLoss):
    """Two views of each item against the hardest views of the others; see :func:`hard_contrastive_loss`.

    Each view is an anchor, its negatives are both views of all other items. Labels are not read. ``ids`` marks items
    that occur twice: they are no negatives of each other.

    Args:
        temperature: tau > 0.
        keep_fraction: share of an anchor's negatives that is chosen, in (0, 1].

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> HardContrastiveLoss(temperature=1.0)(torch.stack([z, z]), torch.tensor([0, 1]))
        tensor(0.5514)
    """

    name = "hard_contrastive"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"temperature": Float(0.05, 1.0, log=True), "keep_fraction": Float(0.02, 1.0, log=True)}
    alternatives = {"temperature": 0.7, "keep_fraction": 0.6}

    def __init__(self, temperature: float = 0.3, keep_fraction: float = 0.2) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_number("keep_fraction", keep_fraction, low=0.0, high=1.0, open_low=True)
        self.temperature, self.keep_fraction = temperature, keep_fraction

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of two views."""
        positive, negatives, mask = similarities_of_views(outputs, ids)
        return hard_contrastive_loss(
            positive, negatives, temperature=self.temperature, keep_fraction=self.keep_fraction, mask=mask
        )


class SimpleContrastiveLoss(PairLoss):
    """Two views of each item by a loss without hardness; see :func:`simple_contrastive_loss`.

    Anchors, negatives and ``ids`` are those of :class:`HardContrastiveLoss`.

    Args:
        lam: lambda >= 0.
        keep_fraction: share of an anchor's negatives that is chosen, in (0, 1].
        mean: whether negatives are averaged in place of summed.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> SimpleContrastiveLoss()(torch.stack([z, -z]), torch.tensor([0, 1]))
        tensor(1.)
    """

    name = "simple_contrastive"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"lam": Float(0.1, 10.0, log=True), "keep_fraction": Float(0.02, 1.0, log=True)}
    alternatives = {"lam": 0.5, "keep_fraction": 0.6, "mean": False}

    def __init__(self, lam: float = 1.0, keep_fraction: float = 1.0, mean: bool = True) -> None:
        super().__init__()
        check_number("lam", lam, low=0.0)
        check_number("keep_fraction", keep_fraction, low=0.0, high=1.0, open_low=True)
        check_flag("mean", mean)
        self.lam, self.keep_fraction, self.mean = lam, keep_fraction, mean

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of two views."""
        positive, negatives, mask = similarities_of_views(outputs, ids)
        return simple_contrastive_loss(
            positive, negatives, lam=self.lam, keep_fraction=self.keep_fraction, mean=self.mean, mask=mask
        )


def similarities_of_views(
    views: F[Tensor, "2 batch width"], ids: I[Tensor, " batch"] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of both views of each item as anchors: the cosine of its partner, those of all views, which are negatives.

    >>> z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, 1.0]]])
    >>> similarities_of_views(z)[0]
    tensor([0.6000, 1.0000, 0.6000, 1.0000])
    """
    rows = unit_rows(views)
    names = (torch.arange(views.shape[1], device=views.device) if ids is None else ids).repeat(2)
    joined = rows.flatten(0, 1)
    return (rows[0] * rows[1]).sum(-1).repeat(2), joined @ joined.t(), names.unsqueeze(1) != names
