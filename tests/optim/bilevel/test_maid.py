"""MAID: the numbers of the card, ridge regression in NumPy, bounds at random points, a run in plain numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from steepest.optim.bilevel import MAID, inexact_backtracking, inexact_hypergradient


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def lower(x, theta):
    return ((x - theta) ** 2 + 0.5 * x**2).sum()


def upper(x):
    return 0.5 * ((x - 1) ** 2).sum()


@pytest.mark.holds("maid", 1)
def test_the_scalar_problem():
    at = inexact_hypergradient(lower, upper, numbers(1.9), numbers(3.0), 3.0, 1.0, 0.1, 1e-12)
    assert at.z.item() == pytest.approx(0.6, abs=1e-14)
    assert abs(at.z.item() - 2 / 3) == pytest.approx(at.omega, abs=1e-10)
    assert at.omega == pytest.approx(0.066667, abs=1e-6)
    assert at.high == pytest.approx(0.5, abs=1e-14)
    assert at.low == pytest.approx(0.31, abs=1e-14)


class Ridge:
    """Ridge regression with a log-penalty for each feature, by linear systems in NumPy."""

    def __init__(self, seed, features=5):
        rng = np.random.default_rng(seed)
        x, y, v, w = (rng.standard_normal(shape) for shape in ((20, features), 20, (15, features), 15))
        self.data = (x, y, v, w)
        self.tensors = [torch.as_tensor(values) for values in self.data]
        self.L_g = float(np.linalg.eigvalsh(v.T @ v / len(v))[-1])

    def lower(self, weights, theta):
        x, y, _, _ = self.tensors
        return 0.5 * (x @ weights - y).square().mean() + 0.5 * (theta.exp() * weights.square()).sum()

    def upper(self, weights):
        _, _, v, w = self.tensors
        return 0.5 * (v @ weights - w).square().mean()

    def matrix(self, theta):
        x = self.data[0]
        return x.T @ x / len(x) + np.diag(np.exp(theta))

    def mu(self, theta):
        return float(np.linalg.eigvalsh(self.matrix(np.asarray(theta)))[0])

    def solution(self, theta):
        x, y, _, _ = self.data
        return np.linalg.solve(self.matrix(theta), x.T @ y / len(x))

    def loss(self, theta):
        _, _, v, w = self.data
        return 0.5 * np.mean((v @ self.solution(np.asarray(theta)) - w) ** 2)

    def gradient(self, theta):
        _, _, v, w = self.data
        weights = self.solution(theta)
        adjoint = np.linalg.solve(self.matrix(theta), v.T @ (v @ weights - w) / len(v))
        return -np.exp(theta) * weights * adjoint


@pytest.mark.holds("maid", 4)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_implicit_differentiation_of_ridge_regression_in_the_limit(seed):
    ridge = Ridge(seed)
    rng = np.random.default_rng(seed)
    theta, away = rng.standard_normal(5), rng.standard_normal(5)
    for i in range(5):  # the closed form itself, by central differences
        shift = 1e-5 * np.eye(5)[i]
        slope = (ridge.loss(theta + shift) - ridge.loss(theta - shift)) / 2e-5
        assert ridge.gradient(theta)[i] == pytest.approx(slope, abs=1e-9)
    for eps in (1e-2, 1e-6, 1e-12):
        x = torch.as_tensor(ridge.solution(theta) + eps * away / np.linalg.norm(away))
        at = inexact_hypergradient(
            ridge.lower, ridge.upper, x, torch.as_tensor(theta), ridge.mu(theta), ridge.L_g, eps, eps,
            L_J=float(np.exp(theta).max()),
        )  # fmt: skip
        error = np.linalg.norm(at.z.numpy() - ridge.gradient(theta))
        assert error <= at.omega + 1e-14
        assert at.omega < 1e3 * eps
        assert at.iterations <= 5


@pytest.mark.holds("maid", 2)
def test_bounds_of_the_loss_and_of_a_quadratic_problem():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        root, b, target, theta, away = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((4, 4), (4, 3), (4,), (3,), (4,))
        )
        a = root @ root.T / 4 + torch.eye(4)
        mu = float(torch.linalg.eigvalsh(a)[0])
        solution = torch.linalg.solve(a, b)

        def quadratic(x, theta, a=a, b=b):
            return 0.5 * x @ a @ x - x @ (b @ theta)

        def squares(x, target=target):
            return 0.5 * (x - target).square().sum()

        loss, slope = float(squares(solution @ theta)), solution.T @ (solution @ theta - target)
        for eps in (1.0, 1e-1, 1e-4):
            x = solution @ theta + eps * away / away.norm()
            at = inexact_hypergradient(quadratic, squares, x, theta, mu, 1.0, eps, eps)
            assert at.low <= loss <= at.high
            assert float((at.z - slope).norm()) <= at.omega  # with both Lipschitz constants 0


def test_the_error_of_a_lower_level_whose_curvature_varies():
    """``a x^2 / 2 + log cosh x - theta x``: the inverse of its curvature is at most 0.7699 / a^2 steep."""
    a, target, worst = 0.5, 3.0, 0.0
    for solution in np.linspace(-2, 2, 21):
        theta = a * solution + np.tanh(solution)
        true = (solution - target) / (a + 1 / np.cosh(solution) ** 2)
        for shift in (0.3, -0.3):
            bounds = [
                inexact_hypergradient(
                    lambda x, theta: (0.5 * a * x**2 + torch.log(torch.cosh(x)) - theta * x).sum(),
                    lambda x: 0.5 * ((x - target) ** 2).sum(),
                    numbers(solution + shift), numbers(theta), a, 1.0, 0.3, 1e-12, L_Ainv=steep,
                )
                for steep in (0.0, 0.7699 / a**2)
            ]  # fmt: skip
            error = abs(bounds[1].z.item() - true)
            assert error <= bounds[1].omega
            size = abs(solution + shift - target)
            assert bounds[1].omega - bounds[0].omega == pytest.approx(0.3 * 0.7699 / a**2 * size, rel=1e-9)
            worst = max(worst, error / bounds[0].omega)
    assert worst > 1.0  # without the constant it is no bound


@pytest.mark.parametrize(("L_J", "wanted"), [(0.0, 0.0), (2.0, 2.0 / 3 * 0.9 * 0.1 + 2.0 / 3 * 0.01)])
def test_the_share_of_the_jacobians_constant(L_J, wanted):
    at = inexact_hypergradient(lower, upper, numbers(1.9), numbers(3.0), 3.0, 1.0, 0.1, 1e-12, L_J=L_J)
    assert at.omega - 0.2 / 3 == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("given", [None, 4.0])
def test_the_share_of_the_adjoints_residual_and_of_a_jacobian_whose_norm_is_given(given):
    at = inexact_hypergradient(lower, upper, numbers(1.9), numbers(3.0), 3.0, 1.0, 0.1, 5.0, J_norm=given)
    assert at.z.item() == 0.0  # the slope of 0.9 is within the tolerance
    assert at.iterations == 0
    assert at.omega == pytest.approx((given or 2.0) / 3 * 5.1)


@pytest.mark.holds("maid", 3)
@pytest.mark.parametrize("seed", range(2))
def test_accepted_steps_lower_the_true_loss_and_accepted_directions_descend(seed):
    ridge = Ridge(seed)
    method = MAID(
        ridge.lower, ridge.upper, ridge.mu, ridge.L_g, L_J=lambda theta: float(theta.exp().max()), eps0=1.0,
        delta0=1.0, eta=0.2,
    )  # fmt: skip
    directions = []
    ask = method.hypergradient

    def watched(theta, x, eps, delta):
        at = ask(theta, x, eps, delta)
        size = float(at.z.norm())
        directions.append(
            (at.omega <= (1 - method.eta) * size, float(at.z.numpy() @ ridge.gradient(theta.numpy())), size)
        )
        return at

    method.hypergradient = watched
    theta, x, history = method.run(torch.zeros(5), torch.zeros(5), 25)
    losses = [ridge.loss(np.zeros(5)), *[ridge.loss(step.theta) for step in history]]
    assert len(history) == 25
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert all(step.low <= loss <= step.high for step, loss in zip(history, losses[1:]))
    for before, after, step in zip(losses, losses[1:], history):
        assert after <= before - 0.2 * step.step * step.norm**2
    assert {certain for certain, _, _ in directions} == {True, False}
    assert all(inner > 0 for certain, inner, _ in directions if certain)
    assert np.linalg.norm(x.numpy() - ridge.solution(theta.numpy())) <= history[-1].eps


def test_a_run_in_plain_numbers():
    """The card's algorithm for the scalar problem with a solver that errs by 0.9 of what it may."""

    def solver(x, theta, eps):
        return 2 * theta / 3 + 0.9 * eps, 1

    eta, rho, nu = 0.2, 0.7, 1.3
    method = MAID(
        lower, upper, 3.0, 1.0, solver=solver, eps0=0.3, delta0=0.2, beta0=6.0, eta=eta, rho=rho, nu=nu, trials=2
    )
    history = method.run(numbers(3.0), numbers(0.0), 8).history
    theta, eps, delta, beta, trials, x = 3.0, 0.3, 0.2, 6.0, 2, 0.0
    events, wanted = set(), []
    while len(wanted) < 8:
        x = 2 * theta / 3 + 0.9 * eps
        slope = x - 1
        residual, q = (0.0, slope / 3) if abs(slope) > delta else (abs(slope), 0.0)
        z = 2 * q
        if 2 / 3 * eps + 2 / 3 * max(delta, residual) > (1 - eta) * abs(z):
            eps, delta = eps / 2, delta / 2
            events.add("uncertain")
            continue
        for i in range(trials):
            step = beta * rho**i
            there = theta - step * z
            at = 2 * there / 3 + 0.9 * eps
            high = (at - 1) ** 2 / 2 + abs(at - 1) * eps + eps**2 / 2
            low = slope**2 / 2 - abs(slope) * eps - eps**2 / 2
            if high - low <= -eta * step * z**2:
                theta, beta, trials = there, step * 10 / 9, 2
                wanted.append((theta, eps, delta, step))
                eps, delta = eps * nu, delta * nu
                events.add(f"accepted at {i}")
                break
        else:
            eps, delta, trials = eps / 2, delta / 2, trials + 1
            events.add("failed")
    got = [(step.theta.item(), step.eps, step.delta, step.step) for step in history]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert {"uncertain", "failed", "accepted at 0", "accepted at 1", "accepted at 2"} <= events


