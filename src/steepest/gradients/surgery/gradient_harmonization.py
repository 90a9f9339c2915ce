"""Cross-modality gradient harmonization: conflicts of two losses, sample by sample, are projected away or left out."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_flag, check_number, check_tensor, refuse
from ...core.reductions import widen


def realign_gradients(
    g1: F[Tensor, "*batch n"], g2: F[Tensor, "*batch n"]
) -> tuple[F[Tensor, "*batch n"], F[Tensor, "*batch n"]]:
    r"""Two gradients that conflict, each without its part along the other; a pair that does not stays as it is.

    .. math:: g_1' = g_1 - \frac{g_1 \cdot g_2}{\|g_2\|^2} g_2, \qquad g_2' = g_2 - \frac{g_1 \cdot g_2}{\|g_1\|^2} g_1
        \qquad \text{where } g_1 \cdot g_2 < 0

    Both from the original gradients, so that the order does not matter.

    Args:
        g1, g2: ``[n]``, or ``[B, n]`` for a pair a sample.

    Returns:
        The two, in their shape and type, without a graph.

    Raises:
        ValueError: shapes that differ, more than two dimensions.
        TypeError: no floating numbers.

    Example:
        >>> first, second = realign_gradients(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
        >>> first, first + second
        (tensor([0.5000, 0.5000]), tensor([0.5000, 1.5000]))

    Source: Scaling Multimodal Pre-Training via Cross-Modality Gradient Harmonization, arXiv:2211.02077.
    """
    first, second = _checked(g1, g2)
    (u, length1), (v, length2) = _unit(first), _unit(second)
    along = (u * v).sum(-1, keepdim=True).clamp_max(0.0)
    # along a unit row the other's part is its length times the cosine
    one, two = first - (length1 * along) * v, second - (length2 * along) * u
    conflict = along < 0
    return torch.where(conflict, one, first).to(g1.dtype), torch.where(conflict, two, second).to(g2.dtype)


class GradientConflictCurriculum(Arguments):
    r"""Which samples count: those whose two gradients have a cosine of at least a threshold that moves along training.

    .. math:: c_i \ge \gamma_t, \qquad \gamma_t = \gamma_0 + (\gamma_1 - \gamma_0) \, t / (T - 1), \quad t = 0 .. T - 1

    A sample whose gradients point apart is probably one whose modalities don't belong together. The form of the
    schedule and its ends are not settled by the publication's text that we have: both ends are arguments, and a start
    above the end lets the threshold fall.

    Args:
        total: T, steps of training.
        start, end: first and last threshold, in [-1, 1]; -1 keeps every sample.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> curriculum = GradientConflictCurriculum(total=11)
        >>> curriculum.threshold(0), curriculum.threshold(5), curriculum.threshold(10)
        (-0.3, -0.15, 0.0)
        >>> curriculum.mask(torch.tensor([-0.4, -0.2, 0.1]), step=0)
        tensor([False,  True,  True])

    Source: Scaling Multimodal Pre-Training via Cross-Modality Gradient Harmonization, arXiv:2211.02077.
    """

    def __init__(self, total: int, start: float = -0.3, end: float = 0.0) -> None:
        check_number("total", total, low=1, integer=True)
        check_number("start", start, low=-1.0, high=1.0)
        check_number("end", end, low=-1.0, high=1.0)
        self.total, self.start, self.end = total, start, end

    def threshold(self, step: int) -> float:
        """Of a step, 0 the first; that of the last step afterwards."""
        check_number("step", step, low=0, integer=True)
        share = min(step, self.total - 1) / max(1, self.total - 1)
        return self.start + (self.end - self.start) * share

    def mask(self, cosine: F[Tensor, " B"], step: int) -> Bool[Tensor, " B"]:
        """Which of the samples with these cosines count at a step."""
        check_tensor("cosine", cosine, ndim=1, floating=True)
        return cosine.clamp(-1.0, 1.0) >= self.threshold(step)


class CrossModalityGradientHarmonization(Arguments, nn.Module):
    r"""One gradient of a batch whose samples have two losses: filtered by conflict, realigned, averaged.

    .. math:: d = \frac{1}{|K|} \sum_{i \in K} g_{1,i}' + g_{2,i}', \qquad K = \{i : c_i \ge \gamma_t\}

    with the pairs of :func:`realign_gradients` and the threshold of :class:`GradientConflictCurriculum`. Where no
    sample is left the gradient is 0. ``steps`` counts calls while training and lies in ``state_dict``.

    Args:
        realign: whether pairs that conflict lose their parts along each other.
        curriculum: what is filtered before; None keeps every sample.

    Raises:
        ValueError: at a call, shapes that differ, or not a row a sample.

    Example:
        >>> harmonize = CrossModalityGradientHarmonization()
        >>> harmonize(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
        >>> harmonize.cosine
        tensor([-0.7071])

    Source: Scaling Multimodal Pre-Training via Cross-Modality Gradient Harmonization, arXiv:2211.02077.
    """

    steps: Tensor

    def __init__(self, realign: bool = True, curriculum: GradientConflictCurriculum | None = None) -> None:
        super().__init__()
        check_flag("realign", realign)
        self.realign, self.curriculum = realign, curriculum
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.cosine = torch.zeros(0)
        """Of the last call's samples; 0 where a gradient is 0."""

    @torch.no_grad()
    def forward(self, g1: F[Tensor, "B n"], g2: F[Tensor, "B n"]) -> F[Tensor, " n"]:
        """The batch's gradient, from the gradients of each sample's two losses."""
        first, second = _checked(g1, g2)
        if first.ndim != 2 or not len(first):
            refuse("g1", "a row for each sample, at least one", g1)
        self.cosine = (_unit(first)[0] * _unit(second)[0]).sum(1).clamp(-1.0, 1.0)
        if self.realign:
            first, second = realign_gradients(first, second)
        total = first + second
        if self.curriculum is None:
            direction = total.mean(0)
        else:
            counted = self.curriculum.mask(self.cosine, int(self.steps))
            direction = torch.where(counted.unsqueeze(1), total, 0.0).sum(0) / counted.sum().clamp_min(1)
        if self.training:
            self.steps += 1
        return direction.to(g1.dtype)

    def reset(self) -> None:
        """Back to the first step."""
        self.steps.zero_()
        self.cosine = torch.zeros(0)


def _checked(g1: Any, g2: Any) -> tuple[Tensor, Tensor]:
    check_tensor("g1", g1, ndim=(1, 2), floating=True)
    check_tensor("g2", g2, floating=True, shape=tuple(g1.shape))
    return widen(g1.detach()), widen(g2.detach())


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at length 1, and their lengths ``[..., 1]``; a row of zeros stays. No square under- or overflows."""
    top = rows.abs().amax(-1, keepdim=True) if rows.shape[-1] else rows.new_zeros((*rows.shape[:-1], 1))
    scaled = rows / torch.where(top == 0, 1.0, top)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(length == 0, 1.0, length), length * top
