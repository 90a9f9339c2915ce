"""A filter that continues the path of SGD: the numbers of the card, matrices in NumPy, limits of the noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.optim.optimizers import KalmanAreaRegression, kalman_extrapolate, two_point_area


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.holds("kalman-regression", 1)
def test_a_line_is_continued():
    wanted = column(3.990083, 4.984980)
    torch.testing.assert_close(kalman_extrapolate(column(0.0, 1.0, 2.0, 3.0), 2), wanted, rtol=0.0, atol=5e-7)


def by_hand(series, steps, q, r):
    """The filter with its matrices, a column after the other."""
    f, h = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])
    columns = []
    for z in series.T:
        s, p = np.array([[z[0]], [0.0]]), np.eye(2)
        for measured in z[1:]:
            s, p = f @ s, f @ p @ f.T + q * np.eye(2)
            k = p @ h.T @ np.linalg.inv(h @ p @ h.T + r)
            s, p = s + k @ (measured - h @ s), (np.eye(2) - k @ h) @ p
        values = []
        for _ in range(steps):
            s = f @ s
            values.append(s[0, 0])
        columns.append(values)
    return np.array(columns).T


@pytest.mark.parametrize("noise", [(1e-3, 1e-2), (0.5, 0.1), (0.0, 2.0)])
def test_matrices_in_numpy(noise):
    series = np.random.default_rng(0).normal(size=(9, 3)).cumsum(0)
    got = kalman_extrapolate(torch.tensor(series), 4, *noise)
    np.testing.assert_allclose(got.numpy(), by_hand(series, 4, *noise), rtol=1e-10)


@pytest.mark.holds("kalman-regression", 2)
def test_areas():
    u, losses = column(1.0, 1.5, 2.2)[:, 0], column(4.0, 1.0, 0.5)[:, 0]
    areas, slopes, intercepts = two_point_area(u, losses)
    torch.testing.assert_close(areas, torch.tensor([1.25, 0.525]).double())
    best = int(areas.argmin())
    assert best == 1
    assert slopes[best].item() == pytest.approx(-0.714286, abs=5e-7)
    assert intercepts[best].item() == pytest.approx(2.071429, abs=5e-7)
    ends = u[best : best + 2]
    assert ends[losses[best : best + 2].argmin()].item() == 2.2
    assert torch.equal(two_point_area(u.flip(0), losses.flip(0))[0], areas.flip(0)), "backwards: the same areas"


@pytest.mark.holds("kalman-regression", 3)
@pytest.mark.parametrize("constant", [0.0, -3.7, 1e5])
def test_a_constant_is_continued_exactly(constant):
    predicted = kalman_extrapolate(column(*[constant] * 7), 5)
    assert torch.equal(predicted, column(*[constant] * 5))


@pytest.mark.holds("kalman-regression", 4)
def test_without_measurement_noise_the_value_is_the_last_observation():
    series = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for r in (0.0, 1e-12):
        one, two = kalman_extrapolate(series, 2, q=0.1, r=r)
        torch.testing.assert_close(2 * one - two, series[-1], rtol=1e-9, atol=1e-9)
    one, two = kalman_extrapolate(series, 2, q=0.1, r=1.0)
    assert not torch.allclose(2 * one - two, series[-1])


@pytest.mark.holds("kalman-regression", 5)
def test_zero_widths_are_skipped_and_two_points_are_needed():
    areas, slopes, intercepts = two_point_area(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.1, 0.1, 5.0]))
    assert areas[0] == torch.inf
    assert bool(slopes[0].isnan())
    assert bool(intercepts[0].isnan())
    assert int(areas.argmin()) == 1
    with pytest.raises(ValueError, match="u: expected at least 2 points"):
        two_point_area(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="horizon: expected at least 2 predicted points"):
        KalmanAreaRegression(horizon=1)
    still = KalmanAreaRegression(sgd_steps=3, horizon=4).fit(torch.ones(5, 1), torch.zeros(5))
    assert torch.equal(still.predict(torch.ones(2, 1)), torch.zeros(2).double())


def table(n=60, d=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.7


def seeded():
    return torch.Generator().manual_seed(5)


def test_the_path_is_that_of_sgd():
    x, y = table()
    model = KalmanAreaRegression(lr=0.05, sgd_steps=9, horizon=0, batch=25, generator=seeded()).fit(x, y)
    generator, theta, order = seeded(), torch.zeros(4, dtype=torch.float64), []
    optimizer = torch.optim.SGD([theta.requires_grad_()], lr=0.05)
    for place in range(9):
        if not order:
            order = list(torch.randperm(60, generator=generator).split(25))
        rows = order.pop(0)
        loss = (x[rows] @ theta[:3] + theta[3] - y[rows]).square().mean()
        assert model.batch_losses[place].item() == pytest.approx(loss.item())
        optimizer.zero_grad()
        (0.5 * loss).backward()
        optimizer.step()
        torch.testing.assert_close(model.path[place], theta.detach())
    torch.testing.assert_close(model.predict(x), x @ theta.detach()[:3] + theta.detach()[3])


def chosen(loss, rate):
    """The place of the choice by hand, and which end of its segment it is."""
    x, y = table()
    model = KalmanAreaRegression(lr=rate, sgd_steps=12, horizon=30, loss=loss, generator=seeded()).fit(x, y)
    torch.testing.assert_close(model.predicted, kalman_extrapolate(model.path, 30))
    losses, places = [], [0.0]
    for theta in model.predicted:
        errors = x @ theta[:3] + theta[3] - y
        losses.append(float(errors.square().mean() if loss == "full" else errors.mean() ** 2))
    for a, b in zip(model.predicted, model.predicted[1:]):
        places.append(places[-1] + float((b - a).norm()))
    areas = [(losses[k] + losses[k + 1]) / 2 * (places[k + 1] - places[k]) for k in range(29)]
    np.testing.assert_allclose(model.areas.numpy(), areas, rtol=1e-9)
    k = int(np.argmin(areas))
    end = int(losses[k + 1] < losses[k])
    assert torch.equal(torch.cat([model.weight, model.bias[None]]), model.predicted[k + end])
    return end


def test_the_choice_is_the_better_end_of_the_least_area():
    assert {chosen(loss, rate) for loss in ("full", "mean_input") for rate in (0.02, 0.05, 0.1)} == {0, 1}


def test_the_last_prediction():
    x, y = table()
    last = KalmanAreaRegression(lr=0.02, sgd_steps=12, horizon=7, choice="last", generator=seeded()).fit(x, y)
    assert torch.equal(last.weight, last.predicted[-1][:3])


def test_what_it_refuses():
    x, y = table()
    with pytest.raises(ValueError, match="lr: expected a number > 0"):
        KalmanAreaRegression(lr=0.0)
    with pytest.raises(ValueError, match="loss: expected one of"):
        KalmanAreaRegression(loss="mean")
    with pytest.raises(ValueError, match="choice: expected one of"):
        KalmanAreaRegression(choice="best")
    with pytest.raises(ValueError, match="r: expected a number > 0"):
        kalman_extrapolate(torch.ones(3, 1), 1, q=0.0, r=0.0)
    with pytest.raises(ValueError, match="series: expected at least one measurement"):
        kalman_extrapolate(torch.ones(0, 1), 1)
    with pytest.raises(ValueError, match="predict: expected fit before it"):
        KalmanAreaRegression().predict(x)
    with pytest.raises(ValueError, match="y: expected shape"):
        KalmanAreaRegression().fit(x, y[:3])
    with pytest.raises(ValueError, match="x: expected shape"):
        KalmanAreaRegression().fit(x, y).predict(x[:, :2])
