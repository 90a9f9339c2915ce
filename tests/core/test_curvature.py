"""The largest eigenvalue by Lanczos's method, against dense spectra: also of small and large maps, and none at all."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.curvature import hessian_product, largest_eigenpair


def symmetric(n=12, seed=0):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a + a.T


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1.0, 1e15, 1e20, 1e30])
def test_of_small_and_large_maps_in_float32(scale):
    """Squares of products leave float32 from 1e-23 and 1e19 on: lengths are those of float64."""
    a = symmetric()
    product = (scale * a).float()
    start = torch.randn(12, generator=torch.Generator().manual_seed(1))
    value, vector = largest_eigenpair(lambda v: product @ v, start, 12)
    assert value == pytest.approx(scale * float(torch.linalg.eigvalsh(a)[-1]), rel=1e-5, abs=0.0)
    assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
    # the length of the start is no matter
    again, _ = largest_eigenpair(lambda v: product @ v, 1e-30 * start, 12)
    assert again == pytest.approx(value, rel=1e-5, abs=0.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_product_that_is_not_finite_gives_nan(wrong):
    value, vector = largest_eigenpair(lambda v: v * torch.tensor([1.0, wrong, 2.0]), torch.ones(3))
    assert math.isnan(value)
    assert vector.isnan().all()


def test_it_ends_early_where_the_residual_is_small_or_the_space_is_whole():
    calls = []

    def product(v):
        calls.append(1)
        return v * torch.tensor([5.0, 5.0, 5.0, 1.0])

    value, _ = largest_eigenpair(product, torch.ones(4), tol=0.0)
    assert (round(value, 5), len(calls)) == (5.0, 2)
    calls.clear()
    matrix = symmetric(40)
    largest_eigenpair(lambda v: (calls.append(1), matrix @ v)[1], torch.ones(40).double(), iters=40, tol=0.1)
    assert len(calls) < 20
    # the residual at which it ends is the share that was asked for
    value, vector = largest_eigenpair(lambda v: matrix @ v, torch.ones(40).double(), iters=40, tol=0.1)
    assert (matrix @ vector - value * vector).norm() <= 0.1 * value


def test_a_loss_of_no_parameter_does_not_curve():
    w = torch.ones(2, requires_grad=True)
    assert hessian_product(lambda: torch.ones(()), [w])(torch.ones(2)).tolist() == [0.0, 0.0]
