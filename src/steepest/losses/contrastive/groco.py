"""Contrastive learning by the order of groups: a differentiable sorting network puts positives before negatives."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.loss import Sample
from ...core.pair_loss import PairLoss
from ...core.reductions import widen
from ...core.search import Float, Int

INTERPOLATIONS = ("cauchy", "logistic")
LONGEST = 100.0
"""The loss of an item whose probability of its own group is 0 in its precision."""
Gate = tuple[Tensor, Tensor]
"""How much of a pair stays in place, and how much is exchanged."""


def odd_even_sort(
    x: F[Tensor, "*lists items"], steepness: float = 1.0, interpolation: str = "cauchy"
) -> tuple[F[Tensor, "*lists items"], F[Tensor, "*lists items items"]]:
    r"""Sort lists in ascending order by an odd-even network of soft exchanges.

    Layer t = 0, ..., n - 1 compares the neighbours (i, i + 1) for i = t mod 2, t mod 2 + 2, ... With values a, b

    .. math:: x_i = w a + (1 - w) b, \quad x_{i+1} = (1 - w) a + w b, \qquad
        w = \tfrac{1}{\pi} \arctan \beta (b - a) + \tfrac12

    or w the logistic function of beta (b - a). The same mixture of columns, from the identity on, gives the matrix P:
    ``P[j, r]`` is the weight of item j at rank r. Its rows and columns sum to 1, and the sorted values are x P.

    Args:
        x: values ``[..., n]``.
        steepness: beta > 0; the larger, the nearer to sorting.
        interpolation: "cauchy" or "logistic".

    Returns:
        Sorted values ``[..., n]`` and P ``[..., n, n]``, in float32 or wider.

    Raises:
        ValueError: no dimension, a steepness that is not positive, another interpolation.

    Example:
        >>> values, matrix = odd_even_sort(torch.tensor([0.1, 0.4, 0.3]), steepness=10.0)
        >>> values, matrix[0]
        (tensor([0.1600, 0.2920, 0.3480]), tensor([0.7643, 0.1647, 0.0710]))

    Source: Learning by Sorting: Self-supervised Learning with Group Ordering Constraints, arXiv:2301.02009.
    """
    _check_sorter(steepness, interpolation)
    check_tensor("x", x, floating=True)
    if not x.ndim:
        refuse("x", "one dimension and more", x)
    values, gates = _sorted(widen(x), steepness, interpolation)
    identity = torch.eye(x.shape[-1], dtype=values.dtype, device=x.device)
    return values, _placed(identity.expand(*x.shape, x.shape[-1]), gates)


def _check_sorter(steepness: float, interpolation: str) -> None:
    check_number("steepness", steepness, low=0.0, open_low=True, high=math.inf, open_high=True)
    check_choice("interpolation", interpolation, INTERPOLATIONS)


def _sorted(x: Tensor, steepness: float, interpolation: str) -> tuple[Tensor, list[Gate]]:
    """Sorted values ``[..., n]``, and the gates of each layer."""
    values, gates = x.unsqueeze(-1), []
    for layer in range(x.shape[-1]):
        start = layer % 2
        pairs = (x.shape[-1] - start) // 2
        a, b = values[..., start : start + 2 * pairs, 0].unflatten(-1, (pairs, 2)).unbind(-1)
        rise = steepness * (b - a)
        if interpolation == "cauchy":  # both from the axis that they are near to, so that neither rounds to 0
            gate = (
                torch.atan2(torch.ones_like(rise), -rise) / math.pi,
                torch.atan2(torch.ones_like(rise), rise) / math.pi,
            )
        else:
            gate = rise.sigmoid(), (-rise).sigmoid()
        gates.append(gate)
        values = _exchanged(values, gate, start)
    return values.squeeze(-1), gates


def _placed(columns: Tensor, gates: list[Gate]) -> Tensor:
    """P times columns ``[..., n, c]``, by the layers from the last to the first: each is symmetric."""
    for layer in reversed(range(len(gates))):
        columns = _exchanged(columns, gates[layer], layer % 2)
    return columns


def _exchanged(values: Tensor, gate: Gate, start: int) -> Tensor:
    """Values ``[..., n, c]`` after the soft exchange of the pairs of a layer."""
    stay, move = (weights.unsqueeze(-1) for weights in gate)
    end = start + 2 * stay.shape[-2]
    a, b = values[..., start:end, :].unflatten(-2, (-1, 2)).unbind(-2) if end > start else (values[..., :0, :],) * 2
    mixed = torch.stack([stay * a + move * b, move * a + stay * b], -2).flatten(-3, -2)
    return torch.cat([values[..., :start, :], mixed, values[..., end:, :]], -2)


def groco_loss(
    views: F[Tensor, "views batch width"],
    topk_neg: int = 10,
    steepness: float = 1.0,
    stop_grad: bool = True,
    interpolation: str = "cauchy",
) -> F[Tensor, ""]:
    r"""Group ordering: of each anchor all positives shall be nearer than its nearest negatives.

    The anchor is a view of an item; its positives are the item's other views, its negatives the same view of other
    items, of which the K nearest count. Their cosines, the negatives in ascending order and then the positives, pass
    :func:`odd_even_sort`. With p the sum of an item's weights at the last P ranks (those of positives) and q at the
    first K,

    .. math:: L = -\frac{1}{K + P} \Big[ \sum_{j \in \text{positives}} \log p_j +
        \sum_{j \in \text{negatives}} \log q_j \Big]

    which is the mean of both binary cross-entropies, of p and of q, as q = 1 - p. An item with a probability of 0 in
    float32 counts 100, without a gradient.

    Args:
        views: V >= 2 views of B items ``[V, B, d]``, of any length.
        topk_neg: K, from 1 to B - 1.
        steepness: beta > 0 of the network.
        stop_grad: whether positives and negatives are constants of the gradient, which then moves anchors alone.
        interpolation: see :func:`odd_even_sort`.

    Returns:
        The mean over views and items in float32 or wider.

    Raises:
        ValueError: another shape, more negatives than there are, an option out of range.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> groco_loss(torch.stack([z, z]), topk_neg=2, steepness=10.0)
        tensor(0.0210)

    Source: Learning by Sorting: Self-supervised Learning with Group Ordering Constraints, arXiv:2301.02009.
    """
    check_tensor("views", views, ndim=3, floating=True)
    _check_options(topk_neg, steepness, stop_grad, interpolation, views.shape[0])
    if topk_neg > views.shape[1] - 1:
        refuse("topk_neg", f"at most the {max(views.shape[1] - 1, 0)} other items", topk_neg)
    return _of_views(views, topk_neg, steepness, stop_grad, interpolation)


def _check_options(topk_neg: int, steepness: float, stop_grad: bool, interpolation: str, views: int) -> None:
    check_number("topk_neg", topk_neg, low=1, integer=True)
    check_flag("stop_grad", stop_grad)
    _check_sorter(steepness, interpolation)
    check_number("views", views, low=2, integer=True)


def _of_views(views: Tensor, topk_neg: int, steepness: float, stop_grad: bool, interpolation: str) -> Tensor:
    """The loss; 0 where an item has no negative."""
    rows = unit_rows(views)
    number, items = rows.shape[:2]
    if not items or not topk_neg:
        return (rows * 0.0).sum()
    others = rows.detach() if stop_grad else rows
    own = torch.eye(items, dtype=torch.bool, device=rows.device)
    negatives = (rows @ others.transpose(1, 2)).masked_fill(own, -torch.inf)
    nearest = negatives.topk(topk_neg, -1).values.flip(-1)
    apart = ~torch.eye(number, dtype=torch.bool, device=rows.device)
    every = torch.einsum("vbd,wbd->vwb", rows, others)
    positives = every.masked_fill(~apart.unsqueeze(-1), torch.inf).sort(1).values[:, :-1].transpose(1, 2)
    _, gates = _sorted(torch.cat([nearest, positives], -1), steepness, interpolation)
    last = torch.arange(topk_neg + number - 1, device=rows.device) >= topk_neg
    groups = torch.stack([~last, last], 1).to(rows.dtype)
    of_groups = _placed(groups.expand(number, items, *groups.shape), gates)
    own_group = torch.where(last, of_groups[..., 1], of_groups[..., 0])
    none = own_group <= torch.finfo(rows.dtype).tiny
    losses = torch.where(none, LONGEST, -own_group.masked_fill(none, 1.0).clamp(max=1.0).log())
    return losses.mean()


class GroCoLoss(PairLoss):
    """Views of each item sorted before the nearest other items; see :func:`groco_loss`. Labels are not read.

    A batch of fewer items than ``topk_neg`` + 1 takes all others as negatives.

    Args:
        topk_neg: K >= 1, negatives of an anchor.
        steepness: beta > 0.
        stop_grad: whether the gradient moves anchors alone.
        interpolation: "cauchy" or "logistic".
        views: views of an item, >= 2.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> GroCoLoss(steepness=10.0)(torch.stack([z, z]), torch.arange(3))
        tensor(0.0210)
    """

    name = "groco"
    form = "views"
    views = 2
    gradient = "surrogate"
    search = {"topk_neg": Int(2, 20), "steepness": Float(0.3, 30.0, log=True)}
    alternatives = {"topk_neg": 2, "steepness": 5.0, "stop_grad": False, "interpolation": "logistic", "views": 3}

    def __init__(
        self,
        topk_neg: int = 10,
        steepness: float = 1.0,
        stop_grad: bool = True,
        interpolation: str = "cauchy",
        views: int = 2,
    ) -> None:
        super().__init__()
        _check_options(topk_neg, steepness, stop_grad, interpolation, views)
        self.topk_neg, self.steepness, self.stop_grad = topk_neg, steepness, stop_grad
        self.interpolation, self.views = interpolation, views

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of all views."""
        number = min(self.topk_neg, max(outputs.shape[1] - 1, 0))
        return _of_views(outputs, number, self.steepness, self.stop_grad, self.interpolation)

    def reference_gradient(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The gradient by the matrix of each anchor, and both binary cross-entropies."""
        leaf = outputs.detach().clone().requires_grad_()
        rows = unit_rows(leaf)
        others = rows.detach() if self.stop_grad else rows
        number, items = rows.shape[:2]
        k = min(self.topk_neg, items - 1)
        total = rows.sum() * 0.0
        for view in range(number):
            for i in range(items):
                rest = [j for j in range(items) if j != i]
                negatives = (others[view, rest] @ rows[view, i]).sort().values[items - 1 - k :]
                positives = (others[[v for v in range(number) if v != view], i] @ rows[view, i]).sort().values
                _, matrix = odd_even_sort(torch.cat([negatives, positives]), self.steepness, self.interpolation)
                right = (torch.arange(len(matrix), device=rows.device) >= k).to(rows.dtype)
                p, q = matrix[:, k:].sum(1).clamp(0, 1), matrix[:, :k].sum(1).clamp(0, 1)
                entropy = nn.functional.binary_cross_entropy
                total = total + (entropy(p, right) + entropy(q, 1 - right)) / 2
        return torch.autograd.grad(total / (number * items), leaf)[0]

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[GroCoLoss, Sample]]:
        """The defaults, and three views with a gradient to all."""
        cases: list[tuple[GroCoLoss, Sample]] = []
        for loss in (cls(), cls(topk_neg=3, steepness=4.0, stop_grad=False, views=3)):
            outputs = torch.randn(loss.views, 5, 6, generator=generator, dtype=torch.float64).to(device, dtype)
            cases.append((loss.to(device), ((outputs, torch.arange(5, device=device)), {})))
        return cases
