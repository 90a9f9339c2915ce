"""Comp-sum losses: the family, its bound, and the smooth adversarial form."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from steepest.core.method import Plain
from steepest.core.objective import Batch
from steepest.losses.classification.comp_sum import (
    CompSumLoss,
    SmoothAdversarialCompSumLoss,
    comp_sum_loss,
    h_consistency_bound,
)

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)
EXAMPLE = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
FIRST = torch.tensor([0])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def naive(logits, label, tau, rho=1.0):
    """One sample by the sum over the other classes, as the definition has it."""
    u = sum(math.exp((h - logits[label]) / rho) for k, h in enumerate(logits) if k != label)
    return math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


@pytest.mark.holds("comp-sum", 1)
@pytest.mark.parametrize(("tau", "wanted"), [*zip(TAUS, (0.503215, 0.452113, 0.407606, 0.368754, 0.334759))])
def test_card_values(tau, wanted):
    assert comp_sum_loss(EXAMPLE, FIRST, tau=tau).item() == pytest.approx(wanted, abs=5e-7)


@pytest.mark.parametrize("tau", [*TAUS, 0.999, 1.3, 3.0])
@pytest.mark.parametrize("classes", [2, 3, 11])
def test_naive_loop(tau, classes, generator):
    logits = 2 * torch.randn(6, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (6,), generator=generator)
    wanted = [naive(row, y, tau) for row, y in zip(logits.tolist(), target.tolist())]
    torch.testing.assert_close(comp_sum_loss(logits, target, tau=tau, reduction="none"), logits.new_tensor(wanted))


@pytest.mark.holds("comp-sum", 2)
def test_cross_entropy_and_its_generalisation(generator):
    logits = 3 * torch.randn(20, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (20,), generator=generator)
    exact = nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(comp_sum_loss(logits, target, reduction="none"), exact)
    p = logits.softmax(-1)[torch.arange(20), target]
    for q in (0.1, 0.7, 1.0):
        torch.testing.assert_close(comp_sum_loss(logits, target, tau=1 + q, reduction="none"), (1 - p**q) / q)
    for gap in (1e-5, 1e-9, 1e-13):  # the slope in tau is at most (log p)^2 / 2
        for tau in (1 - gap, 1 + gap):
            near = comp_sum_loss(logits, target, tau=tau, reduction="none")
            assert bool(((near - exact).abs() <= gap * exact**2 + 1e-13).all())


@pytest.mark.holds("comp-sum", 3)
def test_non_increasing_in_tau_and_blind_to_a_constant(generator):
    logits = 3 * torch.randn(30, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (30,), generator=generator)
    table = torch.stack([comp_sum_loss(logits, target, tau=t / 10, reduction="none") for t in range(31)])
    assert bool((table.diff(dim=0) <= 0).all())
    for tau in TAUS:
        moved = comp_sum_loss(logits + 7.25, target, tau=tau)
        torch.testing.assert_close(moved, comp_sum_loss(logits, target, tau=tau))


@pytest.mark.holds("comp-sum", 4)
def test_gradient(generator):
    logits = EXAMPLE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(comp_sum_loss(logits, FIRST, tau=1.5), logits)
    torch.testing.assert_close(slope, slope.new_tensor([[-0.2730, 0.1996, 0.0734]]), atol=5e-5, rtol=0)
    logits = torch.randn(8, 4, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(4, (8,), generator=generator)
    p = logits.detach().softmax(-1)
    own = p[torch.arange(8), target]
    for tau in (*TAUS, 2.5):
        (slope,) = torch.autograd.grad(comp_sum_loss(logits, target, tau=tau, reduction="sum"), logits)
        torch.testing.assert_close(slope, own.unsqueeze(-1) ** (tau - 1) * (p - nn.functional.one_hot(target, 4)))


def conditional_risk(q, logits, tau):
    """sum_y q_y Phi_tau at one point, for a batch of distributions and logits."""
    labels = range(q.shape[1])
    losses = [comp_sum_loss(logits, torch.full((len(q),), y), tau=tau, reduction="none") for y in labels]
    return (q * torch.stack(losses, dim=1)).sum(-1)


def least_risk(q, tau):
    """Its infimum over the logits."""
    if tau >= 2:
        return (1 - q.max(-1).values) / (tau - 1)
    return conditional_risk(q, q.log() / (2 - tau), tau)


@pytest.mark.parametrize("tau", [*TAUS, 1.8])
def test_least_conditional_risk_is_what_an_optimiser_finds(tau, generator):
    """The infimum that the next test subtracts, against a general minimiser of the naive risk."""
    q = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample()
    risk = lambda free: sum(w * naive([*free, 0.0], y, tau) for y, w in enumerate(q.tolist()))  # noqa: E731
    # at tau = 2 the infimum lies at infinity, where the risk is flat: start beyond the slope
    point = 20 * (q[:2] - q[2]).numpy() if tau == 2 else [0.0, 0.0]
    for _ in range(4):
        found = minimize(risk, point, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 2000})
        point = found.x
    assert least_risk(q.unsqueeze(0), tau).item() == pytest.approx(found.fun, abs=1e-4 if tau == 2 else 1e-9)


@pytest.mark.holds("comp-sum", 5)
@pytest.mark.parametrize("tau", [*TAUS, 1.8, 3.0])
def test_bound_is_never_exceeded(tau, generator):
    torch.manual_seed(1)
    rows = 20_000
    q = torch.distributions.Dirichlet(torch.full((3,), 0.7, dtype=torch.float64)).sample((rows,))
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 10 ** torch.linspace(-2, 1, rows)[:, None]
    regret = q.max(-1).values - q.gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
    excess = (conditional_risk(q, logits, tau) - least_risk(q, tau)).clamp_min(0)
    wrong = regret > 1e-6
    ratio = regret[wrong] / h_consistency_bound(excess[wrong], tau, 3)
    assert (0.3 if tau <= 2 else 0.1) < float(ratio.max()) <= 1.0


def test_bound_values_and_refusals():
    assert h_consistency_bound(0.5, 0.0, 9).item() == pytest.approx(1.0)
    assert h_consistency_bound(0.08, 1.0, 9).item() == pytest.approx(0.4)
    assert h_consistency_bound(0.25, 1.5, 4).item() == pytest.approx(1.0)
    assert h_consistency_bound(0.1, 3.0, 4).item() == pytest.approx(2 * 16 * 0.1)
    assert h_consistency_bound(torch.zeros(2, 3), 1.0, 4).shape == (2, 3)
    for bad in ((-0.1, 1.0, 3), (0.1, -1.0, 3), (0.1, 1.0, 1)):
        with pytest.raises(ValueError, match=": expected "):
            h_consistency_bound(*bad)


@pytest.mark.holds("comp-sum", 6)
def test_refusals():
    with pytest.raises(ValueError, match="tau: expected"):
        CompSumLoss(tau=-0.5)
    with pytest.raises(ValueError, match="tau: expected"):
        comp_sum_loss(EXAMPLE, FIRST, tau=-0.5)
    with pytest.raises(TypeError, match="target: expected"):
        comp_sum_loss(EXAMPLE, FIRST.double())
    for label in (-1, 3):
        with pytest.raises(ValueError, match="target: expected"):
            comp_sum_loss(EXAMPLE, torch.tensor([label]))


def test_below_one_saturates_at_the_stated_point():
    logits = torch.tensor([[0.0, 40.0], [0.0, 29.0]], requires_grad=True)
    loss = comp_sum_loss(logits, torch.tensor([0, 0]), tau=0.0, reduction="none")
    assert loss[0].item() == pytest.approx(math.expm1(30.0), rel=1e-5)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert bool((slope[0] == 0).all())
    assert bool((slope[1] != 0).all())


# --- the smooth adversarial form ---------------------------------------------------------------------------------


def linear(generator, dtype=torch.float64):
    """A linear model and a batch for it."""
    model = nn.Linear(4, 3, dtype=dtype)
    return model, torch.randn(5, 4, generator=generator, dtype=dtype), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_adversarial_value_of_a_linear_model(tau, generator):
    """For a linear model the ascent's end is a corner of the box: the best one by listing all 16."""
    model, x, y = linear(generator)
    gamma, nu, rho = 0.3, 0.7, 2.0
    method = SmoothAdversarialCompSumLoss(tau, rho, nu, gamma=gamma, step_size=0.2, steps=40, seed=3)
    found = method(model, x, y)
    corners = torch.cartesian_prod(*[torch.tensor([-gamma, gamma], dtype=torch.float64)] * 4)
    clean, lowest, highest = 0.0, 0.0, 0.0
    for row, label in zip(x, y.tolist()):
        clean += naive(model(row).tolist(), label, tau, rho)
        others = [k for k in range(3) if k != label]
        differences = (model.weight[label] - model.weight[others]).detach()  # D(x') - D(x) = differences @ (x' - x)
        moves = (differences @ corners.T).norm(dim=0)
        lowest += float(moves.min())
        highest += float(moves.max())
    value = (5 * found.item() - clean) / nu
    assert lowest < value <= highest + 1e-9
    assert value >= 0.8 * highest  # sign ascent of a convex function ends in a corner, mostly the best
    assert method.terms["clean"].item() == pytest.approx(clean / 5)
    assert found.item() == pytest.approx(method.terms["clean"].item() + nu * method.terms["movement"].item())


