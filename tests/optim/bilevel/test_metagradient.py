"""Metagradients: the card's numbers, autograd through the whole unrolled run, differences, closed forms, counts."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.optim.bilevel import (
    MetagradientDescent,
    Replay,
    knot_schedule,
    metacurvature,
    metagradient,
    metasmoothness,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def slope_of(loss, at):
    """With a graph, so that steps can be differentiated; ``torch.func.grad`` loads much at its first call."""
    return torch.autograd.grad(loss(at), at, create_graph=True)


def mean_step(theta, weights, batch):
    """A gradient step of 0.5 on the weighted mean of halved squares around 1 and 3."""
    return theta - 0.5 * slope_of(lambda w: 0.5 * (weights * (w - numbers(1.0, 3.0)) ** 2).mean(), theta)[0]


@pytest.mark.holds("metagradient", 1)
@pytest.mark.parametrize("checkpoints", ["tree", "all"])
def test_weights_of_two_samples(checkpoints):
    def objective(theta):
        return 0.5 * (theta - 2) ** 2

    start, weights = numbers(0.0).squeeze(), numbers(1.0, 1.0)
    value, slope = metagradient(mean_step, start, weights, range(2), objective, checkpoints=checkpoints)
    torch.testing.assert_close(value, numbers(0.5 * 0.5**2).squeeze())
    torch.testing.assert_close(slope, numbers(-0.0625, -0.4375))
    assert not value.requires_grad
    assert not slope.requires_grad
    assert (float(start), weights.tolist()) == (0.0, [1.0, 1.0])


@pytest.mark.holds("metagradient", 2)
def test_rates_of_three_steps():
    def step(theta, rates, t):
        return theta - rates[t] * slope_of(lambda w: 0.5 * (w - 1) ** 2, theta)[0]

    start = numbers(0.0).squeeze()
    _, slope = metagradient(step, start, numbers(0.5, 0.5, 0.5), range(3), lambda w: 0.5 * (w - 1) ** 2, k=2)
    torch.testing.assert_close(slope, numbers(-0.03125, -0.03125, -0.03125))


def network_run(dtype, steps=11, differentiate=slope_of):
    """A network of 5-7-3 with dropout by the number of the step, trained by Adam: the state has an integer counter.

    What it depends on: weights of 24 samples, a rate for each step, the strength of weight decay.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, generator=generator, dtype=dtype)
    y = torch.randint(3, (24,), generator=generator)
    first = [torch.randn(5, 7, generator=generator, dtype=dtype) / 2, torch.zeros(7, dtype=dtype)]
    params = [*first, torch.randn(7, 3, generator=generator, dtype=dtype) / 2]
    zeros = [torch.zeros_like(p) for p in params]
    state = {"params": params, "first": zeros, "second": zeros, "steps": torch.tensor(0), "name": "adam"}
    z = {
        "weights": torch.rand(24, generator=generator, dtype=dtype) + 0.5,
        "rates": torch.full((steps,), 0.05, dtype=dtype),
        "decay": torch.tensor(0.01, dtype=dtype),
    }

    def outputs(params, x, keep=1.0):
        return torch.tanh(x @ params[0] + params[1]) * keep @ params[2]

    def step(state, z, t):
        own = torch.Generator().manual_seed(t)
        rows = torch.randperm(24, generator=own)[:8]
        keep = torch.bernoulli(torch.full((8, 7), 0.8, dtype=dtype), generator=own) / 0.8

        def loss(params):
            losses = cross_entropy(outputs(params, x[rows], keep), y[rows], reduction="none")
            return (z["weights"][rows] * losses).mean() + z["decay"] * sum(p.square().sum() for p in params)

        slopes, count = differentiate(loss, state["params"]), state["steps"] + 1
        first = [0.9 * m + 0.1 * g for m, g in zip(state["first"], slopes)]
        second = [0.99 * v + 0.01 * g * g for v, g in zip(state["second"], slopes)]
        scale = z["rates"][t] / (1 - 0.9**count)
        params = [
            p - scale * m / (v / (1 - 0.99**count) + 1e-4).sqrt() for p, m, v in zip(state["params"], first, second)
        ]
        return {"params": params, "first": first, "second": second, "steps": count, "name": "adam"}

    def objective(state):
        return cross_entropy(outputs(state["params"], x), y)

    return step, state, z, range(steps), objective


