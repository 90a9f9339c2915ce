"""Losses of mean responses: identities, the risk of least squares by three ways, private release."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from steepest.losses.aggregate.aggregate_responses import (
    BagLoss,
    InstanceLoss,
    InterpolatedBagLoss,
    aggregate_risk,
    asymptotic_aggregate_risk,
    interpolated_bag_loss,
    private_bag_means,
)

F4 = torch.tensor([0.5, 2.0, 2.0, 5.0], dtype=torch.float64)
INDEX = torch.tensor([0, 0, 1, 1])
MEANS = torch.tensor([1.0, 3.0], dtype=torch.float64)


def naive(f, index, means, rho, loss):
    """The equation over rows and bags in plain numbers."""
    bag = instance = 0.0
    for a, y in enumerate(means):
        own = [v for v, i in zip(f, index) if i == a]
        bag += len(own) / len(f) * loss(sum(own) / len(own), y)
        instance += sum(loss(v, y) for v in own) / len(f)
    return (1 - rho) * bag + rho * instance


PLAIN = {
    "mse": lambda f, y: (f - y) ** 2,
    "mae": lambda f, y: abs(f - y),
    "logistic": lambda f, y: -y * math.log(1 / (1 + math.exp(-f))) - (1 - y) * math.log(1 / (1 + math.exp(f))),
}


@pytest.mark.holds("aggregate-responses", 1)
def test_card_values():
    assert BagLoss()(F4, INDEX, MEANS).item() == pytest.approx(0.15625, abs=1e-12)
    loss = InterpolatedBagLoss(rho=0.3)
    assert loss(F4, INDEX, MEANS).item() == pytest.approx(0.578125, abs=1e-12)
    assert loss.terms["instance"].item() == pytest.approx(1.5625, abs=1e-12)
    spread = ((F4 - torch.tensor([1.25, 1.25, 3.5, 3.5])) ** 2).mean().item()
    assert spread == pytest.approx(1.40625, abs=1e-12)
    assert InstanceLoss()(F4, INDEX, MEANS).item() == pytest.approx(0.15625 + spread, abs=1e-12)


@pytest.mark.holds("aggregate-responses", 2)
@pytest.mark.parametrize("loss", list(PLAIN))
def test_ends_and_bags_of_one(loss):
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(6, generator=generator, dtype=torch.float64)
    y = torch.rand(6, generator=generator, dtype=torch.float64)
    bags = torch.tensor([0, 0, 1, 2, 2, 1])
    for rho, end in ((0.0, BagLoss(loss)), (1.0, InstanceLoss(loss))):
        assert interpolated_bag_loss(f, bags, y[:3], rho=rho, loss=loss).item() == end(f, bags, y[:3]).item()
        assert end(f, bags, y[:3]).item() == pytest.approx(
            naive(f.tolist(), bags.tolist(), y[:3].tolist(), rho, PLAIN[loss]), abs=1e-12
        )
    ordinary = sum(PLAIN[loss](a, b) for a, b in zip(f.tolist(), y.tolist())) / 6
    for rho in (0.0, 0.4, 1.0):
        found = interpolated_bag_loss(f, torch.arange(6), y, rho=rho, loss=loss)
        assert found.item() == pytest.approx(ordinary, abs=1e-12)


@pytest.mark.holds("aggregate-responses", 3)
def test_limit_formula():
    """The card's values, and draws of Gaussian rows."""
    for args, wanted in [((1200, 4, 100, 0.0), 0.5), ((1200, 4, 100, 0.1), 0.3118), ((1200, 4, 100, 1.0), 0.6023)]:
        assert sum(asymptotic_aggregate_risk(*args)) == pytest.approx(wanted, abs=5e-5)
    assert asymptotic_aggregate_risk(1200, 4, 100, 0.1) == pytest.approx((0.0985, 0.2132), abs=5.1e-5)
    assert sum(asymptotic_aggregate_risk(600, 3, 300, 0.3)) == pytest.approx(1.2813, abs=5e-5)
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(100, dtype=torch.float64)
    truth[0] = 1.0
    draws = [torch.randn(1200, 100, generator=generator, dtype=torch.float64) for _ in range(10)]
    for rho, quoted in ((0.0, 0.5025), (0.1, 0.3113), (1.0, 0.5989)):
        found = np.mean([sum(aggregate_risk(x, truth, 1.0, 4, rho)) for x in draws])
        assert found == pytest.approx(sum(asymptotic_aggregate_risk(1200, 4, 100, rho)), rel=0.06)
        assert found == pytest.approx(quoted, rel=0.06)


