"""Known numbers of one anchor, the algorithm against itself written with loops, state that repeats and saturates."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from steepest.losses.contrastive import IndividualTemperature, ISogCLRLoss, robust_contrastive_loss

NEGATIVES, POSITIVE = torch.tensor([[0.5, 0.2, -0.1]], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)


def slope_by_definition(s, tau, rho):
    """log g + rho - (1/K) sum p s / tau with p = e^(s/tau) / g."""
    g = sum(math.exp(v / tau) for v in s) / len(s)
    return math.log(g) + rho - sum(math.exp(v / tau) / g * v for v in s) / len(s) / tau


def rows_of(similarities):
    """A sphere point and partners of given cosines to it, each in a plane of its own."""
    rows = torch.zeros(len(similarities), len(similarities) + 1, dtype=torch.float64)
    for k, s in enumerate(similarities):
        rows[k, 0], rows[k, k + 1] = s, math.sqrt(1 - s * s)
    anchor = torch.zeros(1, len(similarities) + 1, dtype=torch.float64)
    anchor[0, 0] = 1.0
    return anchor, rows


def towers(negatives, positive, dtype):
    """Images and texts whose first image has these cosines to the texts."""
    anchor, texts = rows_of([positive, *negatives])
    images = torch.cat([anchor, texts[1:]])
    return torch.stack([images, texts]).to(dtype)


@pytest.mark.holds("isogclr", 1)
def test_the_objective_and_its_slope_in_the_temperature():
    for tau, objective, slope in ((0.1, -0.374767, -0.591590), (0.2, -0.411460, -0.177028), (0.5, -0.391712, 0.189938)):
        assert robust_contrastive_loss(NEGATIVES, POSITIVE, tau).item() == pytest.approx(objective, abs=1e-6)
        temperature = torch.tensor([tau], dtype=torch.float64, requires_grad=True)
        loss = robust_contrastive_loss(NEGATIVES, POSITIVE, temperature)
        assert torch.autograd.grad(loss, temperature)[0].item() == pytest.approx(slope, abs=1e-6)
        assert slope_by_definition(NEGATIVES[0].tolist(), tau, 0.3) == pytest.approx(slope, abs=1e-6)


@pytest.mark.holds("isogclr", 2)
def test_the_slope_is_the_radius_less_the_divergence_from_uniform():
    for tau in (0.1, 0.3):
        p = (NEGATIVES[0] / tau).softmax(0)
        divergence = float((p * (3 * p).log()).sum())
        assert slope_by_definition(NEGATIVES[0].tolist(), tau, 0.3) == pytest.approx(0.3 - divergence, abs=1e-12)
        temperature = torch.tensor([tau], dtype=NEGATIVES.dtype, requires_grad=True)
        loss = robust_contrastive_loss(NEGATIVES, POSITIVE, temperature)
        (slope,) = torch.autograd.grad(loss, temperature)
        assert slope.item() == pytest.approx(0.3 - divergence, abs=1e-9)
    assert slope_by_definition(NEGATIVES[0].tolist(), 0.277996, 0.3) == pytest.approx(0, abs=2e-6)


@pytest.mark.holds("isogclr", 3)
def test_the_surrogate_and_its_gradient():
    """The first image of two towers at temperature .2: its term, and the gradient of the exact objective."""
    z = towers(NEGATIVES[0].tolist(), 0.8, torch.float64).requires_grad_()
    index = torch.arange(4)
    loss = ISogCLRLoss(4, gamma=1.0, tau_init=0.2, bimodal=True)
    surrogate = loss(z, index, index=index)
    s = z[0] @ z[1].T
    others = ~torch.eye(4).bool()
    exact = sum(robust_contrastive_loss(m[others].reshape(4, 3), m.diagonal(), 0.2) for m in (s, s.T))
    unit = torch.nn.functional.normalize(z, dim=-1)
    s_unit = unit[0] @ unit[1].T
    exact_unit = sum(robust_contrastive_loss(m[others].reshape(4, 3), m.diagonal(), 0.2) for m in (s_unit, s_unit.T))
    torch.testing.assert_close(torch.autograd.grad(surrogate, z), torch.autograd.grad(exact_unit, z))
    assert loss.terms["objective"].item() == pytest.approx(exact.item())
    terms = []
    for m in (s.detach(), s.detach().T):
        p = (m / 0.2).masked_fill(~others, -torch.inf).softmax(1)
        terms.append((p * m).sum(1) - m.diagonal())
    assert terms[0][0].item() == pytest.approx(-0.376055, abs=1e-6)
    assert surrogate.item() == pytest.approx(sum(terms).mean().item())


@pytest.mark.holds("isogclr", 4)
def test_a_step_of_the_temperature():
    memory = IndividualTemperature(2, tau_init=0.2)
    slope = torch.tensor([slope_by_definition(NEGATIVES[0].tolist(), 0.2, 0.3)])
    memory.write(torch.tensor([0]), torch.zeros(1), slope, torch.tensor([True]))
    assert memory.tau.tolist() == pytest.approx([0.201593, 0.2], abs=1e-6)
    memory.write(torch.tensor([0]), torch.zeros(1), torch.tensor([-9.0]), torch.tensor([True]))
    assert memory.u[0].item() == pytest.approx(0.1 * 0.9 * slope.item() - 2.7, rel=1e-5)


@pytest.mark.holds("isogclr", 5)
def test_fixed_temperatures_repeats_and_limits():
    """Nothing moves with eta 0; a sample that occurs twice writes means; temperatures stay within their limits."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.arange(5)
    loss = ISogCLRLoss(5, gamma=1.0, eta=0.0, tau_init=0.2)
    for _ in range(2):  # the running mean is this batch's, also on a later visit
        ours = torch.autograd.grad(loss(z, index, index=index), z)[0]
    rows = torch.nn.functional.normalize(z, dim=-1).flatten(0, 1)
    s, partner = rows @ rows.T, torch.arange(10).roll(5)
    own = (torch.arange(10).unsqueeze(1) % 5) == (torch.arange(10) % 5)
    plain = 0.2 * ((s / 0.2).masked_fill(own, -torch.inf).logsumexp(1)) - s.gather(1, partner.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(ours, torch.autograd.grad(plain.sum() / 5, z)[0])
    assert (loss.memories[0].tau == torch.tensor(0.2)).all()

    memory = IndividualTemperature(4, tau_init=0.2, eta=1.0)
    twice = torch.tensor([1, 3, 1])
    memory.write(twice, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.1, 0.0, -0.05]), torch.ones(3).bool())
    assert memory.log_s[1].item() == pytest.approx(math.log((1 + math.exp(2)) / 2), rel=1e-6)
    assert memory.u[1].item() == pytest.approx(0.9 * 0.025, rel=1e-5)
    assert memory.tau[1].item() == pytest.approx((0.11 + 0.245) / 2, rel=1e-5)
    assert memory.seen.tolist() == [False, True, False, True]

    for rho, end in ((0.0, 0.3), (50.0, 0.1)):
        loss = ISogCLRLoss(5, rho=rho, eta=0.1, tau_init=0.2, tau_min=0.1, tau_max=0.3)
        for _ in range(20):
            loss(z, index, index=index)
        torch.testing.assert_close(loss.memories[0].tau, torch.full((5,), end))


