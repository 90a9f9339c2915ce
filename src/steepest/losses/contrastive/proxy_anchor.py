"""The proxy anchor loss: a direction of each class is the anchor, and the rows of the batch are what it compares."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_index, check_logits, check_number
from ...core.heads import NormedLinear
from ...core.log_one_plus import log_one_plus_sum
from ...core.logpartition import class_mask
from ...core.loss import Sample
from ...core.objective import Objective, TaskInfo
from ...core.reductions import widen
from ...core.search import Float


def proxy_anchor_loss(
    cosines: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, margin: float = 0.1, alpha: float = 32.0
) -> F[Tensor, ""]:
    r"""Soft maxima over the rows of each class's proxy: positives that are not near, negatives that are not far.

    .. math:: L = \frac{1}{|C^+|} \sum_{c \in C^+} \log\left(1 + \sum_{y_i = c} e^{-\alpha (s_{ic} - m)}\right)
        + \frac{1}{|C|} \sum_{c} \log\left(1 + \sum_{y_i \ne c} e^{\alpha (s_{ic} + m)}\right)

    with C+ the classes of the batch.

    Args:
        cosines: s ``[N, C]`` of rows and proxies, as :class:`~steepest.core.heads.NormedLinear` gives them.
        target: class indices ``[N]``.
        margin: m >= 0.
        alpha: > 0.

    Returns:
        The loss in float32 or wider; 0 of no rows.

    Raises:
        ValueError: wrong shapes, a class or a number out of range.

    Example:
        >>> proxy_anchor_loss(torch.tensor([[0.8, -0.2], [0.1, 0.9]]), torch.tensor([0, 1]))
        tensor(3.2208)

    Source: Proxy Anchor Loss for Deep Metric Learning, arXiv:2003.13911.
    """
    check_logits(cosines, argument="cosines")
    check_index(target, cosines)
    _check(margin, alpha)
    s = widen(cosines)
    own = class_mask(target.long(), s.shape[1])
    near = log_one_plus_sum(-alpha * (s - margin), own, dim=0)
    far = log_one_plus_sum(alpha * (s + margin), ~own, dim=0)
    return near.sum() / own.any(0).sum().clamp_min(1) + far.mean()


def _check(margin: float, alpha: float) -> None:
    check_number("margin", margin, low=0.0)
    check_number("alpha", alpha, low=0.0, open_low=True)


class ProxyAnchorLoss(Objective):
    """See :func:`proxy_anchor_loss`. Proxies are the weight of the head, a :class:`~steepest.core.heads.NormedLinear`.

    Of several ranks each takes its own batch.

    Args:
        margin: m >= 0.
        alpha: > 0.

    Example:
        >>> ProxyAnchorLoss()(torch.tensor([[0.8, -0.2], [0.1, 0.9]]), torch.tensor([0, 1]))
        tensor(3.2208)
    """

    name = "proxy_anchor"
    tasks = ("binary", "multiclass", "retrieval")
    domain = "cosine"
    unit = "batch"
    search = {"margin": Float(0.02, 0.5, log=True), "alpha": Float(8.0, 64.0, log=True)}

    def __init__(self, margin: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__()
        _check(margin, alpha)
        self.margin, self.alpha = margin, alpha

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """Cosines with a proxy of each class."""
        return NormedLinear(feature_dim, info.num_classes)

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of cosines and class indices."""
        self.check_call(outputs, target, weight)
        return proxy_anchor_loss(outputs, target, margin=self.margin, alpha=self.alpha)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases at a sharpness that leaves gradients to compare."""
        cases = super().samples(generator, dtype, device)
        return [(cls(alpha=8.0).to(device), sample) for _, sample in cases]
