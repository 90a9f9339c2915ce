"""Elastic margins: softmax over class directions whose margin is drawn anew for each sample."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_number, check_tensor
from ...core.cosine_softmax import SoftmaxOfCosines
from ...core.logpartition import pick
from ...core.loss import Sample
from ...core.margins import check_margin
from ...core.objective import TaskInfo
from ...core.random import RandomStream
from ...core.reductions import widen
from ...core.search import Choice, Float
from .margin_softmax import arc_face_loss, cos_face_loss


def elastic_margin(
    cosines_target: F[Tensor, " batch"],
    margin: float,
    std: float,
    plus: bool = False,
    generator: torch.Generator | None = None,
) -> F[Tensor, " batch"]:
    r"""A margin of each sample from a normal distribution, without gradient.

    .. math:: E_i \sim \mathcal{N}(m, \sigma^2)

    With ``plus`` the same draws are handed out by rank: the sample nearest to its class direction gets the smallest,
    the farthest the largest.

    Args:
        cosines_target: cosine of each sample and its class direction ``[N]``.
        margin: m >= 0, the mean.
        std: sigma >= 0. Draws may lie below 0.
        plus: whether draws are handed out by rank.
        generator: of the draws; None for torch's own.

    Returns:
        Margins ``[N]``, in float32 or wider. They are drawn in float32, the same whatever the type of the cosines.

    Raises:
        ValueError: another shape, a number below 0.

    Example:
        >>> elastic_margin(torch.tensor([0.1, 0.9, 0.4]), 0.5, 0.0)
        tensor([0.5000, 0.5000, 0.5000])

    Source: ElasticFace: Elastic Margin Loss for Deep Face Recognition, arXiv:2109.09416.
    """
    check_tensor("cosines_target", cosines_target, ndim=1, floating=True)
    check_number("margin", margin, low=0.0)
    check_number("std", std, low=0.0)
    check_flag("plus", plus)
    c = widen(cosines_target.detach())
    device = c.device if generator is None else generator.device
    draws = torch.randn(c.shape, generator=generator, device=device, dtype=torch.float32).to(c)
    margins = margin + std * draws
    if plus:
        nearest_first = c.argsort(descending=True, stable=True)
        margins = torch.zeros_like(margins).scatter(0, nearest_first, margins.sort().values)
    return margins


class _Elastic(SoftmaxOfCosines):
    """What both share: margins from a random stream of their own in training, the mean in eval mode."""

    stateful = True
    margin: float

    def __init__(self, std: float, scale: float, plus: bool, seed: int | None, reduction: str) -> None:
        super().__init__(reduction)
        check_number("std", std, low=0.0)
        check_number("scale", scale, low=0.0, open_low=True)
        check_flag("plus", plus)
        self.std, self.scale, self.plus = std, scale, plus
        self.stream = RandomStream(seed)

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the seed of the task."""
        return cls(**{"seed": info.seed, **hyper})

    def margins(self, outputs: Tensor, target: Tensor, generator: torch.Generator | None) -> Tensor | float:
        """Margins of a batch."""
        if not self.training or not self.std:
            return self.margin
        source = self.stream.generator if generator is None else generator
        in_range = target.long().clamp(0, max(outputs.shape[-1] - 1, 0))  # what lies outside is refused by the loss
        return elastic_margin(pick(outputs, in_range), self.margin, self.std, self.plus, source)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Margins by rank, which the order of rows does not change; fixed ones."""
        cases = super().samples(generator, dtype, device)
        by_rank = [cls(std=0.1, scale=8.0, plus=True, seed=i).to(device) for i in range(len(cases))]  # type: ignore[call-arg]
        fixed = cls(std=0.0, scale=8.0).to(device)  # type: ignore[call-arg]
        return [*((loss, sample) for loss, (_, sample) in zip(by_rank, cases)), (fixed, cases[-1][1])]


class ElasticArcFaceLoss(_Elastic):
    r"""ArcFace with a margin that is drawn for each sample: see :func:`elastic_margin`.

    .. math:: L = -\frac1N \sum_i \log \frac{e^{s \cos(\theta_{i y_i} + E_i)}}
        {e^{s \cos(\theta_{i y_i} + E_i)} + \sum_{j \ne y_i} e^{s \cos \theta_{ij}}}

    In eval mode every margin is the mean. It wants the head of cosines. The publication has ``std`` 0.05, and 0.0175
    with ``plus``.

    Args:
        margin: mean m in RADIANS, in [0, pi].
        std: sigma in radians, >= 0.
        scale: s > 0.
        plus: whether the larger draws go to samples farther from their class direction.
        monotone: the form of the margin that goes on falling beyond pi - E.
        seed: of the random stream of margins, which ``state_dict`` has; None to take one from torch's own.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = ElasticArcFaceLoss(scale=8.0).eval()
        >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([0]))
        tensor(1.0009)

    Source: ElasticFace: Elastic Margin Loss for Deep Face Recognition, arXiv:2109.09416.
    """

    name = "elastic_arc_face"
    search = {
        "margin": Float(0.1, 0.8), "std": Float(0.01, 0.1, log=True), "scale": Float(8.0, 64.0, log=True),
        "plus": Choice((False, True)), "monotone": Choice((False, True)),
    }  # fmt: skip

    def __init__(
        self,
        margin: float = 0.5,
        std: float = 0.05,
        scale: float = 64.0,
        plus: bool = False,
        monotone: bool = False,
        seed: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(std, scale, plus, seed, reduction)
        check_margin("margin", margin)
        check_flag("monotone", monotone)
        self.margin, self.monotone = margin, monotone

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of cosines and class indices; ``generator`` takes the place of the stream."""
        self.check_call(outputs, target, weight)
        return arc_face_loss(
            outputs,
            target,
            margin=self.margins(outputs, target, generator),
            scale=self.scale,
            monotone=self.monotone,
            weight=weight,
            reduction=self.reduction,
        )

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Those, and angles beyond pi - m in the other form."""
        cases = super().samples(generator, dtype, device)
        (outputs, target), _ = cases[-1][1]
        far = outputs.clone()
        far[torch.arange(len(target), device=target.device), target] = -0.96
        return [*cases, (cls(scale=8.0, std=0.0, monotone=True).to(device), ((far, target), {}))]


class ElasticCosFaceLoss(_Elastic):
    r"""CosFace with a margin that is drawn for each sample: see :func:`elastic_margin`.

    .. math:: L = -\frac1N \sum_i \log \frac{e^{s (c_{i y_i} - E_i)}}
        {e^{s (c_{i y_i} - E_i)} + \sum_{j \ne y_i} e^{s c_{ij}}}

    In eval mode every margin is the mean. It wants the head of cosines. The publication has ``std`` 0.05, and 0.025
    with ``plus``.

    Args:
        margin: mean m >= 0, in units of the cosine.
        std: sigma >= 0, in units of the cosine.
        scale: s > 0.
        plus: whether the larger draws go to samples farther from their class direction.
        seed: of the random stream of margins, which ``state_dict`` has; None to take one from torch's own.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = ElasticCosFaceLoss(scale=8.0).eval()
        >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([0]))
        tensor(0.5488)

    Source: ElasticFace: Elastic Margin Loss for Deep Face Recognition, arXiv:2109.09416.
    """

    name = "elastic_cos_face"
    search = {
        "margin": Float(0.05, 0.5), "std": Float(0.01, 0.1, log=True), "scale": Float(8.0, 64.0, log=True),
        "plus": Choice((False, True)),
    }  # fmt: skip

    def __init__(
        self,
        margin: float = 0.35,
        std: float = 0.05,
        scale: float = 64.0,
        plus: bool = False,
        seed: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(std, scale, plus, seed, reduction)
        check_number("margin", margin, low=0.0)
        self.margin = margin

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of cosines and class indices; ``generator`` takes the place of the stream."""
        self.check_call(outputs, target, weight)
        return cos_face_loss(
            outputs,
            target,
            margin=self.margins(outputs, target, generator),
            scale=self.scale,
            weight=weight,
            reduction=self.reduction,
        )