def test_a_direction_is_certain_where_the_error_is_below_its_share():
    """The norm of z is 2/3, so that its half lies between the errors of 1e-3 and of half of it: 0.5 and 0.25."""
    method = MAID(
        lower, upper, 3.0, 1.0, solver=lambda x, theta, eps: (2 * theta / 3, 1), eps0=1e-3, delta0=1e-9, beta0=0.5,
        J_norm=1500.0, eta=0.5,
    )  # fmt: skip
    (step,) = method.run(numbers(3.0), numbers(0.0), 1).history
    assert step.eps == 5e-4
    assert step.lower_iterations == 3
    assert step.omega == pytest.approx(0.25, abs=1e-6)
    assert step.norm == pytest.approx(2 / 3)


@pytest.mark.parametrize("eps", [1e-1, 1e-6])
def test_the_solver_built_in_reaches_its_accuracy(eps):
    ridge = Ridge(4)
    theta = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    method = MAID(ridge.lower, ridge.upper, ridge.mu, ridge.L_g)
    x, iterations = method.solver(10 * torch.ones(5).double(), torch.as_tensor(theta), eps)
    assert np.linalg.norm(x.numpy() - ridge.solution(theta)) <= eps
    assert 0 < iterations < 500
    assert method.solver(x, torch.as_tensor(theta), eps)[1] == 0


