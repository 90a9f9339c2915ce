"""INPO: the loss of pairs, exact iterates of a game, rounds of a policy."""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.preference import preference_loss
from steepest.losses.policy.inpo import INPOLoss, IterativeNash, inpo_loss, nash_iteration

CASE = (-3.0, -4.0, -3.5, -3.8, -3.2, -3.9)
GAME = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)


def tensors(*rows, dtype=torch.float64):
    return [torch.tensor(column, dtype=dtype) for column in zip(*rows)]


def naive(p, q, u, v, s, t, eta, tau):
    h = (p - q) - tau / eta * (u - v) - (eta - tau) / eta * (s - t)
    return (h - 1 / (2 * eta)) ** 2


@pytest.mark.holds("inpo", 1)
def test_card_values():
    assert inpo_loss(*tensors(CASE), 0.5, 0.2).item() == pytest.approx(0.2916, abs=1e-12)
    rows = [CASE, (-1.0, -7.0, -2.5, -3.0, -0.5, -6.0), (-9.0, -2.0, -4.0, -4.5, -3.0, -1.0)]
    for eta, tau in ((0.5, 0.2), (0.05, 0.0), (2.0, 2.0), (0.005, 0.005 / 3)):
        wanted = [naive(*row, eta, tau) for row in rows]
        assert inpo_loss(*tensors(*rows), eta, tau, reduction="none").tolist() == pytest.approx(wanted, rel=1e-12)
        assert inpo_loss(*tensors(*rows), eta, tau).item() == pytest.approx(sum(wanted) / 3, rel=1e-12)
        loss = INPOLoss(eta, tau, "sum")
        assert loss(*tensors(*rows)).item() == pytest.approx(sum(wanted), rel=1e-12)
    rewards = [eta * (p - tau / eta * u - (1 - tau / eta) * s) for p, _, u, _, s, _ in rows]
    assert loss.terms["chosen_reward"].item() == pytest.approx(sum(rewards) / 3, rel=1e-12)


@pytest.mark.holds("inpo", 2)
def test_one_step_of_a_game():
    start = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    step = nash_iteration(GAME, UNIFORM, 0.5, 0.2, 1, pi_start=start)
    assert step.tolist() == pytest.approx([0.5871, 0.2126, 0.2004], abs=5e-5)
    weights = [
        math.exp(sum(GAME[a, b].item() * start[b].item() for b in range(3)) / 0.5)
        * (1 / 3) ** 0.4
        * start[a].item() ** 0.6
        for a in range(3)
    ]
    assert step.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)
    assert nash_iteration(GAME, start, 0.5, 0.2, 0).tolist() == pytest.approx(start.tolist())


@pytest.mark.holds("inpo", 3)
def test_iterates_reach_the_nash_policy():
    end = nash_iteration(GAME, UNIFORM, 5.0, 0.05, 4000)
    assert end.tolist() == pytest.approx([0.31574, 0.28873, 0.39553], abs=5e-6)
    fixed = UNIFORM * torch.exp(GAME @ end / 0.05)
    assert torch.allclose(end, fixed / fixed.sum(), rtol=0, atol=1e-8)


def test_the_fixed_point_by_newtons_method():
    """A game of 5 answers with a reference that is not uniform."""
    rng = np.random.default_rng(0)
    upper = np.triu(rng.uniform(0, 1, (5, 5)), 1)
    game = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(5)
    ref = rng.dirichlet(np.ones(5)) * 0.9 + 0.02

    def gap(z):
        p = np.exp(z - z.max())
        p /= p.sum()
        return z - (np.log(ref) + game @ p / 0.3)

    z = np.log(ref)
    for _ in range(30):  # Newton's method, the Jacobian by differences
        slopes = np.stack([(gap(z + 1e-6 * e) - gap(z - 1e-6 * e)) / 2e-6 for e in np.eye(5)], 1)
        z = z - np.linalg.solve(slopes, gap(z))
    wanted = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    end = nash_iteration(torch.tensor(game), torch.tensor(ref), 2.0, 0.3, 400)
    np.testing.assert_allclose(end.numpy(), wanted, atol=1e-9)


def test_the_minimiser_of_the_expected_loss_is_the_next_policy():
    """Over pairs drawn from the policy and labelled by the game, weighted by their probabilities."""
    eta, tau = 0.5, 0.2
    start = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    w, r = map(torch.tensor, zip(*itertools.permutations(range(3), 2)))
    weight = start[w] * start[r] * GAME[w, r]
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        log_p = logits.log_softmax(0)
        args = (log_p[w], log_p[r], ref.log()[w], ref.log()[r], start.log()[w], start.log()[r])
        loss = (weight * inpo_loss(*args, eta, tau, reduction="none")).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        logits.data -= 1.5 * slope
    wanted = nash_iteration(GAME, ref, eta, tau, 1, pi_start=start)
    assert torch.allclose(logits.softmax(0), wanted, atol=1e-7)


