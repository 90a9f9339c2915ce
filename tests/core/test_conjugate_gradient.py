"""Conjugate gradients against direct solutions, and negative curvature that must come up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.curvature import GaussNewton, MatrixOperator, conjugate_gradient


def positive(n=30, seed=0):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / n + 0.1 * torch.eye(n)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_solutions_of_definite_systems(scale, damping):
    matrix, b = scale * positive(), torch.linspace(-1, 1, 30, dtype=torch.float64)
    answer = conjugate_gradient(MatrixOperator(matrix), b, damping=scale * damping, tol=1e-10, iters=60)
    expected = torch.linalg.solve(matrix + scale * damping * torch.eye(30), b)
    torch.testing.assert_close(answer.solution, expected, rtol=1e-7, atol=1e-8 / scale)
    assert answer.converged
    assert answer.residual <= 1e-10
    assert answer.negative is None
    assert math.isnan(answer.curvature)
    # a start that is the solution needs one product, to see that it is
    again = conjugate_gradient(MatrixOperator(matrix), b, damping=scale * damping, tol=1e-6, start=expected)
    assert (again.iterations, again.converged) == (1, True)


def test_steps_are_counted_and_the_residual_is_told():
    matrix, b = positive(), torch.ones(30).double()
    answer = conjugate_gradient(MatrixOperator(matrix), b, tol=1e-10, iters=5)
    assert (answer.iterations, answer.converged) == (5, False)
    assert answer.residual == pytest.approx(((b - matrix @ answer.solution).norm() / b.norm()).item(), rel=1e-8)
    # as many steps as there are different eigenvalues
    two = torch.diag(torch.tensor([1.0, 3.0, 3.0, 1.0]).double())
    assert conjugate_gradient(MatrixOperator(two), torch.arange(1.0, 5.0).double()).iterations == 2


def test_a_preconditioner_that_is_the_inverse_needs_one_step():
    matrix, b = torch.diag(torch.logspace(-3, 3, 20).double()), torch.ones(20).double()
    for inverse in (1 / matrix.diagonal(), MatrixOperator(torch.linalg.inv(matrix))):
        answer = conjugate_gradient(MatrixOperator(matrix), b, preconditioner=inverse)
        assert answer.iterations == 1
        torch.testing.assert_close(answer.solution, 1 / matrix.diagonal(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lowest", [-3.0, -1e-2])
def test_negative_curvature_is_told_with_its_direction(lowest, dtype):
    values = torch.linspace(0.5, 2, 12, dtype=dtype)
    values[3] = lowest
    matrix = torch.diag(values)
    b = torch.ones(12, dtype=dtype)
    answer = conjugate_gradient(MatrixOperator(matrix), b)
    assert not answer.converged
    assert answer.negative.norm().item() == pytest.approx(1, abs=1e-5)
    assert answer.curvature < 0
    assert (answer.negative @ matrix @ answer.negative).item() == pytest.approx(answer.curvature, rel=1e-3, abs=1e-6)
    # the solution before it lowers the quadratic
    x = answer.solution
    assert (0.5 * x @ matrix @ x - b @ x).item() <= 0
    # damping above it solves
    assert conjugate_gradient(MatrixOperator(matrix), b, damping=4.0, iters=50).converged


def test_flat_directions_are_no_upward_curvature():
    answer = conjugate_gradient(MatrixOperator(torch.diag(torch.tensor([1.0, 0.0]))), torch.tensor([0.0, 1.0]))
    assert answer.curvature == 0.0
    assert answer.negative.tolist() == [0.0, 1.0]
    nothing = conjugate_gradient(MatrixOperator(torch.eye(2)), torch.zeros(2))
    assert (nothing.solution.tolist(), nothing.converged, nothing.iterations) == ([0.0, 0.0], True, 0)


def test_a_damped_gauss_newton_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    operator = GaussNewton(model, nn.MSELoss(), (torch.randn(12, 3).double(), torch.randn(12, 1).double()))
    b = torch.randn(operator.size).double()
    answer = conjugate_gradient(operator, b, damping=0.1, tol=1e-10, iters=100)
    expected = torch.linalg.solve(operator.matrix() + 0.1 * torch.eye(operator.size), b)
    torch.testing.assert_close(answer.solution, expected, rtol=1e-7, atol=1e-8)


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"b: expected shape \[2\]"):
        conjugate_gradient(MatrixOperator(torch.eye(2)), torch.ones(3))
    with pytest.raises(ValueError, match=r"start: expected shape \[2\]"):
        conjugate_gradient(MatrixOperator(torch.eye(2)), torch.ones(2), start=torch.ones(3))
