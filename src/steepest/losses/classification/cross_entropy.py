"""Cross-entropy: plain, with smoothed labels, and with classes weighted by a power of their inverse frequency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.logpartition import log_softmax, pick
from ...core.objective import Objective, TaskInfo
from ...core.reductions import reduce, widen
from ...core.rowwise import rowwise
from ...core.search import Float
from ._cross_entropy import hard_rule, smoothed_rule, soft_rule
from ._targets import class_targets


def cross_entropy(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"] | F[Tensor, "batch classes"],
    *,
    label_smoothing: float = 0.0,
    class_weight: F[Tensor, " classes"] | None = None,
    ignore_index: int | None = -100,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of logits with class indices or class probabilities.

    .. math:: \ell = -\sum_k w_k\, t_k \log \mathrm{softmax}(f)_k, \qquad
        t = (1 - \alpha)\, e_y + \alpha / C

    The mean is the plain one over valid samples, also with class weights: each sample counts as one below the line, as
    ``weight=`` says, not as its class weight (which is what ``torch.nn.functional.cross_entropy`` divides by).

    Args:
        logits: ``[N, C]``, C >= 2.
        target: class indices ``[N]`` in 0..C-1 or ``ignore_index``; or probabilities ``[N, C]``.
        label_smoothing: alpha in [0, 1].
        class_weight: ``[C]`` >= 0, or None for ones.
        ignore_index: samples with this index don't count; None for none.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range, a smoothing outside [0, 1].

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0, -100]))
        tensor(0.4076)
        >>> cross_entropy(logits, torch.tensor([0, -100]), label_smoothing=0.3)
        tensor(0.7076)

    Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990); label smoothing:
    Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567.
    """
    check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    check_tensor("target", target)
    target, valid = class_targets(logits, target, ignore_index)
    if class_weight is not None:
        check_tensor("class_weight", class_weight, floating=True, shape=(logits.shape[1],))
    z = widen(logits)
    factor = None if class_weight is None else class_weight.to(z.dtype)

    def plain(z: Tensor) -> Tensor:
        losses = -log_softmax(z)
        losses = losses if factor is None else losses * factor
        # a probability of 0 must not meet an infinite loss (a class masked by a logit of -inf)
        loss = torch.where(target == 0, 0.0, target * losses).sum(-1) if target.ndim == 2 else pick(losses, target)
        return (1.0 - label_smoothing) * loss + label_smoothing * losses.mean(-1) if label_smoothing else loss

    if target.ndim == 1 and label_smoothing and factor is not None:
        return reduce(plain(z), reduction, weight, valid)
    if target.ndim == 2:
        rule = soft_rule(target, factor, label_smoothing)
    else:
        rule = smoothed_rule(target, label_smoothing) if label_smoothing else hard_rule(target, factor)
    return reduce(rowwise(z, plain, rule), reduction, weight, valid)


class CrossEntropyLoss(Objective):
    """Cross-entropy, the negative log-likelihood of a categorical model; see :func:`cross_entropy`.

    Args:
        ignore_index: samples with this index don't count.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> CrossEntropyLoss()(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.4076)
    """

    name = "cross_entropy"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft")

    def __init__(self, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("ignore_index", ignore_index, integer=True)
        self.ignore_index = ignore_index

    def forward(self, outputs: F[Tensor, "batch classes"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and class indices ``[N]`` or probabilities ``[N, C]``."""
        self.check_call(outputs, target, weight)
        return cross_entropy(outputs, target, ignore_index=self.ignore_index, weight=weight, reduction=self.reduction)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: the loss is proper, its minimiser is the conditional distribution."""
        return outputs.softmax(-1)


class SmoothedCrossEntropyLoss(Objective):
    """Cross-entropy with smoothed labels; see :func:`cross_entropy`.

    Args:
        label_smoothing: share of each label that is spread evenly over all classes, in [0, 1].
        ignore_index: samples with this index don't count.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> SmoothedCrossEntropyLoss(0.3)(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.7076)
    """

    name = "cross_entropy_smoothed"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft")
    search = {"label_smoothing": Float(0.01, 0.3, log=True)}

    def __init__(self, label_smoothing: float = 0.1, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        check_number("ignore_index", ignore_index, integer=True)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, outputs: F[Tensor, "batch classes"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and class indices ``[N]`` or probabilities ``[N, C]``."""
        self.check_call(outputs, target, weight)
        return cross_entropy(
            outputs,
            target,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: its minimiser is (1 - alpha) q + alpha / C, with the argmax of q."""
        return outputs.softmax(-1)


class WeightedCrossEntropyLoss(Objective):
    r"""Cross-entropy with classes weighted by a power of their inverse frequency; see :func:`cross_entropy`.

    .. math:: w_c = n_c^{-\rho} \cdot \frac{\sum_k n_k}{\sum_k n_k^{1 - \rho}}

    The weights average to 1 over the training samples, and a batch takes the plain mean of ``w_y`` times cross-entropy.
    So a batch is an unbiased draw of the weighted training loss, its scale stays that of cross-entropy (a learning rate
    carries over), and sample weights act on it as on every other loss. A class never seen in training is weighted as if
    seen once.

    Args:
        class_counts: training samples of each class, C >= 2 counts >= 0.
        power: rho >= 0; 0 is cross-entropy, 1 gives every class the same share of the loss.
        ignore_index: samples with this index don't count.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: fewer than two counts, a negative one, none above 0.

    Example:
        >>> WeightedCrossEntropyLoss((90, 10)).class_weight
        tensor([0.5556, 5.0000], dtype=torch.float64)
    """

    name = "cross_entropy_weighted"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft")
    search = {"power": Float(0.25, 1.25)}
    class_weight: Tensor

    def __init__(
        self, class_counts: Sequence[int], power: float = 1.0, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        check_number("power", power, low=0.0)
        check_number("ignore_index", ignore_index, integer=True)
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        if counts.ndim != 1 or len(counts) < 2 or bool((counts < 0).any()) or not bool((counts > 0).any()):
            refuse("class_counts", "two or more counts >= 0, one of them > 0", class_counts)
        raw = counts.clamp_min(1.0).pow(-power)
        self.register_buffer("class_weight", raw * counts.sum() / (raw * counts).sum())
        self.power = power
        self.ignore_index = ignore_index

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the class counts of the training split."""
        return cls(class_counts=info.class_counts, **hyper)

    def forward(self, outputs: F[Tensor, "batch classes"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and class indices ``[N]`` or probabilities ``[N, C]``."""
        self.check_call(outputs, target, weight)
        return cross_entropy(
            outputs,
            target,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: its minimiser is proportional to w_c q_c, the distribution in the re-weighted population."""
        return outputs.softmax(-1)
