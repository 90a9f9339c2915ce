"""Pairs of images to register, made from one image by a known random deformation."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.reductions import widen
from ._warp import PADDING, spatial_transform


def thin_plate_spline(
    control: F[Tensor, "*batch points axes"],
    values: F[Tensor, "*batch points outputs"],
    places: F[Tensor, "*batch places axes"],
) -> F[Tensor, "*batch places outputs"]:
    r"""The interpolant of scattered values that bends least; straight where the values are.

    .. math:: f(x) = a + B x + \sum_i c_i\, U(\|x - x_i\|), \qquad f(x_i) = v_i, \qquad \sum_i c_i = 0,
        \; \sum_i c_i x_i = 0

    with :math:`U(r) = r^2 \log r` in two dimensions and r in three.

    Args:
        control: places with known values, ``[..., N, 2]`` or ``[..., N, 3]``: different ones, not all on a line
            (a plane).
        values: ``[..., N, M]``.
        places: where values are wanted, ``[..., P, 2]`` or ``[..., P, 3]``.

    Returns:
        ``[..., P, M]``, computed in float64, in the type of ``values`` or float32.

    Raises:
        ValueError: shapes that don't fit together.
        TypeError: not floating tensors.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> thin_plate_spline(corners, corners.sum(1, keepdim=True), torch.tensor([[0.5, 0.25]]))
        tensor([[0.7500]])

    Source: Principal warps: thin-plate splines and the decomposition of deformations, 1989.
    """
    for name, value in (("control", control), ("values", values), ("places", places)):
        check_tensor(name, value, floating=True)
        if value.ndim < 2:
            refuse(name, "two dimensions or more", value)
    axes = control.shape[-1]
    if axes not in (2, 3):
        refuse("control", "2 or 3 coordinates", control)
    if values.shape[:-1] != control.shape[:-1]:
        refuse("values", f"values of {control.shape[-2]} points, as control", values)
    if places.shape[-1] != axes or places.shape[:-2] != control.shape[:-2]:
        refuse("places", f"{axes} coordinates, and the batch of control", places)
    known, wanted = control.double(), places.double()
    side = _lifted(known, known, axes)
    corner = side.new_zeros(*side.shape[:-2], axes + 1, axes + 1)
    below = torch.cat([side[..., -axes - 1 :].mT, corner], -1)
    right = torch.cat([values.double(), corner[..., :1].expand(*corner.shape[:-1], values.shape[-1])], -2)
    coefficients = torch.linalg.solve(torch.cat([side, below], -2), right)
    values_there: Tensor = _lifted(wanted, known, axes) @ coefficients
    return values_there.to(widen(values).dtype)


def _lifted(places: Tensor, control: Tensor, axes: int) -> Tensor:
    """Radial functions about the control points, 1 and the coordinates, for each place."""
    square = (places.unsqueeze(-2) - control.unsqueeze(-3)).square().sum(-1)
    radial = 0.5 * torch.xlogy(square, square) if axes == 2 else square.sqrt()
    return torch.cat([radial, torch.ones_like(places[..., :1]), places], -1)


class RegistrationPair(NamedTuple):
    """A fixed and a moving image of one object, and how they are related.

    Args:
        fixed, moving: images ``[B, C, *space]``.
        fixed_labels, moving_labels: their label maps ``[B, L, *space]``, or None.
        displacement: u in cells, ``[B, axes, *space]``; the moving image at x is the fixed one at x + u(x).
    """

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor | None
    moving_labels: Tensor | None
    displacement: Tensor


class RegistrationAugmentation(nn.Module):
    r"""Random pairs for registration: flip, rotation, translation and a thin-plate-spline deformation.

    .. math:: u(x) = R\bigl(x + s(x) - c\bigr) + c + t - x

    The flips (each axis with probability ``flip``) make a new object, fixed and moving alike: a mirror image is out of
    reach of a deformation. R rotates about the centre c by an angle of up to ``max_rotation`` in a random plane, t has
    components of up to ``max_translation``. The spline s is 0 at ``grid`` points an axis that span the image, and moves
    ``points`` random places by up to ``max_deformation`` along each axis; they are drawn where the image is above 0, if
    it is in so many cells. All draws are uniform. Images are interpolated linearly, labels take the nearest cell's.

    Args:
        max_rotation: degrees, in [0, 180].
        max_translation: cells, >= 0.
        max_deformation: cells, >= 0.
        points: places that are moved, >= 0.
        grid: points of each axis that are held, >= 2.
        flip: probability, in [0, 1].
        padding: what lies outside, ``"border"`` or ``"zeros"``.

    Example:
        >>> image = torch.rand(2, 1, 16, 16)
        >>> pair = RegistrationAugmentation()(image, (image > 0.5).float())
        >>> pair.moving.shape, pair.moving_labels.unique(), pair.displacement.shape
        (torch.Size([2, 1, 16, 16]), tensor([0., 1.]), torch.Size([2, 2, 16, 16]))

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110.
    """

    def __init__(
        self,
        max_rotation: float = 10.0,
        max_translation: float = 2.0,
        max_deformation: float = 2.0,
        *,
        points: int = 10,
        grid: int = 4,
        flip: float = 0.5,
        padding: str = "border",
    ) -> None:
        super().__init__()
        check_number("max_rotation", max_rotation, low=0.0, high=180.0)
        check_number("max_translation", max_translation, low=0.0)
        check_number("max_deformation", max_deformation, low=0.0)
        check_number("points", points, low=0, integer=True)
        check_number("grid", grid, low=2, integer=True)
        check_number("flip", flip, low=0.0, high=1.0)
        check_choice("padding", padding, PADDING)
        self.max_rotation, self.max_translation = float(max_rotation), float(max_translation)
        self.max_deformation, self.points, self.grid = float(max_deformation), points, grid
        self.flip, self.padding = float(flip), padding

    @torch.no_grad()
    def forward(
        self, image: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> RegistrationPair:
        """A pair for each image of a batch.

        Args:
            image: ``[B, C, H, W]`` or ``[B, C, H, W, D]``.
            labels: floating label maps ``[B, L, *space]``, or None.
            generator: of the draws, on the CPU; None is torch's own.

        Raises:
            ValueError: shapes that don't fit together, more points than cells.
            TypeError: not floating tensors.
        """
        check_tensor("image", image, ndim=(4, 5), floating=True)
        space = tuple(image.shape[2:])
        if labels is not None:
            check_tensor("labels", labels, floating=True, shape=(image.shape[0], None, *space))
        if self.points > math.prod(space):
            refuse("image", f"at least {self.points} cells, the points that are moved", image)
        mirrored = torch.rand(image.shape[0], len(space), generator=generator) < self.flip
        fixed = _flipped(widen(image), mirrored)
        fixed_labels = None if labels is None else _flipped(widen(labels), mirrored)
        u = self.displacement(fixed, generator=generator)
        moving = spatial_transform(fixed, u, padding=self.padding)
        if fixed_labels is None:
            return RegistrationPair(fixed, moving, None, None, u)
        moved = spatial_transform(fixed_labels, u, mode="nearest", padding=self.padding)
        return RegistrationPair(fixed, moving, fixed_labels, moved, u)

    def displacement(self, image: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A random field ``[B, axes, *space]`` for each image ``[B, C, *space]``, without flips."""
        batch, space = image.shape[0], tuple(image.shape[2:])
        axes = len(space)
        cells = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in space])
        bent = cells + self._spline(image, cells, generator)
        angle = math.radians(self.max_rotation) * (2 * torch.rand(batch, generator=generator, dtype=torch.float64) - 1)
        planes = torch.tensor(list(combinations(range(axes), 2)))
        plane = planes[torch.randint(len(planes), (batch,), generator=generator)]
        rotation = torch.eye(axes, dtype=torch.float64).repeat(batch, 1, 1)
        row = torch.arange(batch)
        first, second = plane.unbind(1)
        rotation[row, first, first] = rotation[row, second, second] = angle.cos()
        rotation[row, first, second], rotation[row, second, first] = -angle.sin(), angle.sin()
        shift = self.max_translation * _signed((batch, 1, axes), generator)
        centre = (torch.tensor(space, dtype=torch.float64) - 1) / 2
        moved = (bent - centre) @ rotation.mT + centre + shift - cells
        return moved.mT.reshape(batch, axes, *space).to(image.device, widen(image).dtype)

    def _spline(self, image: Tensor, cells: Tensor, generator: torch.Generator | None) -> Tensor:
        """The deformation at each cell, ``[B, cells, axes]``."""
        batch, axes = image.shape[0], cells.shape[1]
        if not self.points or not batch or self.max_deformation == 0:
            return cells.new_zeros(batch, *cells.shape)
        seen = (image.mean(1).flatten(1) > 0).to("cpu", torch.float64)
        seen = torch.where(seen.sum(1, keepdim=True) >= self.points, seen, 1.0)
        drawn = cells[torch.multinomial(seen, self.points, generator=generator)]
        # anywhere in its cell: no point of the grid is hit
        drawn = drawn + 0.5 * _signed(drawn.shape, generator)
        held = torch.cartesian_prod(
            *[torch.linspace(-0.5, n - 0.5, self.grid, dtype=torch.float64) for n in image.shape[2:]]
        ).expand(batch, -1, -1)
        push = self.max_deformation * _signed((batch, self.points, axes), generator)
        values = torch.cat([torch.zeros_like(held), push], 1)
        return thin_plate_spline(torch.cat([held, drawn], 1), values, cells.expand(batch, -1, -1))


def _signed(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform draws in [-1, 1)."""
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


def _flipped(image: Tensor, mirrored: Tensor) -> Tensor:
    """Each image with its own axes reversed."""
    for axis in range(image.ndim - 2):
        chosen = mirrored[:, axis].to(image.device).view(-1, *[1] * (image.ndim - 1))
        image = torch.where(chosen, image.flip(2 + axis), image)
    return image
