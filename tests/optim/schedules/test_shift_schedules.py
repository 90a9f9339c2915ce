"""Rates for a moving target: the numbers of the card, against simulation of the regression itself."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from steepest.optim.schedules import ShiftAwareSchedule, dynamic_regret, optimal_regression_rate, propagate_error

CARD = {"dim": 20, "batch": 5, "noise": 1.0}


def sgd(rate=1.0):
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=rate)


@pytest.mark.holds("shift-schedules", 1)
def test_numbers_of_the_card_and_a_simulation_of_one_step():
    eta = optimal_regression_rate(1.0, **CARD)
    assert eta == pytest.approx(0.108696, abs=5e-7)
    following = propagate_error(1.0, eta, **CARD)
    assert following == pytest.approx(0.891304, abs=5e-7)
    generator = torch.Generator().manual_seed(0)
    runs = 100_000  # the squared distance has a relative deviation of about 0.4: 0.0012 of the mean
    x = torch.randn(runs, 5, 20, generator=generator)
    error = torch.zeros(20)
    error[0] = 1.0
    residual = x @ error - torch.randn(runs, 5, generator=generator)
    after = error - eta * (x * residual.unsqueeze(2)).mean(1)
    assert float(after.square().sum(1).mean()) == pytest.approx(following, abs=0.005)
    shifted = after + 0.3 * torch.nn.functional.normalize(torch.randn(runs, 20, generator=generator), dim=1)
    assert float(shifted.square().sum(1).mean()) == pytest.approx(
        propagate_error(1.0, eta, **CARD, shift=0.3), abs=0.006
    )


@pytest.mark.holds("shift-schedules", 2)
def test_a_constant_shift_has_a_fixed_point():
    gamma, v = math.sqrt(0.05), 1.0
    for _ in range(2000):
        v = propagate_error(v, optimal_regression_rate(v, **CARD), **CARD, shift=gamma)
    assert v == pytest.approx(0.595725, abs=5e-7)
    assert optimal_regression_rate(v, **CARD) == pytest.approx(0.083931, abs=5e-7)
    assert v * optimal_regression_rate(v, **CARD) == pytest.approx(0.05)
    schedule = ShiftAwareSchedule(sgd(), "regression", **CARD, shifts=dict.fromkeys(range(2000), gamma))
    assert schedule.factor(2000) == pytest.approx(0.083931, abs=5e-7)


@pytest.mark.holds("shift-schedules", 3)
def test_without_shift_the_rate_falls_as_one_over_t():
    schedule = ShiftAwareSchedule(sgd(), "regression", **CARD)
    assert 100 * schedule.factor(100) == pytest.approx(1.0443, abs=5e-5)
    assert 10**4 * schedule.factor(10**4) == pytest.approx(1.0, abs=0.01)


@pytest.mark.holds("shift-schedules", 4)
def test_range_of_the_rate():
    rates = [optimal_regression_rate(10.0**k, **CARD) for k in range(-6, 7)]
    upper = 1 / (1 + 21 / 5)
    assert all(a < b for a, b in pairwise([0.0, *rates, upper]))
    assert optimal_regression_rate(1e-9, 20, 5, 0.0) == optimal_regression_rate(7.0, 20, 5, 0.0) == pytest.approx(upper)
    # it is the best rate: any other gives a larger error
    best = optimal_regression_rate(0.7, **CARD)
    assert all(
        propagate_error(0.7, best, **CARD) < propagate_error(0.7, best * share, **CARD)
        for share in (0.5, 0.99, 1.01, 2)
    )


@pytest.mark.holds("shift-schedules", 5)
def test_at_the_target_that_stays_the_rate_is_0():
    assert optimal_regression_rate(0.0, **CARD) == optimal_regression_rate(0.0, 20, 5, 0.0) == 0.0
    for mode in ("regression", "convex", "nonconvex"):
        schedule = ShiftAwareSchedule(sgd(), mode, **CARD, error=0.0)
        assert [schedule.factor(step) for step in range(5)] == [0.0] * 5


def test_the_rate_rises_after_a_shift_by_as_much_as_the_recursion_says():
    optimizer = sgd(0.5)
    schedule = ShiftAwareSchedule(optimizer, "regression", **CARD, shifts={30: 1.0})
    v, rates = 1.0, []
    for step in range(50):
        eta = v / (v * 5.2 + 4.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * eta, rel=1e-12)
        v = v * (1 - eta) + (1.0 if step == 30 else 0.0)  # at the best rate
        rates.append(eta)
        optimizer.step()
        schedule.step()
    assert rates[31] > 3 * rates[30]


def test_observed_losses_and_shifts():
    schedule = ShiftAwareSchedule(sgd(), "regression", **CARD, smoothing=0.5)

    def step():
        schedule.optimizer.step()
        schedule.step()

    schedule.observe(2.0)
    step()
    assert schedule.error_at(1) == 3.0
    assert schedule.get_last_lr() == [optimal_regression_rate(3.0, **CARD)]
    schedule.observe(0.5)
    step()
    assert schedule.error_at(2) == 1.5  # the mean of 2 and 0.5 is 1.25
    schedule.observe(0.9, shift=0.2)
    step()
    assert schedule.error_at(3) == propagate_error(1.5, optimal_regression_rate(1.5, **CARD), **CARD, shift=0.2)
    file = io.BytesIO()
    torch.save(schedule.state_dict(), file)
    file.seek(0)
    again = ShiftAwareSchedule(sgd(), "regression", **CARD, smoothing=0.5)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.get_last_lr() == schedule.get_last_lr()
    for twin in (schedule, again):
        twin.observe(0.1)
        twin.optimizer.step()
        twin.step()
    assert again.get_last_lr() == schedule.get_last_lr()
    schedule.observe(-5.0)  # below the noise: an error of 0
    assert schedule.error_at(5) == 0.0
    with pytest.raises(ValueError, match="loss: expected"):
        schedule.observe(math.nan)
    with pytest.raises(ValueError, match="shift: expected"):
        schedule.observe(1.0, shift=-1.0)


def test_convex_and_nonconvex_rules_by_hand():
    convex = ShiftAwareSchedule(sgd(), "convex", noise=2.0, batch=4, strength=0.5, smoothness=2.0, shifts={0: 0.3})
    eta = 0.5 / (4.0 + 0.5)
    assert convex.factor(0) == pytest.approx(eta)
    kept = 1 - eta + 4 * eta**2
    assert convex.error_at(1) == pytest.approx((math.sqrt(kept + eta**2 * 0.5) + 0.3) ** 2)
    window = ShiftAwareSchedule(
        sgd(), "nonconvex", noise=3.0, smoothness=2.0, window=10, error=0.2, shifts={12: 0.5, 17: 0.1}
    )
    assert window.factor(9) == pytest.approx(math.sqrt(2 * 0.2 / 60))
    assert window.factor(10) == window.factor(19) == pytest.approx(math.sqrt(2 * 0.8 / 60))
    assert ShiftAwareSchedule(sgd(), "nonconvex", error=1e9, smoothness=2.0).factor(0) == 0.5


def test_regret_and_arguments():
    assert dynamic_regret([1.0, 0.5]) == 0.75
    for wrong in (
        {"mode": "linear"}, {"dim": 0}, {"batch": 0}, {"noise": -1.0}, {"error": -1.0}, {"strength": 2.0},
        {"smoothness": 0.0}, {"window": 0}, {"smoothing": 1.0}, {"shifts": {-1: 1.0}}, {"shifts": {1: -1.0}},
        {"mode": "nonconvex", "noise": 0.0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=": expected"):
            ShiftAwareSchedule(sgd(), **wrong)
    for call in (
        lambda: dynamic_regret([-1.0]), lambda: propagate_error(-1.0, 0.1, **CARD),
        lambda: propagate_error(1.0, -0.1, **CARD), lambda: optimal_regression_rate(1.0, 0, 5, 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=": expected"):
            call()
