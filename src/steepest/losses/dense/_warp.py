"""Images warped by a displacement of their cells, and where such a displacement folds."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_tensor, refuse
from ...core.reductions import widen
from ._registration_losses import check_displacement

MODES = ("linear", "nearest")
PADDING = ("border", "zeros")


def spatial_transform(
    moving: F[Tensor, "batch channels *space"],
    displacement: F[Tensor, "batch axes *space"],
    *,
    mode: str = "linear",
    padding: str = "border",
) -> F[Tensor, "batch channels *space"]:
    r"""The image whose cell x holds what the moving image has at x + u(x).

    .. math:: W(x) = M\bigl(x + u(x)\bigr)

    A displacement of whole cells copies them bit for bit; a displacement of 0 gives the image back. Linear
    interpolation is differentiable in image and displacement (not in the latter where it is a whole number of cells).

    Args:
        moving: M, ``[B, C, H, W]`` or ``[B, C, H, W, D]``.
        displacement: u in cells, component a along axis a, ``[B, 2, H, W]`` or ``[B, 3, H, W, D]``.
        mode: ``"linear"``, or ``"nearest"`` for labels (no gradient in the displacement).
        padding: what lies outside: ``"border"``, the nearest cell, or ``"zeros"``.

    Returns:
        W of the shape of M, in float32 or wider.

    Raises:
        ValueError: shapes that don't fit together, an unknown mode or padding.
        TypeError: not floating tensors.

    Example:
        >>> image = torch.tensor([[1.0, 2.0, 4.0]]).view(1, 1, 1, 3)
        >>> right = torch.zeros(1, 2, 1, 3)
        >>> right[:, 1] = 0.5
        >>> spatial_transform(image, right).flatten()
        tensor([1.5000, 3.0000, 4.0000])

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110; Spatial Transformer Networks, arXiv:1506.02025.
    """
    check_choice("mode", mode, MODES)
    check_choice("padding", padding, PADDING)
    check_tensor("moving", moving, ndim=(4, 5), floating=True)
    check_displacement(displacement)
    if displacement.shape[2:] != moving.shape[2:] or displacement.shape[0] != moving.shape[0]:
        refuse("displacement", f"a field over {tuple(moving.shape[2:])} cells for each image", displacement)
    m, u = widen(moving), widen(displacement)
    space = m.shape[2:]
    if not m.numel():
        return m
    where = [u[:, axis] + _line(size, axis, u) for axis, size in enumerate(space)]
    if padding == "border":
        where = [place.clamp(0, size - 1) for place, size in zip(where, space)]
    if mode == "nearest":
        return _pick(m, [place.round() for place in where])
    below = [place.detach().floor() for place in where]
    share = [place - low for place, low in zip(where, below)]
    warped = torch.zeros_like(m)
    for corner in product((0, 1), repeat=len(space)):
        weight = torch.ones((), dtype=u.dtype, device=u.device)
        for step, fraction in zip(corner, share):
            weight = weight * (fraction if step else 1 - fraction)
        warped = warped + weight.unsqueeze(1) * _pick(m, [low + step for low, step in zip(below, corner)])
    return warped


class SpatialTransformer(nn.Module):
    """Warping as a layer; see :func:`spatial_transform`.

    Args:
        mode: ``"linear"`` or ``"nearest"``.
        padding: ``"border"`` or ``"zeros"``.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 2, 2)
        >>> SpatialTransformer()(image, torch.ones(1, 2, 2, 2)).flatten()
        tensor([3., 3., 3., 3.])
    """

    def __init__(self, mode: str = "linear", padding: str = "border") -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_choice("padding", padding, PADDING)
        self.mode, self.padding = mode, padding

    def forward(self, moving: Tensor, displacement: Tensor) -> Tensor:
        """The moving image ``[B, C, H, W(, D)]`` warped by a displacement ``[B, 2 or 3, H, W(, D)]``."""
        return spatial_transform(moving, displacement, mode=self.mode, padding=self.padding)


def folding_rate(displacement: F[Tensor, "batch axes *space"]) -> F[Tensor, " batch"]:
    r"""Share of cells where x + u(x) turns space inside out: a Jacobian determinant of 0 or less.

    .. math:: \operatorname{mean}_x\, \bigl[\det(I + \nabla u(x)) \le 0\bigr]

    with forward differences, so the last cell of each axis has none.

    Args:
        displacement: u in cells, ``[B, 2, H, W]`` or ``[B, 3, H, W, D]``.

    Returns:
        ``[B]`` in [0, 1], in float32 or wider.

    Raises:
        ValueError: another shape, an axis of fewer than 2 cells.
        TypeError: not a floating tensor.

    Example:
        >>> mirror = -2 * torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 5)
        >>> folding_rate(torch.cat([mirror, torch.zeros(1, 1, 5, 5)], 1))
        tensor([1.])

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110.
    """
    check_displacement(displacement)
    if min(displacement.shape[2:]) < 2:
        refuse("displacement", "at least 2 cells along each axis", displacement)
    u = widen(displacement)
    axes = u.ndim - 2
    inner = (slice(None), slice(None), *[slice(0, size - 1) for size in u.shape[2:]])
    slopes = [u.diff(dim=2 + a, append=u.narrow(2 + a, u.shape[2 + a] - 1, 1))[inner] for a in range(axes)]
    jacobian = torch.stack(slopes, -1).movedim(1, -2) + torch.eye(axes, dtype=u.dtype, device=u.device)
    folded: Tensor = torch.linalg.det(jacobian) <= 0
    return folded.to(u.dtype).flatten(1).mean(1)


def _line(size: int, axis: int, like: Tensor) -> Tensor:
    """Places 0..size - 1 along an axis, ready to be added to ``[B, *space]``."""
    shape = [1] * (like.ndim - 1)
    shape[1 + axis] = size
    return torch.arange(size, dtype=like.dtype, device=like.device).view(shape)


def _pick(image: Tensor, places: list[Tensor]) -> Tensor:
    """Cells at whole places ``[B, *space]`` each axis, 0 where a place lies outside: ``[B, C, *space]``."""
    space = image.shape[2:]
    flat = torch.zeros_like(places[0], dtype=torch.long)
    inside = torch.ones_like(places[0], dtype=torch.bool)
    for place, size in zip(places, space):
        inside = inside & (place >= 0) & (place <= size - 1)
        # a NaN becomes cell 0 here, and stays NaN through its weight
        flat = flat * size + place.nan_to_num().clamp(0, size - 1).long()
    index = flat.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
    picked = image.flatten(2).gather(2, index).view_as(image)
    return torch.where(inside.unsqueeze(1), picked, 0.0)
