"""NDCG by a relaxed permutation."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.query_lists import mask_from_padding
from steepest.losses.ranking.neural_ndcg import NeuralNDCGLoss, neural_ndcg, neural_sort, sinkhorn_scaling


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


S, Y = row(0.2, 1.0, 0.5), row(2.0, 0.0, 1.0)


def ndcg(scores, grades, k=None):
    """By sorting."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])

    def dcg(values):
        return sum((2**y - 1) / math.log2(2 + r) for r, y in enumerate(values[:k]))

    return dcg([grades[i] for i in order]) / dcg(sorted(grades, reverse=True))


def naive(scores, grades, tau=1.0, k=None, rounds=50):
    """One list, the permutation as a matrix that is divided by its sums."""
    size = len(scores)
    spread = (scores.unsqueeze(-1) - scores).abs().sum(-1)
    matrix = torch.stack([((size + 1 - 2 * r) * scores - spread) / tau for r in range(1, size + 1)]).softmax(-1)
    for _ in range(rounds):
        matrix = matrix / matrix.sum(0, keepdim=True).clamp(min=1e-10)
        matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-10)
        if (matrix.sum(0) - 1).abs().max() < 1e-6 and (matrix.sum(1) - 1).abs().max() < 1e-6:
            break
    discount = 1 / torch.log2(torch.arange(size) + 2.0).double()
    discount[size if k is None else k :] = 0
    gains = 2**grades - 1
    return -(discount * (matrix @ gains)).sum() / (discount * gains.sort(descending=True).values).sum()


@pytest.mark.holds("neural-ndcg", 1)
@pytest.mark.parametrize(("tau", "value"), [(1.0, -0.690556), (0.1, -0.590999), (0.01, -0.586883)])
def test_card_values(tau, value):
    assert neural_ndcg(S, Y, tau=tau).item() == pytest.approx(value, abs=5e-7)
    assert ndcg(S[0].tolist(), Y[0].tolist()) == pytest.approx(0.586883, abs=5e-7)


@pytest.mark.holds("neural-ndcg", 2)
def test_the_first_two_ranks_and_the_transposed_form():
    for transposed in (False, True):
        assert neural_ndcg(S, Y, k=2, transposed=transposed).item() == pytest.approx(-0.416235, abs=5e-7)


def test_linear_gains_are_divided_by_their_own_ideal():
    """In the transposed form of others by that of powered gains: .449177."""
    for transposed in (False, True):
        value = neural_ndcg(S, Y, tau=0.01, powered=False, transposed=transposed)
        assert value.item() == pytest.approx(-0.619906, abs=5e-7)


@pytest.mark.holds("neural-ndcg", 3)
def test_without_scaling():
    assert neural_ndcg(S, Y, sinkhorn_iters=0).item() == pytest.approx(-0.708888, abs=5e-7)


@pytest.mark.holds("neural-ndcg", 4)
def test_first_row_of_the_sort():
    matrix = neural_sort(S)
    assert matrix[0, 0].tolist() == pytest.approx([0.133071, 0.539628, 0.327301], abs=5e-7)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("tau", [1.0, 0.2])
def test_naive_matrices(k, tau):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    grades = torch.randint(5, (4, 9), generator=generator).double()
    grades[0, 6:] = grades[1, 2:4] = -1
    mask = mask_from_padding(grades)
    value = neural_ndcg(scores, grades, mask=mask, tau=tau, k=k)
    wanted = torch.stack([naive(s[m], y[m], tau, k) for s, y, m in zip(scores, grades, mask)]).mean()
    torch.testing.assert_close(value, wanted)
    slopes = [torch.autograd.grad(v, scores)[0] for v in (value, wanted)]
    torch.testing.assert_close(*slopes)


@pytest.mark.holds("neural-ndcg", 5)
def test_shifts_orders_and_padding():
    value = neural_ndcg(S, Y)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(neural_ndcg(S + 50.0, Y), value)
    torch.testing.assert_close(neural_ndcg(S[:, order], Y[:, order]), value)
    wide, grades = torch.cat([row(9.0), S, row(math.nan)], 1), torch.cat([row(-1.0), Y, row(-1.0)], 1)
    torch.testing.assert_close(neural_ndcg(wide, grades, mask=mask_from_padding(grades)), value)


def test_lists_stop_by_themselves():
    """A list that needs all rounds must not add any to another."""
    scores = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = neural_ndcg(scores, Y, reduction="none")
    both = neural_ndcg(torch.cat([scores, row(0.0, 30.0, 1.0)]), torch.cat([Y, Y]), reduction="none")
    assert torch.equal(both[:1], alone)


@pytest.mark.holds("neural-ndcg", 6)
def test_lists_without_a_relevant_document():
    scores = torch.cat([S, row(0.3, 0.1, 0.2)]).requires_grad_()
    value = neural_ndcg(scores, torch.cat([Y, torch.zeros_like(Y)]))
    torch.testing.assert_close(value, neural_ndcg(S, Y))
    assert not torch.autograd.grad(value, scores)[0][1].any()
    nothing = neural_ndcg(scores, torch.zeros_like(scores))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, scores)[0].any()
    flat = scores.flatten()
    module = NeuralNDCGLoss()(flat, torch.zeros(6), query=torch.arange(6) // 3)
    assert module == 0
    assert module.requires_grad


def test_random_draws():
    options = {"stochastic": True, "n_samples": 400}
    first, again = (neural_ndcg(S, Y, **options, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    quiet = neural_ndcg(S, Y, **options, beta=0.0)
    torch.testing.assert_close(quiet, neural_ndcg((S + 0.2 + 1e-10).log(), Y))
    assert 0 < (first - quiet).abs() < 0.02
    assert (neural_ndcg(S, Y, stochastic=True, n_samples=2, beta=5.0) - quiet).abs() > 1e-3
    # a list with lower scores in the batch is none of its business
    two = neural_ndcg(torch.cat([S, S - 9]), torch.cat([Y, Y]), **options, beta=0.0, reduction="none")
    torch.testing.assert_close(two[0], quiet)


def test_scaling_of_matrices():
    matrix = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    scaled = sinkhorn_scaling(matrix, mask=mask, rounds=200, tol=1e-12)
    torch.testing.assert_close(scaled[0].sum(0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(scaled[1].sum(0), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(scaled[1].sum(1), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.equal(sinkhorn_scaling(matrix, rounds=0), matrix)


@pytest.mark.parametrize(
    "options",
    [{"tau": 0.0}, {"k": 0}, {"powered": 1}, {"sinkhorn_iters": -1}, {"n_samples": 8}, {"beta": 0.1}],
)
def test_options_outside_their_range(options):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected"):
        neural_ndcg(S, Y, **options)


@pytest.mark.parametrize("options", [{"n_samples": 0}, {"beta": -0.1}])
def test_numbers_of_draws_outside_their_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}: expected a"):
        neural_ndcg(S, Y, stochastic=True, **options)


def test_a_generator_alone_is_refused():
    with pytest.raises(TypeError, match=r"^generator: expected None"):
        neural_ndcg(S, Y, generator=torch.Generator())


def test_grades_that_are_not_numbers_and_lists_without_documents():
    assert neural_ndcg(torch.zeros(1, 2), torch.tensor([[math.nan, 0.0]])).isnan()
    empty = torch.zeros(2, 0, requires_grad=True)
    value = neural_ndcg(empty, torch.zeros(2, 0))
    assert value == 0
    assert value.requires_grad
