"""Bloop: its direction by hand, its average over steps, and what it converges to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.gradients import Bloop, backward, bloop_direction


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.holds("bloop", 1)
def test_one_step_by_hand():
    d = bloop_direction(vector(1, 2), vector(3, -1), vector(1, 1), 0.5)
    torch.testing.assert_close(d, vector(2, 1))
    aggregator = Bloop(0.5, rho=0.1)
    aggregator.average = vector(1, 1)
    torch.testing.assert_close(aggregator(torch.stack([vector(1, 2), vector(3, -1)])), vector(2, 1))
    torch.testing.assert_close(aggregator.average, vector(1, 1.1))


@pytest.mark.holds("bloop", 1)
def test_several_steps_by_the_formulas():
    """The average before its update; two auxiliary losses are summed."""
    lam, rho, e = 0.7, 0.2, None
    aggregator = Bloop(lam, rho)
    for seed in range(5):
        j = randn(3, 6, seed=seed)
        main, aux = j[0].numpy(), (j[1] + j[2]).numpy()
        e = main if e is None else e
        wanted = main + lam * (aux - sum(a * b for a, b in zip(aux, e)) / sum(b * b for b in e) * e)
        e = (1 - rho) * e + rho * main
        torch.testing.assert_close(aggregator(j), torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(aggregator.average, torch.from_numpy(e), rtol=1e-12, atol=1e-12)


@pytest.mark.holds("bloop", 2)
def test_what_is_added_is_orthogonal_to_the_average():
    main, aux, e = randn(3, 9)
    assert abs(float((bloop_direction(main, aux, e, 2.0) - main) @ e)) <= 1e-13
    sizes = (2, 0, 7)
    added = (bloop_direction(main, aux, e, 2.0, sizes=sizes) - main).split(sizes)
    assert all(abs(float(a @ b)) <= 1e-13 for a, b in zip(added, e.split(sizes)))
    assert torch.equal(Bloop(0.0)(torch.stack([main, aux])), main)
    assert torch.equal(Bloop(3.0)(main.unsqueeze(0)), main)


@pytest.mark.holds("bloop", 3)
def test_parallel_and_orthogonal_auxiliary_gradients():
    main, e = vector(1, 2, 3), vector(1, -1, 0)
    torch.testing.assert_close(bloop_direction(main, -4 * e, e, 2.0), main)
    orthogonal = vector(1, 1, 5)
    torch.testing.assert_close(bloop_direction(main, orthogonal, e, 2.0), main + 2 * orthogonal)
    torch.testing.assert_close(bloop_direction(main, orthogonal, 0 * e, 2.0), main + 2 * orthogonal)


@pytest.mark.holds("bloop", 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_length_of_the_average_does_not_matter(dtype):
    main, aux, e = randn(3, 9).to(dtype)
    wanted = bloop_direction(main, aux, e, 0.5)
    for scale in (1e-30, 1e30) if dtype == torch.float32 else (1e-200, 1e200):
        torch.testing.assert_close(bloop_direction(main, aux, scale * e, 0.5), wanted)


@pytest.mark.holds("bloop", 5)
def test_it_finds_the_auxiliary_minimiser_in_the_valley():
    """Main 0.5 (w_1 - 1)^2, auxiliary 0.5 |w - a|^2: at (1, a_2, a_3); the sum is off by lam (a_1 - 1) / (1 + lam)."""
    a, lam = vector(-2, 3, 5), 0.5
    ends = {}
    for arm, aggregator in {"bloop": Bloop(lam), "mixed": lambda j: j[0] + lam * j[1]}.items():
        w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = torch.optim.SGD([w], lr=0.3)
        for _ in range(120):
            optimizer.zero_grad()
            backward([0.5 * (w[0] - 1) ** 2, 0.5 * (w - a).square().sum()], [w], aggregator=aggregator)
            optimizer.step()
        ends[arm] = w.detach()
    torch.testing.assert_close(ends["bloop"], vector(1, 3, 5), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(ends["mixed"], vector((1 + lam * -2) / (1 + lam), 3, 5), rtol=1e-6, atol=1e-6)


@pytest.mark.holds("bloop", 6)
def test_the_average_is_saved():
    whole, again = Bloop(0.5, 0.3), Bloop(0.5, 0.3)
    whole(randn(2, 4))
    assert set(whole.state_dict()) == {"average"}
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.average, whole.average)
    later = randn(2, 4, seed=1)
    assert torch.equal(again(later), whole(later))
    assert not torch.equal(Bloop(0.5, 0.3)(later), whole(later))


def test_the_average_of_half_gradients_is_in_float32():
    """In bfloat16 steps of a hundredth would be lost: 1 + 0.01 * 0.1 is 1."""
    aggregator = Bloop(0.5, rho=0.01)
    for value in [1.0] + 300 * [1.1]:
        aggregator(torch.full((2, 2), value, dtype=torch.bfloat16))
    last = float(torch.tensor(1.1).bfloat16())
    wanted = last + (1 - last) * 0.99**300
    torch.testing.assert_close(aggregator.average, torch.full((2,), wanted), rtol=1e-5, atol=0.0)


def test_a_noisy_main_gradient_needs_the_average():
    """The mean direction along the main gradient's mean is the main gradient's alone only where e is an average."""
    rng = np.random.default_rng(0)
    signal, aux = np.eye(40)[0], torch.from_numpy(np.eye(40)[0] * -1.0)
    along = {}
    for rho in (0.01, 1.0):
        aggregator = Bloop(1.0, rho)
        steps = [torch.from_numpy(signal + rng.normal(size=40)) for _ in range(1500)]
        directions = [aggregator(torch.stack([step, aux])) for step in steps]
        along[rho] = float(torch.stack(directions)[300:, 0].mean())
    assert along[0.01] == pytest.approx(1.0, abs=0.3)  # noise of e: 40 * 0.01 / 1.99 of 1.2
    assert along[1.0] < 0.3  # the auxiliary gradient takes nearly all of it away


def test_what_is_refused():
    aggregator = Bloop(0.5)
    aggregator(randn(2, 4))
    with pytest.raises(ValueError, match="jacobian: expected 4 columns as in the calls before"):
        aggregator(randn(2, 5))
    with pytest.raises(ValueError, match="sizes: expected numbers that sum to 4"):
        Bloop(0.5, sizes=(1, 2))(randn(2, 4))
    with pytest.raises(ValueError, match="rho: expected a number > 0 and <= 1"):
        Bloop(0.5, rho=0.0)
    with pytest.raises(ValueError, match="lam: expected a number >= 0"):
        Bloop(-1.0)
    assert math.isnan(float(bloop_direction(vector(1), vector(1), vector(math.nan), 0.5)[0]))
