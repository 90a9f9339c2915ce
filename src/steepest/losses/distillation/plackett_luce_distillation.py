"""Plackett-Luce distillation: the student ranks the classes as the teacher does, with the true class first."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn import functional

from ...core.checks import (
    check_index,
    check_interval,
    check_logits,
    check_number,
    check_range,
    check_tensor,
    refuse,
    values_visible,
)
from ...core.logpartition import class_mask
from ...core.objective import Objective, Sample
from ...core.reductions import reduce, widen
from ...core.rows import RowFunctions
from ...core.rowwise import Rule, rowwise
from ...core.search import Float

_native = RowFunctions(Path(__file__).with_name("plackett_luce_distillation.cpp"), {"order_rows": 5, "choice_rows": 7})
WILD, NEGATIVE, NO_ORDER = 1, 2, 3
STEEP = 50.0
"""From this argument on softplus is the identity, in float64 too."""


def teacher_choices(
    teacher: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, tau: float = 1.0
) -> tuple[I[Tensor, "batch classes"], F[Tensor, "batch classes"]]:
    r"""The order of classes that a student shall generate, and the weight of each of its choices.

    .. math:: \pi_1 = y, \quad t_{\pi_2} \ge \dots \ge t_{\pi_C}, \qquad w_k = \mathrm{softmax}(t / \tau)_{\pi_k}

    Both depend on teacher and labels alone: computed once for a training set, they serve every epoch.

    Args:
        teacher: logits t ``[N, C]``, C >= 2; no gradient flows into them.
        target: true classes y ``[N]``.
        tau: temperature > 0.

    Returns:
        order: ``[N, C]``, int32; classes of equal logits stand by their numbers.
        weights: ``[N, C]`` in float32 or wider, rows of sum 1.

    Raises:
        ValueError: wrong shapes, a class out of range, one class, a temperature that is not above 0.

    Example:
        >>> order, weights = teacher_choices(torch.tensor([[2.0, 3.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> order, weights
        (tensor([[0, 1, 2, 3]], dtype=torch.int32), tensor([[0.2369, 0.6439, 0.0871, 0.0321]]))
    """
    check_number("tau", tau, low=0.0, open_low=True)
    check_logits(teacher, argument="teacher")
    check_index(target, teacher)
    t, target = widen(teacher.detach()), target.long()
    shares = (t / tau).softmax(1)
    if _native.runs(t, shares, gain=64) and target.is_contiguous():
        weights, order = torch.empty_like(t), torch.empty_like(t, dtype=torch.int32)
        _native.call("order_rows", (t, shares, weights, target, order))
        return order, weights
    first = class_mask(target, t.shape[1])
    # NaN and inf, whose weights are NaN, stay behind the target
    others = t.nan_to_num(nan=0.0, posinf=torch.finfo(t.dtype).max, neginf=-torch.inf)
    order = torch.where(first, torch.inf, others).sort(dim=1, descending=True, stable=True).indices
    return order.int(), shares.gather(1, order)


def pld_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    teacher: F[Tensor, "batch classes"] | None = None,
    tau: float = 1.0,
    order: I[Tensor, "batch classes"] | None = None,
    choice_weights: F[Tensor, "*batch classes"] | None = None,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Likelihood of the teacher's order under sequential choices by the student, each weighted by the teacher.

    .. math:: L = \sum_{k=1}^{C} w_k \Bigl[\log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k}\Bigr]

    with order and weights of :func:`teacher_choices`. Weights (1, 0, ..., 0) make it cross-entropy, 1 / C each ListMLE
    by C, a fixed falling sequence position-aware ListMLE. It is convex in s and unchanged by a constant added to s; the
    scale of s counts. Where the teacher is sure of a wrong class, the first choice has little weight: the weights
    follow the teacher, not the label.

    Sorting takes most of the time. Whoever keeps the two results of :func:`teacher_choices` with the data gives them as
    ``order`` and ``choice_weights`` in place of the teacher.

    Args:
        logits: of the student, s ``[N, C]``, C >= 2.
        target: true classes ``[N]``.
        teacher: logits of the teacher ``[N, C]``; no gradient flows into them. Not needed with order and weights.
        tau: temperature of the weights, > 0; it changes no order. 1 where ``choice_weights`` are given.
        order: classes by choice ``[N, C]``, rows that are permutations and begin with the target.
        choice_weights: of the choices in their order, ``[N, C]`` or one row for all ``[C]``, >= 0; no gradient flows
            into them.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range, one class, an order that is none or begins with another class, a
            negative weight, neither a teacher nor both of what is made of it, a temperature beside weights.

    Example:
        >>> s, t = torch.tensor([[1.0, 2.0, 0.5, -1.0]]), torch.tensor([[2.0, 3.0, 1.0, 0.0]])
        >>> pld_loss(s, torch.tensor([0]), teacher=t)
        tensor(0.5271)
        >>> order, weights = teacher_choices(t, torch.tensor([0]), tau=4.0)
        >>> pld_loss(s, torch.tensor([0]), order=order, choice_weights=weights)
        tensor(0.5347)

    Source: PLD: A Choice-Theoretic List-Wise Knowledge Distillation, arXiv:2506.12542.
    """
    check_logits(logits)
    check_index(target, logits)
    check_number("tau", tau, low=0.0, open_low=True)
    if choice_weights is not None and tau != 1.0:
        refuse("tau", "1 beside choice_weights, which have a temperature of their own", tau)
    places, weights = _choices_of(logits, target, teacher, tau, order, choice_weights)
    z = widen(logits)
    weights, target = weights.to(z.dtype), target.long()

    def plain(z: Tensor) -> Tensor:
        scores = z.gather(1, places.long())
        return _losses(scores, _log_sums(scores), weights)

    return reduce(rowwise(z, plain, _choice_rule(places, weights, target)), reduction, weight)


def _choices_of(
    logits: Tensor,
    target: Tensor,
    teacher: Tensor | None,
    tau: float,
    order: Tensor | None,
    choice_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Order ``[N, C]``, int32, and weights ``[N, C]``: those that are given, the others by the teacher."""
    shape = tuple(logits.shape)
    if teacher is not None:
        check_tensor("teacher", teacher, floating=True, shape=shape)
    elif order is None or choice_weights is None:
        refuse("teacher", "logits, because order and choice_weights are not both given", None)
    if order is not None:
        check_tensor("order", order, floating=False, shape=shape)
        if order.dtype == torch.int64:  # narrower below, where what is out of range would come round again
            check_range("order", order, 0, shape[1] - 1)
        order = order.int()
    if choice_weights is not None:
        check_tensor("choice_weights", choice_weights, floating=True, ndim=(1, 2))
        check_tensor("choice_weights", choice_weights, shape=shape[-choice_weights.ndim :])
        choice_weights = choice_weights.detach().expand(shape)
    if order is None:
        assert teacher is not None
        order, weights = teacher_choices(teacher, target, tau=tau)
    elif choice_weights is None:
        assert teacher is not None
        weights = (widen(teacher.detach()) / tau).softmax(1).gather(1, order.long())
    return order, weights if choice_weights is None else choice_weights


def _log_sums(scores: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials over each place of a row and all after it."""
    return scores.flip(1).logcumsumexp(1).flip(1)


def _losses(scores: Tensor, sums: Tensor, weights: Tensor) -> Tensor:
    """Losses ``[N]`` of scores in their order; exact also where a choice is nearly certain."""
    gaps = sums[:, 1:] - scores[:, :-1]
    return (weights[:, :-1] * functional.softplus(gaps, threshold=STEEP)).sum(1)


def _slopes(scores: Tensor, sums: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the losses in the scores, in their order: e^s_j sum_{k<j} w_k / R_k - w_j R_{j+1} / R_j."""
    before = (weights.log() - sums).logcumsumexp(1)[:, :-1]
    slopes = torch.zeros_like(scores)
    slopes[:, 1:] = (scores[:, 1:] + before).exp_()
    slopes[:, :-1] -= weights[:, :-1] * (sums[:, 1:] - scores[:, :-1]).sigmoid_()
    return slopes


def _choice_rule(order: Tensor, weights: Tensor, target: Tensor) -> Rule:
    """Value and gradient of each row."""

    def by_torch(z: Tensor, o: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        places = o.long()
        if z.is_cpu:  # a device need not have float64
            z, w = z.double(), w.double()
        scores = z.gather(1, places)
        sums = _log_sums(scores)
        return _losses(scores, sums, w), torch.empty_like(z).scatter_(1, places, _slopes(scores, sums, w))

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        o, w, y = order[rows], weights[rows].contiguous(), target[rows]
        if _native.runs(z, g, w, gain=256) and o.is_contiguous() and y.is_contiguous():
            losses, status = z.new_empty(2, len(z)).unbind()
            _native.call("choice_rows", (z, w, g, losses, status, o, y))
            worst = int(status.max())
            if worst > WILD:
                _check_choices(o, w, y)
            if worst:  # in float64, row by row: what one row gets does not depend on the others
                wild = status.nonzero().squeeze(1)
                of_wild, slopes = by_torch(z[wild], o[wild], w[wild])
                losses[wild], g[wild] = of_wild.to(z.dtype), slopes.to(z.dtype)
            return losses
        if values_visible(o, w, y):
            _check_choices(o, w, y)
        losses, slopes = by_torch(z, o, w)
        g.copy_(slopes)
        return losses.to(z.dtype)

    return rule


def _check_choices(order: Tensor, weights: Tensor, target: Tensor) -> None:
    """Check orders and weights ``[r, C]`` against a target each."""
    check_interval("choice_weights", weights, 0.0, what="weights", rounding=0.0)
    inside = bool(((order >= 0) & (order < order.shape[1])).all()) and bool((order[:, 0] == target).all())
    chosen = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    if not inside or not bool(chosen.scatter_(1, order.long(), True).all()):
        refuse("order", "rows that are permutations of the classes and begin with the target", order)


class PLDLoss(Objective):
    """Plackett-Luce distillation as a module; see :func:`pld_loss`.

    The teacher's logits come with the batch. Where its order and weights are kept with the data
    (:func:`teacher_choices`), they are given in place of the logits, and nothing is sorted.

    Args:
        tau: temperature of the weights, > 0, where they are made of the teacher's logits; the publication takes 4 for
            CIFAR-100.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> s, t = torch.tensor([[1.0, 2.0, 0.5, -1.0]]), torch.tensor([[2.0, 3.0, 1.0, 0.0]])
        >>> PLDLoss(tau=4.0)(s, torch.tensor([0]), teacher=t)
        tensor(0.5347)
    """

    name = "pld"
    tasks = ("binary", "multiclass")
    needs = ("teacher",)
    search = {"tau": Float(0.5, 8.0, log=True)}

    def __init__(self, tau: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("tau", tau, low=0.0, open_low=True)
        self.tau = tau

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        teacher: F[Tensor, "batch classes"] | None = None,
        order: I[Tensor, "batch classes"] | None = None,
        choice_weights: F[Tensor, "*batch classes"] | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits, class indices and the teacher's logits; or order and weights in place of those."""
        self.check_call(outputs, target, weight)
        return pld_loss(
            outputs,
            target,
            teacher=teacher,
            tau=self.tau if choice_weights is None else 1.0,
            order=order,
            choice_weights=choice_weights,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: what the student chooses first."""
        return outputs.softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Two and five classes, with two temperatures; some teacher logits are equal."""
        cases: list[tuple[Self, Sample]] = []
        for classes, tau in ((2, 1.0), (5, 4.0)):
            outputs = torch.randn(7, classes, generator=generator, dtype=torch.float64)
            teacher = torch.randn(7, classes, generator=generator, dtype=torch.float64).mul(2).round()
            target = torch.randint(classes, (7,), generator=generator)
            kwargs = {"teacher": teacher.to(device, dtype)}
            cases.append((cls(tau).to(device), ((outputs.to(device, dtype), target.to(device)), kwargs)))
        return cases
