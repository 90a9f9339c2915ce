"""Label-distribution-aware margins: larger margins for rarer classes, and classes re-weighted late in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import (
    check_index,
    check_logits,
    check_number,
    check_tensor,
    check_weight,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.heads import NormedLinear
from ...core.logpartition import class_mask, pick, target_log_probability
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import reduce, widen
from ...core.rowwise import mix, rowwise, target_softmax
from ...core.search import Choice, Float
from .cross_entropy import CrossEntropyLoss

Counts = Sequence[int] | I[Tensor, " classes"]


def _checked_counts(class_counts: Counts) -> Tensor:
    counts = torch.as_tensor(class_counts)
    check_tensor("class_counts", counts, ndim=1, floating=False)
    if len(counts) < 2 or bool((counts < 1).any()):
        refuse("class_counts", "at least two counts, all >= 1", counts.tolist())
    return counts.long()


def ldam_margins(class_counts: Counts, max_margin: float = 0.5) -> F[Tensor, " classes"]:
    r""":math:`\Delta_j = C / n_j^{1/4}`, with C such that the rarest class has ``max_margin``.

    These shares minimise :math:`\sum_j 1 / (\gamma_j \sqrt{n_j})` at a fixed sum of margins.

    >>> ldam_margins((1000, 100, 10))
    tensor([0.1581, 0.2812, 0.5000])
    """
    check_number("max_margin", max_margin, low=0.0)
    counts = _checked_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def effective_number_weights(class_counts: Counts, beta: float = 0.9999) -> F[Tensor, " classes"]:
    r"""Class weights by the effective number of samples, with sum K.

    .. math:: w_j = K v_j / \sum_k v_k, \qquad v_j = (1 - \beta) / (1 - \beta^{n_j})

    Args:
        class_counts: K training counts n_j >= 1.
        beta: in [0, 1). 0 gives equal weights; towards 1 they become inverse frequencies.

    Returns:
        ``[K]``, float32.

    Raises:
        ValueError: a count of zero, ``beta`` outside [0, 1).

    Example:
        >>> effective_number_weights((1000, 100, 10))
        tensor([0.0284, 0.2713, 2.7004])

    Source: Class-Balanced Loss Based on Effective Number of Samples, arXiv:1901.05555.
    """
    check_number("beta", beta, low=0.0, high=1.0, open_high=True)
    counts = _checked_counts(class_counts)
    # 1 - beta^n without cancellation where beta^n is near 1; on the CPU, as not every device has float64
    inverse = -1.0 / torch.expm1(counts.cpu() * torch.tensor(beta, dtype=torch.float64).log())
    return (len(counts) * inverse / inverse.sum()).float().to(counts.device)


def _due(epoch: int, epochs: int, start: float) -> bool:
    """Whether epoch (1-based) lies in the part of training after the share ``start``."""
    return epoch > start * epochs + 1e-9


def ldam_loss(
    cosines: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    margins: F[Tensor, " classes"],
    scale: float = 30.0,
    hinge: bool = False,
    class_weight: F[Tensor, " classes"] | None = None,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of scaled cosines whose target entry is lowered by the margin of its class.

    .. math:: L = -w_y \log \frac{e^{s (z_y - \Delta_y)}}{e^{s (z_y - \Delta_y)} + \sum_{j \ne y} e^{s z_j}}

    Args:
        cosines: z ``[N, K]`` in [-1, 1], as :class:`NormedLinear` gives them; values outside warn.
        target: class indices ``[N]`` in 0..K-1.
        margins: Delta ``[K]`` >= 0, for example of :func:`ldam_margins`.
        scale: s > 0.
        hinge: the form max(max_{j != y} z_j - z_y + Delta_y, 0) instead; ``scale`` plays no part in it.
        class_weight: w ``[K]`` >= 0. With it the mean is sum w_y L / sum w_y, as in torch.
        weight: sample weights ``[N]`` >= 0; they multiply ``class_weight``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class outside the range.

    Example:
        >>> z = torch.tensor([[0.8, 0.6, -0.2]])
        >>> ldam_loss(z, torch.tensor([0]), margins=ldam_margins((1000, 100, 10)))
        tensor(0.2505)

    Source: Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, arXiv:1906.07413.
    """
    check_logits(cosines, argument="cosines")
    check_index(target, cosines)
    check_number("scale", scale, low=0.0, open_low=True)
    classes = cosines.shape[1]
    check_tensor("margins", margins, floating=True, shape=(classes,))
    if class_weight is not None:
        check_tensor("class_weight", class_weight, floating=True, shape=(classes,))
    if cosines.numel() and values_visible(cosines):
        largest = max(abs(float(end)) for end in cosines.detach().aminmax())
        if largest > 1 + 8 * torch.finfo(cosines.dtype).eps:
            message = (
                f"cosines: expected values in [-1, 1], got {largest:.4g}; margins mean nothing without NormedLinear"
            )
            warnings.warn(message, stacklevel=2)
    z, y = widen(cosines), target.long()
    own = margins.to(z)[y]

    def plain(z: Tensor) -> Tensor:
        mask = class_mask(y, classes)
        if hinge:
            return (z.masked_fill(mask, -torch.inf).amax(-1) - pick(z, y) + own).clamp_min(0)
        return -target_log_probability(scale * torch.where(mask, z - own.unsqueeze(-1), z), y)

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        softmax = target_softmax(z, g, y[rows], scale=scale, shift=-own[rows].unsqueeze(1))
        mix(g, factor=scale, target=y[rows], value=-scale * softmax.away)
        return -softmax.log_p.squeeze(1)

    loss = plain(z) if hinge else rowwise(z, plain, rule)
    if class_weight is not None:
        check_weight(weight, len(z))
        weight = class_weight.to(z)[y] * (1.0 if weight is None else weight.to(z))
    return reduce(loss, reduction, weight)


