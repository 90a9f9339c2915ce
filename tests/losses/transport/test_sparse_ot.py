"""Sparse transport: conjugates, marginals, sparsity, duality against every support, POT."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from scipy import optimize

from steepest.losses.transport.sparse_ot import (
    SparseOTPlan,
    column_potential,
    sparsity_constrained_ot,
    topk_plan_from_duals,
)

S = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
ZERO = torch.zeros(4, dtype=torch.float64)


def problem(m, n, seed=0):
    """Random masses of one total and a random cost."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.5 for size in (m, n))
    cost = torch.rand(m, n, generator=generator, dtype=torch.float64)
    return a / a.sum(), b / b.sum(), cost


def gain(t, gamma=1.0):
    """<s, t> - gamma/2 |t|^2: the conjugate, at its argmax."""
    return float(S @ t - gamma / 2 * t @ t)


@pytest.mark.holds("sparse-ot", 1)
def test_conjugate():
    for k, value in ((1, 0.125), (2, 0.17), (4, 0.175)):
        t = topk_plan_from_duals(ZERO, ZERO[:1], -S[:, None], k)[:, 0]
        assert gain(t) == pytest.approx(value, abs=1e-12)
        if k == 2:
            assert t.tolist() == pytest.approx([0.3, 0, 0.5, 0])
        # no other k-sparse t >= 0 of a grid does better
        grid = [t for t in itertools.product([0, 0.1, 0.3, 0.5, 0.7], repeat=4) if np.count_nonzero(t) <= k]
        assert max(gain(torch.tensor(t, dtype=torch.float64)) for t in grid) == pytest.approx(value, abs=1e-12)


@pytest.mark.holds("sparse-ot", 2)
def test_conjugate_of_a_mass():
    wanted = {1: (0.0, [0, 0, 1, 0]), 2: (0.16, [0.4, 0, 0.6, 0]), 3: (0.173333, [0.3333, 0, 0.5333, 0.1333])}
    for k, (value, plan) in wanted.items():
        beta = column_potential(ZERO, torch.ones(1, dtype=torch.float64), -S[:, None], k)
        t = topk_plan_from_duals(ZERO, beta, -S[:, None], k)[:, 0]
        assert gain(t) == pytest.approx(value, abs=5e-7)
        assert t.tolist() == pytest.approx(plan, abs=5e-5)
        assert t.tolist() == pytest.approx(_best_of_supports(S.numpy(), 1.0, k, 1.0), abs=1e-9)


def _best_of_supports(s, mass, k, gamma):
    """By the optimality conditions on every support of at most k: t = (s - mean)/gamma + mass/|J|, if t >= 0."""
    best, found = -np.inf, None
    for size in range(1, k + 1):
        for support in itertools.combinations(range(len(s)), size):
            t = np.zeros(len(s))
            on = list(support)
            t[on] = (s[on] - s[on].mean()) / gamma + mass / size
            if (t >= 0).all() and s @ t - gamma / 2 * t @ t > best:
                best, found = s @ t - gamma / 2 * t @ t, t
    return found.tolist()


@pytest.mark.parametrize(("gamma", "mass"), [(1.0, 0.3), (0.1, 0.7), (5.0, 0.05)])
def test_column_potential_against_every_support(gamma, mass):
    alpha, _, cost = problem(5, 3, 2)
    for k in (1, 2, 4, 5):
        masses = torch.full((3,), mass, dtype=torch.float64)
        plan = topk_plan_from_duals(alpha, column_potential(alpha, masses, cost, k, gamma), cost, k, gamma)
        for j in range(3):
            wanted = _best_of_supports((alpha - cost[:, j]).numpy(), mass, k, gamma)
            assert plan[:, j].tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.holds("sparse-ot", 3)
@pytest.mark.parametrize("method", ["dual", "semi_dual"])
def test_sparsity_and_column_sums(method):
    a, b, cost = problem(8, 6)
    for gamma, k in itertools.product((0.01, 1.0), (2, 3, 8)):
        for polish in (False, True):
            found = sparsity_constrained_ot(a, b, cost, k, gamma=gamma, method=method, polish=polish, max_iter=200)
            assert int((found.plan > 0).sum(0).max()) <= k
            assert (found.plan >= 0).all()
            if method == "semi_dual":
                assert torch.allclose(found.plan.sum(0), b, atol=1e-9)
                assert found.column_error < 1e-8
            assert found.row_error == pytest.approx((found.plan.sum(1) - a).abs().sum().item(), abs=1e-12)
    tied = topk_plan_from_duals(torch.ones(4), torch.zeros(2), torch.zeros(4, 2), 2)
    assert (tied > 0).sum(0).tolist() == [2, 2]


