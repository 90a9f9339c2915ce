"""Two views against a loop in float64, and against another library; duplicates and similarities at their ends."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss as PeerLoss

from steepest.losses.contrastive import NTXentLoss, nt_xent_loss

pytestmark = pytest.mark.holds("nt-xent")


def drawn(items=5, width=4, seed=0):
    return torch.randn(2, items, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(views, temperature, ids=None):
    """A view after the other, as it is written."""
    items = views.shape[1]
    ids = list(range(items)) if ids is None else ids
    rows = [v / v.norm() for v in views.flatten(0, 1)]
    names = [ids[i % items] for i in range(2 * items)]
    losses = []
    for i in range(2 * items):
        partner = (i + items) % (2 * items)
        positive = math.exp(float(rows[i] @ rows[partner]) / temperature)
        negatives = [math.exp(float(rows[i] @ rows[j]) / temperature) for j in range(2 * items) if names[j] != names[i]]
        losses.append(-math.log(positive / (positive + sum(negatives))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_it_is_its_definition(temperature):
    z = drawn()
    assert nt_xent_loss(z, temperature=temperature).item() == pytest.approx(by_definition(z, temperature), rel=1e-12)
    ids = [3, 1, 3, 0, 1]
    result = nt_xent_loss(z, temperature=temperature, ids=torch.tensor(ids)).item()
    assert result == pytest.approx(by_definition(z, temperature, ids), rel=1e-12)


def test_value_and_gradient_are_those_of_the_peer():
    z = drawn().requires_grad_()
    peer = PeerLoss(temperature=0.3)(z.flatten(0, 1), torch.arange(5).repeat(2))
    ours = nt_xent_loss(z, temperature=0.3)
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(peer, z))


def test_a_duplicate_is_no_negative_of_itself():
    """Rows (1, 0), (1, 0), (0, 1), each with itself as partner, by hand."""
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    apart, told = nt_xent_loss(torch.stack([z, z]), temperature=1.0), nt_xent_loss(
        torch.stack([z, z]), temperature=1.0, ids=torch.tensor([7, 7, 3])
    )  # fmt: skip
    e = math.e
    assert apart.item() == pytest.approx((2 * math.log((3 * e + 2) / e) + math.log((e + 4) / e)) / 3, rel=1e-6)
    assert told.item() == pytest.approx((2 * math.log((e + 2) / e) + math.log((e + 4) / e)) / 3, rel=1e-6)


def test_a_low_temperature_neither_caps_nor_stops_it():
    """Positive -.5, negatives .5 at temperature .01: the loss is 100 and its slope -100, not 87 and 0."""
    angle = math.radians(120)
    first = torch.tensor([[1.0, 0.0]])
    partner = torch.tensor([[math.cos(angle), math.sin(angle)]])
    views = torch.stack([torch.cat([first, -partner]), torch.cat([partner, -first])]).requires_grad_()
    loss = NTXentLoss(temperature=0.01)(views, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(100.0, rel=1e-5)
    (slope,) = torch.autograd.grad(loss, views)
    assert slope.abs().max() > 10
