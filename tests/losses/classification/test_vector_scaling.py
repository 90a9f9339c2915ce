"""The vector-scaling loss: card values, a naive loop, cross-entropy where nothing is scaled, logit adjustment."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.objective import TaskInfo
from steepest.losses import CrossEntropyLoss, DeferredReweighting, VSLoss, vs_loss

COUNTS = (100, 10, 1)
Z = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(row, label, counts, gamma, tau):
    """One sample, in the form of the official code: logits divided by (n_max / n_c)^gamma."""
    u = [z / (max(counts) / n) ** gamma + tau * math.log(n / sum(counts)) for z, n in zip(row, counts)]
    return math.log(sum(math.exp(v) for v in u)) - u[label]


@pytest.mark.holds("vector-scaling")
@pytest.mark.holds("saddle-imbalance", 2)
def test_card_values():
    loss = VSLoss(COUNTS, gamma=0.3, tau=1.0)
    assert float(loss(Z, torch.tensor([2]))) == pytest.approx(6.628587, abs=2e-6)
    assert float(loss(Z, torch.tensor([0]))) == pytest.approx(0.023417, abs=1e-6)


@pytest.mark.holds("saddle-imbalance", 5)
def test_without_scales_and_offsets_it_is_cross_entropy():
    z, y = drawn(12, 4), torch.arange(12) % 4
    torch.testing.assert_close(VSLoss((9, 5, 2, 1), gamma=0.0, tau=0.0)(z, y), nn.functional.cross_entropy(z, y))
    equal = VSLoss((7, 7, 7, 7), gamma=0.3, tau=1.0)  # one offset for all
    torch.testing.assert_close(equal(z, y), nn.functional.cross_entropy(z, y))


@pytest.mark.parametrize(("gamma", "tau"), [(0.3, 1.0), (0.15, 0.0), (0.0, 2.0)])
def test_naive_loop(gamma, tau):
    counts, z, y = (40, 9, 300, 2), 3 * drawn(12, 4), torch.arange(12) % 4
    by_sample = z.new_tensor([naive(row, k, counts, gamma, tau) for row, k in zip(z.tolist(), y.tolist())])
    for given in (counts, torch.tensor(counts)):
        loss = VSLoss(given, gamma, tau, reduction="none")
        torch.testing.assert_close(loss(z, y), by_sample, rtol=1e-6, atol=1e-6)
    weight = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = VSLoss(counts, gamma, tau)(z, y, weight=weight)
    torch.testing.assert_close(mean, (weight * by_sample).sum() / weight.sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [3, 40])
def test_the_gradient_is_that_of_torch(width):
    """By the rule against torch's cross-entropy of scaled logits, at few and at many classes."""
    z, y = drawn(9, width).requires_grad_(), torch.arange(9) % width
    scales, offsets = drawn(width, seed=1), drawn(width, seed=2)
    own = torch.autograd.grad(vs_loss(z, y, scales=scales, offsets=offsets), z)[0]
    theirs = torch.autograd.grad(nn.functional.cross_entropy(z * scales + offsets, y), z)[0]
    torch.testing.assert_close(own, theirs)
    learned = scales.requires_grad_()
    slope = torch.autograd.grad(vs_loss(z, y, scales=learned, offsets=offsets), learned)[0]
    theirs = torch.autograd.grad(nn.functional.cross_entropy(z * learned + offsets, y), learned)[0]
    torch.testing.assert_close(slope, theirs)


def test_deferred_reweighting_stands_around_it():
    z, y = drawn(9, 3), torch.arange(9) % 3
    loss = DeferredReweighting(VSLoss(COUNTS), COUNTS)
    torch.testing.assert_close(loss(z, y), VSLoss(COUNTS)(z, y))
    loss.start_epoch(10, 10)
    own = loss.class_weight.double()[y]
    torch.testing.assert_close(loss(z, y), (own * VSLoss(COUNTS, reduction="none")(z, y)).sum() / own.sum())


def test_probabilities_are_those_of_logits():
    z = drawn(5, 3)
    torch.testing.assert_close(VSLoss(COUNTS).probabilities(z), CrossEntropyLoss().probabilities(z))
    info = TaskInfo("multiclass", 111, 3, COUNTS)
    assert torch.equal(VSLoss.from_task(info, gamma=0.1).scales, VSLoss(COUNTS, gamma=0.1).scales)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: VSLoss((5, 0, 3)), "class_counts: expected at least two counts, all >= 1"),
        (lambda: VSLoss((5,)), "class_counts: expected at least two counts, all >= 1"),
        (lambda: VSLoss(((5, 3),)), "class_counts: expected 1 dimensions"),
        (lambda: VSLoss(COUNTS, gamma=-0.1), "gamma: expected a number >= 0"),
        (lambda: VSLoss(COUNTS, tau=-0.1), "tau: expected a number >= 0"),
        (lambda: VSLoss(COUNTS)(torch.zeros(2, 4), torch.tensor([0, 1])), r"scales: expected shape \(4\)"),
        (lambda: VSLoss(COUNTS)(torch.zeros(1, 3), torch.tensor([3])), r"target: expected values in 0\.\.2"),
        (
            lambda: vs_loss(Z, torch.tensor([0]), scales=torch.ones(3), offsets=torch.ones(2)),
            r"offsets: expected shape \(3\)",
        ),
        (
            lambda: vs_loss(Z[:, :1], torch.tensor([0]), scales=torch.ones(1), offsets=torch.ones(1)),
            "logits: expected at least 2 classes",
        ),
    ],
)
def test_what_it_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_counts_are_whole_numbers():
    with pytest.raises(TypeError, match="class_counts: expected an integer tensor"):
        VSLoss((5.0, 3.0))
