"""Warps, folding, splines and random pairs of registration against closed forms, SciPy and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from steepest.losses.dense.adaptive_registration import (
    RegistrationAugmentation,
    SmoothnessLoss,
    SpatialTransformer,
    folding_rate,
    smoothness_loss,
    spatial_transform,
    thin_plate_spline,
)

FLAT, SOLID = (9, 8), (6, 7, 8)


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, seed=0):
    return (draw(*shape, seed=seed) < 0.4).double()


@pytest.mark.holds("adaptive-registration", 5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [FLAT, SOLID, (31, 29)])
def test_no_displacement_changes_nothing(size, dtype):
    moving, still = draw(2, 3, *size).to(dtype), torch.zeros(2, len(size), *size, dtype=dtype)
    for mode in ("linear", "nearest"):
        for padding in ("border", "zeros"):
            assert torch.equal(SpatialTransformer(mode, padding)(moving, still), moving)
    assert SmoothnessLoss()(still).item() == 0.0
    assert smoothness_loss(still + 2.5).item() == 0.0
    assert folding_rate(still).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [FLAT, SOLID])
def test_roughness_against_numpy(size):
    u = draw(2, len(size), *size)
    wanted = np.mean([(np.diff(u.numpy(), axis=axis) ** 2).mean() for axis in range(2, u.ndim)])
    assert smoothness_loss(u).item() == pytest.approx(wanted, abs=1e-13)


@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")
@pytest.mark.parametrize("size", [FLAT, SOLID])
def test_warps_agree_with_scipy_and_monai(size):
    moving = draw(2, 3, *size)
    u = 6 * draw(2, len(size), *size, seed=1) - 3
    where = u.numpy() + np.indices(size)
    for order, mode in ((1, "linear"), (0, "nearest")):
        wanted = np.stack(
            [
                [map_coordinates(c, place, order=order, mode="nearest") for c in m]
                for m, place in zip(moving.numpy(), where)
            ]
        )
        np.testing.assert_allclose(spatial_transform(moving, u, mode=mode).numpy(), wanted, atol=1e-12)
    for padding in ("border", "zeros"):
        found, theirs = u.clone().requires_grad_(), u.clone().requires_grad_()
        ours = spatial_transform(moving, found, padding=padding)
        peer = Warp("bilinear", padding)(moving, theirs)
        torch.testing.assert_close(ours, peer, atol=1e-10, rtol=0)
        weight = draw(*moving.shape, seed=2)
        (ours * weight).sum().backward()
        (peer * weight).sum().backward()
        torch.testing.assert_close(found.grad, theirs.grad, atol=1e-9, rtol=0)


def test_warps_are_differentiable_in_both():
    moving, u = draw(1, 2, 4, 5).requires_grad_(), (3 * draw(1, 2, 4, 5, seed=4) - 1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: spatial_transform(m, v, padding="zeros"), (moving, u))
    solid, v = draw(1, 1, 3, 2, 3).requires_grad_(), (2 * draw(1, 3, 3, 2, 3, seed=5) - 1).requires_grad_()
    assert torch.autograd.gradcheck(spatial_transform, (solid, v))


def test_whole_cells_are_copied():
    moving, u = draw(1, 1, 5, 6), torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    u[:, 0] += 2
    u[:, 1] -= 1
    warped = spatial_transform(moving, u, padding="zeros")
    assert torch.equal(warped[..., :3, 1:], moving[..., 2:, :-1])
    assert not warped[..., 3:, :].any()
    assert not warped[..., 0].any()


def test_a_displacement_that_is_not_a_number_is_seen():
    u = torch.zeros(1, 2, 3, 3)
    u[0, 0, 1, 1] = math.nan
    for padding in ("border", "zeros"):
        found = spatial_transform(torch.ones(1, 1, 3, 3), u, padding=padding)
        assert found.isnan().flatten().tolist() == [i == 4 for i in range(9)]


@pytest.mark.parametrize("axes", [2, 3])
def test_folding_of_linear_maps(axes):
    """x + u(x) = (I + A) x folds everywhere or nowhere, by the sign of det(I + A)."""
    cells = torch.stack(torch.meshgrid(*[torch.arange(5.0, dtype=torch.float64)] * axes, indexing="ij"))
    for seed in range(8):
        a = 4 * draw(axes, axes, seed=seed) - 2
        u = torch.einsum("ab,b...->a...", a, cells).unsqueeze(0)
        wanted = float(np.linalg.det(np.eye(axes) + a.numpy()) <= 0)
        assert folding_rate(u).tolist() == [wanted]


@pytest.mark.parametrize(("factor", "wanted"), [(-0.5, 0.0), (-0.875, 0.0), (-1.0, 1.0), (1.0, 0.0)])
def test_shrinking_is_no_folding_until_nothing_is_left(factor, wanted):
    cells = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"))
    assert folding_rate(factor * cells.unsqueeze(0)).tolist() == [wanted]


def test_folding_counts_cells():
    u = torch.zeros(1, 2, 5, 9)
    u[0, 1, :, 3] = 1.5  # cell 3 overtakes cell 4
    assert folding_rate(u).item() == pytest.approx(1 / 8)


# pairs


@pytest.mark.parametrize(("axes", "kernel"), [(2, "thin_plate_spline"), (3, "linear")])
def test_splines_agree_with_scipy(axes, kernel):
    control, values, places = draw(2, 12, axes), draw(2, 12, 3, seed=1), 2 * draw(2, 7, axes, seed=2)
    found = thin_plate_spline(control, values, places)
    for b in range(2):
        peer = RBFInterpolator(control[b].numpy(), values[b].numpy(), kernel=kernel, degree=1)
        np.testing.assert_allclose(found[b].numpy(), peer(places[b].numpy()), atol=1e-9)
    torch.testing.assert_close(thin_plate_spline(control, values, control), values, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(16, 18), (7, 8, 9)])
def test_pairs_are_related_by_their_displacement(size):
    image, marks = draw(4, 2, *size), labels(4, 3, *size, seed=1)
    pair = RegistrationAugmentation(20.0, 1.5, 1.0)(image, marks, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pair.moving, spatial_transform(pair.fixed, pair.displacement))
    assert torch.equal(pair.moving_labels, spatial_transform(pair.fixed_labels, pair.displacement, mode="nearest"))
    assert set(pair.moving_labels.unique().tolist()) == {0.0, 1.0}
    again = RegistrationAugmentation(20.0, 1.5, 1.0)(image, marks, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(pair, again))
    assert pair.displacement.flatten(1).std(1).min() > 0.1
    # each fixed image is the image, some of its axes reversed
    mirrors = [image.flip([2 + a for a in range(len(size)) if bits >> a & 1]) for bits in range(2 ** len(size))]
    for b in range(4):
        assert any(torch.equal(pair.fixed[b], m[b]) for m in mirrors)


@pytest.mark.parametrize("size", [(16, 18), (7, 8, 9)])
def test_rotations_and_shifts_are_rigid(size):
    axes = len(size)
    u = RegistrationAugmentation(30.0, 2.0, 0.0, flip=0.0)(draw(6, 1, *size)).displacement
    first = (slice(None), slice(None), *[0] * axes)
    slope = torch.stack([u.diff(dim=2 + a)[first] for a in range(axes)], -1)
    rotation = slope + torch.eye(axes, dtype=u.dtype)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(axes, dtype=u.dtype).expand(6, -1, -1))
    angles = torch.acos((rotation.diagonal(dim1=1, dim2=2).sum(1) - (axes - 2)) / 2)
    assert angles.max() <= math.radians(30.0) + 1e-9
    assert angles.min() > 0
    # the centre only moves by the translation
    middle = u.flatten(2).mean(2)
    assert middle.abs().max() <= 2.0 + 1e-9
    assert folding_rate(u).max() == 0


def test_only_the_image_is_bent_and_corners_are_held():
    image = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    image[..., 12:20, 12:20] = 1
    bend = RegistrationAugmentation(0.0, 0.0, 2.0, points=5, flip=0.0)
    u = torch.cat([bend(image, generator=torch.Generator().manual_seed(s)).displacement for s in range(8)])
    size = u.abs().amax(1)
    assert size[:, 12:20, 12:20].flatten(1).amax(1).min() > 0.3
    assert size[:, [0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.2
    # nothing above 0: points fall anywhere
    assert bend(torch.zeros_like(image)).displacement.abs().max() > 0


def test_no_change_where_nothing_is_asked():
    image = draw(2, 1, 8, 8)
    pair = RegistrationAugmentation(0.0, 0.0, 0.0, flip=0.0)(image)
    assert pair.fixed_labels is None
    torch.testing.assert_close(pair.moving, image, atol=1e-12, rtol=0)
    mirrored = RegistrationAugmentation(0.0, 0.0, 0.0, points=0, flip=1.0)(image)
    assert torch.equal(mirrored.fixed, image.flip([2, 3]))
