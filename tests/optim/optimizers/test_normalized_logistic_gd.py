"""Huge steps on the logistic loss: the numbers of the card, a loop in NumPy, limits in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.optim.optimizers import NormalizedLogisticGD, batch_perceptron, logistic_gd

A = torch.tensor([[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
START = torch.tensor([0.0, 0.5], dtype=torch.float64)


def close(got, *wanted):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0.0, atol=5e-7)


def test_one_step_of_each_as_the_card_has_it():
    close(logistic_gd(A, Y, 1.0, max_iter=1, start=START).theta, 0.712106, 0.264321)
    close(logistic_gd(A, Y, 1.0, True, max_iter=1, start=START).theta, 1.411174, 0.032958)
    close(batch_perceptron(A, Y, max_iter=1, start=START).theta, 1.0, -0.166667)
    close(batch_perceptron(A, Y, True, max_iter=1, start=START).theta, 1.5, -0.5)


@pytest.mark.holds("normalized-logistic-gd", 1)
def test_huge_steps_are_the_batch_perceptron():
    end = logistic_gd(A, Y, 1e6, max_iter=3)
    close(end.theta / 1e6, 0.666667, 0.0)
    close(batch_perceptron(A, Y, max_iter=3).theta, 2 / 3, 0.0)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = (a[:, 0] + 0.05).sign()
    for normalize in (False, True):
        exact, huge = batch_perceptron(a, y, normalize), logistic_gd(a, y, 1e9, normalize)
        assert exact.iterations == huge.iterations > 2
        torch.testing.assert_close(huge.theta / 1e9, exact.theta)


def by_hand(a, y, gamma, normalize, steps):
    """The publication's formulas in NumPy."""
    theta, losses = np.zeros(a.shape[1]), []
    for _ in range(steps):
        m = y * (a @ theta)
        losses.append(np.mean(np.log1p(np.exp(-m))))
        s = 1 / (1 + np.exp(m))
        theta = theta + gamma * (s * y) @ a / (s.sum() if normalize else len(a))
    return theta, losses


@pytest.mark.parametrize("normalize", [False, True])
def test_a_loop_in_numpy(normalize):
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(25, 3)), np.sign(rng.normal(size=25))  # not separable, so that all steps are taken
    theta, losses = by_hand(a, y, 0.7, normalize, 12)
    end = logistic_gd(torch.tensor(a), torch.tensor(y), 0.7, normalize, max_iter=12)
    np.testing.assert_allclose(end.theta.numpy(), theta, rtol=1e-12)
    np.testing.assert_allclose(end.losses[:-1].numpy(), losses, rtol=1e-12)
    assert end.iterations == 12
    assert not end.separated


@pytest.mark.holds("normalized-logistic-gd", 2)
def test_a_normalised_step_is_at_most_gamma_times_the_longest_point():
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1.0, 1e4):
        a = size * torch.randn(20, 3, generator=generator, dtype=torch.float64)
        y = torch.randn(20, generator=generator, dtype=torch.float64).sign()
        theta = torch.zeros(3, dtype=torch.float64)
        for _ in range(5):
            following = logistic_gd(a, y, 2.5, True, max_iter=1, start=theta).theta
            assert (following - theta).norm() <= 2.5 * a.norm(dim=1).max() * (1 + 1e-12)
            theta = following


@pytest.mark.holds("normalized-logistic-gd", 3)
@pytest.mark.parametrize("c", [0.01, 30.0])
def test_rescaled_data_with_a_rescaled_step_have_the_same_margins(c):
    plain, scaled = (logistic_gd(size * A, Y, 0.3 / size**2, max_iter=4, start=START / size) for size in (1.0, c))
    torch.testing.assert_close((c * A) @ scaled.theta, A @ plain.theta)
    torch.testing.assert_close(scaled.losses, plain.losses)


@pytest.mark.holds("normalized-logistic-gd", 4)
@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], [1.0, -1.0, 2.0], [1.0, -1.0, math.nan]])
def test_other_labels_are_refused(labels):
    for search in (lambda y: logistic_gd(A, y, 1.0), lambda y: batch_perceptron(A, y)):
        with pytest.raises(ValueError, match=r"y: expected labels in \{-1, 1\}"):
            search(torch.tensor(labels))


def test_a_handful_of_iterations_against_the_order_of_n():
    """The card's trial: 47 iterations at n = 100, normalised 2."""
    a = torch.tensor([[1.0, 0.2]] * 99 + [[-1.0, 0.2]])
    plain, normalised = (logistic_gd(a, torch.ones(100), 1000.0, normalize) for normalize in (False, True))
    assert (plain.iterations, normalised.iterations) == (47, 2)
    assert plain.separated
    assert normalised.separated
    assert len(plain.losses) == 48


def test_the_bound_of_the_normalised_perceptron():
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        a = torch.randn(60, 3, generator=generator, dtype=torch.float64)
        w = nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0)
        a, y = a[(a @ w).abs() > 0.2], (a @ w)[(a @ w).abs() > 0.2].sign()
        end = batch_perceptron(a, y, True)
        assert end.separated
        assert end.iterations <= float(a.norm(dim=1).max() ** 2 / (y * (a @ w)).min() ** 2)


def test_where_every_sigmoid_underflows():
    """Margins of 2,000: the shares are those of the smallest ones, and finite."""
    theta = nn.Parameter(torch.tensor([2000.0]))
    NormalizedLogisticGD([theta], lr=1.0).step(torch.tensor([1.0, 2.0]) * theta)
    assert theta.item() == 2001.0


def test_the_optimizer_is_the_function():
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = START[None].clone()
    optimizer = NormalizedLogisticGD(layer.parameters(), lr=0.4)
    end = logistic_gd(A, Y, 0.4, True, max_iter=3, start=START)
    losses = [optimizer.step(Y * layer(A)[:, 0]) for _ in range(end.iterations)]
    torch.testing.assert_close(layer.weight.data[0], end.theta)
    torch.testing.assert_close(torch.stack(losses), end.losses[:-1])


def test_groups_and_schedules_set_its_rate():
    a, b, unused = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = NormalizedLogisticGD([{"params": [a], "lr": 0.0}, {"params": [b, unused]}], lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step(torch.stack([a, b]).sum(0))
    assert (a.item(), b.item(), unused.item()) == (1.0, 2.0, 1.0)
    schedule.step()
    optimizer.step(torch.stack([a, b]).sum(0))
    assert b.item() == 2.5


def test_what_it_refuses():
    with pytest.raises(ValueError, match="gamma: expected a number > 0"):
        logistic_gd(A, Y, 0.0)
    with pytest.raises(ValueError, match="y: expected shape"):
        logistic_gd(A, Y[:2], 1.0)
    with pytest.raises(ValueError, match="start: expected shape"):
        batch_perceptron(A, Y, start=torch.ones(3))
    with pytest.raises(ValueError, match="a: expected at least one point"):
        batch_perceptron(A[:0], Y[:0])
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="lr: expected a number >= 0"):
        NormalizedLogisticGD([w], lr=-1.0)
    optimizer = NormalizedLogisticGD([w], lr=1.0)
    for margins in (torch.ones(2), w[:0]):
        with pytest.raises(ValueError, match="margins: expected at least one, with a graph"):
            optimizer.step(margins)
