"""Softmax over class directions with a margin on the target: an angle that is added, or a cosine subtracted."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_index, check_logits, check_number, check_tensor
from ...core.cosine_softmax import SoftmaxOfCosines
from ...core.logpartition import class_mask, target_log_probability
from ...core.loss import Sample
from ...core.margins import angular_margin, check_margin
from ...core.reductions import reduce, widen
from ...core.search import Choice, Float


def arc_face_loss(
    cosines: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    margin: float | F[Tensor, " batch"] = 0.5,
    scale: float = 64.0,
    monotone: bool = False,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of scaled cosines whose target has an angle that is larger by a margin.

    .. math:: L = -\log \frac{e^{s \cos(\theta_y + m)}}{e^{s \cos(\theta_y + m)} + \sum_{j \ne y} e^{s \cos \theta_j}}

    Args:
        cosines: ``[N, C]``, as :class:`~steepest.core.heads.NormedLinear` gives them.
        target: class indices ``[N]``.
        margin: m in RADIANS, in [0, pi] (0.5 is 28.6 degrees); or one of each sample ``[N]``, of any size.
        scale: s > 0.
        monotone: the form of :func:`~steepest.core.margins.angular_margin` that goes on falling beyond pi - m.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range, an angle above pi.

    Example:
        >>> arc_face_loss(torch.tensor([[-0.95, 0.2, 0.1]]), torch.tensor([0]))
        tensor(75.7395)

    Source: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv:1801.07698.
    """
    check_flag("monotone", monotone)
    _check(cosines, target, margin, scale)
    c = widen(cosines)
    lowered = angular_margin(c, _column(margin), monotone=monotone)
    return _loss(c, lowered, target, scale, weight, reduction)


def cos_face_loss(
    cosines: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    margin: float | F[Tensor, " batch"] = 0.35,
    scale: float = 64.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of scaled cosines whose target's is lowered by a margin.

    .. math:: L = -\log \frac{e^{s (c_y - m)}}{e^{s (c_y - m)} + \sum_{j \ne y} e^{s c_j}}

    Args:
        cosines: c ``[N, C]``, as :class:`~steepest.core.heads.NormedLinear` gives them.
        target: class indices ``[N]``.
        margin: m >= 0, in units of the cosine; or one of each sample ``[N]``, of any size.
        scale: s > 0.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range, a number out of range.

    Example:
        >>> cos_face_loss(torch.tensor([[0.8, 0.6, -0.2]]), torch.tensor([0]), scale=10.0)
        tensor(1.7017)

    Source: CosFace: Large Margin Cosine Loss for Deep Face Recognition, arXiv:1801.09414.
    """
    _check(cosines, target, margin, scale)
    c = widen(cosines)
    return _loss(c, c - _column(margin), target, scale, weight, reduction)


def _column(margin: float | Tensor) -> float | Tensor:
    """Margins of samples as a column, in float32 or wider."""
    return widen(margin).unsqueeze(1) if isinstance(margin, Tensor) else margin


def _check(cosines: Tensor, target: Tensor, margin: float | Tensor, scale: float) -> None:
    check_logits(cosines, argument="cosines")
    check_index(target, cosines)
    if isinstance(margin, Tensor):
        check_tensor("margin", margin, floating=True, shape=(cosines.shape[0],))
    else:
        check_number("margin", margin, low=0.0)
    check_number("scale", scale, low=0.0, open_low=True)


def _loss(
    cosines: Tensor, lowered: Tensor, target: Tensor, scale: float, weight: Tensor | None, reduction: str
) -> Tensor:
    """Cross-entropy with the target's entry lowered."""
    y = target.long()
    z = torch.where(class_mask(y, cosines.shape[1]), lowered, cosines)
    return reduce(-target_log_probability(scale * z, y), reduction, weight)


class ArcFaceLoss(SoftmaxOfCosines):
    """The additive angular margin; see :func:`arc_face_loss`. It wants the head of cosines.

    Args:
        margin: m in RADIANS, in [0, pi].
        scale: s > 0.
        monotone: the form that goes on falling beyond pi - m.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> ArcFaceLoss(monotone=True)(torch.tensor([[-0.95, 0.2, 0.1]]), torch.tensor([0]))
        tensor(88.9433)
    """

    name = "arc_face"
    search = {"margin": Float(0.1, 0.8), "scale": Float(8.0, 64.0, log=True), "monotone": Choice((False, True))}

    def __init__(
        self, margin: float = 0.5, scale: float = 64.0, monotone: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        check_margin("margin", margin)
        check_number("scale", scale, low=0.0, open_low=True)
        check_flag("monotone", monotone)
        self.margin, self.scale, self.monotone = margin, scale, monotone

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of cosines and class indices."""
        self.check_call(outputs, target, weight)
        options: dict[str, Any] = {"margin": self.margin, "scale": self.scale, "monotone": self.monotone}
        return arc_face_loss(outputs, target, weight=weight, reduction=self.reduction, **options)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Those, and angles beyond pi - m in both forms."""
        cases = super().samples(generator, dtype, device)
        (outputs, target), _ = cases[-1][1]
        far = outputs.clone()
        far[torch.arange(len(target), device=target.device), target] = -0.96
        return [*cases, (cls(scale=8.0, monotone=True).to(device), ((far, target), {}))]


class CosFaceLoss(SoftmaxOfCosines):
    """The additive cosine margin; see :func:`cos_face_loss`. It wants the head of cosines.

    Args:
        margin: m >= 0, in units of the cosine.
        scale: s > 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> CosFaceLoss(scale=10.0)(torch.tensor([[0.8, 0.6, -0.2]]), torch.tensor([0]))
        tensor(1.7017)
    """

    name = "cos_face"
    search = {"margin": Float(0.05, 0.5), "scale": Float(8.0, 64.0, log=True)}

    def __init__(self, margin: float = 0.35, scale: float = 64.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("margin", margin, low=0.0)
        check_number("scale", scale, low=0.0, open_low=True)
        self.margin, self.scale = margin, scale

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of cosines and class indices."""
        self.check_call(outputs, target, weight)
        return cos_face_loss(
            outputs, target, margin=self.margin, scale=self.scale, weight=weight, reduction=self.reduction
        )