@pytest.mark.parametrize(("n", "k", "d", "rho"), [(1200, 4, 100, 0.3), (60, 3, 40, 0.01), (60, 3, 59, 1.0)])
def test_fixed_point_of_the_limit(n, k, d, rho):
    """v by bisection of its equation, and the derivatives of the limit's quantities by it."""
    m = n // k
    c = n - m
    v = optimize.brentq(lambda u: d / u - m / (1 + u) - c * rho / (1 + rho * u), 1e-9, 1e9, xtol=1e-15)
    slope = d / v**2 - m / (1 + v) ** 2 - c * rho**2 / (1 + rho * v) ** 2
    assert asymptotic_aggregate_risk(n, k, d, rho, sigma=2.0)[1] == pytest.approx(
        4 * m / (1 + v) ** 2 / slope, rel=1e-8
    )


def test_known_limits():
    assert asymptotic_aggregate_risk(1200, 4, 100, 0.0) == pytest.approx((0.0, 100 / (300 - 100)), abs=1e-12)
    bias2, _ = asymptotic_aggregate_risk(10**8, 4, 1, 1.0, norm=2.0)
    assert bias2 == pytest.approx(4 * 0.75**2, rel=1e-5)
    assert asymptotic_aggregate_risk(500, 1, 100, 0.7) == pytest.approx((0.0, 100 / 400), abs=1e-12)


@pytest.mark.holds("aggregate-responses", 4)
@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_monte_carlo_over_noise(rho):
    """Least squares on actual responses: (1 - rho) |y - SX t|^2 + rho |Sy - X t|^2, by numpy on stacked rows."""
    rng = np.random.default_rng(3)
    x, truth, sigma, k = rng.normal(size=(24, 3)), np.array([1.0, -2.0, 0.5]), 0.7, 4
    smooth = np.kron(np.eye(6), np.full((4, 4), 0.25))
    y = smooth @ ((x @ truth)[:, None] + sigma * rng.normal(size=(24, 20_000)))
    stacked = np.vstack([math.sqrt(1 - rho) * smooth @ x, math.sqrt(rho) * x])
    found = np.linalg.lstsq(stacked, np.vstack([math.sqrt(1 - rho) * y, math.sqrt(rho) * y]), rcond=None)[0]
    errors = ((found - truth[:, None]) ** 2).sum(0)
    risk = sum(aggregate_risk(torch.tensor(x), torch.tensor(truth), sigma, k, rho))
    assert abs(errors.mean() - risk) < 4 * errors.std() / math.sqrt(20_000)
    assert errors.mean() == pytest.approx(risk, rel=0.05)


def test_more_features_than_bags():
    """rho = 0 takes the solution of least norm: the bias is what lies outside the span of the bag means."""
    x = torch.randn(8, 5, dtype=torch.float64)
    truth = torch.ones(5, dtype=torch.float64)
    means = x.reshape(4, 2, 5).mean(1).numpy()
    outside = truth.numpy() - np.linalg.pinv(means) @ means @ truth.numpy()
    assert aggregate_risk(x, truth, 1.0, 2, 0.0)[0] == pytest.approx(outside @ outside, rel=1e-8)


