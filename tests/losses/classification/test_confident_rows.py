"""Losses of log p_y of confident rows: the small loss and its gradient are not rounded away beside the logits."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core import rows
from steepest.core.logpartition import log_softmax, target_log_probability
from steepest.kernels import linear_cross_entropy
from steepest.losses import (
    AsymmetricLossSingleLabel,
    CompSumLoss,
    CrossEntropyLoss,
    FocalLoss,
    HarmonicLoss,
    LDAMLoss,
    SmoothedCrossEntropyLoss,
    SpectralDecouplingLoss,
    SquentropyLoss,
    WeightedCrossEntropyLoss,
    ldr_kl_loss,
    stablemax_cross_entropy,
)

LEADS = (12.0, 16.0, 20.0, 30.0, 60.0)
TARGET = torch.zeros(len(LEADS), dtype=torch.long)
EPS = torch.finfo(torch.float32).eps


def ldam(z, target):
    """Cosines times 60."""
    return LDAMLoss((1, 1, 1), max_margin=0.0, scale=60.0, reduction="none")(z / 60.0, target)


def soft(objective):
    """A target of probabilities, all on one class."""
    return lambda z, target: objective(z, torch.nn.functional.one_hot(target, z.shape[1]).to(z.dtype))


SAME_AS_CROSS_ENTROPY = {
    "cross_entropy": CrossEntropyLoss(reduction="none"),
    "soft target": soft(CrossEntropyLoss(reduction="none")),
    "class weights": WeightedCrossEntropyLoss((1, 1, 1), reduction="none"),
    "no smoothing": SmoothedCrossEntropyLoss(0.0, reduction="none"),
    "comp_sum": CompSumLoss(reduction="none"),
    "focal": FocalLoss(gamma=0.0, reduction="none"),
    "harmonic": HarmonicLoss(n=1.0, reduction="none"),
    "ldam": ldam,
    "squentropy": SquentropyLoss(square_weight=0.0, reduction="none"),
    "squentropy, soft": soft(SquentropyLoss(square_weight=0.0, reduction="none")),
    "spectral_decoupling": SpectralDecouplingLoss(lam=0.0, reduction="none"),
    "asymmetric_single_label": AsymmetricLossSingleLabel(label_smoothing=0.0, reduction="none"),
    "log_softmax": lambda z, target: -log_softmax(z)[:, 0],
    "log_probability": lambda z, target: -target_log_probability(z, target),
}


def confident(dtype):
    """Rows (v, 0, 0), their cross-entropy log(1 + 2 e^-v) and its gradient."""
    z = torch.tensor([(v, 0.0, 0.0) for v in LEADS], dtype=dtype)
    losses = [math.log1p(2 * math.exp(-v)) for v in LEADS]
    others = [math.exp(-v) / (1 + 2 * math.exp(-v)) for v in LEADS]
    return z, torch.tensor(losses).double(), torch.tensor([(-2 * p, p, p) for p in others], dtype=torch.float64)


@pytest.fixture(params=["C++", "torch"])
def form(request, monkeypatch):
    monkeypatch.setattr(rows, "WORTH", 1 if request.param == "C++" else 1 << 62)


@pytest.mark.parametrize("name", SAME_AS_CROSS_ENTROPY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_keep_their_digits(name, dtype, form):
    loss = SAME_AS_CROSS_ENTROPY[name]
    z, wanted, slopes = confident(dtype)
    # a logit of 60 is rounded, or what it is scaled by; an exponential multiplies that
    allowed = {"rtol": 60 * 4 * EPS, "atol": 0.0}
    leaf = z.clone().requires_grad_()
    losses = loss(leaf, TARGET)
    torch.testing.assert_close(losses.double(), wanted, **allowed)
    (slope,) = torch.autograd.grad(losses.sum(), leaf)
    torch.testing.assert_close(slope.double(), slopes, **allowed)
    torch.testing.assert_close(loss(z, TARGET).double(), wanted, **allowed)  # without a gradient
    torch.testing.assert_close(  # the form that torch differentiates
        torch.func.grad(lambda z: loss(z, TARGET).sum())(z).double(), slopes, **allowed
    )


def test_the_gradient_of_ldr_keeps_its_digits(form):
    """Its value lies around -log K."""
    z, _, slopes = confident(torch.float32)
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ldr_kl_loss(leaf, TARGET, reduction="sum"), leaf)
    torch.testing.assert_close(slope.double(), slopes, rtol=60 * 4 * EPS, atol=0.0)


def test_a_focus_multiplies_small_by_small(form):
    z, wanted, _ = (t[:3] for t in confident(torch.float32))
    losses = FocalLoss(gamma=2.0, reduction="none")(z, TARGET[:3]).double()
    torch.testing.assert_close(losses, wanted * (-wanted).expm1().square(), rtol=3 * 60 * 4 * EPS, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stablemax_of_a_large_lead(dtype, form):
    """log(1 + 2 s(0) / s(v))."""
    z = torch.tensor([(v, 0.0, 0.0) for v in (1e4, 1e8, 1e12, 1e20)]).requires_grad_()
    losses = stablemax_cross_entropy(z, TARGET[:4], dtype=dtype, reduction="none")
    wanted = torch.tensor([math.log1p(2 / (1 + v)) for v in (1e4, 1e8, 1e12, 1e20)])
    torch.testing.assert_close(losses, wanted, rtol=8 * EPS, atol=0.0)
    (slope,) = torch.autograd.grad(losses.sum(), z)
    exact = torch.tensor([-2 / (3 + v) / (1 + v) for v in (1e4, 1e8, 1e12)])
    torch.testing.assert_close(slope[:3, 0], exact, rtol=8 * EPS, atol=0.0)


def test_the_linear_head_too():
    z, wanted, _ = confident(torch.float32)
    losses = linear_cross_entropy(z, torch.eye(3), TARGET, reduction="none")
    torch.testing.assert_close(losses.double(), wanted, rtol=60 * 4 * EPS, atol=0.0)
