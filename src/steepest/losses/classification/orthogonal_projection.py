"""Orthogonal projection: features of one class point the same way, those of different classes are orthogonal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_index, check_logits, check_number, check_tensor, eager
from ...core.cosine import unit_rows
from ...core.objective import Penalty, WithPenalty
from ...core.reductions import widen
from ...core.rows import RowFunctions
from ...core.search import Float
from ...core.transforms import by_hand, forward_mode, plain_gradients
from .cross_entropy import CrossEntropyLoss

PAIRS = 256
"""Rows up to which all pairs are formed; beyond, sums of classes give the same without a matrix of rows by rows."""

_native = RowFunctions(Path(__file__).with_suffix(".cpp"), {"class_sums": 5, "class_slopes": 5})

Sums = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def orthogonal_projection_loss(
    features: F[Tensor, "batch features"],
    target: I[Tensor, " batch"],
    *,
    gamma: float = 0.5,
    absolute: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    r"""Attraction of features within classes and orthogonality between classes, over the pairs of one batch.

    .. math:: L = (1 - s) + \gamma |d|, \qquad g_i = f_i / \|f_i\|_2

    with s the mean of :math:`g_i^\top g_j` over pairs i != j of one class and d that over pairs of different classes.
    A mean over no pairs is 0: one class gives d = 0, labels that all differ give the constant 1 - s = 1.

    Args:
        features: ``[B, D]``, the input of the head. More classes than dimensions cannot all be orthogonal.
        target: class labels ``[B]``, any integers.
        gamma: factor of the term between classes, >= 0.
        absolute: \|d\| as in the paper; False for d itself, as in its published code, which can go below 0.
        eps: norm of a feature up to which it has no direction and counts as zero, > 0.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: wrong shapes, a negative ``gamma``.
        TypeError: labels that are not integers.

    Example:
        >>> import torch
        >>> f = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> orthogonal_projection_loss(f, torch.tensor([0, 0, 1, 1]))
        tensor(0.3232)

    Source: Orthogonal Projection Loss, arXiv:2103.14021.
    """
    check_tensor("features", features, ndim=2, floating=True)
    check_tensor("target", target, floating=False, shape=(features.shape[0],))
    check_number("gamma", gamma, low=0.0)
    check_number("eps", eps, low=0.0, open_low=True)
    if len(features) > PAIRS and eager():
        (same, apart), (pairs, others) = _by_class(widen(features), target, eps)
    else:
        (same, apart), (pairs, others) = _by_pair(unit_rows(features, eps), target)
    s, d = same / pairs.clamp_min(1), apart / others.clamp_min(1)
    return (1 - s) + gamma * (d.abs() if absolute else d)


def _by_pair(g: Tensor, target: Tensor) -> Sums:
    """Sums of cosines and numbers of pairs, of one class and of two; each unordered pair once, none with itself."""
    cosine = g @ g.mT
    alike = target.unsqueeze(-1) == target.unsqueeze(-2)
    same, apart = alike.to(cosine).tril(-1), (~alike).to(cosine).tril(-1)
    return ((cosine * same).sum(), (cosine * apart).sum()), (same.sum(), apart.sum())


def _by_class(features: Tensor, target: Tensor, eps: float) -> Sums:
    """The same from the sums of each class: their squared lengths hold every pair twice and each sample once."""
    place, counts = _places(target)
    if _native.runs(features):
        sums, own = _ClassSums.apply(features, place, len(counts), eps)
    else:
        sums, own = _class_sums(features, place, len(counts), eps)
    same, every = (sums.square().sum() - own) / 2, (sums.sum(0).square().sum() - own) / 2
    pairs, rows = (counts * (counts - 1)).sum() / 2, len(features)
    others = rows * (rows - 1) / 2 - pairs
    same, apart = torch.where(pairs > 0, same, 0.0), torch.where(others > 0, every - same, 0.0)
    return (same.to(features.dtype), apart.to(features.dtype)), (pairs, others)


def _places(target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each label the row of its class, and how many each class has; 0 for what lies between labels."""
    least, greatest = (int(end) for end in target.aminmax())
    if greatest - least < len(target):
        place = target.long() - least
        return place, torch.bincount(place)
    _, place, counts = torch.unique(target, return_inverse=True, return_counts=True)
    return place, counts