def test_attack_gives_no_gradient_and_touches_none(generator):
    model, x, y = linear(generator)
    model.weight.grad = torch.full_like(model.weight, 5.0)
    x.requires_grad_()
    method = SmoothAdversarialCompSumLoss(gamma=0.2, step_size=0.1, steps=3, seed=1)
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss = method(model, x, y)
    hook.remove()
    assert bool((model.weight.grad == 5.0).all())
    assert model.bias.grad is None
    attacked = seen[-1].detach()
    assert len(seen) == 1 + 3 + 1
    assert seen[-1].grad_fn is None
    assert float((attacked - x.detach()).abs().max()) <= 0.2 + 1e-12

    logits, moved = model(x), model(attacked)
    own = torch.arange(5)
    d = (moved[own, y, None] - moved) - (logits[own, y, None] - logits)
    wanted = nn.functional.cross_entropy(logits, y) + d.norm(dim=-1).mean()
    torch.testing.assert_close(loss, wanted)
    parameters = [*model.parameters(), x]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)):
        torch.testing.assert_close(a, b)


def test_more_ascent_moves_more(generator):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])

    def movement(steps, gamma=0.5):
        method = SmoothAdversarialCompSumLoss(gamma=gamma, step_size=0.1, steps=steps, seed=2)
        method(model, x, y)
        return method.terms["movement"].item()

    assert movement(0) < movement(3) < movement(12)
    assert movement(5, gamma=0.0) == 0.0


