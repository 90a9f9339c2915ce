"""Projections onto the dual cone: optimal to the last digits where rows are independent, the projection elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from steepest.core import dual_cone, native
from steepest.core.dual_cone import weights

needs_library = pytest.mark.skipif(dual_cone._weigh(native.level()) is None, reason="no compiler")


@pytest.fixture(params=["library", "least squares"])
def form(request, monkeypatch):
    if request.param == "least squares":
        monkeypatch.setattr(dual_cone, "_weigh", lambda level: None)


def projections(gram):
    """Row k: of the projection of row k."""
    return torch.stack([weights(gram, bound) for bound in torch.eye(len(gram), dtype=gram.dtype)])


def unit_rows(rows, width, rank, seed, agreement=0.0):
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=g, dtype=torch.float64)
    right = torch.randn(rank, width, generator=g, dtype=torch.float64)
    jacobian = left @ right
    jacobian += agreement * jacobian.mean(0) - 0.3 * jacobian[0] * (agreement != 0)
    return jacobian / jacobian.norm(dim=1, keepdim=True).clamp_min(1e-300)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (2, 2), (5, 9), (17, 40), (33, 60)])
@pytest.mark.parametrize("agreement", [0.0, -0.5])
def test_optimal_to_the_last_digits_at_full_rank(rows, width, agreement):
    jacobian = unit_rows(rows, width, rows, rows, agreement)
    gram = jacobian @ jacobian.T
    v = projections(gram)
    more, slope = v - torch.eye(rows, dtype=torch.float64), v @ gram
    assert (more >= 0).all()
    assert (slope >= -1e-9).all()
    assert (more * slope).abs().max() <= 1e-9


def naive(gram, k):
    """The least v'Gv with v >= e_k over all sets of free rows, by pseudo-inverses."""
    m, best, least = len(gram), None, np.inf
    for size in range(m + 1):
        for free in map(list, itertools.combinations(range(m), size)):
            v = np.eye(m)[k]
            if free:
                v[free] -= np.linalg.pinv(gram[np.ix_(free, free)]) @ (gram[free] @ v)
            value = v @ gram @ v
            if (v >= np.eye(m)[k] - 1e-9).all() and value < least - 1e-12:
                best, least = v, value
    return best


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("rows", "width", "rank"), [(4, 6, 4), (5, 6, 2), (5, 2, 2), (6, 3, 1)])
@pytest.mark.parametrize("agreement", [0.0, -0.5])
def test_the_projection_is_that_of_all_sets_tried(rows, width, rank, agreement):
    """Also where rows are dependent and v is not unique."""
    jacobian = unit_rows(rows, width, rank, rows + rank, agreement)
    gram = jacobian @ jacobian.T
    wanted = np.stack([naive(gram.numpy(), k) for k in range(rows)]) @ jacobian.numpy()
    np.testing.assert_allclose((projections(gram) @ jacobian).numpy(), wanted, atol=1e-6)


@pytest.mark.usefixtures("form")
def test_duplicates_opposites_and_zeros():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    projected = projections(rows @ rows.T) @ rows
    torch.testing.assert_close(projected, torch.zeros_like(rows), atol=1e-6, rtol=0.0)


@needs_library
def test_what_the_exchange_of_sets_leaves_is_solved_by_least_squares(monkeypatch):
    """Dependent rows in conflict; and a set that is never finished."""
    jacobian = unit_rows(40, 24, 24, 0, -0.5)
    gram = jacobian @ jacobian.T
    calls, plain = [], dual_cone._by_least_squares
    monkeypatch.setattr(dual_cone, "_by_least_squares", lambda g, rows: calls.append(len(rows)) or plain(g, rows))
    v = projections(gram)
    assert calls
    slope = v @ gram
    assert (slope >= -1e-6).all()
    assert ((v - torch.eye(40, dtype=torch.float64)) * slope).abs().max() <= 1e-6


@pytest.mark.usefixtures("form")
def test_nan_stays():
    assert weights(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])).isnan().all()


@pytest.mark.usefixtures("form")
def test_lengths_and_preferences_are_factors():
    jacobian = unit_rows(4, 6, 4, 3, -0.5)
    lengths = torch.tensor([1e-20, 1.0, 1e20, 3.0], dtype=torch.float64)
    long = lengths.unsqueeze(1) * jacobian
    p = torch.tensor([0.1, 0.0, 2.0, 0.7], dtype=torch.float64)
    direction = weights(long @ long.T, p) @ long
    wanted = (p * lengths) @ projections(jacobian @ jacobian.T) @ jacobian
    torch.testing.assert_close(direction, wanted, rtol=1e-9, atol=0.0)
