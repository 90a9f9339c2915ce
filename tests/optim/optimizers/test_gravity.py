"""Gravity: the facts of the card, the official form by hand, its random start, schedules."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from steepest.optim import Gravity, gravity_step


def parameter(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def transform(g):
    """What a first step of rate 1 and beta 0 sees: v = (1 - 1/3) zeta."""
    g = torch.as_tensor(g, dtype=torch.float64)
    return gravity_step(torch.zeros_like(g), g, torch.zeros_like(g), 1, beta=0.0)[1] * 1.5


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **tolerance)


@pytest.mark.holds("gravity", 1)
def test_card_values():
    g = torch.tensor([0.5, -2.0, 0.0]).double()
    w, v = gravity_step(torch.zeros(3).double(), g, torch.zeros(3).double(), 1)
    close(v, [0.091667, -0.043137, 0.0], rtol=0.0, atol=1e-6)
    close(w, -0.1 * v)
    close(transform(g), [0.25, -0.117647, 0.0], rtol=0.0, atol=1e-6)


@pytest.mark.holds("gravity", 2)
def test_the_coefficient_rises_to_beta():
    for t, smoothing in ((1, 0.633333), (2, 0.7), (10, 0.833333), (10**7, 0.9)):
        v = gravity_step(torch.zeros(1).double(), torch.zeros(1).double(), torch.ones(1).double(), t)[1]
        assert float(v) == pytest.approx(smoothing, abs=1e-6)
    w = parameter(0.0)
    optimizer = Gravity([w], alpha=0.0)
    velocity = 0.0
    for t in range(1, 6):
        w.grad = torch.tensor([0.5]).double()
        optimizer.step()
        smoothing = (0.9 * t + 1) / (t + 2)
        velocity = smoothing * velocity + (1 - smoothing) * 0.5 / (1 + 0.25**2)
        assert float(optimizer.state[w]["velocity"]) == pytest.approx(velocity)


@pytest.mark.holds("gravity", 3)
def test_large_gradients_make_small_steps():
    close(transform([1.0]), [0.5])
    close(transform([10.0]), [10 / 10001])
    g = torch.linspace(-3.0, 3.0, 1201, dtype=torch.float64)
    size = transform(g).abs()
    assert float(g[size.argmax()].abs()) == pytest.approx(1 / 3, abs=0.003)
    assert float(size.max()) == pytest.approx(1 / 6, abs=1e-5)


@pytest.mark.holds("gravity", 4)
def test_the_transform_is_odd_and_keeps_signs():
    g = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transform(-g), -transform(g))
    assert torch.equal(transform(g).sign(), g.sign())
    close(transform(1e-4 * g), 1e-4 * g, rtol=1e-6, atol=0.0)


def run(steps=4, **options):
    w = parameter(1.0, -2.0, 0.5)
    optimizer = Gravity([w], **options)
    for _ in range(steps):
        optimizer.zero_grad()
        w.square().sum().backward()
        optimizer.step()
    return w.detach(), optimizer


@pytest.mark.holds("gravity", 5)
def test_random_numbers():
    assert torch.equal(run(alpha=0.0)[0], run(alpha=0.0)[0])
    first, again, another = (run(generator=torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, another)
    w = nn.Parameter(torch.zeros(100_000))
    w.grad = torch.zeros_like(w)
    for rate in (0.1, 0.02):
        optimizer = Gravity([w], rate, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        (state,) = optimizer.state.values()
        displacement = state["velocity"] / ((0.9 + 1) / 3) * rate
        assert float(displacement.std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.holds("gravity", 6)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeros(dtype):
    w = parameter(1.0, -2.0, dtype=dtype)
    optimizer = Gravity([w], alpha=0.0)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert torch.equal(w.detach(), torch.tensor([1.0, -2.0], dtype=dtype))
    assert torch.equal(transform(torch.zeros(3)), torch.zeros(3).double())
    w.grad = torch.tensor([300.0, 1e-3], dtype=dtype)
    optimizer.step()
    assert bool(w.isfinite().all())


@pytest.mark.holds("gravity", 7)
def test_rates_that_are_refused_and_a_warm_up_from_0():
    w = parameter(1.0)
    for wrong in ({"lr": -0.1}, {"alpha": -0.1}, {"beta": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Gravity([w], **wrong)
    optimizer = Gravity([w], lr=0.0)
    w.grad = torch.ones(1).double()
    with pytest.raises(ValueError, match="lr: expected a number > 0 at the first step"):
        optimizer.step()
    assert not optimizer.state
    still = Gravity([w], lr=0.0, alpha=0.0)
    still.step()
    assert float(w.detach()) == 1.0
    optimizer = Gravity([w], lr=0.1, generator=torch.Generator().manual_seed(0))
    schedule = LambdaLR(optimizer, lambda step: step / 2)
    optimizer.step()
    assert float(w.detach()) == 1.0
    wanted = 0.1 * torch.randn((), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smoothing = 1.9 / 3
    assert float(optimizer.state[w]["velocity"]) == pytest.approx(
        float(smoothing * wanted + (1 - smoothing) * 0.5), rel=1e-6
    )
    schedule.step()
    optimizer.step()
    assert float(w.detach()) != 1.0


def test_the_official_form_by_hand():
    """It divides by the largest entry's inverse: m = 1 / max |g|, zeta = g / (1 + (g / m)^2)."""
    generator = torch.Generator().manual_seed(2)
    w, twin = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64)), None
    optimizer = Gravity([w], 0.2, 0.0, 0.8)
    twin, v = w.detach().numpy().copy(), np.zeros((4, 3))
    for t in range(1, 7):
        g = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        w.grad = g.clone()
        optimizer.step()
        own = g.numpy()
        m = 1 / np.abs(own).max()
        b = (0.8 * t + 1) / (t + 2)
        v = b * v + (1 - b) * own / (1 + (own / m) ** 2)
        twin = twin - 0.2 * v
        close(w.detach(), twin)


def test_each_group_counts_for_itself_and_the_counter_is_saved():
    a, b = parameter(1.0), parameter(1.0)
    optimizer = Gravity([{"params": [a]}, {"params": [b]}], alpha=0.0)
    for step in range(3):
        a.grad = torch.ones(1).double()
        b.grad = torch.ones(1).double() if step == 2 else None
        optimizer.step()
    assert [group["gravity_steps"] for group in optimizer.param_groups] == [3, 1]
    assert float(optimizer.state[b]["velocity"]) == pytest.approx((1 - 1.9 / 3) * 0.5)
    twin = Gravity([{"params": [parameter(1.0)]}, {"params": [parameter(1.0)]}])
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["gravity_steps"] for group in twin.param_groups] == [3, 1]


def test_shapes_of_the_function():
    zeros = torch.zeros(3)
    for wrong in ((zeros, torch.zeros(2), zeros, 1), (zeros, zeros, torch.zeros(2), 1), (zeros, zeros, zeros, 0)):
        with pytest.raises(ValueError, match="expected"):
            gravity_step(*wrong)
