"""Optimistic mirror descent: the numbers of the card, loops in float64, nearest points by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from steepest.optim.online import OptimisticOMD, optimistic_omd_step, sea_quantities, sea_stream
from steepest.testing import optimizer_checks


def interval(x):
    return x.clamp(-1.0, 1.0)


def plays(gradients, **options):
    """What is played against given gradients, the first play 0."""
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, played = OptimisticOMD([x], **options), []
    for g in gradients:
        played.append(float(x.detach()))
        x.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    return played, optimizer.state[x]


@pytest.mark.holds("optimistic-mirror-descent", 1)
def test_plays_at_a_fixed_step():
    gradients = [1.0, 1.0, 1.0, -1.0]
    options = {"mode": "fixed", "lr": 0.1, "project": interval}
    assert plays(gradients, **options)[0] == pytest.approx([0.0, -0.2, -0.3, -0.4])
    assert plays(gradients, hint=False, **options)[0] == pytest.approx([0.0, -0.1, -0.2, -0.3])
    anchor, played = torch.zeros(1).double(), [0.0]
    for g in gradients[:3]:
        play, anchor = optimistic_omd_step(anchor, torch.tensor([g]).double(), 0.1, project=interval)
        played.append(float(play))
    assert played == pytest.approx([0.0, -0.2, -0.3, -0.4])


@pytest.mark.holds("optimistic-mirror-descent", 2)
@pytest.mark.parametrize("project", ["ball", interval])
def test_plays_where_steps_follow_the_change_of_gradients(project):
    gradients, options = [1.0, -1.0, 1.0], {"diameter": 2.0, "grad_bound": 1.0, "project": project}
    played, state = plays(gradients, **options)
    assert played == pytest.approx([0.0, -1.0, 0.5545], abs=5e-5)
    free = [float(plays(gradients[:t], **{**options, "project": None})[1]["anchor"]) for t in (1, 2, 3)]
    steps = [-free[0], free[1] - free[0], free[1] - free[2]]
    assert steps == pytest.approx([0.8944, 0.8165, 0.6325], abs=5e-5)
    assert float(state["variation"]) == 9.0


@pytest.mark.holds("optimistic-mirror-descent", 3)
def test_what_is_known_in_advance_costs_nothing():
    gradients = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
    eta = 0.2

    def ball(x):
        return x / x.norm().clamp(min=1.0)

    best = -gradients.sum(0) / gradients.sum(0).norm()
    regrets = {}
    for known in (True, False):
        anchor, regret = torch.zeros(3).double(), 0.0
        play, _ = optimistic_omd_step(anchor, torch.zeros(3).double(), eta, hint=gradients[0] * known, project=ball)
        descent = torch.zeros(3).double()
        for g, ahead in zip(gradients, [*gradients[1:], torch.zeros(3).double()]):
            regret += float(g @ (play - best))
            play, anchor = optimistic_omd_step(anchor, g, eta, hint=ahead * known, project=ball)
            if not known:  # a hint of 0 is mirror descent
                descent = ball(descent - eta * g)
                assert torch.equal(play, descent)
        regrets[known] = regret
    assert regrets[True] <= 1.0 / (2 * eta) < regrets[False]


@pytest.mark.holds("optimistic-mirror-descent", 4)
def test_steps_stop_shrinking_where_gradients_stay():
    free = [plays([0.7] * t, diameter=2.0, grad_bound=1.0)[1] for t in (2, 3, 9, 10)]
    assert [float(state["variation"]) for state in free] == pytest.approx([0.49] * 4)
    anchors = [float(state["anchor"]) for state in free]
    assert anchors[0] - anchors[1] == pytest.approx(anchors[2] - anchors[3])
    assert anchors[0] - anchors[1] == pytest.approx(0.7 * 2.0 / math.sqrt(5.49))
    without = plays([0.7] * 10, diameter=2.0, grad_bound=1.0, hint=False)[1]
    assert float(without["variation"]) == pytest.approx(4.9)


@pytest.mark.holds("optimistic-mirror-descent", 5)
def test_plays_stay_in_the_set():
    generator = torch.Generator().manual_seed(2)
    x, rows = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.full((2, 3), 1 / 3))
    matrix = nn.Parameter(torch.zeros(3))
    optimizers = [
        OptimisticOMD([x], diameter=1.0, project="ball", delta=0.01),
        OptimisticOMD([rows], diameter=30.0, mirror="entropy", delta=0.01),
        OptimisticOMD([matrix], diameter=1.0, mode="exp_concave", project="ball"),
    ]
    for _ in range(50):
        for p, optimizer in zip((x, rows, matrix), optimizers):
            p.grad = 3 * torch.randn(p.shape, generator=generator)
            optimizer.step()
        assert float(x.detach().norm()) <= 0.5 + 1e-6
        assert float(matrix.detach().norm()) <= 0.5 + 1e-6
        assert bool((rows >= 0).all())
        torch.testing.assert_close(rows.sum(1), torch.ones(2))
    outside = nn.Parameter(torch.ones(2))
    outside.grad = torch.ones(2)
    with pytest.raises(ValueError, match="params: expected rows of probabilities"):
        OptimisticOMD([outside], mirror="entropy").step()


def test_entropy_is_the_closed_form():
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    w = nn.Parameter(p.clone())
    optimizer, sums = OptimisticOMD([w], mode="fixed", mirror="entropy", lr=0.4), torch.zeros(3).double()
    anchor = p
    for g in torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64):
        w.grad = g
        optimizer.step()
        sums = sums + g
        wanted = p * torch.exp(-0.4 * (sums + g))
        torch.testing.assert_close(w.detach(), wanted / wanted.sum())
        play, anchor = optimistic_omd_step(anchor, g, 0.4, mirror="entropy")
        torch.testing.assert_close(play, w.detach())


def test_a_loop_in_float64():
    """Two parameters that are one decision, in groups' joint V; strongly convex steps beside it."""
    generator = np.random.default_rng(4)
    a, b, c = (nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in (2, 3, 2))
    optimizer = OptimisticOMD(
        [{"params": [a, b]}, {"params": [c], "mode": "strongly_convex", "curvature": 0.5}],
        diameter=3.0, grad_bound=0.5, delta=2.0, lr=0.7, project=interval,
    )  # fmt: skip
    anchor, last, v, scaled = np.zeros(5), np.zeros(5), 0.0, np.zeros(2)
    for t in range(1, 9):
        g, h = generator.normal(size=5), generator.normal(size=2)
        a.grad, b.grad, c.grad = torch.tensor(g[:2]), torch.tensor(g[2:]), torch.tensor(h)
        optimizer.step()
        anchor = np.clip(anchor - 0.7 * 3.0 / math.sqrt(3.0 + v) * g, -1, 1)
        v, last = v + ((g - last) ** 2).sum(), g
        play = np.clip(anchor - 0.7 * 3.0 / math.sqrt(3.0 + v) * g, -1, 1)
        np.testing.assert_allclose(np.concatenate([a.detach(), b.detach()]), play, rtol=1e-12)
        scaled = np.clip(scaled - 0.7 * 4 / t * h, -1, 1)
        np.testing.assert_allclose(c.detach(), np.clip(scaled - 0.7 * 4 / (t + 1) * h, -1, 1), rtol=1e-12)


