"""The multi-similarity loss against loops in float64, and against another library with and without its miner."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss as PeerLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from steepest.losses.contrastive import MultiSimilarityLoss, multi_similarity_loss

pytestmark = pytest.mark.holds("multi-similarity")
LABELS = torch.tensor([4, -7, 4, 100, 4, -7, 3])


def drawn(seed=0):
    return torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(z, labels, alpha, beta, base, epsilon):
    rows, labels, total = [v / v.norm() for v in z], labels.tolist(), 0.0
    for i, own in enumerate(labels):
        positives = [float(rows[i] @ rows[j]) for j, y in enumerate(labels) if y == own and j != i]
        negatives = [float(rows[i] @ rows[j]) for j, y in enumerate(labels) if y != own]
        if epsilon is not None:
            near, far = max(negatives, default=-math.inf), min(positives, default=math.inf)
            positives = [s for s in positives if s - epsilon < near]
            negatives = [s for s in negatives if s + epsilon > far]
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in negatives)) / beta
    return total / len(labels)


@pytest.mark.parametrize("options", [(2.0, 50.0, 0.5, None), (2.0, 50.0, 0.5, 0.1), (5.0, 20.0, 0.2, -0.3)])
def test_it_is_its_definition(options):
    for seed in range(3):
        z = drawn(seed)
        result = multi_similarity_loss(z, LABELS, **dict(zip(("alpha", "beta", "base", "epsilon"), options)))
        assert result.item() == pytest.approx(by_definition(z, LABELS, *options), rel=1e-10)


@pytest.mark.parametrize("epsilon", [None, 0.1, 0.6])
def test_value_and_gradient_are_those_of_the_peer(epsilon):
    z = drawn(3).requires_grad_()
    tuples = None if epsilon is None else MultiSimilarityMiner(epsilon)(z, LABELS)
    peer = PeerLoss(alpha=2, beta=50, base=0.5)(z, LABELS, tuples)
    ours = multi_similarity_loss(z, LABELS, epsilon=epsilon)
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(peer, z))


def test_without_one_kind_of_pairs_nothing_is_mined():
    z = drawn().requires_grad_()
    for labels in (torch.arange(7), torch.zeros(7, dtype=torch.long)):
        assert multi_similarity_loss(z, labels) == 0
        assert multi_similarity_loss(z, labels, epsilon=None) > 0


def test_what_is_not_a_number_is_not_passed_over():
    z = drawn()
    z[6, 0] = math.nan  # a negative alone
    assert multi_similarity_loss(z, LABELS).isnan()


def test_numbers_out_of_range_are_refused():
    for options in ({"alpha": 0.0}, {"beta": -1.0}, {"base": math.nan}, {"epsilon": "much"}):
        with pytest.raises((ValueError, TypeError), match=f"{next(iter(options))}: expected"):
            MultiSimilarityLoss(**options)
