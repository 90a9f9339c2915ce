"""Regression with a cross-entropy over binned targets beside it, on the same features."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type, values_visible
from ...core.loss import Sample
from ...core.objective import Objective, TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Float, Int
from ...core.terms import kept_terms


class TargetBinner(nn.Module):
    r"""Classes of real targets: K bins over the range of the training targets.

    .. math:: \mathrm{class}(y) = \min\bigl(K - 1, \lfloor K (y - lo) / (hi - lo) \rfloor\bigr)

    or, ``"equalised"``, bins between the quantiles, whose counts are about equal.

    Args:
        num_bins: K >= 1.
        mode: ``"width"`` or ``"equalised"``.
        outside: what lies beyond the training range falls in the nearest bin (``"clip"``) or gets label -1
            (``"ignore"``).

    Raises:
        ValueError: no bins, an unknown mode.

    Example:
        >>> binner = TargetBinner(4).fit(torch.tensor([0.0, 1.0]))
        >>> binner.transform(torch.tensor([0.05, 0.4, 0.95, 1.0])).tolist()
        [0, 1, 3, 3]

    Source: A step towards understanding why classification helps regression, arXiv:2308.10603.
    """

    edges: Tensor

    def __init__(self, num_bins: int, mode: str = "width", outside: str = "clip") -> None:
        super().__init__()
        check_number("num_bins", num_bins, low=1, integer=True)
        check_choice("mode", mode, ("width", "equalised"))
        check_choice("outside", outside, ("clip", "ignore"))
        self.num_bins, self.mode, self.outside = num_bins, mode, outside
        self.register_buffer("edges", torch.full((num_bins + 1,), math.nan, dtype=torch.float64))
        self.fitted = False

    def fit(self, y: F[Tensor, " batch"]) -> Self:
        """Take the K + 1 edges from training targets ``[N]``.

        Raises:
            ValueError: no targets, targets that are not finite.
        """
        check_tensor("y", y, ndim=1, floating=True)
        values = y.detach().double()
        if not values.numel() or not bool(values.isfinite().all()):
            refuse("y", "at least one target, all finite", y)
        places = torch.linspace(0.0, 1.0, self.num_bins + 1, dtype=torch.float64, device=values.device)
        if self.mode == "equalised":
            edges = torch.quantile(values, places)
        else:
            low, high = values.aminmax()
            edges = low + places * (high - low)
        self.edges.copy_(edges)
        self.fitted = True
        return self

    def transform(self, y: F[Tensor, " batch"]) -> I[Tensor, " batch"]:
        """Class indices ``[N]`` in 0..K-1, or -1 where ignored.

        Raises:
            ValueError: not fitted, wrong shapes.
        """
        if not self.fitted:
            refuse("binner", "one that is fitted", "no edges")
        check_tensor("y", y, ndim=1, floating=True)
        values = y.detach().double()
        edges = self.edges.double()
        bins = (values[:, None] >= edges[1:-1]).sum(1)
        if self.outside == "ignore":
            return torch.where((values < edges[0]) | (values > edges[-1]), -1, bins)
        return bins

    def get_extra_state(self) -> bool:
        return self.fitted

    def set_extra_state(self, state: bool) -> None:
        self.fitted = bool(state)


class RegressionParts(NamedTuple):
    """The whole loss and its two terms."""

    total: Tensor
    regression: Tensor
    classification: Tensor


def _terms(regression: Tensor, logits: Tensor, target: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors and cross-entropies ``[N]``, 0 where the label is ignored."""
    log_p = torch.log_softmax(widen(logits), dim=1)
    picked = log_p.gather(1, label.clamp_min(0)[:, None]).squeeze(1)
    return (widen(regression) - widen(target)) ** 2, torch.where(label >= 0, -picked, 0.0)