def test_exp_concave_steps_are_nearest_points_of_their_metric():
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    options = {"diameter": 1.0, "grad_bound": 2.0, "mode": "exp_concave", "curvature": 5.0, "project": "ball"}
    optimizer, beta = OptimisticOMD([x], **options), 0.5 * min(1 / 8, 5.0)
    anchor, matrix, touched = np.zeros(3), (1 + beta * 2.0) * np.eye(3), 0

    def nearest(point, slope):
        end = minimize(
            lambda z: slope @ z + 0.5 * (z - point) @ matrix @ (z - point), point, method="SLSQP", tol=1e-14,
            constraints={"type": "ineq", "fun": lambda z: 0.25 - z @ z},
        )  # fmt: skip
        return end.x

    for g in np.random.default_rng(5).normal(size=(6, 3)) * 0.4:
        x.grad = torch.tensor(g)
        optimizer.step()
        anchor = nearest(anchor, g)
        matrix = matrix + beta / 2 * np.outer(g, g)
        np.testing.assert_allclose(x.detach(), nearest(anchor, g), atol=1e-5)
        touched += float(x.detach().norm()) > 0.5 - 1e-9
    assert 0 < touched < 6


def test_a_fixed_step_without_a_set_is_the_optimistic_gradient():
    generator = torch.Generator().manual_seed(6)
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer, wanted, last = OptimisticOMD([w], mode="fixed", lr=0.03), torch.ones(4).double(), torch.zeros(4)
    for t in range(6):
        g = torch.randn(4, generator=generator, dtype=torch.float64)
        w.grad = g
        optimizer.step()
        wanted = wanted - 0.03 * (2 * g - last) if t else wanted - 0.06 * g
        last = g
        torch.testing.assert_close(w.detach(), wanted)