@pytest.mark.holds("metagradient", 3)
@pytest.mark.parametrize("k", [2, 3, 20])
def test_the_tree_has_the_bits_of_all_states(k):
    run = network_run(torch.float32)
    value, slope = metagradient(*run, k=k)
    all_value, all_slope = metagradient(*run, checkpoints="all")
    assert torch.equal(value, all_value)
    assert slope.keys() == {"weights", "rates", "decay"}
    for name, of_tree in slope.items():
        assert bool(of_tree.any())
        assert torch.equal(of_tree, all_slope[name])


@pytest.mark.holds("metagradient", 3)
def test_autograd_through_the_unrolled_run_and_differences():
    step, state, z, batches, objective = network_run(torch.float64)
    value, slope = metagradient(step, state, z, batches, objective, k=2)

    def trained(z):
        reached = state | {"params": [p.clone().requires_grad_() for p in state["params"]]}
        for t in batches:
            reached = step(reached, z, t)
        return objective(reached)

    leaves = {name: one.clone().requires_grad_() for name, one in z.items()}
    whole = trained(leaves)
    torch.testing.assert_close(value, whole.detach(), rtol=1e-14, atol=0.0)
    for name, wanted in zip(leaves, torch.autograd.grad(whole, list(leaves.values()))):
        torch.testing.assert_close(slope[name], wanted, rtol=1e-10, atol=1e-15)

    generator = torch.Generator().manual_seed(1)
    along = {name: torch.randn(one.shape, generator=generator, dtype=one.dtype) for name, one in z.items()}
    h = 1e-5
    up, down = (trained({name: z[name] + side * h * along[name] for name in z}).detach() for side in (1, -1))
    wanted = sum(float((slope[name] * along[name]).sum()) for name in z)
    assert float((up - down) / (2 * h)) == pytest.approx(wanted, rel=1e-6)  # of order h squared


@pytest.mark.parametrize("steps", [3, 300])
def test_ridge_regression_in_closed_form(steps):
    """Weights of samples in NumPy: after few steps by powers of I - lr H, after many by influence at the optimum."""
    rng = np.random.default_rng(0)
    x, y, target, rate, ridge = rng.normal(size=(9, 3)), rng.normal(size=9), rng.normal(size=3), 0.4, 0.2
    weights = rng.uniform(0.5, 1.5, 9)
    xt, yt, tt = torch.tensor(x), torch.tensor(y), torch.tensor(target)

    def step(theta, weights, batch):
        def loss(theta):
            return 0.5 * (weights * (xt @ theta - yt) ** 2).mean() + 0.5 * ridge * theta @ theta

        return theta - rate * slope_of(loss, theta)[0]

    start = torch.zeros(3, dtype=torch.float64)
    _, slope = metagradient(step, start, torch.tensor(weights), range(steps), lambda w: 0.5 * (w - tt) @ (w - tt), k=8)

    def ended(weights):
        h = x.T @ (weights[:, None] * x) / 9 + ridge * np.eye(3)
        best = np.linalg.solve(h, x.T @ (weights * y) / 9)
        return best - np.linalg.matrix_power(np.eye(3) - rate * h, steps) @ best, h

    end, h = ended(weights)
    if steps > 100:
        wanted = -x @ np.linalg.solve(h, end - target) * (x @ end - y) / 9
        np.testing.assert_allclose(slope.numpy(), wanted, rtol=1e-9)
    tiny = 1e-5
    for place in range(9):
        moved = np.eye(9)[place] * tiny
        up, down = (0.5 * np.sum((ended(weights + side * moved)[0] - target) ** 2) for side in (1, -1))
        assert slope[place].item() == pytest.approx((up - down) / (2 * tiny), rel=1e-6, abs=1e-8)


@pytest.mark.slow
def test_gradients_by_torch_func_inside_a_step():
    _, slope = metagradient(*network_run(torch.float64), k=3)
    _, wanted = metagradient(*network_run(torch.float64, differentiate=lambda f, at: torch.func.grad(f)(at)))
    for name in slope:
        torch.testing.assert_close(slope[name], wanted[name], rtol=1e-12, atol=1e-16)


def test_what_nothing_depends_on():
    def step(state, z, t):
        theta, unused = state
        (slope,) = torch.autograd.grad((z[0] * theta**2).sum(), theta, create_graph=True)
        return theta - 0.1 * slope, unused

    state = (numbers(1.0, 2.0), numbers(5.0))
    value, (slope, nothing) = metagradient(
        step, state, (numbers(1.0, 1.0), numbers(3.0)), range(2), lambda s: s[0].sum()
    )
    assert value.item() == pytest.approx(3 * 0.8**2)
    torch.testing.assert_close(slope, 2 * 0.8 * -0.2 * state[0])  # theta (1 - 0.2 z)^2
    assert nothing.tolist() == [0.0]
    _, slope = metagradient(step, state, (numbers(1.0), numbers(1.0)), range(2), lambda s: s[1].sum())
    assert [one.tolist() for one in slope] == [[0.0], [0.0]]