@pytest.mark.holds("isogclr", 6)
def test_two_towers_at_a_low_temperature_stay_finite():
    z = towers([0.9, 0.2, -0.1], 0.95, torch.float32).requires_grad_()
    loss = ISogCLRLoss(4, rho=6.0, tau_init=0.005, tau_min=0.005, tau_max=0.05, bimodal=True)
    index = torch.arange(4)
    value = loss(z, index, index=index)
    assert value.isfinite()
    assert torch.autograd.grad(value, z)[0].isfinite().all()
    images = loss.memories[0]
    assert images.log_s[0].item() == pytest.approx(178.901388, abs=1e-3)
    assert 0.005 * (images.log_s[0].item() + 0.0) - 0.95 == pytest.approx(-0.055493, abs=1e-5)
    s = torch.tensor([0.9, 0.2, -0.1], dtype=torch.float64)
    p = (s / 0.005).softmax(0)
    assert float((p * s).sum()) - 0.95 == pytest.approx(-0.05, abs=1e-6)
    slope = 178.901388 + 6 - float((p * s).sum()) / 0.005
    assert slope == pytest.approx(4.901388, abs=1e-5)
    assert images.u[0].item() == pytest.approx(0.9 * 3, rel=1e-6)


def by_loops(z, index, state, rho, gamma, beta, eta, limits):
    """A step of the algorithm on two views, a number at a time; the loss, and the new state."""
    items = len(index)
    rows = torch.nn.functional.normalize(z, dim=-1)
    new, total = copy.deepcopy(state), 0.0
    for i in range(items):
        s_old, u, tau = state[index[i]]
        slopes, sums = [], []
        for v in (0, 1):
            negatives = [float(rows[v, i] @ rows[w, j]) for w in (0, 1) for j in range(items) if j != i]
            g = sum(math.exp(s / tau) for s in negatives) / len(negatives)
            s_new = g if s_old is None else (1 - gamma) * s_old + gamma * g
            mean = sum(math.exp(s / tau) / s_new * s for s in negatives) / len(negatives)
            total += mean - float(rows[0, i] @ rows[1, i])
            slopes.append(math.log(s_new) + rho - mean / tau)
            sums.append(s_new)
        u = (1 - beta) * u + beta * max(-3.0, min(3.0, sum(slopes) / 2))
        new[index[i]] = (sum(sums) / 2, u, max(limits[0], min(limits[1], tau - eta * u)))
    return total / items, new