def _class_sums(features: Tensor, place: Tensor, classes: int, eps: float) -> tuple[Tensor, Tensor]:
    """The sums of features of length 1 of each class ``[classes, D]``, and the sum of all their squares."""
    wide = unit_rows(features, eps).double()  # the sums are large where the pairs may be few
    return wide.new_zeros(classes, wide.shape[1]).index_add(0, place, wide), wide.square().sum()


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, place: Tensor, classes: int, eps: float) -> tuple[Tensor, Tensor]:
        sums = features.new_zeros(classes, features.shape[1], dtype=torch.float64)
        squares, inverse = sums.new_empty(()), features.new_empty(len(features))
        _native.call("class_sums", (features.detach(), place, sums, squares, inverse), eps)
        ctx.save_for_backward(features, place, inverse)
        ctx.plain = lambda features: _class_sums(features, place, classes, eps)[0]
        ctx.mark_non_differentiable(squares)  # lengths of 1
        return sums, squares

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, None, None, None]:
        features, place, inverse = ctx.saved_tensors
        if torch.is_grad_enabled() or forward_mode() or not by_hand(upstream):
            return plain_gradients(ctx.plain, (features,), (True,), upstream)[0], None, None, None
        gradient, slopes = torch.empty_like(features), upstream.to(features.dtype).contiguous()
        _native.call("class_slopes", (features.detach(), gradient, place, slopes, inverse))
        return gradient, None, None, None


class OrthogonalProjectionLoss(Penalty):
    """Orthogonal projection as a penalty on features; see :func:`orthogonal_projection_loss`.

    Args:
        gamma: factor of the term between classes, >= 0.
        absolute: False for the published code's signed form.
        eps: norm of a feature up to which it has no direction and counts as zero, > 0.

    Example:
        >>> import torch
        >>> OrthogonalProjectionLoss()(torch.eye(3), torch.tensor([0, 1, 2]))
        tensor(1.)
    """

    name = "orthogonal_projection"
    wants = ("features", "target")

    def __init__(self, gamma: float = 0.5, absolute: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        check_number("gamma", gamma, low=0.0)
        check_number("eps", eps, low=0.0, open_low=True)
        self.gamma, self.absolute, self.eps = gamma, absolute, eps

    def forward(self, features: F[Tensor, "batch features"], target: I[Tensor, " batch"]) -> Tensor:
        """The penalty of features and class labels."""
        return orthogonal_projection_loss(features, target, gamma=self.gamma, absolute=self.absolute, eps=self.eps)


class CrossEntropyWithOPL(WithPenalty):
    """Cross-entropy of logits plus the orthogonal projection loss of the features under them.

    Args:
        weight: factor of the penalty, >= 0.
        gamma: its factor of the term between classes, >= 0.
        absolute: False for the published code's signed form.
        reduction: ``"mean"``; the penalty is one number a batch.

    Example:
        >>> import torch
        >>> logits, features = torch.zeros(2, 2), torch.eye(2)
        >>> CrossEntropyWithOPL()(logits, torch.tensor([0, 1]), features=features)
        tensor(1.6931)
    """

    name = "orthogonal_projection"
    tasks = ("binary", "multiclass")
    needs = ("features",)
    search = {"weight": Float(0.05, 5.0, log=True), "gamma": Float(0.1, 2.0, log=True)}

    def __init__(self, weight: float = 1.0, gamma: float = 0.5, absolute: bool = True, reduction: str = "mean") -> None:
        super().__init__(CrossEntropyLoss(reduction=reduction), OrthogonalProjectionLoss(gamma, absolute), weight)
        # a label must be one class: a soft or an ignored one has no pairs
        self.name, self.targets = type(self).name, ("index",)  # type: ignore[misc]

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        features: F[Tensor, "batch features"],
        weight: None = None,
    ) -> Tensor:
        """The loss of logits, class indices and features."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        return super().forward(outputs, target, features=features)