OTHERS = [
    lambda params: OptimisticOMD(params, diameter=0.05, hint=False),
    lambda params: OptimisticOMD(params, mode="strongly_convex", curvature=200.0),
    lambda params: OptimisticOMD(params, diameter=4.0, mode="exp_concave", lr=0.01, project="ball"),
]


@pytest.mark.parametrize(
    ("title", "check"),
    optimizer_checks(OptimisticOMD, OTHERS, dict.fromkeys(
        ("convergence", "minimum", "compile", "ranks"), "steps for losses of another form"
    ) | {"zero_gradient": "a start outside the ball is projected"}),
)  # fmt: skip
def test_contract_of_the_other_modes(title, check):
    torch.manual_seed(0)
    check()


def test_streams():
    stream = sea_stream("walk", 0.5, 0.1, 4000, 7, dim=2, start=torch.tensor([0.5, -0.5]))
    noise = stream.gradients - stream.means
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert float(stream.means.abs().max()) <= 1.0
    assert torch.equal(stream.means[0], torch.tensor([0.5, -0.5]).double())
    assert torch.equal(stream.gradients, sea_stream("walk", 0.5, 0.1, 4000, 7, dim=2, start=stream.means[0]).gradients)
    flips = sea_stream("flip", 0.0, 0.01, 1000, 0)
    assert torch.equal(flips.gradients, flips.means)
    assert int((flips.means.diff(dim=0) != 0).sum()) == 9
    assert sea_quantities(flips.means, torch.zeros(1000)) == (0.0, 36.0, 0.0, 4.0)
    still = sea_stream("constant", 1.0, 0.0, 10, 0)
    assert sea_quantities(still.means, torch.ones(10))[:2] == (10.0, 0.0)


def test_quantities_take_the_largest_of_the_points():
    """Quadratics a_t x^2 / 2 on the points -1, 0, 2: gradients a_t x."""
    a, points = torch.tensor([1.0, 3.0, 2.5]), torch.tensor([-1.0, 0.0, 2.0])
    means = (a[:, None] * points)[:, :, None]
    variances = torch.tensor([[0.1, 0.2, 0.0]] * 3)
    wanted = (0.6, 16.0 + 1.0, 0.2, 16.0)
    assert sea_quantities(means, variances) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"diameter": 0.0}, "diameter: expected a number > 0"),
        ({"mode": "linear"}, "mode: expected one of"),
        ({"project": "box"}, "project: expected one of 'ball'"),
        ({"mode": "exp_concave", "project": interval}, "project: expected 'ball' or None in mode"),
        ({"mirror": "entropy", "project": "ball"}, "project: expected None with mirror 'entropy'"),
        ({"mirror": "entropy", "mode": "exp_concave"}, "mirror: expected 'euclidean'"),
    ],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        OptimisticOMD([nn.Parameter(torch.ones(2))], **options)


def test_what_functions_refuse():
    with pytest.raises(ValueError, match="grad: expected shape"):
        optimistic_omd_step(torch.zeros(2), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="eta: expected a number >= 0"):
        optimistic_omd_step(torch.zeros(2), torch.zeros(2), -0.1)
    with pytest.raises(ValueError, match="project: expected None"):
        optimistic_omd_step(torch.ones(2) / 2, torch.zeros(2), 0.1, mirror="entropy", project=interval)
    with pytest.raises(ValueError, match="drift: expected 0"):
        sea_stream("constant", 0.0, 0.1, 3, 0)
    with pytest.raises(ValueError, match="variances: expected shape"):
        sea_quantities(torch.zeros(3, 1), torch.zeros(2))
    large = nn.Parameter(torch.zeros(4097))
    large.grad = torch.zeros(4097)
    with pytest.raises(ValueError, match="at most 4096 entries"):
        OptimisticOMD([large], mode="exp_concave").step()