@pytest.mark.holds("inpo", 4)
def test_tau_of_eta_is_ipo():
    rows = [CASE, (-1.0, -7.0, -2.5, -3.0, -0.5, -6.0)]
    p, q, u, v, s, t = tensors(*rows)
    for eta in (0.1, 0.7):
        ours = inpo_loss(p, q, u, v, s, t, eta, eta, reduction="none")
        assert torch.equal(ours, preference_loss(p, q, u, v, "ipo", beta=eta).losses)
        wanted = [((a - b) - (c - d) - 1 / (2 * eta)) ** 2 for a, b, c, d, *_ in rows]
        assert ours.tolist() == pytest.approx(wanted, rel=1e-12)
    # trl's ipo divides by lengths: the same loss of log-probabilities per token, and another of sums
    lengths = {"chosen_length": torch.tensor([3, 2]), "rejected_length": torch.tensor([5, 4])}
    per_token = [
        x / (lengths["chosen_length"] if i % 2 == 0 else lengths["rejected_length"])
        for i, x in enumerate((p, q, u, v, s, t))
    ]
    theirs = preference_loss(p, q, u, v, "ipo", beta=0.1, **lengths).losses
    assert torch.allclose(inpo_loss(*per_token, 0.1, 0.1, reduction="none"), theirs, rtol=1e-12)
    assert not torch.allclose(inpo_loss(p, q, u, v, s, t, 0.1, 0.1, reduction="none"), theirs, rtol=1e-2)


@pytest.mark.holds("inpo", 5)
def test_only_the_policy_has_a_gradient():
    given = [x.requires_grad_() for x in tensors(CASE)]
    slopes = torch.autograd.grad(inpo_loss(*given, 0.5, 0.2), given, allow_unused=True)
    assert [s.item() for s in slopes[:2]] == pytest.approx([2 * (0.46 - 1), -2 * (0.46 - 1)], rel=1e-12)
    assert slopes[2:] == (None,) * 4


@pytest.mark.holds("inpo", 5)
@pytest.mark.parametrize(("eta", "tau"), [(0.5, -0.1), (0.5, 0.51)])
def test_refused_rates(eta, tau):
    for call in (
        lambda: inpo_loss(*tensors(CASE), eta, tau),
        lambda: INPOLoss(eta, tau),
        lambda: nash_iteration(GAME, UNIFORM, eta, tau, 1),
        lambda: IterativeNash(nn.Linear(1, 1), max, eta, tau),
    ):
        with pytest.raises(ValueError, match=r"tau: expected a number >= 0 and <= 0\.5"):
            call()
    assert inpo_loss(*tensors(CASE), 0.5, 0.5).isfinite()


def test_what_has_no_weight_may_be_anything():
    p, q, u, v, s, t = tensors(CASE)
    off = torch.full_like(p, -torch.inf)
    assert inpo_loss(p, q, u, v, off, off, 0.5, 0.5).item() == pytest.approx(naive(*CASE, 0.5, 0.5))
    assert inpo_loss(p, q, off, off, s, t, 0.5, 0.0).item() == pytest.approx(naive(*CASE, 0.5, 0.0))


def test_half_precision():
    exact = [x.half() for x in tensors(CASE)]
    loss = inpo_loss(*exact, 0.5, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(inpo_loss(*(x.float() for x in exact), 0.5, 0.2).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": GAME[:2]}, r"preference: expected shape \(2, 2\)"),
        ({"preference": GAME + 0.1}, r"preference: expected probabilities with P \+ P\^T = 1"),
        ({"preference": 3 * GAME - 1}, r"preference: expected probabilities with P \+ P\^T = 1"),
        ({"pi_ref": UNIFORM[:2]}, r"pi_ref: expected shape \(3\)"),
        ({"pi_ref": 2 * UNIFORM}, "pi_ref: expected rows of probabilities that sum to 1"),
        ({"pi_ref": torch.tensor([0.5, 0.5, 0.0])}, "pi_ref: expected probabilities > 0"),
        ({"pi_start": torch.tensor([0.5, 0.5, 0.0])}, "pi_start: expected probabilities > 0"),
        ({"steps": -1}, "steps: expected an integer >= 0"),
        ({"eta": 0.0}, "eta: expected a number > 0"),
        ({"eta": math.inf}, "eta: expected a finite number > 0"),
    ],
)
def test_refused_games(change, message):
    given = {"preference": GAME, "pi_ref": UNIFORM, "eta": 0.5, "tau": 0.2, "steps": 1} | change
    with pytest.raises(ValueError, match=message):
        nash_iteration(**given)


