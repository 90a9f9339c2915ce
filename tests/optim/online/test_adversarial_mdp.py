"""Adversarial decision processes: the card's numbers, convex solvers and linear programs of SciPy, loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, brentq, linprog, minimize

from steepest.optim.online import (
    EpisodicMDP,
    LinearQPolicyOptimizer,
    LogBarrierFTRL,
    dilated_bonus,
    log_barrier_ftrl,
    magnitude_reduced_estimator,
)

DOUBLE = torch.float64


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def simplex(*shape, seed=0):
    values = rand(*shape, seed=seed) + 0.1
    return values / values.sum(-1, keepdim=True)


def process(steps=3, states=3, actions=2, seed=0):
    return EpisodicMDP(simplex(states, seed=seed), simplex(steps - 1, states, actions, states, seed=seed + 1))


# ---------------------------------------------------------------------------------------------------------- log barrier


@pytest.mark.holds("adversarial-mdp", 1)
@pytest.mark.parametrize(
    ("cum", "eta", "wanted"),
    [
        ([1.0, 0.0, 2.0], 0.5, [0.327327, 0.391382, 0.281290]),
        ([5.0, 0.0, -5.0], 0.2, [0.237286, 0.311108, 0.451606]),
        ([0.7, 0.7, 0.7], 3.0, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_probabilities_of_the_card(cum, eta, wanted):
    p = log_barrier_ftrl(torch.tensor(cum, dtype=DOUBLE), eta)
    np.testing.assert_allclose(p, wanted, atol=6e-7)
    c = eta * np.array(cum)
    root = brentq(lambda lam: (1 / (c + lam)).sum() - 1, -c.min() + 0.5, -c.min() + 4.0, xtol=1e-14)
    np.testing.assert_allclose(p, 1 / (c + root), rtol=1e-12)
    learner = LogBarrierFTRL((3,), eta)
    for share in (0.25, 0.75):
        learner.update(share * torch.tensor(cum, dtype=DOUBLE))
    torch.testing.assert_close(learner.probabilities(), p)


def test_the_barrier_by_a_convex_solver():
    for seed in range(4):
        c = 20 * (rand(5, seed=seed).numpy() - 0.5)
        end = minimize(
            lambda p, c=c: 0.3 * p @ c - np.log(p).sum(), np.full(5, 0.2), method="trust-constr",
            jac=lambda p, c=c: 0.3 * c - 1 / p, hess=lambda p: np.diag(1 / p**2), bounds=[(1e-9, 1)] * 5,
            constraints=LinearConstraint(np.ones((1, 5)), 1, 1),
            options={"gtol": 1e-10, "xtol": 1e-12},
        )  # fmt: skip
        np.testing.assert_allclose(log_barrier_ftrl(torch.tensor(c), 0.3), end.x, atol=1e-6)


@pytest.mark.holds("adversarial-mdp", 2)
def test_a_constant_changes_nothing_and_large_losses_still_sum_to_1():
    cum = 4 * (rand(50, 7) - 0.5)
    torch.testing.assert_close(log_barrier_ftrl(cum + 1000.0, 0.4), log_barrier_ftrl(cum, 0.4), rtol=1e-10, atol=0.0)
    for size in (1.0, 1e4, 1e8):
        p = log_barrier_ftrl(size * (rand(50, 7, seed=1) - 0.5), 0.9)
        assert float((p.sum(-1) - 1).abs().max()) < 1e-10
        assert bool((p > 0).all())
    wide = log_barrier_ftrl(torch.cat([torch.zeros(1000), torch.tensor([-1e8])]).double(), 0.5)
    assert float((wide.sum() - 1).abs()) < 1e-10
    assert float(wide[0]) == pytest.approx(1 / (0.5e8 + 1), rel=1e-6)
    assert log_barrier_ftrl(torch.zeros(3).half(), 1.0).dtype == torch.float32
    torch.testing.assert_close(
        log_barrier_ftrl(cum, torch.linspace(0.1, 1.0, 50))[7], log_barrier_ftrl(cum[7], 0.1 + 7 * 0.9 / 49)
    )


@pytest.mark.holds("adversarial-mdp", 3)
def test_stability_for_losses_of_any_sign_and_size():
    generator = np.random.default_rng(0)
    ratios, squared = [], []
    for _ in range(400):
        actions, eta = int(generator.integers(2, 6)), 10 ** generator.uniform(-3, 0)
        before = generator.dirichlet(np.full(actions, 0.5)) + 1e-6
        before /= before.sum()
        losses = generator.uniform(-100, 100, actions)
        # the largest left-hand side over p is where the barrier's leader goes with these losses added
        p = log_barrier_ftrl(torch.tensor(1 / (eta * before) + losses), eta).numpy()
        divergence = (np.log(before / p) + p / before - 1).sum()
        left = (before - p) @ losses - divergence / eta
        ratios.append(left / (eta * (before * losses**2).sum()))
        squared.append(left / (eta * (before**2 * losses**2).sum()))
        other = generator.dirichlet(np.ones(actions))
        elsewhere = (before - other) @ losses - (np.log(before / other) + other / before - 1).sum() / eta
        assert elsewhere <= left + 1e-9 * abs(left)
    assert max(ratios) <= 1.0
    assert max(squared) > 2.0


# ------------------------------------------------------------------------------------------------------------ estimates


@pytest.mark.holds("adversarial-mdp", 4)
def test_estimates_of_the_card_and_by_simulation():
    x, loss = torch.tensor([-1.5, 2.0, -0.5]).double(), torch.tensor([1.0, 1.0, 2.0]).double()
    got = magnitude_reduced_estimator(x, loss, torch.tensor([-1.2, 0.4, -1.0, -0.2]).double(), H=2)
    torch.testing.assert_close(got, torch.tensor([0.3, 0.8, -1.2]).double())
    counted = torch.tensor([-1.1, 0.4, -0.2]).double(), 2, torch.tensor([2.0, 1.0, 1.0]).double()
    torch.testing.assert_close(magnitude_reduced_estimator(x, loss, *counted), got)
    for wrong in (2.1, -0.1):
        with pytest.raises(ValueError, match=r"loss_to_go: expected losses in \[0, 2\]"):
            magnitude_reduced_estimator(x, torch.tensor(wrong), x[:1], H=2)
    generator = torch.Generator().manual_seed(0)
    # visits that lie mostly along one direction: others have large weights
    visits = torch.randn(200_000, 4, generator=generator, dtype=DOUBLE) * torch.tensor([1.0, 0.1, 0.1, 0.05]).double()
    visits = visits / visits.norm(dim=1, keepdim=True)
    inverse = torch.linalg.inv(visits.T @ visits / len(visits) + 0.01 * torch.eye(4).double())
    phi = torch.tensor([0.5, 0.5, 0.5, 0.5]).double()
    x = visits @ inverse @ phi
    to_go = 3 * torch.rand(len(x), generator=generator, dtype=DOUBLE)
    plain, reduced = x * to_go, magnitude_reduced_estimator(x, to_go, x, 3.0)
    assert float(reduced.mean()) == pytest.approx(float(plain.mean()), abs=5 * float((x * to_go).std()) / len(x) ** 0.5)
    mean = 3 * float(x.clamp(max=0).mean())
    assert float(reduced.min()) >= mean - 1e-12
    assert float(plain.min()) < 5 * mean < 0


def test_the_bonus_is_a_sum_over_later_steps():
    steps, states, actions = 3, 3, 2
    env, b, pi = process(), rand(steps, states, actions, seed=5), simplex(steps, states, actions, seed=6)
    wanted = np.zeros((steps, states, actions))
    for h in reversed(range(steps)):
        for s in range(states):
            for a in range(actions):
                wanted[h, s, a] = b[h, s, a]
                for z in range(states if h < steps - 1 else 0):
                    ahead = sum(float(pi[h + 1, z, u]) * wanted[h + 1, z, u] for u in range(actions))
                    wanted[h, s, a] += (1 + 1 / 5) * float(env.transitions[h, s, a, z]) * ahead
    np.testing.assert_allclose(dilated_bonus(b, pi, env.transitions, 5), wanted, rtol=1e-12)
    torch.testing.assert_close(dilated_bonus(b, pi, env.transitions), dilated_bonus(b, pi, env.transitions, 3))
    two = dilated_bonus(torch.stack([b, 2 * b]), pi.expand(2, -1, -1, -1), env.transitions, 5)
    torch.testing.assert_close(two, torch.stack([torch.tensor(wanted), 2 * torch.tensor(wanted)]))


# ------------------------------------------------------------------------------------------------------------- process


def by_linear_program(env, losses):
    """The least expected loss over occupancies, and one that has it."""
    steps, states, actions = env.shape
    equal, right = [], []
    for h in range(steps):
        for s in range(states):
            row = np.zeros((steps, states, actions))
            row[h, s] = 1
            if h:
                row[h - 1] -= env.transitions[h - 1, :, :, s].numpy()
            equal.append(row.ravel())
            right.append(0.0 if h else float(env.start[s]))
    end = linprog(losses.numpy().ravel(), A_eq=np.array(equal), b_eq=right, bounds=(0, None), method="highs")
    return end.fun, end.x.reshape(steps, states, actions)


def test_the_best_fixed_policy_by_a_linear_program():
    for seed in range(3):
        env, losses = process(4, 3, 3, seed=seed), rand(4, 3, 3, seed=20 + seed)
        value, policy = env.best(losses)
        wanted, occupancy = by_linear_program(env, losses)
        assert value == pytest.approx(wanted, abs=1e-10)
        np.testing.assert_allclose(env.occupancy(policy), occupancy, atol=1e-9)
        pi = simplex(4, 3, 3, seed=seed)
        q, expected = env.values(pi, losses)
        assert float(expected) == pytest.approx(float((env.occupancy(pi) * losses).sum()), rel=1e-12)
        assert float(expected) == pytest.approx(float(env.start @ (pi[0] * q[0]).sum(-1)), rel=1e-12)
        torch.testing.assert_close(q[3], losses[3])


def test_simulated_visits_are_the_occupancy():
    env = process(3, 3, 2)
    policies = torch.stack([simplex(3, 3, 2, seed=seed) for seed in (3, 4)])
    states, actions = env.rollout(policies, 40_000, torch.Generator().manual_seed(0))
    for learner in range(2):
        for h in range(3):
            pairs = torch.bincount(states[learner, :, h] * 2 + actions[learner, :, h], minlength=6) / 40_000
            # five deviations of a share: 5 (0.25 / 40,000)^0.5
            np.testing.assert_allclose(pairs, env.occupancy(policies)[learner, h].flatten(), atol=0.0125)
    counts = env.visits(policies, 40_000, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(counts / 40_000, env.occupancy(policies), atol=0.0125)
    assert bool((counts.sum((-2, -1)) == 40_000).all())


# ------------------------------------------------------------------------------------------------------------ optimizer


@pytest.mark.holds("adversarial-mdp", 5)
@pytest.mark.parametrize("method", ["log_barrier", "magnitude_reduced", "exponential"])
def test_one_step_and_unit_features_are_a_bandit_with_importance_weights(method):
    env = EpisodicMDP(torch.ones(1), torch.zeros(0, 1, 4, 1))
    losses, gamma, eta, draws = torch.tensor([0.2, 0.9, 0.5, 0.7]), 0.05, 0.3, 16
    learner = LinearQPolicyOptimizer(
        env, torch.eye(4)[None], method, eta, gamma, draws=draws, generator=torch.Generator().manual_seed(1)
    )
    again = torch.Generator().manual_seed(1)
    cum, p = np.zeros(4), np.full(4, 0.25)
    for _ in range(5):
        policy = torch.tensor(p)[None, None, None]
        action = int(env.rollout(policy, 1, again)[1])
        counts = env.visits(policy, draws, again).flatten().numpy()
        estimate = np.zeros(4)
        estimate[action] = float(losses[action]) / (gamma + counts[action] / draws)
        if method == "magnitude_reduced":  # no weight is negative: nothing to reduce, but visits are drawn
            env.visits(policy, draws, again)
        cum += estimate
        assert float(learner.step(losses[None, None])) == pytest.approx(float(losses[action]))
        if method == "log_barrier":
            p = log_barrier_ftrl(torch.tensor(cum), eta).numpy()
        else:
            p = np.exp(-eta * (cum - cum.min()))
            p /= p.sum()
        np.testing.assert_allclose(learner.policy.flatten(), p, rtol=1e-10)


def of_pairs(counts):
    """By step, the pairs that were visited, each as often as it was."""
    return [
        [(i, j) for i, row in enumerate(step) for j, times in enumerate(row) for _ in range(int(times))]
        for step in counts.tolist()
    ]


@pytest.mark.parametrize("method", ["log_barrier", "magnitude_reduced"])
def test_an_episode_by_loops(method):
    steps, states, actions, d, draws, gamma, beta, eta = 3, 3, 2, 4, 8, 0.1, 0.05, 0.4
    env, phi = process(), torch.randn(steps, states, actions, d, generator=torch.Generator().manual_seed(9)).double()
    options = {"bonus": beta, "draws": draws}
    learner = LinearQPolicyOptimizer(
        env, phi, method, eta, gamma, **options, generator=torch.Generator().manual_seed(2)
    )
    again, pi, cum = torch.Generator().manual_seed(2), np.full((steps, states, actions), 0.5), 0.0
    for episode in range(3):
        losses = rand(steps, states, actions, seed=30 + episode)
        policy = torch.tensor(pi)[None]
        s, a = (value[0, 0] for value in env.rollout(policy, 1, again))
        visits = [of_pairs(env.visits(policy, draws, again)[0])]
        if method == "magnitude_reduced":
            visits.append(of_pairs(env.visits(policy, draws, again)[0]))
        suffered = [float(losses[h, s[h], a[h]]) for h in range(steps)]
        q, b = np.zeros_like(pi), np.zeros_like(pi)
        for h in range(steps):
            rows = np.array([phi[h, i, j].numpy() for i, j in visits[0][h]])
            inverse = np.linalg.inv(gamma * np.eye(d) + rows.T @ rows / draws)
            lengths = np.einsum("sad,de,sae->sa", phi[h], inverse, phi[h])
            b[h] = beta * (lengths + (pi[h] * lengths).sum(1, keepdims=True))
            x = phi[h].numpy() @ inverse @ phi[h, s[h], a[h]].numpy()
            q[h] = x * sum(suffered[h:])
            if len(visits) > 1:
                weights = phi[h].numpy() @ inverse @ np.array([phi[h, i, j].numpy() for i, j in visits[1][h]]).T
                q[h] += -3 * np.minimum(x, 0) + 3 * np.minimum(weights, 0).mean(-1)
        cum = cum + q - dilated_bonus(torch.tensor(b), torch.tensor(pi), env.transitions).numpy()
        if method == "log_barrier":
            pi = log_barrier_ftrl(torch.tensor(cum), eta).numpy()
        else:
            pi = torch.softmax(-eta * torch.tensor(cum), -1).numpy()
        assert float(learner.step(losses)) == pytest.approx(sum(suffered))
        np.testing.assert_allclose(learner.cumulative, cum, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(learner.policy, pi, rtol=1e-8)


def test_learners_side_by_side_have_rates_of_their_own():
    env, losses = process(2, 2, 2), torch.tensor([[[0.0, 1.0]] * 2] * 2)
    phi = torch.eye(4).view(2, 2, 4)
    rates = torch.tensor([1e-6, 0.3])
    learner = LinearQPolicyOptimizer(
        env, phi, "exponential", rates, torch.tensor([0.01, 0.02]), generator=torch.Generator().manual_seed(0)
    )
    suffered = torch.stack([learner.step(losses) for _ in range(60)])
    assert suffered.shape == (60, 2)
    assert float((learner.policy[0] - 0.5).abs().max()) < 0.01
    assert float(learner.policy[1, ..., 0].min()) > 0.7
    assert float(suffered[30:, 1].mean()) < 0.2 < float(suffered[:, 0].mean())
    own = torch.stack([losses, 1 - losses])
    for _ in range(60):
        learner.step(own)
    assert float(learner.policy[1, ..., 0].min()) < 0.5  # of the second learner alone the losses have changed


def test_what_it_refuses():
    env, phi = process(2, 2, 2), torch.eye(4).view(2, 2, 4)
    with pytest.raises(ValueError, match="eta: expected a number > 0"):
        log_barrier_ftrl(torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="eta: expected numbers"):
        log_barrier_ftrl(torch.zeros(2, 3), torch.tensor([0.1, 0.0]))
    with pytest.raises(ValueError, match="cum_loss: expected at least 1 action"):
        log_barrier_ftrl(torch.zeros(3, 0), 0.1)
    with pytest.raises(ValueError, match="x_draws: expected at least 1 draw"):
        magnitude_reduced_estimator(torch.zeros(3), torch.tensor(1.0), torch.zeros(0), 2.0)
    with pytest.raises(ValueError, match=r"losses: expected losses in \[0, 1\]"):
        LinearQPolicyOptimizer(env, phi).step(torch.full((2, 2, 2), 1.5))
    with pytest.raises(ValueError, match="phi: expected shape"):
        LinearQPolicyOptimizer(env, torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="method: expected one of"):
        LinearQPolicyOptimizer(env, phi, "hedge")
    with pytest.raises(ValueError, match="bonus: expected numbers"):
        LinearQPolicyOptimizer(env, phi, eta=torch.ones(2), bonus=torch.tensor([0.0, -1.0]))
    with pytest.raises(ValueError, match="gamma: expected a number > 0"):
        LinearQPolicyOptimizer(env, phi, gamma=0.0)
    with pytest.raises(ValueError, match="transitions: expected rows of probabilities"):
        EpisodicMDP(torch.ones(1), torch.full((1, 1, 2, 1), 0.5))
    with pytest.raises(ValueError, match="transitions: expected shape"):
        EpisodicMDP(torch.ones(2) / 2, torch.ones(1, 1, 2, 1))
    with pytest.raises(ValueError, match="P: expected shape"):
        dilated_bonus(torch.zeros(2, 2, 2), torch.full((2, 2, 2), 0.5), env.transitions[:0])
