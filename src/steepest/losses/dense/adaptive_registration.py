"""Trainable weights of loss terms for image registration, and the terms, warps and pairs that it is trained with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor, refuse, refuse_type
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms
from ._registration_augmentation import RegistrationAugmentation, RegistrationPair, thin_plate_spline
from ._registration_losses import (
    generalized_dice_loss,
    hausdorff_erosion_loss,
    ncc_loss,
    smoothness_loss,
    ssim_loss,
)
from ._registration_modules import GeneralizedDiceLoss, HausdorffErosionLoss, NCCLoss, SmoothnessLoss, SSIMLoss
from ._warp import SpatialTransformer, folding_rate, spatial_transform

__all__ = [
    "AdaptiveLossWeights",
    "GeneralizedDiceLoss",
    "HausdorffErosionLoss",
    "NCCLoss",
    "RegistrationAugmentation",
    "RegistrationPair",
    "SSIMLoss",
    "SmoothnessLoss",
    "SpatialTransformer",
    "folding_rate",
    "generalized_dice_loss",
    "hausdorff_erosion_loss",
    "ncc_loss",
    "smoothness_loss",
    "spatial_transform",
    "ssim_loss",
    "thin_plate_spline",
]


class AdaptiveLossWeights(Loss):
    r"""Loss terms under trainable weights that sum to 1, and regularisers under weights of their own.

    .. math:: L = \sum_i w_i L_i + \sum_j \omega_j R_j, \qquad w = \operatorname{softmax}(v), \qquad
        \omega = \begin{cases} e^{r} & \text{one regulariser} \\ \operatorname{softmax}(r) & \text{several} \end{cases}

    v and r are parameters: give them to the optimizer with those of the network. The slope in v_i is
    :math:`w_i (L_i - \sum_k w_k L_k)`, so weight moves to the smallest term, without end, and a single regulariser's
    weight only falls. ``floor`` bounds the weights of the terms from below; ``requires_grad_(False)`` freezes all of
    them; ``terms`` holds terms and weights after each call. (It isn't the weighting by log-variances.)

    With ``rolling`` each term is divided by its mean over the last epoch, the reference term excepted; the loop calls
    ``start_epoch``.

    Args:
        n_terms: terms of image and segmentation, >= 1.
        n_regs: regularisers, >= 0.
        prior: n_terms starting weights > 0, scaled to sum 1; None for equal ones.
        prior_reg: starting weight of a single regulariser, > 0. Several start at equal weights, of sum 1.
        floor: the least weight of a term, in [0, 1/n_terms): w = floor + (1 - n_terms floor) softmax(v).
        rolling: whether terms are divided by their means.
        reference: the term that is not.

    Example:
        >>> weighting = AdaptiveLossWeights(3, prior=[1, 1, 2])
        >>> weighting([torch.tensor(0.5), torch.tensor(0.2), torch.tensor(0.1)], [torch.tensor(0.3)]).detach()
        tensor(0.2265)
        >>> weighting.weights()
        tensor([0.2500, 0.2500, 0.5000])

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110.
    """

    name = "adaptive_loss_weights"
    differentiable = (0, 1)
    stateful = True
    scale: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self,
        n_terms: int,
        n_regs: int = 1,
        prior: Sequence[float] | None = None,
        prior_reg: float = 5e-3,
        *,
        floor: float = 0.0,
        rolling: bool = False,
        reference: int = 0,
    ) -> None:
        super().__init__()
        check_number("n_terms", n_terms, low=1, integer=True)
        check_number("n_regs", n_regs, low=0, integer=True)
        check_number("prior_reg", prior_reg, low=0.0, open_low=True)
        check_number("floor", floor, low=0.0, high=1 / n_terms, open_high=True)
        check_number("reference", reference, low=0, high=n_terms - 1, integer=True)
        start = [1.0] * n_terms if prior is None else list(prior)
        if len(start) != n_terms:
            refuse("prior", f"{n_terms} numbers", start)
        for value in start:
            check_number("prior", value, low=0.0, open_low=True)
        self.n_terms, self.n_regs, self.floor = n_terms, n_regs, float(floor)
        self.rolling, self.reference = bool(rolling), reference
        self.v = nn.Parameter(torch.tensor([math.log(value) for value in start]))
        self.r = nn.Parameter(torch.full((n_regs,), math.log(prior_reg)))
        self.register_buffer("scale", torch.ones(n_terms))
        self.register_buffer("total", torch.zeros(n_terms))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, terms: Sequence[Tensor] | Tensor, regs: Sequence[Tensor] | Tensor = ()) -> Tensor:
        """The weighted sum of n_terms scalars and n_regs scalars, or of ``[n_terms]`` and ``[n_regs]``.

        Raises:
            ValueError: another number of terms or regularisers, ones that are not scalars.
            TypeError: ones that are no floating tensors.
        """
        values = _stacked("terms", terms, self.n_terms)
        rough = _stacked("regs", regs, self.n_regs)
        w, omega = (weight.to(values.dtype) for weight in self._weights())
        scaled = values * self.scale.to(values.dtype) if self.rolling else values
        if self.rolling and self.training:
            with torch.no_grad():
                self.total += values.detach().to(self.total.dtype)
                self.count += 1
        named = {f"term_{i}": value for i, value in enumerate(scaled)}
        named |= {f"weight_{i}": weight for i, weight in enumerate(w)}
        named |= {f"reg_{j}": value for j, value in enumerate(rough)}
        named |= {f"reg_weight_{j}": weight for j, weight in enumerate(omega)}
        self.terms = kept_terms(named)
        loss = (w * scaled).sum()
        return loss + (omega * rough.to(loss.dtype)).sum() if self.n_regs else loss

    def weights(self) -> Tensor:
        """The weights of the terms, ``[n_terms]``, detached."""
        return self._weights()[0].detach()

    def reg_weights(self) -> Tensor:
        """The weights of the regularisers, ``[n_regs]``, detached."""
        return self._weights()[1].detach()

    @torch.no_grad()
    def start_epoch(self, epoch: int, epochs: int) -> None:
        """With ``rolling``: the terms' means of the epoch that has ended become their scales."""
        if self.rolling and self.training and int(self.count):
            self.scale.copy_(self.count / self.total.clamp_min(torch.finfo(self.total.dtype).tiny))
            self.scale[self.reference] = 1.0
            self.total.zero_()
            self.count.zero_()

    def _weights(self) -> tuple[Tensor, Tensor]:
        w = torch.softmax(self.v, 0)
        if self.floor:
            w = self.floor + (1 - self.n_terms * self.floor) * w
        return w, (self.r.exp() if self.n_regs == 1 else torch.softmax(self.r, 0))

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Terms as lists and as tensors; no, one and several regularisers; a floor; means of an epoch."""
        terms, regs = (torch.rand(3, generator=generator).to(device, dtype) for _ in range(2))
        rolling = cls(3, 2, rolling=True).to(device)
        rolling([torch.tensor(value, device=device) for value in (0.5, 2.0, 0.25)], regs[:2])
        rolling.start_epoch(2, 3)
        return [
            (cls(3, prior=(1, 1, 2)).to(device), (([*terms], [regs[0]]), {})),
            (cls(3, 0).to(device), ((terms,), {})),
            (cls(3, 3, floor=0.1).to(device), ((terms, regs), {})),
            (rolling, ((terms, regs[:2]), {})),
        ]


def _stacked(argument: str, values: Sequence[Tensor] | Tensor, count: int) -> Tensor:
    """``[count]`` in float32 or wider."""
    if not isinstance(values, (Tensor, list, tuple)):
        refuse_type(argument, "a list of scalar tensors, or a tensor", values)
    if isinstance(values, Tensor):
        check_tensor(argument, values, floating=True, shape=(count,))
        return widen(values)
    if len(values) != count:
        refuse(argument, f"{count} scalar tensors", list(values))
    for value in values:
        check_tensor(argument, value, floating=True, shape=())
    return torch.stack([widen(value) for value in values]) if count else torch.zeros(0)
