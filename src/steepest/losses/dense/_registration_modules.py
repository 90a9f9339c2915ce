"""The terms of image registration as losses."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ...core.checks import check_number
from ...core.loss import Loss, Sample
from ._registration_losses import (
    generalized_dice_loss,
    hausdorff_erosion_loss,
    ncc_loss,
    smoothness_loss,
    ssim_loss,
)

SIZES = ((6, 5), (5, 6, 7))
"""Flat and solid images of the samples."""


def _draw(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)


class NCCLoss(Loss):
    """One minus the correlation of two images; see :func:`ncc_loss`.

    Example:
        >>> image = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> NCCLoss()(3 - 2 * image, image)
        tensor(2.)
    """

    name = "ncc"
    differentiable = (0, 1)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """The loss of warped and fixed images ``[B, C, H, W]`` or ``[B, C, H, W, D]``."""
        return ncc_loss(warped, fixed)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Flat and solid images."""
        pairs = [[_draw(generator, (2, 2, *size), dtype, device) for _ in range(2)] for size in SIZES]
        return [(cls(), (tuple(pair), {})) for pair in pairs]


class SSIMLoss(Loss):
    """Structural dissimilarity of two images; see :func:`ssim_loss`.

    Args:
        window: side of a window, >= 1.
        data_range: span of intensities, > 0.
        k1, k2: stabilisers, > 0.

    Example:
        >>> image = torch.linspace(0, 1, 36).view(1, 1, 6, 6)
        >>> SSIMLoss(window=3)(image, image)
        tensor(0.)
    """

    name = "ssim"
    differentiable = (0, 1)

    def __init__(self, window: int = 5, data_range: float = 1.0, *, k1: float = 0.01, k2: float = 0.03) -> None:
        super().__init__()
        check_number("window", window, low=1, integer=True)
        for name, value in (("data_range", data_range), ("k1", k1), ("k2", k2)):
            check_number(name, value, low=0.0, open_low=True)
        self.window, self.data_range, self.k1, self.k2 = window, float(data_range), float(k1), float(k2)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """The loss of warped and fixed images ``[B, C, H, W]`` or ``[B, C, H, W, D]``."""
        return ssim_loss(warped, fixed, window=self.window, data_range=self.data_range, k1=self.k1, k2=self.k2)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Flat and solid images, two windows."""
        pairs = [[_draw(generator, (2, 2, *size), dtype, device) for _ in range(2)] for size in SIZES]
        losses = (cls(), cls(3, 2.0, k1=0.05, k2=0.1))
        return [(loss, (tuple(pair), {})) for loss, pair in zip(losses, pairs)]


class GeneralizedDiceLoss(Loss):
    """Overlap of soft label maps, rare labels weighing more; see :func:`generalized_dice_loss`.

    Args:
        eps: added above and below, >= 0.

    Example:
        >>> maps = torch.eye(2).view(1, 2, 2, 1)
        >>> GeneralizedDiceLoss()(maps, maps), GeneralizedDiceLoss()(1 - maps, maps)
        (tensor(0.), tensor(1.0000))
    """

    name = "generalized_dice"

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        check_number("eps", eps, low=0.0)
        self.eps = float(eps)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of maps in [0, 1] and labels in {0, 1}, ``[B, L, H, W]`` or ``[B, L, H, W, D]``."""
        return generalized_dice_loss(outputs, target, eps=self.eps)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Flat and solid maps; one label is nowhere."""
        return [(cls(eps), case) for eps, case in zip((1e-6, 1.0), _label_cases(generator, dtype, device))]


class HausdorffErosionLoss(Loss):
    """Thickness of the regions where label maps disagree; see :func:`hausdorff_erosion_loss`.

    Args:
        erosions: how often the disagreement is eroded, >= 1.

    Example:
        >>> maps = torch.ones(1, 1, 5, 5)
        >>> HausdorffErosionLoss()(maps, maps)
        tensor(0.)
    """

    name = "hausdorff_erosion"
    gradient = "surrogate"

    def __init__(self, erosions: int = 10) -> None:
        super().__init__()
        check_number("erosions", erosions, low=1, integer=True)
        self.erosions = erosions

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of maps in [0, 1] and labels in {0, 1}, ``[B, L, H, W]`` or ``[B, L, H, W, D]``."""
        return hausdorff_erosion_loss(outputs, target, erosions=self.erosions)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Flat and solid maps."""
        return [(cls(count), case) for count, case in zip((10, 2), _label_cases(generator, dtype, device))]


class SmoothnessLoss(Loss):
    """Mean squared forward difference of a displacement; see :func:`smoothness_loss`.

    Example:
        >>> SmoothnessLoss()(torch.arange(4.0).expand(1, 2, 4, 4))
        tensor(0.5000)
    """

    name = "displacement_smoothness"

    def forward(self, displacement: Tensor) -> Tensor:
        """The roughness of a displacement ``[B, 2, H, W]`` or ``[B, 3, H, W, D]``."""
        return smoothness_loss(displacement)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Flat and solid displacements."""
        return [(cls(), ((_draw(generator, (2, len(size), *size), dtype, device),), {})) for size in SIZES]


def _label_cases(generator: torch.Generator, dtype: torch.dtype, device: str | torch.device) -> list[Sample]:
    """Maps well inside (0, 1), and labels of which one is nowhere."""
    cases: list[Sample] = []
    for size in SIZES:
        maps = 0.1 + 0.8 * torch.rand((2, 3, *size), generator=generator, dtype=torch.float64)
        labels = torch.rand((2, 3, *size), generator=generator) < 0.4
        labels[1, 2] = False
        cases.append(((maps.to(device, dtype), labels.to(device, dtype)), {}))
    return cases