def reg_cls_loss(
    regression: F[Tensor, " batch"],
    logits: F[Tensor, "batch bins"],
    target: F[Tensor, " batch"],
    binner: TargetBinner,
    *,
    weight: float = 100.0,
) -> RegressionParts:
    r"""Mean squared error and mean cross-entropy of binned targets.

    .. math:: L = \lambda\, \mathrm{MSE}(r, y) + \mathrm{CE}(q, \mathrm{class}(y))

    The factor is on the regression term, as in the published code, and 0 there means regression alone. It was chosen on
    validation among 100, 1000 and 10000 for targets in [0, 1].

    Args:
        regression: predictions r, ``[N]``.
        logits: of the K bins, q, ``[N, K]``.
        target: y, ``[N]``.
        binner: a fitted :class:`TargetBinner` of K bins.
        weight: lambda >= 0.

    Returns:
        ``(total, regression, classification)``, scalars in float32 or wider; the second and third are the plain means.
        Ignored labels count in the first term only; where all are, the cross-entropy is 0.

    Raises:
        ValueError: a negative weight, a binner that is not fitted, wrong shapes.

    Example:
        >>> binner = TargetBinner(2).fit(torch.tensor([0.0, 1.0]))
        >>> parts = reg_cls_loss(torch.tensor([0.5]), torch.zeros(1, 2), torch.tensor([0.4]), binner)
        >>> [round(part.item(), 4) for part in parts]
        [1.6931, 0.01, 0.6931]

    Source: A step towards understanding why classification helps regression, arXiv:2308.10603.
    """
    check_number("weight", weight, low=0.0)
    if not isinstance(binner, TargetBinner):
        refuse_type("binner", "a TargetBinner", binner)
    check_tensor("regression", regression, ndim=1, floating=True)
    check_tensor("logits", logits, floating=True, shape=(regression.shape[0], binner.num_bins))
    check_tensor("target", target, floating=True, shape=tuple(regression.shape))
    label = binner.transform(target)
    squared, entropy = _terms(regression, logits, target, label)
    binned = (label >= 0).sum().clamp_min(1)
    mse, ce = squared.mean(), entropy.sum() / binned
    return RegressionParts(weight * mse + ce if weight else mse, mse, ce)


class RegressionWithClassificationLoss(Objective):
    """The regression loss with a classification beside it, over outputs of width 1 + K; see :func:`reg_cls_loss`.

    Column 0 is the prediction, the others are logits of the bins; only column 0 is used to predict. Where no fitted
    binner is given, ``num_bins`` bins of one width lie over ``low`` to ``high``. ``from_task`` takes -3 to 3 and 100/36
    as weight, which is what 0 to 1 and 100 are to targets of standard deviation 1.

    Args:
        binner: a fitted :class:`TargetBinner` that clips, or None.
        weight: of the squared error, >= 0; 0 means squared error alone.
        num_bins: K >= 1, without a binner.
        low, high: the range, without a binner.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: a negative weight, a binner that is not fitted or ignores, an empty range, wrong shapes.

    Example:
        >>> loss = RegressionWithClassificationLoss(num_bins=2)
        >>> loss(torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([0.4]))
        tensor(1.6931)
    """

    name = "regression_with_classification"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)
    search = {"weight": Float(1.0, 300.0, log=True), "num_bins": Int(4, 32)}

    def __init__(
        self,
        binner: TargetBinner | None = None,
        weight: float = 100.0,
        *,
        num_bins: int = 8,
        low: float = 0.0,
        high: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_number("weight", weight, low=0.0)
        if binner is None:
            check_number("low", low)
            check_number("high", high, low=low, open_low=True, high=math.inf, open_high=True)
            binner = TargetBinner(num_bins).fit(torch.tensor([low, high], dtype=torch.float64))
        elif not isinstance(binner, TargetBinner):
            refuse_type("binner", "a TargetBinner or None", binner)
        if not binner.fitted or binner.outside != "clip":
            refuse("binner", "one that is fitted and clips", (binner.fitted, binner.outside))
        self.binner, self.term_weight = binner, weight

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """The objective for standardised targets."""
        return cls(**{"weight": 100.0 / 36.0, "low": -3.0, "high": 3.0, **hyper})

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """A linear layer to the prediction and the K logits."""
        return nn.Linear(feature_dim, 1 + self.binner.num_bins)

    def predict(self, outputs: Tensor) -> Tensor:
        """Column 0."""
        return outputs[:, 0]

    def forward(
        self, outputs: F[Tensor, "batch columns"], target: F[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of outputs ``[N, 1 + K]`` and targets ``[N]``."""
        self.check_call(outputs, target, weight)
        check_tensor("outputs", outputs, shape=(None, 1 + self.binner.num_bins))
        check_tensor("target", target, floating=True, ndim=1)
        squared, entropy = _terms(outputs[:, 0], outputs[:, 1:], target, self.binner.transform(target))
        if values_visible(squared, entropy):
            self.terms = kept_terms({"regression": squared.mean(), "classification": entropy.mean()})
        loss = self.term_weight * squared + entropy if self.term_weight else squared
        return reduce(loss, self.reduction, weight)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Bins of one width for standardised targets, bins of equal counts, one bin, and squared error alone."""
        target = torch.randn(7, generator=generator, dtype=torch.float64)
        # exact in half precision, so that no target changes its bin by rounding
        target = (8 * target).round() / 8 + 1 / 32
        outputs = torch.randn(7, 9, generator=generator, dtype=torch.float64).to(device, dtype)
        info = TaskInfo("regression", 21, feature_dim=6)
        even = TargetBinner(4, "equalised").fit(target)
        losses = [cls.from_task(info), cls(even, 2.0), cls(num_bins=1, low=-1.0), cls(even, 0.0)]
        return [
            (loss.to(device), ((outputs[:, : 1 + loss.binner.num_bins], target.to(device, dtype)), {}))
            for loss in losses
        ]
