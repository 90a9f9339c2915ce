"""Huber loss against torch, and its clipped slope."""

import pytest
import torch
from torch.nn.functional import huber_loss

from steepest.losses.regression.huber import HuberLoss

F, Y = 3 * torch.randn(2, 15, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.holds("huber")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("delta", [0.05, 1.0, 3.0, 100.0])
def test_agrees_with_torch(reduction, delta):
    wanted = huber_loss(F, Y, delta=delta, reduction=reduction)
    torch.testing.assert_close(HuberLoss(delta, reduction)(F, Y), wanted)


@pytest.mark.holds("huber")
def test_slope_is_the_error_clipped_at_delta():
    f = F.clone().requires_grad_()
    (slope,) = torch.autograd.grad(HuberLoss(0.7, "sum")(f, Y), f)
    torch.testing.assert_close(slope, (F - Y).clamp(-0.7, 0.7))


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_refused(delta):
    with pytest.raises(ValueError, match="delta: expected"):
        HuberLoss(delta)
