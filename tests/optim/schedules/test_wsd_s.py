"""WSD-S at the points of its card; the river valley against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.optim.schedules import (
    WSD,
    WSDS,
    hill_excess,
    inverse_decay,
    river_valley,
    simulate_river,
    wsd_s_schedule,
)


def sgd(rate=1.0):
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=rate)


@pytest.mark.holds("wsd-s", 1)
def test_the_inverse_rate_grows_in_a_straight_line():
    assert inverse_decay(0.25, 1.0, 0.1) == pytest.approx(0.307692, abs=5e-7)
    assert inverse_decay(0.5, 1.0, 0.1) == pytest.approx(0.181818, abs=5e-7)
    assert (inverse_decay(0.0, 0.3, 0.07), inverse_decay(1.0, 0.3, 0.07)) == (0.3, 0.07)
    for k in range(1, 10):
        assert 1 / inverse_decay(k / 10, 0.3, 0.07) == pytest.approx((1 - k / 10) / 0.3 + k / 10 / 0.07)
    for wrong in ((-0.1, 1.0, 0.1), (0.5, 0.0, 0.1), (0.5, 1.0, 0.0), (0.5, 1.0, 2.0)):
        with pytest.raises(ValueError, match=": expected"):
            inverse_decay(*wrong)


@pytest.mark.holds("wsd-s", 2)
def test_the_stationary_hill():
    assert hill_excess(0.1, 2.0, 1.0) == pytest.approx((0.027778, 0.027778), abs=5e-7)
    # the recursion of the variance, v' = (1 - eta gamma)^2 v + eta^2 s^2, comes to rest there
    v = 0.0
    for _ in range(2000):
        v = (1 - 0.07 * 3) ** 2 * v + 0.07**2 * 4
    assert hill_excess(0.07, 3.0, 2.0) == pytest.approx((v, 1.5 * v))


@pytest.mark.holds("wsd-s", 2)
def test_a_simulated_hill_is_the_closed_form():
    run = simulate_river(lambda t: 0.05, 300, runs=20_000, generator=torch.Generator().manual_seed(0))
    wanted = hill_excess(0.05, 20.0, 10.0)[1]  # 2.5: mean of y^2, relative deviation sqrt(2 / 20000) = 1%
    assert run.hill == pytest.approx(wanted, rel=0.05)
    assert run.river == pytest.approx(300 * 0.05 * 0.01)
    assert run.loss == pytest.approx(run.hill - 0.01 * run.river)


@pytest.mark.holds("wsd-s", 3)
def test_one_budget_is_wsd():
    one, wsd = WSDS(sgd(), 50, [1000]), WSD(sgd(), 50, 850, 100, "inverse", 0.1)
    assert [one.factor(t) for t in range(1200)] == [wsd.factor(t) for t in range(1200)]


@pytest.mark.holds("wsd-s", 4)
@pytest.mark.parametrize("decay", [0.1, 0.3])
def test_the_rate_after_a_budget_is_the_stable_one(decay):
    optimizer = sgd(0.3)
    schedule = WSDS(optimizer, 7, [100, 250, 300], decay)
    rates = []
    for _ in range(303):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[t] for t in (100, 101, 250, 251, 300, 301)] == pytest.approx([0.03, 0.3, 0.03, 0.3, 0.03, 0.03])
    assert rates[: 7 + 1] == pytest.approx([0.3 * (t / 7 + (1 - t / 7) / 100) for t in range(8)])


@pytest.mark.holds("wsd-s", 5)
def test_too_high_a_rate_is_refused():
    for eta in (0.1, 0.11):
        with pytest.raises(ValueError, match=r"eta \* gamma < 2"):
            hill_excess(eta, 20.0, 1.0)
        with pytest.raises(ValueError, match=r"eta \* gamma < 2"):
            simulate_river(lambda t, eta=eta: eta, 3)
    assert hill_excess(0.0999, 20.0, 1.0)[0] > 100 * hill_excess(0.01, 20.0, 1.0)[0]


@pytest.mark.holds("wsd-s", 6)
def test_budgets_that_do_not_grow_are_refused():
    for budgets in ([100, 100], [200, 100], [], [0], [1.5], "100"):
        with pytest.raises((ValueError, TypeError), match="budgets: expected"):
            WSDS(sgd(), 0, budgets)
        with pytest.raises((ValueError, TypeError), match="budgets: expected"):
            wsd_s_schedule(3, budgets)
    with pytest.raises(ValueError, match="warmup: expected at most 90 steps"):
        WSDS(sgd(), 91, [100])


@pytest.mark.holds("wsd-s", 7)
def test_points_of_the_card_and_a_decay_that_ends_where_it_should():
    """lingua#72: a decay over the whole run's length ended at 0.53 and then jumped."""
    wanted = {925: 0.307692, 950: 0.181818, 975: 0.129032, 1000: 0.1, 1001: 1.0}
    for t, rate in wanted.items():
        assert wsd_s_schedule(t, [1000, 2000]) == pytest.approx(rate, abs=5e-7)
    assert wsd_s_schedule(1000, [1000, 2000]) == wsd_s_schedule(2000, [1000, 2000]) == 0.1
    assert wsd_s_schedule(1001, [1000, 2000]) == 1.0


def test_a_valley_that_widens_pushes_along_the_river():
    """The drift along -gamma'(x) E[y^2] / 2, here against finite differences of one step."""
    valley = river_valley(lambda x: -0.01 * x, lambda x: 20.0 * torch.exp(-x))
    assert float(valley(torch.tensor(0.0), torch.tensor(0.5))) == pytest.approx(2.5)
    steep = river_valley(lambda x: -0.01 * x, lambda x: torch.full_like(x, 20.0))
    one, two = (
        simulate_river(lambda t: 0.02, 50, valley=v, generator=torch.Generator().manual_seed(0))
        for v in (valley, steep)
    )
    assert two.river == pytest.approx(50 * 0.02 * 0.01)
    assert one.river > 2 * two.river
    still = simulate_river(lambda t: 0.02, 50, valley=valley, noise=0.0)
    assert still.hill == 0.0
    assert still.river == pytest.approx(two.river)