def largest_peak(steps, k):
    return k * (1 + math.log(steps, k)) + 1e-9


@pytest.mark.holds("metagradient", 5)
def test_states_stored_and_steps_taken():
    """All lengths to 130: the order, the states themselves, the bound of the card, and how often steps are taken."""
    for k in (2, 3, 4, 7):
        for length in range(1, 131):
            batches = list(range(1, length + 1))
            run = Replay(lambda x, b: x + b, 0, batches, k=k)
            assert list(run) == [(t, t * (t + 1) // 2) for t in range(length, -1, -1)]
            assert run.peak <= largest_peak(length, k)
            levels = next(n for n in range(99) if k**n >= length)
            assert length <= run.steps <= length * max(levels, 1)
    everything = Replay(lambda x, b: x + b, 0, range(50), k=None)
    assert len(list(everything)) == len(everything) == 51
    assert (everything.peak, everything.steps) == (51, 50)
    assert list(Replay(lambda x, b: x + b, 7, [])) == [(0, 7)]


class Marked(np.ndarray):
    """An array of which it is known whether it is in use."""

    __hash__ = object.__hash__


@pytest.mark.holds("metagradient", 5)
@pytest.mark.parametrize(("steps", "k"), [(64, 4), (81, 3), (32, 2)])
def test_states_that_are_alive(steps, k):
    """Counted at every step: arrays whose memory tensors use live as long as one of these does."""
    arrays, counts = weakref.WeakSet(), []

    def marked():
        array = np.zeros(1).view(Marked)
        arrays.add(array)
        return torch.from_numpy(array)

    def step(state, z, t):
        counts.append(len(arrays))
        return state[0] - z * state[0], marked()

    def start():
        return numbers(1.0), marked()

    metagradient(step, start(), numbers(0.1), range(steps), lambda s: s[0].sum(), k=k)
    assert len(counts) > 2 * steps
    assert max(counts) <= largest_peak(steps, k)
    counts.clear()
    metagradient(step, start(), numbers(0.1), range(steps), lambda s: s[0].sum(), checkpoints="all")
    assert len(counts) == 2 * steps
    assert max(counts) >= steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_that_is_another_one_the_second_time_is_refused(dtype):
    def step(theta, z, t):
        return theta - z * torch.randn(3, dtype=dtype)

    with pytest.raises(RuntimeError, match="step 4 gives another state when it is taken again"):
        metagradient(step, torch.zeros(3, dtype=dtype), torch.ones((), dtype=dtype), range(5), torch.sum)

    def overflow(theta, z, t):
        return theta / z

    value, _ = metagradient(overflow, torch.zeros(3, dtype=dtype), torch.zeros((), dtype=dtype), range(5), torch.sum)
    assert value.isnan()


@pytest.mark.holds("metagradient", 4)
def test_the_signs_of_finals():
    finals = {0.0: numbers(0.0, 0.0, 0.0), 1.0: numbers(1.0, 0.5, -1.0), 2.0: numbers(2.0, 0.2, -3.0)}

    def train(z):
        theta = finals[float(z)]
        return {"weight": theta[:2], "bias": [theta[2:]], "steps": torch.tensor(3)}

    smooth = metasmoothness(train, torch.tensor(0.0), torch.tensor(1.0), 1.0)
    assert smooth.item() == pytest.approx(4.8 / 5.2, rel=1e-12)
    assert smooth.item() == pytest.approx(0.923077, abs=1e-6)
    x = numbers(1.0, -2.0)
    assert metasmoothness(lambda z: z**3 + z, x, numbers(0.5, 0.3), 0.1).item() == pytest.approx(1.0)
    assert metasmoothness(lambda z: (z - 0.15).abs() ** 3, numbers(0.0), numbers(1.0), 0.1).item() == pytest.approx(
        -1.0
    )
    curvature = metacurvature(lambda z: z[0] ** 2 * 3 + z.sum(), x, numbers(0.5, 0.3), 0.1)
    assert curvature.item() == pytest.approx(2 * 3 * 0.5**2, rel=1e-10)


def test_knots():
    schedule = knot_schedule(numbers(1.0, 0.0, 4.0), 7)
    np.testing.assert_allclose(
        schedule.numpy(), np.interp(np.linspace(0, 2, 7), [0, 1, 2], [1.0, 0.0, 4.0]), atol=1e-15
    )
    knots = nn.Parameter(numbers(1.0, 0.0))
    knot_schedule(knots, 5)[1].backward()
    assert knots.grad.tolist() == [0.75, 0.25]


def test_counts_move_by_one_where_the_coin_says_so():
    slope = numbers(*[1.0, -2.0, 0.0, 3.0] * 200)
    seen = []

    def metagrad(z):
        seen.append(z)
        return z.sum(), slope

    counts = torch.ones(800, dtype=torch.float64)
    descent = MetagradientDescent(metagrad, counts, p=0.25, generator=torch.Generator().manual_seed(0))
    assert float(descent.step()) == 800.0
    coins = torch.bernoulli(torch.full((800,), 0.25, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(descent.z, (counts - slope.sign() * coins).clamp(min=0))
    assert 120 < int((descent.z != 1).sum()) < 180  # 150 of 600, deviation 11
    values = descent.run(60)
    assert values.shape == (60,)
    assert descent.z[::4].tolist() == [0.0] * 200
    assert descent.z[2::4].tolist() == [1.0] * 200
    assert bool((descent.z[1::4] > 5).all())
    assert torch.equal(counts, torch.ones(800, dtype=torch.float64))
    assert torch.equal(seen[0], counts)


def test_sign_and_adam_are_projected():
    def metagrad(z):
        return (z**2).sum(), 2 * z

    start = numbers(1.0, -0.25)
    signs = MetagradientDescent(metagrad, start, rule="sign", lr=0.125, project=lambda z: z.clamp(min=-0.0625))
    signs.run(2)
    torch.testing.assert_close(signs.z, numbers(0.75, 0.0625))
    adam = MetagradientDescent(metagrad, start, rule="adam", lr=0.1)
    w = nn.Parameter(start.clone())
    peer = torch.optim.Adam([w], lr=0.1)
    for _ in range(4):
        adam.step()
        w.grad = 2 * w.detach()
        peer.step()
    torch.testing.assert_close(adam.z, w.detach(), rtol=0.0, atol=0.0)


def test_what_it_refuses():
    def fine(z):
        return z.sum(), torch.full_like(z, math.nan)

    ones = torch.ones(2)
    with pytest.raises(FloatingPointError, match="metagradient is not a number"):
        MetagradientDescent(fine, ones).step()
    for wrong, words in {
        "lr": ({"lr": 0.1}, "lr: expected None with rule 'counts'"),
        "project": ({"project": torch.abs}, "project: expected None with rule 'counts'"),
        "p": ({"p": 0.0}, "p: expected a number > 0 and <= 1"),
        "adam": ({"rule": "adam", "lr": 0.1, "p": 0.5}, "p: expected None with rule 'adam'"),
        "rule": ({"rule": "sgd"}, "rule: expected one of 'counts', 'sign', 'adam'"),
        "rate": ({"rule": "sign", "lr": 0.0}, "lr: expected a number > 0"),
    }.values():
        with pytest.raises(ValueError, match=words):
            MetagradientDescent(fine, ones, **wrong)
    with pytest.raises(ValueError, match="z: expected whole numbers >= 0"):
        MetagradientDescent(fine, ones / 2)
    with pytest.raises(TypeError, match="lr: expected a number"):
        MetagradientDescent(fine, ones, rule="adam")
    with pytest.raises(ValueError, match="k: expected an integer >= 2"):
        Replay(torch.add, ones, [1], k=1)
    with pytest.raises(ValueError, match="z: expected tensors of a floating type"):
        metagradient(mean_step, ones, torch.ones(2).long(), range(2), torch.sum)
    with pytest.raises(ValueError, match="objective: expected a function that gives a tensor of one number"):
        metagradient(lambda s, z, t: s * z, ones, ones, range(2), lambda s: s)
    with pytest.raises(ValueError, match="checkpoints: expected one of 'tree', 'all'"):
        metagradient(mean_step, ones, ones, range(2), torch.sum, checkpoints="some")
    with pytest.raises(ValueError, match="direction: expected shape"):
        metasmoothness(torch.abs, ones, torch.ones(3), 0.1)
    with pytest.raises(ValueError, match="h: expected a number > 0"):
        metacurvature(torch.sum, ones, ones, 0.0)
    with pytest.raises(ValueError, match="knots: expected at least two"):
        knot_schedule(torch.ones(1), 3)
