"""ReLOAD: the numbers of the card, the linear program against all policies, loops in NumPy."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from steepest.optim.constrained import ConstrainedMDP, OptimisticAscentDescent, ReLOAD, optimistic_mirror_step


def saddle(steps, **options):
    """x * y from (1, 1), both rates 0.1: the distance from 0."""
    x, y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = OptimisticAscentDescent([x], [y], 0.1, 0.1, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (x * y).sum().backward()
        optimizer.step()
    return float((x.square() + y.square()).sqrt().detach()), optimizer


@pytest.mark.holds("reload", 1)
def test_optimistic_steps_come_to_the_saddle_and_plain_ones_leave_it():
    assert saddle(200, optimistic=False)[0] == pytest.approx(3.8252, abs=5e-5)
    assert saddle(200)[0] == pytest.approx(0.5176, abs=5e-5)
    assert saddle(2000)[0] == pytest.approx(5.6e-5, abs=5e-7)


def bandit(threshold=0.4):
    arms = torch.tensor([[1.0, 0.0]])
    return ConstrainedMDP(
        torch.ones(1, 2, 1), arms, arms[None], torch.tensor([threshold], dtype=torch.float64), torch.ones(1), 0.0
    )


@pytest.mark.holds("reload", 2)
def test_two_arms_and_a_budget():
    """Iterates in plain numbers beside ours."""
    ends = {}
    for ahead in (True, False):
        z, mu, last = np.zeros(2), 0.0, None
        shares = []
        for _ in range(5000):
            p = np.exp(z - z.max())
            p /= p.sum()
            shares.append(p[0])
            now = (np.array([1.0 - mu, 0.0]), p[0] - 0.4)
            before = now if last is None or not ahead else last
            z, mu, last = z + 0.1 * (2 * now[0] - before[0]), max(0.0, mu + 0.1 * (2 * now[1] - before[1])), now
        ends[ahead] = np.array(shares)
        if ahead:
            assert shares[-1] == pytest.approx(0.3992, abs=5e-5)
            assert mu == pytest.approx(1.0023, abs=5e-5)
    assert np.ptp(ends[False][-500:]) == pytest.approx(0.81, abs=0.005)
    assert ends[False].mean() == pytest.approx(0.395, abs=0.001)
    for ahead, steps in ((True, 5000), (False, 400)):
        end = ReLOAD(bandit(), 0.1, 0.1, ahead).run(steps)
        np.testing.assert_allclose(end.values, ends[ahead][:steps], atol=1e-8)
        if ahead:
            assert float(end.values[-1]) == pytest.approx(0.3992, abs=5e-5)  # the last policy that was played
            assert float(end.last_multipliers) == pytest.approx(1.0023, abs=5e-5)


def process(seed=0, states=3, actions=2, discount=0.8, thresholds=(10.0,)):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves = draw(states, actions, states)
    return ConstrainedMDP(
        moves / moves.sum(-1, keepdim=True), draw(states, actions), draw(len(thresholds), states, actions),
        torch.tensor(thresholds, dtype=torch.float64), torch.full((states,), 1 / states), discount,
    )  # fmt: skip


@pytest.mark.holds("reload", 3)
def test_a_slack_constraint_changes_nothing():
    mdp = process()
    end = ReLOAD(mdp, 2.0, 1.0).run(60)
    assert not bool(end.multipliers.any())
    log_pi, last = torch.full((3, 2), 0.5).double().log(), None
    for t in range(60):
        q, v = mdp.values(log_pi.exp())
        assert float(v[0]) == pytest.approx(float(end.values[t]), rel=1e-12)
        log_pi = optimistic_mirror_step(log_pi, q[0], q[0] if last is None else last, 2.0)
        last = q[0]
    torch.testing.assert_close(log_pi.exp(), end.policy)


@pytest.mark.holds("reload", 4)
def test_plain_steps_are_those_of_sgd_and_the_state_holds_the_last_gradients():
    _, optimizer = saddle(7, optimistic=False)
    x, y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    down, up = torch.optim.SGD([x], lr=0.1), torch.optim.SGD([y], lr=0.1, maximize=True)
    for _ in range(7):
        down.zero_grad()
        up.zero_grad()
        (x * y).sum().backward()
        down.step()
        up.step()
    ours = [group["params"][0] for group in optimizer.param_groups]
    assert torch.equal(ours[0], x)
    assert torch.equal(ours[1], y)
    _, optimizer = saddle(3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["state"]
    grads = [group["params"][0].grad for group in optimizer.param_groups]
    assert torch.equal(state[0]["gradient"], grads[0])
    assert torch.equal(state[1]["gradient"], -grads[1]), "of what goes down"


@pytest.mark.holds("reload", 5)
def test_multipliers_are_never_negative_and_grow_where_nothing_is_feasible():
    for mdp in (process(thresholds=(0.6, 0.7)), bandit()):
        assert mdp.optimum() is not None
        assert bool((ReLOAD(mdp, 1.0, 1.0).run(200).multipliers >= 0).all())
    with pytest.warns(UserWarning, match="multipliers grow without bound"):
        end = ReLOAD(bandit(-0.5), 1.0, 1.0).run(200)
    assert float(end.multipliers[199] - end.multipliers[99]) == pytest.approx(100 * 0.5, abs=1e-6)
    mu = nn.Parameter(torch.tensor([0.05, 3.0]))
    optimizer = OptimisticAscentDescent([nn.Parameter(torch.ones(1))], [mu], lr_max=0.1, nonnegative=True)
    mu.grad = torch.tensor([-1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(mu.detach(), torch.tensor([0.0, 2.9]))


def test_values_are_those_of_long_sums():
    mdp = process(1)
    pi = torch.tensor([[0.3, 0.7], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    moves = (pi[:, :, None] * mdp.transitions).sum(1).numpy()
    where, total = np.full(3, 1 / 3), 0.0
    for t in range(300):
        total += 0.2 * 0.8**t * where @ (mdp.reward * pi).sum(1).numpy()
        where = where @ moves
    q, v = mdp.values(pi)
    assert float(v[0]) == pytest.approx(total)
    torch.testing.assert_close((q * pi).sum(-1) @ mdp.start, v)


def test_the_linear_program_beats_every_mixture_of_policies():
    """The best of all pairs of deterministic policies, mixed at the start so that the constraint binds."""
    free = process(2)
    points = []
    for choice in itertools.product(range(2), repeat=3):
        pi = torch.nn.functional.one_hot(torch.tensor(choice), 2).double()
        points.append(free.values(pi)[1].tolist())
    threshold = 0.5 * (min(c for _, c in points) + max(points)[1])
    mdp = process(2, thresholds=(threshold,))
    best = mdp.optimum()
    mixtures = [r for r, c in points if c <= threshold]
    for (r1, c1), (r2, c2) in itertools.combinations(points, 2):
        if (c1 - threshold) * (c2 - threshold) < 0:
            share = (threshold - c2) / (c1 - c2)
            mixtures.append(share * r1 + (1 - share) * r2)
    assert best.value == pytest.approx(max(mixtures))
    values = mdp.values(best.policy)[1]
    assert values.tolist() == pytest.approx([best.value, threshold])
    step = 1e-4
    higher = process(2, thresholds=(threshold + step,)).optimum()
    assert (higher.value - best.value) / step == pytest.approx(float(best.multipliers), rel=1e-6)
    end = ReLOAD(mdp, 3.0, 1.0).run(1500)
    assert float(mdp.values(end.policy)[1][0]) == pytest.approx(best.value, abs=1e-4)
    assert bandit(-0.5).optimum() is None


def test_what_it_refuses():
    with pytest.raises(ValueError, match="eta: expected a number > 0"):
        ReLOAD(bandit(), 0.0, 1.0)
    with pytest.raises(ValueError, match="T: expected an integer >= 1"):
        ReLOAD(bandit(), 1.0, 1.0).run(0)
    with pytest.raises(ValueError, match="q: expected shape"):
        optimistic_mirror_step(torch.zeros(2), torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="lr_max: expected a number >= 0"):
        OptimisticAscentDescent([nn.Parameter(torch.ones(1))], lr_max=-1.0)
    with pytest.raises(ValueError, match="pi: expected rows of probabilities"):
        bandit().values(torch.ones(1, 2))
    with pytest.raises(ValueError, match="thresholds: expected shape"):
        ConstrainedMDP(torch.ones(1, 2, 1), torch.ones(1, 2), torch.ones(1, 1, 2), torch.ones(2), torch.ones(1), 0.0)
    with pytest.raises(ValueError, match="discount: expected a number >= 0 and < 1"):
        ConstrainedMDP(torch.ones(1, 2, 1), torch.ones(1, 2), torch.ones(1, 1, 2), torch.ones(1), torch.ones(1), 1.0)
