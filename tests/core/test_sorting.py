"""Sums of absolute differences, relaxed permutations, Sinkhorn's rounds, soft top-k, hinges of all pairs."""

from __future__ import annotations

import pytest
import torch

from steepest.core.sorting import (
    absolute_differences,
    balance,
    relaxed_permutation,
    soft_top_k,
    squared_hinge_pairs,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def lists(generator, rows=4, size=6):
    """Values of which some are equal, of lists that end earlier or lie anywhere, and one of nothing."""
    values = torch.randint(-2, 3, (rows, size), generator=generator).double()
    mask = torch.rand(rows, size, generator=generator) > 0.3
    mask[0], mask[-1] = True, False
    return values, mask


def test_absolute_differences_under_ties(generator):
    values, mask = lists(generator)
    values.requires_grad_()
    both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    wanted = torch.where(both, (values.unsqueeze(-1) - values.unsqueeze(-2)).abs(), 0.0).sum(-1)
    sums = absolute_differences(values, mask)
    torch.testing.assert_close(sums, wanted)
    upstream = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    slopes = [torch.autograd.grad(s, values, upstream, retain_graph=True)[0] for s in (sums, wanted)]
    torch.testing.assert_close(*slopes)


def naive_permutation(values, tau):
    size = len(values)
    spread = (values.unsqueeze(-1) - values).abs().sum(-1)
    rows = [((size + 1 - 2 * rank) * values - spread) / tau for rank in range(1, size + 1)]
    return torch.stack(rows).softmax(-1)


def test_relaxed_permutation_of_lists(generator):
    values, mask = lists(generator)
    values += 0.1 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    matrix = relaxed_permutation(values + 3.0, mask, 0.7)
    for row, own, there in zip(matrix[:3], values, mask):
        number = int(there.sum())
        torch.testing.assert_close(row[:number, there], naive_permutation(own[there], 0.7))
        assert not row[number:].any()
        assert not row[:, ~there].any()
    assert not matrix[3].any()


def naive_balance(matrix, rounds, tol):
    """Divisions of the matrix itself, columns before rows."""
    for _ in range(rounds):
        matrix = matrix / matrix.sum(0, keepdim=True).clamp(min=1e-10)
        matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-10)
        if (matrix.sum(0) - 1).abs().max() < tol and (matrix.sum(1) - 1).abs().max() < tol:
            break
    return matrix


@pytest.mark.parametrize("rounds", [1, 4, 50])
@pytest.mark.parametrize("small", [1.0, 1e-11])
def test_balance_is_division_by_sums(rounds, small, generator):
    matrix = torch.rand(3, 5, 5, generator=generator, dtype=torch.float64)
    matrix[0] += 2 * torch.eye(5)  # stops after other numbers of rounds
    matrix[1, :, 2] *= small
    matrix.requires_grad_()
    everywhere = torch.ones(3, 5, dtype=torch.bool)
    u, v = balance(matrix, everywhere, everywhere, rounds, 1e-6)
    result = u.unsqueeze(-1) * matrix * v.unsqueeze(-2)
    wanted = torch.stack([naive_balance(m, rounds, 1e-6) for m in matrix])
    torch.testing.assert_close(result, wanted)
    upstream = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
    slopes = [torch.autograd.grad(m, matrix, upstream, retain_graph=True)[0] for m in (result, wanted)]
    torch.testing.assert_close(*slopes)


def test_balance_of_each_by_itself(generator):
    matrix = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    matrix[0] = 1.0
    everywhere = torch.ones(2, 4, dtype=torch.bool)
    together = balance(matrix, everywhere, everywhere, 50, 1e-3)
    for number in range(2):
        one = slice(number, number + 1)
        alone = balance(matrix[one], everywhere[one], everywhere[one], 50, 1e-3)
        assert all(torch.equal(t[one], a) for t, a in zip(together, alone))


def test_gradient_of_the_balance_can_be_differentiated(generator):
    matrix = torch.rand(1, 3, 3, generator=generator, dtype=torch.float64).add(0.1).requires_grad_()
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    assert torch.autograd.gradgradcheck(lambda m: balance(m, everywhere, everywhere, 3, 1e-9), matrix)


def test_soft_top_k(generator):
    values = torch.randn(5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    k = torch.tensor([[1.0], [2.0], [3.5], [6.9], [0.1]], dtype=torch.float64)

    def shares(values):
        return torch.sigmoid(2 * (values + soft_top_k(values, k, 2.0)))

    torch.testing.assert_close(shares(values).sum(-1, keepdim=True), k, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(shares, values)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_soft_top_k_of_large_values_in_float32(size, generator):
    values = size * torch.randn(50, 9, generator=generator)
    k = torch.full((50, 1), 4.0)
    shares = torch.sigmoid(values + soft_top_k(values, k, 1.0))
    assert (shares.sum(-1, keepdim=True) - k).abs().max() < 2e-6 * max(1.0, size)


def test_soft_top_k_with_entries_that_have_no_share():
    values = torch.tensor([[2.0, -torch.inf, 1.0, 0.0]], requires_grad=True)
    shift = soft_top_k(values, torch.tensor([[1.5]]), 1.0)
    assert shift.item() == pytest.approx(-1.0, abs=1e-6)
    (slope,) = torch.autograd.grad(shift, values)
    assert slope[0, 1] == 0
    assert slope.sum().item() == pytest.approx(-1.0)


@pytest.mark.parametrize("margin", [-0.3, 0.0, 1.0])
def test_squared_hinge_of_all_pairs(margin, generator):
    positives = torch.randn(31, generator=generator, dtype=torch.float64).add(1).requires_grad_()
    negatives = torch.randn(47, generator=generator, dtype=torch.float64).requires_grad_()
    wanted = (margin - (positives.unsqueeze(1) - negatives)).clamp_min(0).square().mean()
    value = squared_hinge_pairs(positives, negatives, margin)
    torch.testing.assert_close(value, wanted)
    for a, b in zip(*(torch.autograd.grad(v, (positives, negatives)) for v in (value, wanted))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("scores", "alpha", "k"),
    [((3.0, 2.0, 1.0, -9.0), 4.0, 3.0), ((5.0, 4.0, -6.0, -7.0), 4.0, 2.0), ((30.0, 25.0, -15.0, -20.0), 1.0, 2.0)],
)
def test_soft_top_k_keeps_its_digits_where_it_is_nearly_hard(scores, alpha, k):
    slopes = []
    for dtype in (torch.float32, torch.float64):
        s = torch.tensor([scores], dtype=dtype, requires_grad=True)
        log_q = torch.nn.functional.logsigmoid(alpha * (s + soft_top_k(s, torch.tensor([[k]], dtype=dtype), alpha)))
        slopes += torch.autograd.grad(log_q[0, int(k)], s)
    assert slopes[1][0, int(k)] > 0.4
    torch.testing.assert_close(slopes[0].double(), slopes[1], rtol=1e-4, atol=1e-6)


def test_hinges_of_scores_far_apart():
    positives = torch.linspace(-1, 1, 50) + 1000
    negatives = torch.cat([torch.full((25,), 1000.0), torch.full((25,), -1000.0)])
    wanted = (1 - (positives[:, None] - negatives)).clamp_min(0).double().square().mean()
    assert squared_hinge_pairs(positives, negatives, 1.0).item() == pytest.approx(wanted.item(), rel=1e-6)
