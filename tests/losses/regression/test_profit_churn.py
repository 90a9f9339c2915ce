"""Profit-driven churn losses against the card's numbers, naive loops, brute force over decisions and quadrature."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import beta as beta_law

from steepest.losses.regression.profit_churn import (
    ProfitRegretLoss,
    SPOPlusTargetingLoss,
    break_even_probability,
    campaign_profit,
    contact_cost,
    contact_decision,
    emp_churn,
    profit_regret,
    smooth_profit_regret,
    spo_plus,
)

C = torch.tensor([-56.0, 11.0, -2.0], dtype=torch.float64)
P = torch.tensor([-20.0, -5.0, 3.0], dtype=torch.float64)
PAIRS = torch.randn(30, 2, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def brute(pred, cost, budget):
    """SPO+ and regret of one problem by enumerating every decision within the budget."""
    n = len(cost)
    plans = [np.array(z) for z in itertools.product((0, 1), repeat=n) if budget is None or sum(z) <= budget]
    best = min(plans, key=lambda z: cost @ z)
    chosen = min(plans, key=lambda z: pred @ z)
    surrogate = max((cost - 2 * pred) @ z for z in plans) + 2 * pred @ best - cost @ best
    return surrogate, cost @ chosen - cost @ best


@pytest.mark.holds("profit-churn", 1)
def test_card_profits():
    y, clv = torch.tensor([1, 0, 1]), torch.tensor([200.0, 500.0, 20.0])
    assert campaign_profit(y, clv, torch.ones(3)).tolist() == pytest.approx([56, -11, 2])
    assert campaign_profit(y, clv, torch.tensor([True, False, False])).tolist() == pytest.approx([56, 0, 0])
    rng = np.random.default_rng(0)
    y, clv, z = rng.integers(0, 2, 20), rng.uniform(0, 900, 20), rng.integers(0, 2, 20)
    loop = [k * ((0.4 * (v - 7) - 2) if c else -(7 + 2)) for c, v, k in zip(y, clv, z)]
    found = campaign_profit(*map(torch.from_numpy, (y, clv, z)), gamma=0.4, d=7.0, f=2.0)
    assert found.tolist() == pytest.approx(loop, rel=1e-12)


@pytest.mark.holds("profit-churn", 2)
def test_card_regret_and_surrogate():
    assert profit_regret(P, C, reduction="none").tolist() == [0.0, 11.0, 2.0]
    assert spo_plus(P, C, reduction="none").tolist() == [16.0, 21.0, 8.0]
    assert SPOPlusTargetingLoss()(P, C).item() == 15.0


@pytest.mark.holds("profit-churn", 3)
@pytest.mark.parametrize("budget", [None, 0, 1, 3, 7, 20])
def test_agrees_with_enumeration_and_bounds_the_regret(budget):
    for pred, cost in PAIRS:
        surrogate, regret = brute(pred.numpy(), cost.numpy(), budget)
        assert spo_plus(pred, cost, budget=budget, reduction="sum").item() == pytest.approx(surrogate, abs=1e-10)
        assert profit_regret(pred, cost, budget=budget, reduction="sum").item() == pytest.approx(regret, abs=1e-10)
        assert surrogate >= regret - 1e-10 >= -2e-10
        assert spo_plus(cost, cost, budget=budget).item() == 0.0


@pytest.mark.holds("profit-churn", 3)
@pytest.mark.parametrize("budget", [None, 2])
def test_convex(budget):
    for (a, cost), (b, _) in itertools.pairwise(PAIRS):
        ends = [spo_plus(p, cost, budget=budget).item() for p in (a, b)]
        for u in (0.25, 0.5, 0.9):
            middle = spo_plus(u * a + (1 - u) * b, cost, budget=budget).item()
            assert middle <= u * ends[0] + (1 - u) * ends[1] + 1e-12


@pytest.mark.parametrize("budget", [None, 2])
def test_subgradient(budget):
    for pred, cost in PAIRS[:8]:
        p = pred.clone().requires_grad_()
        (slope,) = torch.autograd.grad(spo_plus(p, cost, budget=budget, reduction="sum"), p)
        wanted = 2 * (contact_decision(cost, budget).double() - contact_decision(2 * pred - cost, budget).double())
        assert torch.equal(slope, wanted)
    tie = torch.tensor([1.0, 0.5], requires_grad=True)
    (slope,) = torch.autograd.grad(spo_plus(tie, 2 * tie.detach()), tie)
    assert slope.tolist() == [0.0, 0.0]


@pytest.mark.holds("profit-churn", 4)
def test_break_even():
    found = break_even_probability(torch.tensor([200.0, 1000.0, 50.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.164179, 0.035831, 0.5], abs=5e-7)
    for v, p in zip((200.0, 1000.0, 50.0), found.tolist()):
        assert p * (0.3 * (v - 10) - 1) == pytest.approx((1 - p) * 11, rel=1e-12)
    assert break_even_probability(torch.zeros(1), gamma=1.0).item() == math.inf


@pytest.mark.holds("profit-churn", 5)
def test_regret_counts_missed_churners():
    y = torch.tensor([1, 1, 0, 1, 0, 0])
    cost = contact_cost(y, torch.full((6,), 40.0), gamma=1.0, d=0.0, f=0.0)
    decided = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, -1.0])
    missed = sum(bool(c) and p >= 0 for c, p in zip(y.tolist(), decided.tolist()))
    assert missed == 2
    assert profit_regret(decided, cost, reduction="sum").item() == 40.0 * missed


@pytest.mark.holds("profit-churn", 6)
def test_budget_of_zero():
    assert not contact_decision(C, 0).any()
    assert profit_regret(P, C, budget=0, reduction="none").tolist() == [0.0, 0.0, 0.0]
    assert spo_plus(P, C, budget=0).item() == 0.0


@pytest.mark.holds("profit-churn", 6)
def test_refused():
    y, clv = torch.tensor([1, 0]), torch.tensor([5.0, -1.0])
    for call in (contact_cost, lambda a, b: ProfitRegretLoss()(torch.zeros(2), a, b)):
        with pytest.raises(ValueError, match="clv: expected values >= 0"):
            call(y, clv)
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match="gamma: expected"):
            contact_cost(y, clv.abs(), gamma=gamma)
        with pytest.raises(ValueError, match="gamma: expected"):
            ProfitRegretLoss(gamma=gamma)
    with pytest.raises(ValueError, match="budget: expected"):
        SPOPlusTargetingLoss(-1)
    with pytest.raises(ValueError, match="y: expected labels"):
        contact_cost(torch.tensor([2, 0]), clv.abs())
    with pytest.raises(ValueError, match="expected 2 values, as probabilities"):
        smooth_profit_regret(torch.zeros(2), torch.zeros(3), torch.ones(3))


def test_smooth_regret_agrees_with_a_loop():
    rng = np.random.default_rng(2)
    p, y, v = rng.uniform(size=25), rng.integers(0, 2, 25), rng.choice([5.0, 12.0, 80.0, 700.0], 25)
    loop = []
    for q, churn, value in zip(p, y, v):
        cost = 1.5 - 0.3 * (value - 10) if churn else 11.5
        even = 11.5 / (0.3 * (value - 10) + 10)
        loop.append(cost * (1 / (1 + math.exp(-6 * (q - even))) - (cost < 0)))
    found = smooth_profit_regret(*map(torch.from_numpy, (p, y, v)), f=1.5, slope=6.0, reduction="none")
    assert found.tolist() == pytest.approx(loop, rel=1e-9)
    assert bool((found >= 0).all())


def test_a_steep_smooth_regret_is_the_regret_of_the_break_even_rule():
    rng = np.random.default_rng(3)
    p, v = (torch.from_numpy(rng.uniform(0, high, 50)) for high in (1, 400))
    y = torch.from_numpy(rng.integers(0, 2, 50))
    expected = p * (1 - 0.3 * (v - 10)) + (1 - p) * 11
    wanted = profit_regret(expected, contact_cost(y, v), reduction="none")
    torch.testing.assert_close(smooth_profit_regret(p, y, v, slope=1e9, reduction="none"), wanted)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("hyper", [{}, {"clv": 60.0, "alpha": 2.0, "beta": 2.0, "d": 5.0, "f": 3.0}])
def test_expected_profit_agrees_with_quadrature(hyper, ties):
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 40)
    scores = y + rng.normal(size=40)
    scores = np.round(scores) if ties else scores
    v, d, f = hyper.get("clv", 200.0), hyper.get("d", 10.0), hyper.get("f", 1.0)

    def best(gamma):
        profit = np.where(y == 1, gamma * (v - d) - f, -(d + f))
        return max([0.0, *(profit[scores >= t].sum() / 40 for t in np.unique(scores))])

    grid = np.linspace(0, 1, 4001)
    law = beta_law.pdf(grid, hyper.get("alpha", 6.0), hyper.get("beta", 14.0))
    wanted = integrate.trapezoid([best(g) * h for g, h in zip(grid, law)], grid)
    assert emp_churn(y, scores, **hyper).profit == pytest.approx(wanted, rel=2e-5)


def test_expected_profit_degenerate():
    assert emp_churn([0, 0], [0.1, 0.9]).profit == 0.0
    assert emp_churn([1, 0], [0.9, 0.1], clv=10.0) == (0.0, 0.0)
    assert emp_churn([1, 1], [0.9, 0.1], d=0.0, f=0.0) == pytest.approx((60.0, 1.0))
    assert 0 < emp_churn([1, 0, 1], [0.9, 0.1, 0.2]).fraction < 1
    with pytest.raises(ValueError, match="y: expected labels"):
        emp_churn([1, 2], [0.9, 0.1])
    with pytest.raises(ValueError, match="expected two series of one length"):
        emp_churn([1], [0.9, 0.1])
    with pytest.raises(ValueError, match="scores: expected finite"):
        emp_churn([1, 0], [0.9, math.nan])