def test_the_budget_and_the_floor_end_a_run():
    method = MAID(lower, upper, 3.0, 1.0)
    assert method.run(numbers(3.0), numbers(0.0), 50, budget=0).history == []
    assert 0 < len(method.run(numbers(3.0), numbers(0.0), 50, budget=30).history) < 50
    theta, _, history = MAID(lower, upper, 3.0, 1.0, least=1e-6).run(numbers(1.5), numbers(1.0), 50)
    assert history == []  # it begins at the minimum
    assert theta.item() == 1.5


def test_what_it_refuses_otherwise():
    x, theta = numbers(1.9), numbers(3.0)
    with pytest.raises(TypeError, match="lower: expected a function"):
        MAID(1.0, upper, 3.0, 1.0)
    with pytest.raises(ValueError, match="rho: expected a number > 0 and < 1"):
        MAID(lower, upper, 3.0, 1.0, rho=1.0)
    with pytest.raises(ValueError, match="nu: expected a number >= 1"):
        MAID(lower, upper, 3.0, 1.0, nu=0.9)
    with pytest.raises(ValueError, match="L_J: expected a number >= 0"):
        MAID(lower, upper, 3.0, 1.0, L_J=-1.0)
    with pytest.raises(ValueError, match="theta0: expected 1 dimensions"):
        MAID(lower, upper, 3.0, 1.0).run(theta[None], x, 1)
    with pytest.raises(ValueError, match="delta: expected a number > 0"):
        inexact_hypergradient(lower, upper, x, theta, 3.0, 1.0, 0.1, 0.0)
    with pytest.raises(ValueError, match="lower: expected a function that is strongly convex"):
        inexact_hypergradient(lambda x, theta: -lower(x, theta), upper, x, theta, 3.0, 1.0, 0.1, 0.1)
    with pytest.raises(ValueError, match="functions that return a scalar"):
        inexact_hypergradient(lower, lambda x: x * theta, x, theta, 3.0, 1.0, 0.1, 0.1)
    with pytest.raises(ValueError, match="trials: expected an integer >= 1"):
        inexact_backtracking(upper, lambda x, theta, eps: (x, 0), theta, x, theta, 0.1, 1.0, 0.1, trials=0)
    with pytest.raises(ValueError, match="lower: expected a finite gradient"):
        MAID(lambda x, theta: math.nan * lower(x, theta), upper, 3.0, 1.0).run(theta, x, 1)


def test_a_lower_level_that_the_solver_cannot_solve_is_an_error(monkeypatch):
    monkeypatch.setattr("steepest.optim.bilevel.maid.LONGEST", 50)
    method = MAID(lambda x, theta: lower(x, theta) + x.abs().sum(), upper, 3.0, 1.0, eps0=1e-6)
    with pytest.raises(RuntimeError, match=r"lower: its gradient's norm is .* after 50 iterations, not 3e-06"):
        method.run(numbers(0.1), numbers(3.0), 1)


@pytest.mark.holds("maid", 5)
@pytest.mark.parametrize("mu", [0.0, -1.0, math.nan])
def test_it_refuses_a_lower_level_without_strong_convexity(mu):
    with pytest.raises(ValueError, match="mu: expected a number > 0"):
        MAID(lower, upper, mu, 1.0)
    with pytest.raises(ValueError, match="mu: expected a number > 0"):
        inexact_hypergradient(lower, upper, numbers(1.9), numbers(3.0), mu, 1.0, 0.1, 0.1)
    with pytest.raises(ValueError, match="mu: expected a number > 0"):
        MAID(lower, upper, lambda theta: mu, 1.0).run(numbers(3.0), numbers(0.0), 1)
