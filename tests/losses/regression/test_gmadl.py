"""GMADL against the card's numbers, a naive loop and its own symmetries; windows and strategies."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import TimeSeriesSplit

from steepest.core.objective import TaskInfo
from steepest.losses.regression.gmadl import (
    GMADLLoss,
    MADLLoss,
    gmadl,
    madl,
    strategy_report,
    strategy_return,
    walk_forward,
)

R = torch.tensor([0.01, -0.02, 0.005], dtype=torch.float64)
H = torch.tensor([0.02, 0.01, 0.001], dtype=torch.float64)
G = torch.Generator().manual_seed(3)
LONG_R, LONG_H = 0.03 * torch.randn(2, 40, generator=G, dtype=torch.float64)


def naive(h, r, a, b):
    return [-(1 / (1 + math.exp(-a * x * y)) - 0.5) * abs(y) ** b for x, y in zip(h.tolist(), r.tolist())]


@pytest.mark.holds("gmadl", 1)
@pytest.mark.parametrize(
    ("a", "b", "value", "rel"),
    [(1000.0, 1.0, 1.64030e-4, 1e-5), (1000.0, 2.0, 4.97298e-6, 1e-5), (1e12, 1.0, 8.33333e-4, 1e-5)],
)
def test_card_values(a, b, value, rel):
    assert gmadl(H, R, a=a, b=b).item() == pytest.approx(value, rel=rel)


@pytest.mark.holds("gmadl", 1)
def test_madl_is_twice_the_steep_limit():
    assert madl(H, R).item() == pytest.approx(1.666667e-3, rel=1e-6)
    for h, r in ((H, R), (LONG_H, LONG_R)):
        assert 2 * gmadl(h, r, a=1e14).item() == pytest.approx(madl(h, r).item(), rel=1e-12)
        loop = sum(-math.copysign(1.0, x * y) * abs(y) for x, y in zip(h.tolist(), r.tolist())) / len(h)
        assert MADLLoss()(h, r).item() == pytest.approx(loop, rel=1e-12)


@pytest.mark.holds("gmadl", 1)
@pytest.mark.parametrize("b", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("a", [1.0, 30.0, 1000.0])
def test_agrees_with_a_loop(a, b):
    wanted = naive(LONG_H, LONG_R, a, b)
    assert gmadl(LONG_H, LONG_R, a=a, b=b, reduction="none").tolist() == pytest.approx(wanted, rel=1e-9)
    assert GMADLLoss(a, b, "sum")(LONG_H, LONG_R).item() == pytest.approx(sum(wanted), rel=1e-9)


@pytest.mark.holds("gmadl", 2)
def test_slope_at_zero():
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    r = torch.tensor([0.02], dtype=torch.float64)
    (slope,) = torch.autograd.grad(gmadl(h, r), h)
    assert slope.item() == pytest.approx(-0.1, rel=1e-12)


@pytest.mark.holds("gmadl", 2)
def test_gradient_is_the_closed_form():
    h = LONG_H.clone().requires_grad_()
    (slope,) = torch.autograd.grad(gmadl(h, LONG_R, a=500.0, b=1.5), h)
    s = 1 / (1 + np.exp(-500.0 * (LONG_R * LONG_H).numpy()))
    wanted = -500.0 * LONG_R.numpy() * np.abs(LONG_R.numpy()) ** 1.5 * s * (1 - s) / 40
    np.testing.assert_allclose(slope.numpy(), wanted, rtol=1e-10)


@pytest.mark.holds("gmadl", 3)
@pytest.mark.parametrize("b", [0.0, 1.0, 2.0])
def test_odd_and_bounded(b):
    none = gmadl(LONG_H, LONG_R, b=b, reduction="none")
    assert torch.equal(gmadl(-LONG_H, LONG_R, b=b, reduction="none"), -none)
    wild = gmadl(1e6 * LONG_H, LONG_R, b=b)
    assert abs(wild.item()) <= (LONG_R.abs() ** b).mean().item() / 2
    assert bool((none.abs() <= LONG_R.abs() ** b / 2).all())


@pytest.mark.holds("gmadl", 4)
def test_a_zero_return_contributes_nothing_and_more_is_better_when_it_rises():
    h = torch.tensor([5.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = gmadl(h, torch.zeros(2, dtype=torch.float64), reduction="none")
    assert loss.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(loss.sum(), h)[0].tolist() == [0.0, 0.0]
    line = torch.linspace(-1, 1, 21, dtype=torch.float64)
    up = gmadl(line, torch.full_like(line, 0.01), reduction="none")
    assert bool((up.diff() < 0).all())
    assert bool((gmadl(line, torch.full_like(line, -0.01), reduction="none").diff() > 0).all())


@pytest.mark.holds("gmadl", 5)
def test_the_slope_is_a_gain_on_the_prediction():
    torch.testing.assert_close(gmadl(7.0 * LONG_H, LONG_R, a=100.0), gmadl(LONG_H, LONG_R, a=700.0), rtol=1e-12, atol=0)


def test_small_products_make_it_linear():
    h, r = torch.tensor([1e-5]), torch.tensor([1e-4])
    assert gmadl(h, r).item() == pytest.approx(-1000 * 1e-4 * 1e-5 * 1e-4 / 4, rel=1e-5)


@pytest.mark.holds("gmadl", 6)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_returns_must_be_finite(bad):
    r = R.clone()
    r[1] = bad
    for loss in (gmadl, madl):
        with pytest.raises(ValueError, match="target: expected finite returns"):
            loss(H, r)
    with pytest.raises(ValueError, match="expected finite values"):
        strategy_return(H, r)


@pytest.mark.holds("gmadl", 6)
@pytest.mark.parametrize("hyper", [{"a": 0.0}, {"a": -1.0}, {"a": math.nan}, {"b": -0.1}])
def test_parameters_refused(hyper):
    for make in (lambda: GMADLLoss(**hyper), lambda: gmadl(H, R, **hyper)):
        with pytest.raises(ValueError, match="expected a number"):
            make()


def test_a_comparison_starts_with_a_slope_for_standardised_targets():
    info = TaskInfo("regression", 10)
    assert GMADLLoss.from_task(info).a == 1.0
    assert GMADLLoss.from_task(info, a=3.0).a == 3.0
    assert GMADLLoss().a == 1000.0


@pytest.mark.parametrize("sizes", [(10, 4, 2, 2), (23, 5, 3, 4), (6, 3, 2, 1)])
def test_windows_roll_and_never_look_ahead(sizes):
    n, train, val, test = sizes
    trios = list(walk_forward(*sizes))
    assert len(trios) == (n - train - val - test) // test + 1
    days = np.arange(n)
    tested = []
    for a, b, c in trios:
        assert (len(days[a]), len(days[b]), len(days[c])) == (train, val, test)
        assert days[a].max() < days[b].min()
        assert days[b].max() < days[c].min()
        tested += days[c].tolist()
    assert tested == list(range(train + val, train + val + test * len(trios)))
    if len(trios) > 1:  # the peer refuses a single window, and lets those end with the data
        peer = TimeSeriesSplit(len(trios), max_train_size=train + val, test_size=test).split(days[: tested[-1] + 1])
        for (a, b, c), (before, after) in zip(trios, peer, strict=True):
            assert ([*days[a], *days[b]], [*days[c]]) == (before.tolist(), after.tolist())


def test_windows_refused():
    with pytest.raises(ValueError, match=r"train \+ val \+ test: expected at most n = 5"):
        walk_forward(5, 3, 2, 1)
    with pytest.raises(ValueError, match="test: expected an integer >= 1"):
        walk_forward(5, 3, 1, 0)


def test_strategy_agrees_with_a_loop():
    h, r = LONG_H.numpy(), LONG_R.numpy()
    found = strategy_return(h, pd.Series(r, index=range(100, 140)), cost=0.002, threshold=0.01)
    held, net, trades = 0.0, [], 0
    for x, y in zip(h, r):
        position = 0.0 if abs(x) < 0.01 else 1.0 if x > 0 else -1.0
        net.append(position * y - 0.002 * abs(position - held))
        trades += position not in (held, 0.0)
        held = position
    assert found.tolist() == pytest.approx(net, abs=1e-15)
    assert list(found.index) == list(range(100, 140))
    report = strategy_report(h, r, cost=0.002, threshold=0.01, periods=100)
    assert report["trades"] == trades
    assert report["return"] == pytest.approx(100 * np.mean(net))
    assert report["information ratio"] == pytest.approx(10 * np.mean(net) / np.std(net))
    total = np.cumsum([0.0, *net])
    assert report["drawdown"] == pytest.approx(max(total[i] - total[j] for i in range(41) for j in range(i, 41)))


def test_a_series_that_begins_with_a_loss_falls_from_zero():
    report = strategy_report([1.0, 1.0, 1.0], [-0.3, 0.1, -0.1])
    assert report["drawdown"] == pytest.approx(0.3)
    assert strategy_report([1.0], [-0.2])["drawdown"] == pytest.approx(0.2)


def test_the_direction_of_nan_is_nan():
    assert madl(torch.tensor([math.nan, 1.0]), torch.ones(2)).isnan()


def test_strategy_degenerate():
    assert strategy_report([], [])["information ratio"] == 0.0
    assert strategy_report([0.0, 0.0], [0.1, 0.2]) == dict.fromkeys(
        ("return", "volatility", "information ratio", "drawdown", "trades"), 0.0
    )
    with pytest.raises(ValueError, match="two series of one length"):
        strategy_return([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="cost: expected"):
        strategy_return([1.0], [1.0], cost=-1.0)
