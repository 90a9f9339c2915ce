"""Absolute error against torch."""

import pytest
import torch
from torch.nn.functional import l1_loss

from steepest.losses.regression.absolute_error import AbsoluteErrorLoss, absolute_error

F, Y = torch.randn(2, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.holds("absolute-error")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_agrees_with_torch(reduction):
    wanted = l1_loss(F, Y, reduction=reduction)
    torch.testing.assert_close(AbsoluteErrorLoss(reduction)(F, Y), wanted)
    torch.testing.assert_close(absolute_error(F, Y, reduction=reduction), wanted)


def test_slope_is_the_sign_and_zero_at_no_error():
    f = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    (slope,) = torch.autograd.grad(absolute_error(f, torch.zeros(3), reduction="sum"), f)
    assert slope.tolist() == [-1.0, 0.0, 1.0]


def test_predicts_its_outputs():
    assert AbsoluteErrorLoss().predict(F) is F