class LDAMLoss(Objective):
    """The margin loss for long-tailed training, with its deferred re-weighting; see :func:`ldam_loss`.

    It wants the head :class:`NormedLinear`. Class weights switch on in the epochs after ``deferred * epochs``, where
    the learning rate should fall too. Counts and current class weights are in ``state_dict``.

    Args:
        class_counts: K counts >= 1 of the training split.
        max_margin: margin of the rarest class, >= 0.
        scale: s > 0.
        weight: fixed class weights ``[K]``, or None for ones; they multiply the deferred ones.
        deferred: share of training after which :func:`effective_number_weights` apply, in [0, 1]; None for never.
        beta: of those weights, in [0, 1).
        hinge: the hinge form.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = LDAMLoss((1000, 100, 10))
        >>> loss(torch.tensor([[0.8, 0.6, -0.2]]), torch.tensor([0]))
        tensor(0.2505)
    """

    name = "ldam"
    tasks = ("binary", "multiclass")
    domain = "cosine"
    search = {"max_margin": Float(0.1, 0.8), "scale": Float(5.0, 60.0, log=True)}

    class_counts: Tensor
    fixed_weight: Tensor
    class_weight: Tensor

    def __init__(
        self,
        class_counts: Counts,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | Sequence[float] | None = None,
        deferred: float | None = 0.8,
        beta: float = 0.9999,
        hinge: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_number("scale", scale, low=0.0, open_low=True)
        if deferred is not None:
            check_number("deferred", deferred, low=0.0, high=1.0)
        self.max_margin, self.scale, self.deferred, self.beta, self.hinge = max_margin, scale, deferred, beta, hinge
        self.register_buffer("class_counts", _checked_counts(class_counts).clone())
        self.register_buffer("margins", ldam_margins(self.class_counts, max_margin))
        effective_number_weights(self.class_counts, beta)  # refuses a bad beta now, not in the epoch of the switch
        fixed = torch.ones(len(self.class_counts)) if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        check_tensor("weight", fixed, shape=tuple(self.class_counts.shape))
        self.register_buffer("fixed_weight", fixed.clone())
        self.register_buffer("class_weight", fixed.clone())

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the class counts of the training split."""
        return cls(info.class_counts, **hyper)

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """A head of cosines."""
        return NormedLinear(feature_dim, info.num_classes)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the class weights of this epoch."""
        weight = self.fixed_weight
        if self.deferred is not None and _due(epoch, epochs, self.deferred):
            weight = weight * effective_number_weights(self.class_counts, self.beta)
        self.class_weight.copy_(weight)

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of cosines and class indices."""
        self.check_call(outputs, target, weight)
        return ldam_loss(
            outputs,
            target,
            margins=self.margins,
            scale=self.scale,
            hinge=self.hinge,
            class_weight=self.class_weight,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax of the scaled cosines; margins belong to training."""
        return (self.scale * widen(outputs)).softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases, well inside [-1, 1], and the hinge form."""
        cases = [
            (objective, ((0.5 * outputs, target), kwargs))
            for objective, ((outputs, target), kwargs) in super().samples(generator, dtype, device)
        ]
        return [*cases, (cls((9, 5, 4, 2, 1), max_margin=0.3, hinge=True).to(device), cases[-1][1])]


class DeferredReweighting(Objective):
    """Any loss of samples with class weights that switch on late in training.

    Weights are ones in the epochs up to ``start * epochs`` and :func:`effective_number_weights` after it; they reach
    the loss as its sample weights, and it reduces. The learning rate should fall near the switch. A
    comparison puts cross-entropy into it by default, and so it is cross-entropy until the switch.

    Args:
        loss: an objective with ``unit = "sample"`` and class indices as target.
        class_counts: K counts >= 1 of the training split.
        start: share of training, in [0, 1].
        beta: of the weights, in [0, 1).

    Example:
        >>> loss = DeferredReweighting(CrossEntropyLoss(), (1000, 100, 10))
        >>> loss.start_epoch(161, 200)
        >>> loss.class_weight
        tensor([0.0284, 0.2713, 2.7004])

    Source: Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, arXiv:1906.07413.
    """

    name = "deferred_reweighting"
    tasks = ("binary", "multiclass")
    search = {"start": Float(0.5, 0.95), "beta": Choice((0.99, 0.999, 0.9999))}

    class_counts: Tensor
    class_weight: Tensor

    def __init__(self, loss: Objective, class_counts: Counts, start: float = 0.8, beta: float = 0.9999) -> None:
        if not isinstance(loss, Objective) or loss.unit != "sample" or "index" not in loss.targets:
            refuse_type("loss", "an objective of samples with class indices as target", loss)
        super().__init__(loss.reduction)
        check_number("start", start, low=0.0, high=1.0)
        self.loss, self.start, self.beta = loss, start, beta
        self.register_buffer("class_counts", _checked_counts(class_counts).clone())
        effective_number_weights(self.class_counts, beta)
        self.register_buffer("class_weight", torch.ones(len(self.class_counts)))
        self.name = f"{loss.name}+deferred_reweighting"  # type: ignore[misc]
        self.tasks, self.domain, self.needs = loss.tasks, loss.domain, loss.needs  # type: ignore[misc]
        self.views, self.gradient, self.stateful = loss.views, loss.gradient, loss.stateful  # type: ignore[misc]

    @property
    def reduction(self) -> str:
        """That of the loss."""
        return self.loss.reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        if "loss" in self._modules:
            self.loss.reduction = value

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """Over cross-entropy, with the class counts of the training split."""
        return cls(CrossEntropyLoss(), info.class_counts, **hyper)

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        return self.loss.head(feature_dim, info)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        return self.loss.probabilities(outputs)

    def predict(self, outputs: Tensor) -> Tensor:
        return self.loss.predict(outputs)

    def sampler(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor] | None:
        return self.loss.sampler(labels, batch_size, generator)

    def after_step(self) -> None:
        self.loss.after_step()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the class weights of this epoch, then tell the loss."""
        if _due(epoch, epochs, self.start):
            self.class_weight.copy_(effective_number_weights(self.class_counts, self.beta))
        else:
            self.class_weight.fill_(1.0)
        self.loss.start_epoch(epoch, epochs)

    def forward(self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, **named: Any) -> Tensor:
        """The loss with the weights of its classes."""
        self.check_call(outputs, target, weight)
        check_tensor("target", target, floating=False)
        classes = len(self.class_weight)
        if outputs.ndim > 1 and outputs.shape[1] != classes:
            refuse("outputs", f"{classes} classes, as class_counts", outputs)
        # a label outside the range is left for the loss to judge: it may be its ignore_index
        own = self.class_weight[target.long().clamp(0, classes - 1)]
        loss: Tensor = self.loss(outputs, target, weight=own if weight is None else own * weight, **named)
        self.terms = dict(self.loss.terms)
        return loss