@pytest.mark.holds("sparse-ot", 4)
@pytest.mark.parametrize("method", ["dual", "semi_dual"])
def test_dense_is_quadratic_regularisation(method):
    for gamma in (0.1, 1.0):
        a, b, cost = problem(8, 5, 1)
        solve = ot.smooth.smooth_ot_dual if method == "dual" else ot.smooth.smooth_ot_semi_dual
        peer = solve(a.numpy(), b.numpy(), cost.numpy(), gamma, reg_type="l2", stopThr=1e-15, numItermax=5000)
        found = sparsity_constrained_ot(a, b, cost, 8, gamma=gamma, method=method)
        assert np.abs(found.plan.numpy() - peer).max() < 1e-6
        assert found.row_error < 1e-6


def test_pot_at_a_smooth_optimum():
    """Where the dual is differentiable at its optimum both solvers meet the marginals with one sparse plan."""
    a, b, cost = problem(6, 6, 4)
    k = 4
    found = sparsity_constrained_ot(a, b, cost, k, gamma=0.5)
    peer = ot.smooth.smooth_ot_semi_dual(
        a.numpy(), b.numpy(), cost.numpy(), 0.5, reg_type="sparsity_constrained", max_nz=k, stopThr=1e-12
    )
    assert found.row_error < 1e-6
    assert np.abs(found.plan.numpy() - peer).max() < 1e-5