def test_several_steps_are_those_of_the_algorithm():
    generator = torch.Generator().manual_seed(2)
    loss = ISogCLRLoss(6, rho=0.5, gamma=0.7, beta=0.6, eta=0.05, tau_init=0.3, tau_min=0.1, tau_max=0.5).double()
    state = dict.fromkeys(range(6), (None, 0.0, 0.3))
    for _ in range(4):
        index = torch.randperm(6, generator=generator)[:4]
        z = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
        value = loss(z, index, index=index)
        wanted, state = by_loops(z, index.tolist(), state, 0.5, 0.7, 0.6, 0.05, (0.1, 0.5))
        assert value.item() == pytest.approx(wanted, rel=1e-7)
    for i, (s, u, tau) in state.items():
        if s is not None:
            assert loss.memories[0].log_s[i].item() == pytest.approx(math.log(s), rel=1e-6)
            assert loss.memories[0].u[i].item() == pytest.approx(u, rel=1e-6)
            assert loss.memories[0].tau[i].item() == pytest.approx(tau, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("tau_init: expected", lambda: ISogCLRLoss(3, tau_init=0.9)),
        ("gamma: expected", lambda: ISogCLRLoss(3, gamma=0.0)),
        ("tau_max: expected", lambda: IndividualTemperature(3, tau_min=0.8)),
        ("index: expected", lambda: ISogCLRLoss(3)(torch.zeros(2, 2, 2), torch.arange(2), index=torch.tensor([0, 3]))),
        ("negatives: expected", lambda: robust_contrastive_loss(torch.zeros(2, 0), torch.zeros(2), 0.1)),
        ("temperature: expected", lambda: robust_contrastive_loss(torch.zeros(2, 1), torch.zeros(2), torch.ones(3))),
        ("temperature: expected numbers > 0", lambda: robust_contrastive_loss(NEGATIVES, POSITIVE, torch.zeros(1))),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_anchor_is_zero_with_a_graph():
    negatives = torch.zeros(0, 3, requires_grad=True)
    loss = robust_contrastive_loss(negatives, torch.zeros(0), 0.1)
    assert loss == 0
    assert loss.requires_grad


def test_a_step_that_overflowed_leaves_no_trace():
    memory, clean = IndividualTemperature(4), IndividualTemperature(4)
    nan = float("nan")
    index, counts = torch.tensor([0, 1, 2]), torch.tensor([True, True, True])
    memory.write(index, torch.tensor([nan, 0.0, 0.0]), torch.tensor([nan, 0.1, 0.1]), counts)
    clean.write(index[1:], torch.zeros(2), torch.tensor([0.1, 0.1]), counts[1:])
    assert all(map(torch.equal, memory.state_dict().values(), clean.state_dict().values()))
    with pytest.raises(ValueError, match="index: expected integer positions"):
        memory.check(torch.tensor([True, False]), 2)