@pytest.mark.holds("aggregate-responses", 5)
@pytest.mark.parametrize("loss", list(PLAIN))
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_unequal_bags_and_order(loss, rho):
    f = torch.randn(9, dtype=torch.float64)
    bags = torch.tensor([0, 1, 1, 2, 2, 2, 2, 1, 2])
    y = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    found = interpolated_bag_loss(f, bags, y, rho=rho, loss=loss).item()
    assert found == pytest.approx(naive(f.tolist(), bags.tolist(), y.tolist(), rho, PLAIN[loss]), abs=1e-12)
    order = torch.randperm(9)
    assert interpolated_bag_loss(f[order], bags[order], y, rho=rho, loss=loss).item() == pytest.approx(found, abs=1e-12)
    least, most = (interpolated_bag_loss(f, bags, y, rho=r, loss=loss).item() for r in (0.0, 1.0))
    assert least <= found <= most
    if loss == "mse":
        means = torch.stack([f[bags == b].mean() for b in range(3)])
        spread = (f - means[bags]).square().mean().item()
        assert found == pytest.approx(least + rho * spread, abs=1e-12)


def test_own_loss():
    found = interpolated_bag_loss(F4, INDEX, MEANS, rho=0.3, loss=lambda f, y: (f - y) ** 4)
    assert found.item() == pytest.approx(naive(F4.tolist(), INDEX.tolist(), [1.0, 3.0], 0.3, lambda f, y: (f - y) ** 4))
    with pytest.raises(ValueError, match="loss: expected a loss for each prediction"):
        InterpolatedBagLoss(loss=lambda f, y: (f - y).square().mean())(F4, INDEX, MEANS)


@pytest.mark.holds("aggregate-responses", 6)
def test_laplace_release():
    """The noise of each bag has scale 2C/(k e), for the whole distribution; the same seed gives the same bits."""
    clip, epsilon, repeats = 2.0, 0.5, 4000
    index = torch.cat([torch.arange(repeats), torch.arange(repeats, 2 * repeats).repeat(4)])
    y = torch.full((5 * repeats,), 9.0, dtype=torch.float64)
    found = private_bag_means(y, index, clip, epsilon, generator=torch.Generator().manual_seed(0))
    for k, noise in ((1, found[:repeats]), (4, found[repeats:])):
        scale = 2 * clip / (k * epsilon)
        assert stats.kstest((noise - clip).numpy(), "laplace", args=(0, scale)).pvalue > 0.01
        assert stats.kstest((noise - clip).numpy(), "laplace", args=(0, 1.2 * scale)).pvalue < 1e-3
    again = private_bag_means(y, index, clip, epsilon, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="epsilon: expected a number > 0"):
            private_bag_means(y, index, clip, bad)
    with pytest.raises(ValueError, match="clip: expected a number > 0"):
        private_bag_means(y, index, 0.0, 1.0)


def test_refused():
    with pytest.raises(ValueError, match="rho: expected a number >= 0 and <= 1"):
        InterpolatedBagLoss(rho=1.5)
    with pytest.raises(ValueError, match="loss: expected one of"):
        BagLoss("hinge")
    with pytest.raises(ValueError, match=r"bag_mean: expected values in \[0, 1\]"):
        BagLoss("logistic")(F4, INDEX, MEANS)
    with pytest.raises(ValueError, match="no row of bag 2"):
        BagLoss()(F4, INDEX, torch.zeros(3))
    with pytest.raises(ValueError, match="x: expected a positive multiple of 3 rows"):
        aggregate_risk(torch.zeros(4, 2), torch.zeros(2), 1.0, 3, 0.5)
    with pytest.raises(ValueError, match="x: expected a positive multiple of 3 rows"):
        aggregate_risk(torch.zeros(0, 2), torch.zeros(2), 1.0, 3, 0.5)
    with pytest.raises(ValueError, match="n: expected a multiple of 3"):
        asymptotic_aggregate_risk(10, 3, 2, 0.5)
    for rho, d in ((0.0, 3), (0.5, 9)):
        with pytest.raises(ValueError, match="d: expected fewer features"):
            asymptotic_aggregate_risk(9, 3, d, rho)
