"""Margins on a normalised head against another library and known numbers; half precision, zero rows, the ends."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss as PeerArcFace
from pytorch_metric_learning.losses import CosFaceLoss as PeerCosFace

from steepest.core.heads import NormedLinear
from steepest.losses.contrastive import ArcFaceLoss, CosFaceLoss, arc_face_loss, cos_face_loss

pytestmark = pytest.mark.holds("margin-softmax")


def drawn(rows=8, width=5, classes=4):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    head = NormedLinear(width, classes).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, width, generator=generator, dtype=torch.float64))
    return features, head, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        (
            ArcFaceLoss(margin=math.radians(20), scale=16.0, monotone=True),
            PeerArcFace(4, 5, margin=20, scale=16),
        ),
        (CosFaceLoss(margin=0.2, scale=16.0), PeerCosFace(4, 5, margin=0.2, scale=16)),
    ],
    ids=["ArcFace", "CosFace"],
)
def test_values_and_gradients_are_those_of_the_peer(ours, peer):
    features, head, target = drawn()
    peer = peer.double()
    with torch.no_grad():
        peer.W.copy_(head.weight.T)
    features.requires_grad_()
    one, two = ours(head(features), target), peer(features, target)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    (slope, of_head), (wanted, of_w) = (
        torch.autograd.grad(one, (features, head.weight)),
        torch.autograd.grad(two, (features, peer.W)),
    )
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_head, of_w.T, rtol=1e-5, atol=1e-6)


def test_beyond_pi_less_the_margin():
    cosines, target = torch.tensor([[-0.95, 0.2, 0.1]]), torch.tensor([0])
    assert arc_face_loss(cosines, target).item() == pytest.approx(75.739517, rel=1e-5)
    assert arc_face_loss(cosines, target, monotone=True).item() == pytest.approx(88.943277, rel=1e-5)


def test_without_a_margin_both_are_cross_entropy_of_scaled_cosines():
    features, head, target = drawn()
    cosines = head(features)
    wanted = torch.nn.functional.cross_entropy(9 * cosines, target, reduction="none")
    for loss in (arc_face_loss, cos_face_loss):
        result = loss(cosines, target, margin=0.0, scale=9.0, reduction="none")
        torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [ArcFaceLoss(), ArcFaceLoss(monotone=True), CosFaceLoss()])
def test_ends_zero_rows_and_half_features_are_finite(loss):
    ends = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]], requires_grad=True)
    value = loss(ends, torch.tensor([0, 0]))
    assert value.isfinite()
    assert torch.autograd.grad(value, ends)[0].isfinite().all()
    head = NormedLinear(4, 3)
    features = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
    value = loss(head(features), torch.tensor([0, 1]))
    assert value.dtype == torch.float32
    slopes = torch.autograd.grad(value, (features, head.weight))
    assert all(slope.isfinite().all() for slope in slopes)


def test_degrees_are_refused():
    with pytest.raises(ValueError, match="margin: expected an angle in radians"):
        ArcFaceLoss(margin=28.6)