def test_refused_pairs():
    given = tensors(CASE)
    for place, name in enumerate(("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected", "prev_chosen")):
        wrong = [torch.zeros(1, 1) if i == place else x for i, x in enumerate(given)]
        with pytest.raises(ValueError, match=f"{name}: expected 1 dimensions"):
            inpo_loss(*wrong, 0.5, 0.2)
    with pytest.raises(ValueError, match=r"prev_rejected: expected shape \(1\)"):
        inpo_loss(*given[:5], torch.zeros(2), 0.5, 0.2)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        INPOLoss(0.5, 0.2, "median")
    with pytest.raises(TypeError, match="policy: expected a module"):
        IterativeNash(torch.zeros(3), max, 0.5, 0.2)
    with pytest.raises(TypeError, match="log_prob: expected a function"):
        IterativeNash(nn.Linear(1, 1), None, 0.5, 0.2)
    with pytest.raises(ValueError, match="rounds: expected an integer >= 0"):
        IterativeNash(nn.Linear(1, 1), max, 0.5, 0.2).run(max, max, -1)


class Table(nn.Module):
    """A policy of three answers; it counts its calls, and dropout shows in which mode they were."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def log_prob(self, answers):
        self.calls.append((self.training, torch.is_grad_enabled()))
        return self.logits.log_softmax(0)[answers]


def test_rounds_are_exact_steps():
    """Trained to the minimum of the loss of all pairs, as often as the game says, each round is a step of the game."""
    eta, tau = 0.5, 0.2
    policy = Table()
    nash = IterativeNash(policy, lambda p, y: p.log_prob(y), eta, tau)
    policies = []

    def label(own):
        """Pairs as often as policy and game say, in whole counts."""
        p = own.logits.detach().softmax(0)
        policies.append(p)
        w, r = map(torch.tensor, zip(*itertools.permutations(range(3), 2)))
        counts = (20_000 * p[w] * p[r] * GAME[w, r]).round().long()
        return w.repeat_interleave(counts), r.repeat_interleave(counts)

    def train(loss):
        for _ in range(60):
            (slope,) = torch.autograd.grad(loss(), policy.logits)
            policy.logits.data -= 0.5 * slope

    assert nash.run(label, train, 2) is policy
    policies.append(policy.logits.detach().softmax(0))
    assert nash.rounds == 2
    for before, after in itertools.pairwise(policies):
        assert torch.allclose(after, nash_iteration(GAME, UNIFORM, eta, tau, 1, pi_start=before), atol=5e-4)
    assert not policies[1].allclose(UNIFORM, atol=0.01)
    assert not nash.reference.logits.requires_grad
    assert not nash.reference.logits.any()


def test_a_round_computes_what_is_fixed_once():
    policy = Table().train()
    nash = IterativeNash(policy, lambda p, y: p.log_prob(y), 0.5, 0.2)
    chosen, rejected = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    loss = nash.round(chosen, rejected)
    assert policy.training
    assert policy.calls == [(False, False)] * 2
    assert nash.reference.calls == [(False, False)] * 2
    with torch.no_grad():
        policy.logits += torch.tensor([1.0, 0.0, -1.0])
    log_p, third = policy.logits.log_softmax(0).tolist(), -math.log(3)
    wanted = [naive(log_p[w], log_p[r], *[third] * 4, 0.5, 0.2) for w, r in zip(chosen.tolist(), rejected.tolist())]
    assert loss().item() == pytest.approx(sum(wanted) / 3, rel=1e-12)
    assert loss(torch.tensor([2, 0])).item() == pytest.approx((wanted[0] + wanted[2]) / 2, rel=1e-12)
    assert policy.calls[2:] == [(True, True)] * 4
    assert len(nash.reference.calls) == 2


def test_answers_in_a_mapping():
    policy = Table()
    nash = IterativeNash(policy, lambda p, y: p.log_prob(y["ids"]), 0.5, 0.2)
    loss = nash.round({"ids": torch.tensor([0, 1])}, {"ids": torch.tensor([1, 2])})
    assert loss(torch.tensor([1])).item() == pytest.approx(1.0, rel=1e-12)


def test_modes_of_parts_and_mappings_of_any_kind():
    policy = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    policy.train()
    policy[1].eval()
    nash = IterativeNash(policy, lambda model, answers: model(answers["ids"]).sum(-1), 1.0, 0.3)
    chosen, rejected = (collections.UserDict(ids=torch.randn(3, 2)) for _ in range(2))
    loss = nash.round(chosen, rejected)
    assert policy.training
    assert not policy[1].training
    assert loss(torch.tensor([0])).requires_grad


def test_no_pair_is_no_loss():
    none = torch.zeros(0, requires_grad=True)
    assert inpo_loss(*[none] * 6, eta=0.5, tau=0.2) == 0
    assert INPOLoss(eta=0.5, tau=0.2)(*[none] * 6) == 0
