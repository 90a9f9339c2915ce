"""Random views of images for training: flips and shifts, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.checks import check_choice, check_flag, check_number, check_tensor, refuse

PADDINGS = ("reflect", "zero")


class Augment(Protocol):
    """What the loop asks of an augmentation: inputs of the same shape, all randomness from the generator."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """A random view of ``inputs``."""


@dataclass(frozen=True)
class ImageAugment:
    """Random horizontal flips and shifts of images ``[..., H, W]`` with channels in the third last dimension.

    Each image is mirrored with probability 1/2 (``flip``), then moved by whole pixels drawn uniformly from
    ``-shift .. shift`` in each direction: ``out[c, i, j] = mirrored[c, i + dy, j + dx]``.

    Args:
        flip: whether images may be mirrored left to right.
        shift: largest shift in pixels, >= 0.
        padding: what comes in at the border: ``"reflect"`` (the image mirrored there, its edge not repeated) or
            ``"zero"`` (zeros, the mean of standardised images).

    >>> augment = ImageAugment(flip=True, shift=4)
    >>> augment(torch.zeros(8, 3, 32, 32), torch.Generator().manual_seed(0)).shape
    torch.Size([8, 3, 32, 32])
    >>> str(augment)
    'random flips, shifts by up to 4 pixels'
    """

    flip: bool = False
    shift: int = 0
    padding: str = "reflect"

    def __post_init__(self) -> None:
        check_flag("flip", self.flip)
        check_number("shift", self.shift, low=0, integer=True)
        check_choice("padding", self.padding, PADDINGS)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """A random view of every image.

        Args:
            inputs: ``[N, C, H, W]``, or with further leading dimensions; each image gets its own draw.
            generator: on the CPU, wherever the inputs are: the same draws on every device.

        Returns:
            A new tensor of the same shape, dtype, device and memory format.

        Raises:
            ValueError: for fewer than 4 dimensions, a shift that reaches beyond the image.
            TypeError: for inputs that are no tensor.
        """
        check_tensor("inputs", inputs)
        if inputs.ndim < 4:
            refuse("inputs", "[N, C, H, W]", inputs)
        *_, channels, height, width = inputs.shape
        if self.shift >= min(height, width):
            refuse("inputs", f"images larger than the shift of {self.shift} pixels", inputs)
        images = inputs.reshape(-1, channels, height, width)
        rows, columns = (self._sources(len(images), size, generator) for size in (height, width))
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
        rows, columns = rows.to(inputs.device), columns.to(inputs.device)
        outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None, :]
        places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        if images.is_contiguous(memory_format=torch.channels_last):
            # Pixels lie as rows of C numbers: one selection of rows moves all channels together
            flat = images.permute(0, 2, 3, 1).reshape(-1, channels)
            places = places + (torch.arange(len(images), device=inputs.device) * (height * width))[:, None, None]
            out = flat.index_select(0, places.flatten()).view(-1, height, width, channels).permute(0, 3, 1, 2)
        else:
            places = places.view(-1, 1, height * width).expand(-1, channels, -1)
            out = images.flatten(2).gather(2, places).view(images.shape)
        if self.shift and self.padding == "zero":
            out.masked_fill_(outside[:, None], 0)
        return out.reshape(inputs.shape)

    def _sources(self, images: int, size: int, generator: torch.Generator) -> Tensor:
        """Where each output row (or column) comes from ``[images, size]``; outside ``0 .. size - 1`` is padding."""
        places = torch.arange(size)
        if not self.shift:
            return places.expand(images, size)
        moved = places + torch.randint(-self.shift, self.shift + 1, (images, 1), generator=generator)
        if self.padding == "reflect":
            moved = (size - 1) - ((size - 1) - moved.abs()).abs()
        return moved

    def __str__(self) -> str:
        parts = ["random flips"] if self.flip else []
        if self.shift:
            plural = "" if self.shift == 1 else "s"
            parts.append(f"shifts by up to {self.shift} pixel{plural}" + (", zeros" if self.padding == "zero" else ""))
        return ", ".join(parts) or "none"


def image_augment(flip: bool = False, shift: int = 0, *, padding: str = "reflect") -> ImageAugment:
    """Random flips and shifts as one step; see :class:`ImageAugment`.

    >>> image_augment(flip=False, shift=2)
    ImageAugment(flip=False, shift=2, padding='reflect')
    """
    return ImageAugment(flip, shift, padding)


def default_augment(shape: Sequence[int]) -> ImageAugment:
    """The usual augmentation for images of a shape.

    Colour images: flips, and shifts by up to 1/8 of the shorter side (4 pixels of 32). Grey images: no flips, since a
    mirrored digit or letter is another one; shifts by up to 1/14 of the shorter side (2 pixels of 28).

    Args:
        shape: ``(C, H, W)``.

    Raises:
        ValueError: for anything but three positive sizes.

    >>> default_augment((3, 32, 32)), default_augment((1, 28, 28))
    (ImageAugment(flip=True, shift=4, padding='reflect'), ImageAugment(flip=False, shift=2, padding='reflect'))
    """
    if len(shape) != 3 or min(shape) < 1:
        refuse("shape", "three positive sizes (C, H, W)", tuple(shape))
    side = min(shape[1:])
    return ImageAugment(flip=True, shift=side // 8) if shape[0] > 1 else ImageAugment(flip=False, shift=side // 14)
