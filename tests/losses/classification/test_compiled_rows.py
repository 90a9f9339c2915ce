"""The C++ forms of single losses against float64, at each level that the processor has."""

from __future__ import annotations

import pytest
import torch

from steepest.core import native, rows
from steepest.losses import AsymmetricLossSingleLabel, StableMaxCrossEntropy, orthogonal_projection_loss

EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.skipif(native.library(rows.SOURCE) is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True, params=native.levels())
def level(request, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)
    monkeypatch.setattr(rows, "WORTH", 1)


def with_slopes(loss, outputs, target, dtype):
    leaf = outputs.to(dtype).clone().requires_grad_()
    losses = loss(leaf, target)
    return losses.detach().double(), torch.autograd.grad(losses.sum(), leaf)[0].double()


def agrees(loss, outputs, target, size):
    """To so many roundings of the largest number."""
    exact = with_slopes(loss, outputs, target, torch.float64)
    for number, wanted in zip(with_slopes(loss, outputs, target, torch.float32), exact):
        assert ((number - wanted).abs() <= size * EPS * wanted.abs().max()).all()


@pytest.mark.parametrize("shape", [(1, 2), (37, 5), (20, 64), (9, 65), (3, 1000)])
@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0, 2.0, 4.0])
def test_asymmetric_of_one_label(shape, gamma):
    outputs, target = drawn(shape)
    loss = AsymmetricLossSingleLabel(gamma_neg=gamma, gamma_pos=0.5, label_smoothing=0.2, reduction="none")
    agrees(loss, outputs, target, 64)


@pytest.mark.parametrize("shape", [(1, 2), (700, 5), (20, 64), (9, 65), (3, 5000)])
def test_stablemax(shape):
    """Computed in float64: rounded once, or twice where losses become float32."""
    agrees(StableMaxCrossEntropy(reduction="none"), *drawn(shape, 10.0), 1)


@pytest.mark.parametrize("shape", [(300, 3), (1025, 16), (400, 70)])
def test_orthogonal_projection(shape):
    """By the sums of classes; one row has no direction."""
    features, target = drawn(shape)
    features[7] = 0.0
    agrees(orthogonal_projection_loss, features, target, 16)


def drawn(shape, scale=4.0):
    g = torch.Generator().manual_seed(shape[1])
    return torch.randn(shape, generator=g) * scale, torch.randint(min(shape[1], 7), (shape[0],), generator=g)


def test_orthogonal_projection_can_be_differentiated_twice():
    features, target = drawn((300, 3))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = features.to(dtype).requires_grad_()
        (slope,) = torch.autograd.grad(orthogonal_projection_loss(leaf, target), leaf, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), leaf)[0].double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=64 * EPS * float(found[1].abs().max()))
