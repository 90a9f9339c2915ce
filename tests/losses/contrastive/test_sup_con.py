"""Rows of labels against a loop in float64, and against another library."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss as PeerLoss

from steepest.core.label_groups import group_numbers, group_sums
from steepest.losses.contrastive import sup_con_loss

pytestmark = pytest.mark.holds("sup-con")
LABELS = torch.tensor([4, -7, 4, 100, 4, -7])


def drawn(rows=6, width=4, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(z, labels, temperature):
    """A row after the other, as it is written."""
    rows = [v / v.norm() for v in z]
    losses = []
    for i, own in enumerate(labels):
        positives = [j for j, label in enumerate(labels) if label == own and j != i]
        below = sum(math.exp(float(rows[i] @ rows[j]) / temperature) for j in range(len(rows)) if j != i)
        terms = [-math.log(math.exp(float(rows[i] @ rows[j]) / temperature) / below) for j in positives]
        losses += [sum(terms) / len(terms)] if terms else []
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_its_definition(temperature):
    z = drawn()
    wanted = by_definition(z, LABELS.tolist(), temperature)
    assert sup_con_loss(z, LABELS, temperature=temperature).item() == pytest.approx(wanted, rel=1e-12)


def test_value_and_gradient_are_those_of_the_peer():
    z = drawn().requires_grad_()
    peer, ours = PeerLoss(temperature=0.2)(z, LABELS), sup_con_loss(z, LABELS, temperature=0.2)
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(peer, z))


def test_without_positives_it_is_0_with_a_graph():
    z = drawn().requires_grad_()
    loss = sup_con_loss(z, torch.arange(6))
    assert loss == 0
    assert not torch.autograd.grad(loss, z)[0].any()


def test_groups_are_those_of_unique():
    labels = torch.randint(-5, 5, (40,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(group_numbers(labels), labels.unique(return_inverse=True)[1])
    values = torch.arange(40.0)
    wanted = torch.stack([values[labels == own].sum() for own in labels])
    torch.testing.assert_close(group_sums(group_numbers(labels), values), wanted)
