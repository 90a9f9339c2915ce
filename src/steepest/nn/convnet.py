"""A small residual convolutional network for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.checks import check_number, check_tensor

GROUPS = 8


class ConvBlock(nn.Module):
    """``relu(pool(project(x)) + norm(conv(relu(norm(conv(x))))))``, halving height and width (rounded up).

    Args:
        in_channels: of the inputs.
        channels: of the outputs.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
            group_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            group_norm(channels),
        )
        # Pooled first: a quarter of the multiply-adds
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(in_channels, channels, 1, bias=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, in_channels, H, W] -> [B, channels, ceil(H / 2), ceil(W / 2)]``."""
        outputs: Tensor = torch.relu(self.shortcut(inputs) + self.body(inputs))
        return outputs


class ConvNet(nn.Module):
    """What :func:`small_resnet` gives.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        width: the blocks have 2 and 4 ``width`` channels.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.in_channels, self.out_features = in_channels, 4 * width
        # The one layer at full resolution is kept narrow
        narrow = max(2 * width // 3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, narrow, 3, padding=1, bias=False),
            # Before the norm, which then has a quarter of the numbers to go over
            nn.MaxPool2d(2, ceil_mode=True),
            group_norm(narrow),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(ConvBlock(narrow, 2 * width), ConvBlock(2 * width, 4 * width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[B, 4 width]`` of images ``[B, in_channels, H, W]``."""
        check_tensor("inputs", inputs, floating=True, shape=(None, self.in_channels, None, None))
        # Convolutions of few channels run faster on the CPU with the channels of a pixel side by side
        features: Tensor = self.blocks(self.stem(inputs.contiguous(memory_format=torch.channels_last)))
        return features.mean(dim=(2, 3))


def small_resnet(in_channels: int, *, width: int | None = None) -> ConvNet:
    """A residual network for images of about 28 x 28 or 32 x 32 pixels: ``[B, C, H, W] -> [B, 4 width]``.

    A 3 x 3 convolution to 2/3 ``width`` channels and a max-pool, residual blocks of two 3 x 3 convolutions to 2 and
    4 ``width`` channels that halve the image each, group normalisation (so an image's features do not depend on its
    batch), rectified units, the mean over all places. With ``width`` 24: 158 thousand parameters, 4.3 million
    multiply-adds forward for a 32 x 32 x 3 image.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        width: a quarter of the features, >= 1; None is 24 for colour and 16 for grey.

    Returns:
        The network; ``out_features`` is the number of its features.

    Raises:
        ValueError: for sizes below 1, and inputs with another number of channels.
        TypeError: for sizes that are no integers, and inputs that are no floating tensor.

    >>> small_resnet(3)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 96])

    Source: Deep Residual Learning for Image Recognition, arXiv 1512.03385; Group Normalization, arXiv 1803.08494.
    """
    check_number("in_channels", in_channels, low=1, integer=True)
    width = (16 if in_channels == 1 else 24) if width is None else width
    check_number("width", width, low=1, integer=True)
    return ConvNet(in_channels, width)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in 8 groups, or the most groups below that divide the channels."""
    return nn.GroupNorm(max(g for g in range(1, GROUPS + 1) if channels % g == 0), channels)