def test_mode_bounds_and_stream(generator):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    x, y = torch.rand(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append((m.training, args[0].detach())))
    method = SmoothAdversarialCompSumLoss(gamma=0.4, step_size=0.2, steps=2, bounds=(0.0, 1.0), seed=2)
    for training in (True, False):
        seen.clear()
        model.train(training)
        method(model, x, y)
        assert {mode for mode, _ in seen} == {training} == {model.training}
        assert all(float(t.min()) >= 0 and float(t.max()) <= 1 for _, t in seen)
    state = method.stream.get_extra_state().clone()
    twin = SmoothAdversarialCompSumLoss(gamma=0.4, step_size=0.2, steps=2, bounds=(0.0, 1.0), seed=9)
    twin.load_state_dict(method.state_dict())
    assert twin(model, x, y).item() == method(model, x, y).item()
    assert not torch.equal(method.stream.get_extra_state(), state)
    after = method.stream.get_extra_state().clone()
    method.eval()(model, x, y)
    assert torch.equal(method.stream.get_extra_state(), after)


def test_adversarial_as_a_method(generator):
    model, x, y = linear(generator)
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    method = SmoothAdversarialCompSumLoss(gamma=0.0, seed=0)
    plain = Plain().loss(model, Batch(x[:1], y[:1]), CompSumLoss())
    torch.testing.assert_close(method.loss(model, Batch(x, y, weight=weight), CompSumLoss(tau=2.0)), plain)
    with torch.no_grad():
        assert math.isfinite(SmoothAdversarialCompSumLoss()(model, x, y))


@pytest.mark.parametrize(
    "bad", [{"rho": 0.0}, {"nu": 0.0}, {"tau": -1.0}, {"gamma": -0.1}, {"step_size": 0.0}, {"steps": -1}]
)
def test_adversarial_refusals(bad):
    with pytest.raises(ValueError, match=": expected "):
        SmoothAdversarialCompSumLoss(**bad)
