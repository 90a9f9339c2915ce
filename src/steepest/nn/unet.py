"""A small U-Net for dense prediction on small images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.checks import check_number, check_tensor
from .convnet import group_norm


class UNet(nn.Module):
    """Encoder and decoder with a skip at each resolution: ``[B, in_channels, H, W] -> [B, out_channels, H, W]``.

    Level ``i`` of ``depth`` has ``width 2^i`` channels: two 3 x 3 convolutions with group normalisation and rectified
    units, a 2 x 2 max-pool on the way down, bilinear enlargement to the skip's size on the way up (so any height and
    width of at least ``2^(depth - 1)`` will do), and a 1 x 1 convolution at the end.

    Args:
        in_channels: of the images, >= 1.
        out_channels: of the maps, >= 1.
        width: channels at full resolution, >= 1.
        depth: resolutions, >= 1.

    Raises:
        ValueError: for sizes below 1, and inputs with another number of channels or fewer pixels than the depth needs.
        TypeError: for sizes that are no integers, and inputs that are no floating tensor.

    >>> UNet(1, 2, width=4)(torch.zeros(2, 1, 31, 32)).shape
    torch.Size([2, 2, 31, 32])

    Source: U-Net: Convolutional Networks for Biomedical Image Segmentation, arXiv 1505.04597.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        for name, value in {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "width": width,
            "depth": depth,
        }.items():
            check_number(name, value, low=1, integer=True)
        self.in_channels = in_channels
        channels = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise([in_channels, *channels]))
        self.up = nn.ModuleList(_block(a + b, b) for b, a in reversed(list(pairwise(channels))))
        self.last = nn.Conv2d(width, out_channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[B, out_channels, H, W]`` of images ``[B, in_channels, H, W]``."""
        check_tensor("inputs", inputs, floating=True, shape=(None, self.in_channels, None, None))
        need = 2 ** (len(self.down) - 1)
        if min(inputs.shape[2:]) < need:
            raise ValueError(f"inputs must have at least {need} x {need} pixels, got {tuple(inputs.shape[2:])}")
        x, skips = inputs, []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for skip, block in zip(skips[-2::-1], self.up):
            wide = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([wide, skip], 1))
        maps: Tensor = self.last(x)
        return maps


def _block(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        group_norm(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        group_norm(channels),
        nn.ReLU(),
    )