def primal_of_supports(a, b, cost, k, gamma):
    """The least primal value over every choice of k rows a column, each a quadratic program by SLSQP."""
    m, n = cost.shape
    best = np.inf
    for supports in itertools.product(itertools.combinations(range(m), k), repeat=n):
        cells = [(i, j) for j, rows in enumerate(supports) for i in rows]
        if {i for i, _ in cells} != set(range(m)):
            continue
        sums = np.zeros((m + n - 1, len(cells)))
        for c, (i, j) in enumerate(cells):
            sums[i, c] = 1
            if j < n - 1:
                sums[m + j, c] = 1
        prices, right = np.array([cost[cell] for cell in cells]), np.concatenate([a, b[:-1]])
        done = optimize.minimize(
            lambda t, p=prices: p @ t + gamma / 2 * t @ t,
            np.full(len(cells), 1 / len(cells)),
            jac=lambda t, p=prices: p + gamma * t,
            bounds=[(0, None)] * len(cells),
            constraints={"type": "eq", "fun": lambda t, s=sums, r=right: s @ t - r, "jac": lambda t, s=sums: s},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        if np.abs(sums @ done.x - right).max() < 1e-8:
            best = min(best, float(done.fun))
    return best


@pytest.mark.holds("sparse-ot", 5)
@pytest.mark.parametrize("seed", [1])
def test_weak_duality_and_order_in_k(seed):
    a, b, cost = problem(4, 3, seed)
    values = {}
    for k in (2, 3, 4):
        results = [sparsity_constrained_ot(a, b, cost, k, method=method) for method in ("dual", "semi_dual")]
        assert results[0].value.item() == pytest.approx(results[1].value.item(), abs=1e-6 if k == 4 else 1e-3)
        values[k] = results[1].value.item()
    for k in (2, 4):
        primal = primal_of_supports(a.numpy(), b.numpy(), cost.numpy(), k, 1.0)
        assert np.isfinite(primal)
        assert values[k] <= primal + 1e-7
        if k == 4:
            assert values[k] == pytest.approx(primal, abs=1e-6)
    assert values[4] <= values[3] + 1e-9 <= values[2] + 2e-9
    assert values[2] > values[4]
    # the dual itself, at any potentials
    alpha, beta = torch.randn(2, 4, dtype=torch.float64)
    plans = [topk_plan_from_duals(alpha, beta[:3], cost, k) for k in (1, 2, 3, 4)]
    duals = [(alpha @ a + beta[:3] @ b - plan.square().sum() / 2).item() for plan in plans]
    assert duals == sorted(duals, reverse=True)
    assert duals[0] > duals[3]


@pytest.mark.holds("sparse-ot", 6)
def test_refused():
    a, b, cost = problem(4, 3)
    for bad, message in ((0, "k: expected an integer >= 1"), (5, "<= 4")):
        with pytest.raises(ValueError, match=message):
            sparsity_constrained_ot(a, b, cost, bad)
    with pytest.raises(ValueError, match="k: expected k \\* 3 columns to be at least the 4 rows"):
        sparsity_constrained_ot(a, b, cost, 1)
    with pytest.raises(ValueError, match="b: expected a total mass of 1 as in a, got"):
        sparsity_constrained_ot(a, 2 * b, cost, 2)
    for masses in ((-a, -b), (a - 0.3, b)):
        with pytest.raises(ValueError, match="a: expected masses >= 0"):
            sparsity_constrained_ot(*masses, cost, 2)
    with pytest.raises(ValueError, match="gamma: expected a number > 0"):
        sparsity_constrained_ot(a, b, cost, 2, gamma=0.0)
    with pytest.raises(ValueError, match="method: expected one of"):
        SparseOTPlan(2, method="primal")
    with pytest.raises(ValueError, match=r"a: expected shape \(4\)"):
        sparsity_constrained_ot(b, a, cost, 2)


def test_one_source_a_column_is_exact_transport():
    """12 equal sinks, 4 equal sources: the exact plan has one source a sink, so k = 1 costs what the simplex finds."""
    cost = problem(4, 12, 3)[2]
    a, b = (torch.full((size,), 1 / size, dtype=torch.float64) for size in cost.shape)
    exact = ot.emd2(a.numpy(), b.numpy(), cost.numpy())
    found = sparsity_constrained_ot(a, b, cost, 1, gamma=0.01)
    constant = 0.01 / 2 * 12 / 144
    assert found.value.item() == pytest.approx(exact + constant, abs=5e-3)
    assert found.value.item() <= exact + constant + 1e-9


def test_polish_meets_the_rows():
    """A tie keeps the rows from their masses; a solve on the support that was found does not make it worse."""
    worse, again = [], []
    for seed in range(6):
        a, b, cost = problem(8, 4, seed)
        plain, polished = (sparsity_constrained_ot(a, b, cost, 3, polish=p) for p in (False, True))
        worse.append(plain.row_error)
        assert polished.row_error <= plain.row_error + 1e-12
        assert polished.value.item() == plain.value.item()
        # only where the support that was found allows a plan is there a second solve
        again.append(polished.iterations > plain.iterations)
        assert polished.row_error < 1e-6 if again[-1] else torch.equal(polished.plan, plain.plan)
    assert max(worse) > 1e-3
    assert any(again)
    assert not all(again)


def test_gradient_of_value_and_layer():
    a, b, cost = problem(6, 6, 4)
    cost.requires_grad_()
    found = sparsity_constrained_ot(a, b, cost, 4, gamma=0.5)
    (slope,) = torch.autograd.grad(found.value, cost, retain_graph=True)
    assert torch.allclose(slope, found.plan, atol=1e-12)
    direction = torch.randn(6, 6, dtype=torch.float64)
    with torch.no_grad():
        up, down = (sparsity_constrained_ot(a, b, cost + e * direction, 4, gamma=0.5).value for e in (1e-4, -1e-4))
    assert ((up - down) / 2e-4).item() == pytest.approx((slope * direction).sum().item(), abs=1e-5)
    assert not found.alpha.requires_grad
    plan = SparseOTPlan(4, gamma=0.5)(cost, a, b)
    (inner,) = torch.autograd.grad(plan[0, :].sum(), cost)
    assert torch.allclose(inner[0], -(plan[0] > 0).double() / 0.5)
    assert (inner[1:] == 0).all()


def test_precision_follows_the_cost():
    a, b, cost = problem(5, 4)
    wanted = sparsity_constrained_ot(a, b, cost, 3)
    for dtype in (torch.float32, torch.bfloat16):
        found = sparsity_constrained_ot(a, b, cost.to(dtype), 3)
        assert found.plan.dtype == found.value.dtype == torch.float32
    assert sparsity_constrained_ot(a, b, cost.float(), 3).value.item() == pytest.approx(wanted.value.item(), abs=1e-5)
    assert wanted.plan.dtype == torch.float64
