"""Weights of samples by their losses in the current batch: what is learned already counts less."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_interval, check_number, check_tensor
from ...core.gather import Shares
from ...core.loss import Loss, Sample
from ...core.reductions import widen

STRATEGIES = ("linupper", "upper", "quadratic", "extremes", "uniform")
FLOOR = 1e-6
"""Least range of losses that is divided by."""


def loss_reweight(
    losses: F[Tensor, " batch"],
    strategy: str = "linupper",
    temperature: float = 0.4,
    delta: float = 1.0,
    *,
    quantile: float = 1.0,
) -> F[Tensor, " batch"]:
    r"""Weights of the samples of a batch, a softmax of scores of their losses; constants for the gradient.

    .. math:: h_i = \delta \, \frac{2 l_i - l_{\max} - l_{\min}}{l_{\max} - l_{\min}}, \qquad
        w_i = \frac{e^{f(h_i) / r}}{\sum_j e^{f(h_j) / r}}

    with f(h) = min(h + delta, delta) for "linupper", (h + delta) / 2 for "upper", 1 - h^2 / delta^2 for "quadratic",
    \|h\| for "extremes" and 0 for "uniform". Weights maximise sum w f - r KL(w, uniform). "linupper" gives all samples
    above the middle of the range one weight, so that outliers are not raised over other hard samples.

    Losses that are a x + b for a > 0 have the weights of x, down to a range of 1e-6 of the losses. One outlier presses
    all others to h = -delta; ``quantile`` cuts it off first.

    Args:
        losses: l ``[B]``, of a sequence the mean over its tokens.
        strategy: one of the five.
        temperature: r > 0; a large one gives equal weights.
        delta: > 0.
        quantile: in (0, 1]: larger losses are set to that quantile of the batch for the weights.

    Returns:
        ``[B]`` in float32 or wider, a sum of 1; equal where all losses are.

    Raises:
        ValueError: another shape or strategy, a number out of range.

    Example:
        >>> loss_reweight(torch.tensor([1.0, 2.0, 3.0, 5.0]))
        tensor([0.0347, 0.1210, 0.4222, 0.4222])

    Source: Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining (ICLR 2025).
    """
    check_tensor("losses", losses, ndim=1, floating=True)
    check_choice("strategy", strategy, STRATEGIES)
    check_number("temperature", temperature, low=0.0, open_low=True)
    check_number("delta", delta, low=0.0, open_low=True)
    check_number("quantile", quantile, low=0.0, high=1.0, open_low=True)
    rows = widen(losses.detach())
    if not len(rows):
        return rows
    if quantile < 1.0:
        rows = torch.minimum(rows, rows.quantile(quantile))
    least, greatest = rows.min(), rows.max()
    h = delta * ((rows - greatest) + (rows - least)) / (greatest - least).clamp_min(FLOOR)
    if strategy == "linupper":
        scores = (h + delta).clamp_max(delta)
    elif strategy == "upper":
        scores = (h + delta) / 2
    elif strategy == "quadratic":
        scores = 1 - (h / delta).square()
    elif strategy == "extremes":
        scores = h.abs()
    else:
        scores = 0 * h  # a loss that is NaN makes all weights so
    return (scores / temperature).softmax(0)


class DynamicLossReweighter(Loss):
    r"""The weighted sum of a batch's losses, by :func:`loss_reweight` of these losses.

    .. math:: L = \sum_i w_i l_i, \qquad \text{with lengths } n: \; L = B \sum_i w_i \frac{n_i}{\sum_j n_j} l_i

    Until the step ``warmup`` it is the mean (with lengths the mean over tokens). Weights depend on who else is in the
    batch: ``group`` takes the losses of all ranks; each rank then gives the whole value, and gradients that
    ``DistributedDataParallel`` averages to those of one process.

    Args:
        strategy, temperature, delta, quantile: see :func:`loss_reweight`.
        warmup: steps without weights, >= 0.
        group: a process group, whose ranks call the loss together; None is this process alone.

    Example:
        >>> reweight = DynamicLossReweighter(warmup=0)
        >>> reweight(torch.tensor([1.0, 2.0, 3.0, 5.0]), 0)
        tensor(3.6541)

    Source: Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining (ICLR 2025).
    """

    name = "dynamic_reweighting"
    gradient = "surrogate"  # weights are constants

    def __init__(
        self,
        strategy: str = "linupper",
        temperature: float = 0.4,
        warmup: int = 1000,
        *,
        delta: float = 1.0,
        quantile: float = 1.0,
        group: Any = None,
    ) -> None:
        super().__init__()
        check_choice("strategy", strategy, STRATEGIES)
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_number("warmup", warmup, low=0, integer=True)
        check_number("delta", delta, low=0.0, open_low=True)
        check_number("quantile", quantile, low=0.0, high=1.0, open_low=True)
        self.strategy, self.temperature, self.warmup = strategy, temperature, warmup
        self.delta, self.quantile, self.group = delta, quantile, group

    def forward(
        self, losses: F[Tensor, " batch"], step: int, *, lengths: I[Tensor, " batch"] | None = None
    ) -> F[Tensor, ""]:
        """The weighted loss, 0 with a graph where there is no sample.

        Args:
            losses: one a sample ``[B]``.
            step: from 0 on.
            lengths: tokens of each sample >= 0, where the losses are means over tokens.
        """
        check_tensor("losses", losses, ndim=1, floating=True)
        check_number("step", step, low=0, integer=True)
        if lengths is not None:
            check_tensor("lengths", lengths, floating=False, shape=tuple(losses.shape))
            check_interval("lengths", lengths, 0)
        rows = widen(losses)
        if self.group is not None:
            shares = Shares.of(len(rows), self.group)
            rows = shares.gather(rows)
            lengths = None if lengths is None else shares.joined(lengths)
        if step < self.warmup:
            weights = torch.full_like(rows.detach(), 1 / max(len(rows), 1))
        else:
            weights = loss_reweight(rows, self.strategy, self.temperature, self.delta, quantile=self.quantile)
        if lengths is not None:
            weights = weights * lengths * (len(rows) / lengths.sum().clamp_min(1))
        return (weights * rows).sum()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The defaults after the warm-up, another strategy with lengths, and during the warm-up."""
        losses = torch.rand(6, generator=generator, dtype=torch.float64).mul(3).to(device, dtype)
        lengths = torch.tensor([3, 1, 4, 1, 5, 9]).to(device)
        return [
            (cls(), ((losses, 1000), {})),
            (cls("quadratic", 1.0, 0, delta=2.0, quantile=0.8), ((losses, 0), {"lengths": lengths})),
            (cls(), ((losses, 999), {})),
        ]
