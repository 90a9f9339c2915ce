"""Bags: sums, sizes and means by scatter; checks of a bag index."""

from __future__ import annotations

import pytest
import torch

from steepest.core.bags import bag_means, bag_sizes, bag_sums, check_bag_index, check_share

INDEX = torch.tensor([2, 0, 2, 1, 0, 2])


@pytest.mark.parametrize("rest", [(), (3,), (2, 4)])
def test_loop(rest):
    values = torch.randn(6, *rest, dtype=torch.float64)
    for bag in range(3):
        own = [v for v, b in zip(values, INDEX) if b == bag]
        assert torch.allclose(bag_sums(values, INDEX, 3)[bag], sum(own), atol=1e-14)
        assert torch.allclose(bag_means(values, INDEX, 3)[bag], sum(own) / len(own), atol=1e-14)
    assert bag_sizes(INDEX, 3).tolist() == [2.0, 1.0, 3.0]


def test_empty_bag():
    assert bag_sums(torch.ones(6), INDEX, 4)[3] == 0
    assert bag_means(torch.ones(6), INDEX, 4)[3].isnan()


def test_gradient_and_transforms():
    values = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: bag_means(v, INDEX, 3), values[0].detach().requires_grad_())
    stacked = torch.func.vmap(lambda v: bag_means(v, INDEX, 3))(values)
    assert torch.equal(stacked, torch.stack([bag_means(v, INDEX, 3) for v in values]))


@pytest.mark.parametrize(
    ("index", "bags", "message"),
    [
        (torch.tensor([0, 1, 3]), 3, r"bag_index: expected values in 0\.\.2"),
        (torch.tensor([0, -1, 1]), 3, r"bag_index: expected values in 0\.\.2"),
        (torch.tensor([0, 1, 1]), 3, "got no row of bag 2"),
        (torch.tensor([0, 1]), 2, r"bag_index: expected shape \(3\)"),
        (torch.tensor([0, 0, 0]), 0, "bag_index: expected at least one bag"),
    ],
)
def test_refused(index, bags, message):
    with pytest.raises(ValueError, match=message):
        check_bag_index(index, 3, bags)


@pytest.mark.parametrize("index", [[0, 1, 2], torch.tensor([0.0, 1.0, 2.0]), torch.tensor([True, False, True])])
def test_refused_types(index):
    with pytest.raises(TypeError, match="bag_index: expected"):
        check_bag_index(index, 3, 3)


def test_shares():
    check_share("alpha", torch.tensor([0.0, 1.0]))
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"alpha: expected values in \[0, 1\]"):
            check_share("alpha", torch.tensor([0.5, bad]))
