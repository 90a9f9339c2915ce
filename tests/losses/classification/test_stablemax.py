"""StableMax: its probabilities, its loss far out, and the monitors of collapse and of naive scaling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.losses.classification.stablemax import (
    StableMaxCrossEntropy,
    log_stablemax,
    nlm_alignment,
    softmax_collapse_rate,
    stablemax_cross_entropy,
)

EXAMPLE = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)


def s(x):
    return x + 1 if x >= 0 else 1 / (1 - x)


@pytest.mark.holds("stablemax", 1)
def test_card_values():
    torch.testing.assert_close([s(x) for x in (2, 0, -1)], [3, 1, 0.5])
    p = log_stablemax(EXAMPLE).exp()
    torch.testing.assert_close(p, p.new_tensor([[0.6667, 0.2222, 0.1111]]), atol=5e-5, rtol=0)
    for label, wanted in ((0, 0.405465), (2, 2.197225)):
        found = StableMaxCrossEntropy()(EXAMPLE, torch.tensor([label]))
        assert found.item() == pytest.approx(wanted, abs=5e-7)
    x = EXAMPLE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(StableMaxCrossEntropy()(x, torch.tensor([0])), x)
    torch.testing.assert_close(slope, slope.new_tensor([[-0.1111, 0.2222, 0.0556]]), atol=5e-5, rtol=0)


@pytest.mark.parametrize("classes", [2, 3, 9])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e3])
def test_naive_loop(classes, scale):
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(6, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (6,), generator=generator)
    rows = [[s(x) for x in row] for row in logits.tolist()]
    wanted = [-math.log(row[y] / sum(row)) for row, y in zip(rows, target.tolist())]
    found = stablemax_cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(found, logits.new_tensor(wanted), rtol=1e-10, atol=1e-12)
    soft = torch.tensor(rows, dtype=torch.float64)
    soft = soft / soft.sum(-1, keepdim=True)
    torch.testing.assert_close(log_stablemax(logits).exp(), soft)
    entropy = -(soft * soft.log()).sum(-1).mean()
    torch.testing.assert_close(stablemax_cross_entropy(logits, soft), entropy)


@pytest.mark.holds("stablemax", 2)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_far_out(dtype):
    x = torch.tensor([[1000.0, 0.0, -1000.0]]).requires_grad_()
    for label, wanted in enumerate((9.995e-4, 6.9098, 13.8185)):
        loss = stablemax_cross_entropy(x, torch.tensor([label]), dtype=dtype)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(wanted, rel=1e-4)
        (slope,) = torch.autograd.grad(loss, x)
        assert bool(torch.isfinite(slope).all())
        assert bool((slope != 0).all())


@pytest.mark.holds("stablemax", 3)
def test_shape_of_s():
    x = torch.linspace(-50, 50, 201, dtype=torch.float64)
    pairs = torch.stack([x, -x, torch.zeros_like(x)], dim=-1)
    logs = log_stablemax(pairs)
    ratio = logs - logs[:, 2:]  # log s(x), because s(0) = 1 as exp(0)
    torch.testing.assert_close(ratio[:, 0] + ratio[:, 1], torch.zeros_like(x), atol=1e-13, rtol=0)
    torch.testing.assert_close(ratio[:, 0].exp(), x.new_tensor([s(v) for v in x.tolist()]))
    for side in (1e-9, 0.0, -1e-9):
        at = torch.tensor([[side, 0.0]], dtype=torch.float64, requires_grad=True)
        log = log_stablemax(at)
        (slope,) = torch.autograd.grad(log[0, 0] - log[0, 1], at)
        torch.testing.assert_close(slope, slope.new_tensor([[1.0, -1.0]]), atol=1e-8, rtol=0)


@pytest.mark.holds("stablemax", 5)
def test_a_shift_is_seen_and_the_order_kept():
    p = log_stablemax(EXAMPLE).exp()
    moved = log_stablemax(EXAMPLE + 5).exp()
    torch.testing.assert_close(moved, p.new_tensor([[8 / 19, 6 / 19, 5 / 19]]))
    logits = 4 * torch.randn(50, 6, dtype=torch.float64)
    assert torch.equal(StableMaxCrossEntropy().probabilities(logits).argsort(-1), logits.argsort(-1))


def test_computed_in_float64_and_returned_in_float32():
    x = torch.randn(40, 30) * 50
    y = torch.randint(30, (40,))
    exact = stablemax_cross_entropy(x.double(), y)
    assert stablemax_cross_entropy(x, y).item() == exact.float().item()
    with pytest.raises(ValueError, match="dtype: expected"):
        StableMaxCrossEntropy(dtype=torch.float16)


def test_collapse_rate():
    gaps = torch.tensor([0.0, 10.0, 16.0, 17.0, 200.0])
    logits = torch.stack([gaps, torch.zeros(5)], dim=-1)
    target = torch.zeros(5, dtype=torch.long)
    wanted = [nn.functional.cross_entropy(row[None], target[:1]).item() == 0 for row in logits]
    assert wanted == [False, False, False, True, True]
    assert softmax_collapse_rate(logits, target).item() == pytest.approx(0.4)
    assert softmax_collapse_rate(logits.double(), target).item() == pytest.approx(0.2)
    assert softmax_collapse_rate(logits, 1 - target).item() == 0
    for row, at in ((2, 1.19e-7), (3, 0.0)):
        assert nn.functional.cross_entropy(logits[row : row + 1], target[:1]).item() == pytest.approx(at, rel=2e-3)


def test_alignment_with_naive_scaling():
    generator = torch.Generator().manual_seed(0)
    parts = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (2,))]
    for p in parts[:2]:
        p.grad = torch.randn(p.shape, generator=generator)
    w = torch.cat([p.detach().reshape(-1) for p in parts[:2]]).double()
    g = torch.cat([p.grad.reshape(-1) for p in parts[:2]]).double()
    wanted = -(w @ g / (w.norm() * g.norm())).item()
    assert nlm_alignment(iter(parts)).item() == pytest.approx(wanted, abs=1e-6)
    for p in parts[:2]:
        p.grad.mul_(1e-30)  # its square is 0 in float32
    assert nlm_alignment(parts).item() == pytest.approx(wanted, abs=1e-6)
    for p in parts[:2]:
        p.grad = -3e-20 * p.detach()
    assert nlm_alignment(parts).item() == pytest.approx(1.0, abs=1e-6)
    for p in parts[:2]:
        p.grad.zero_()
    assert nlm_alignment(parts).item() == 0.0
    with pytest.raises(ValueError, match="params: expected"):
        nlm_alignment([nn.Parameter(torch.ones(2))])


def test_scaling_is_what_an_over_trained_net_does():
    """Once a homogeneous net separates its data, cross-entropy's gradient points along -w; scaling adds to logits."""
    net = nn.Sequential(nn.Linear(2, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    y = net(x).argmax(-1)
    nn.functional.cross_entropy(net(x), y).backward()
    assert nlm_alignment(net.parameters()).item() > 0
    before = net(x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0)
    torch.testing.assert_close(net(x), 9.0 * before)  # c^L with L = 2 layers
