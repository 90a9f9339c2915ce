"""Queries against candidates by cross-entropy of a whole matrix; hard negatives, duplicates."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from steepest.losses.contrastive import MultipleNegativesLoss, clip_loss, multiple_negatives_loss

pytestmark = pytest.mark.holds("multiple-negatives")


def drawn(sets):
    return torch.randn(sets, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("hard", [0, 2])
def test_it_is_cross_entropy_over_all_candidates(hard):
    z = drawn(2 + hard).requires_grad_()
    s = 7 * normalize(z[0], dim=1) @ normalize(z[1:].flatten(0, 1), dim=1).T
    ours, wanted = MultipleNegativesLoss(7.0, hard)(z, torch.arange(4)), cross_entropy(s, torch.arange(4))
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(wanted, z))


def test_both_directions_are_halved():
    z = drawn(2)
    both = (multiple_negatives_loss(z[0], z[1]) + multiple_negatives_loss(z[1], z[0])) / 2
    torch.testing.assert_close(MultipleNegativesLoss(symmetric=True)(z, torch.arange(4)), both)


def test_a_duplicate_is_no_negative_of_itself():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert multiple_negatives_loss(z, z, scale=1.0).item() == pytest.approx(0.758478, abs=1e-6)
    told = multiple_negatives_loss(z, z, scale=1.0, ids=torch.tensor([7, 7, 3]))
    assert told.item() == pytest.approx(0.392656, abs=1e-6)
    hard = drawn(3)
    s = normalize(hard[0], dim=1) @ normalize(hard[1:].flatten(0, 1), dim=1).T
    s[0, [3, 7]] = s[3, [0, 4]] = -torch.inf
    ids = torch.tensor([0, 1, 2, 0])
    result = multiple_negatives_loss(hard[0], hard[1:].flatten(0, 1), scale=1.0, ids=ids)
    torch.testing.assert_close(result, cross_entropy(s, torch.arange(4)))


def test_candidates_that_are_no_whole_sets_are_refused():
    with pytest.raises(ValueError, match="items: expected a multiple of 4 rows"):
        multiple_negatives_loss(torch.zeros(4, 2), torch.zeros(6, 2))


@pytest.mark.parametrize("loss", [multiple_negatives_loss, clip_loss])
def test_a_scale_is_a_single_number(loss):
    z = torch.eye(3)
    with pytest.raises(ValueError, match="scale: expected shape"):
        loss(z, z, scale=torch.ones(3))
    with pytest.raises(ValueError, match="scale: expected a number"):
        loss(z, z, scale=float("nan"))
