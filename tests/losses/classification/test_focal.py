"""Focal loss against the written-out formula and its sigmoid form."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.classification.focal import FocalLoss, focal_loss

LOGITS = 3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
ALPHA = [0.25, 1.0, 0.5, 2.0]


@pytest.mark.holds("focal")
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_equals_the_formula(gamma, alpha):
    wanted = []
    for row, y in zip(LOGITS.tolist(), TARGET.tolist()):
        p = math.exp(row[y]) / sum(map(math.exp, row))
        wanted.append(-(1 if alpha is None else alpha[y]) * (1 - p) ** gamma * math.log(p))
    found = FocalLoss(gamma, alpha, reduction="none")(LOGITS, TARGET)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.holds("focal")
def test_gamma_zero_is_cross_entropy():
    torch.testing.assert_close(focal_loss(LOGITS, TARGET, gamma=0.0), cross_entropy(LOGITS, TARGET))


def test_two_classes_are_the_sigmoid_form():
    score = torch.linspace(-6, 6, 9, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(score), score], -1)
    p = torch.sigmoid(score)
    torch.testing.assert_close(
        focal_loss(logits, torch.ones(9, dtype=torch.long), reduction="none"), -((1 - p) ** 2) * p.log()
    )


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("margin", [20.0, 90.0, 1e4, -1e4])
def test_slope_is_finite_where_p_rounds_to_one(gamma, margin):
    logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(focal_loss(logits, torch.tensor([0]), gamma=gamma), logits)
    assert torch.isfinite(slope).all()


def test_small_losses_keep_their_digits():
    # u = 2 exp(-30): the loss is u^(1 + gamma) to first order, far below the rounding of 1 - p
    u = 2 * math.exp(-30)
    found = focal_loss(torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([0]), gamma=1.0)
    assert found.item() == pytest.approx(u * u, rel=1e-4, abs=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: FocalLoss(-1.0),
        lambda: FocalLoss(alpha=[1.0, -1.0]),
        lambda: FocalLoss(alpha=[1.0, 1.0])(LOGITS, TARGET),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()
