"""Sharpness-aware minimisation: the facts of its card, a naive loop in float64, and the one loop."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.memory import SampleMemory
from steepest.core.objective import Objective
from steepest.descent import ArrayBatches, Descent
from steepest.optim import SAM, sam_perturbation
from steepest.optim.sharpness import sharpness

A = torch.diag(torch.tensor([1.0, 10.0], dtype=torch.float64))


def quadratic(w, matrix=A):
    return 0.5 * w @ matrix @ w


def parameter(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.detach()

    return closure


def flat_gradient(w, **kw):
    """What the base optimizer sees: at rate 1, what the weights lose."""
    p = nn.Parameter(w.clone())
    optimizer = SAM([p], lr=1.0, **kw)
    optimizer.step(closure_of(optimizer, lambda: quadratic(p)))
    return w - p.detach()


@pytest.mark.holds("sam", 1)
def test_card_values():
    w = parameter(1.0, 1.0)
    (move,) = sam_perturbation([A @ w.detach()], 0.1)
    torch.testing.assert_close(move, torch.tensor([0.009950, 0.099504]).double(), rtol=1e-4, atol=0.0)
    wanted = torch.tensor([1.009950, 10.995037]).double()
    torch.testing.assert_close(flat_gradient(w.detach(), rho=0.1), wanted, rtol=1e-6, atol=0.0)
    optimizer = SAM([w], torch.optim.SGD, rho=0.1, lr=0.05)
    assert optimizer.step(closure_of(optimizer, lambda: quadratic(w))).item() == 5.5
    torch.testing.assert_close(w.detach(), torch.tensor([0.949502, 0.450248]).double(), rtol=1e-5, atol=0.0)


@pytest.mark.holds("sam", 2)
def test_the_move_has_length_rho():
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(4, 3, generator=generator), None, torch.randn(5, generator=generator)]
    moves = sam_perturbation(grads, 0.07)
    assert moves[1] is None
    assert math.sqrt(sum(float(m.square().sum()) for m in moves if m is not None)) == pytest.approx(0.07)
    signs = sam_perturbation(grads, 0.07, math.inf)
    assert all(torch.equal(m, 0.07 * g.sign()) for m, g in zip(signs, grads) if g is not None)
    assert sam_perturbation([torch.tensor([2.0, -1.0])], 0.5, 1.5)[0].norm(p=1.5).item() == pytest.approx(0.5)


def net():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, torch.randn(9, 3), torch.randn(9, 2)


def run(make, steps=4):
    model, x, y = net()
    optimizer = make(model.parameters())
    losses = [
        optimizer.step(closure_of(optimizer, lambda: nn.functional.mse_loss(model(x), y))).item() for _ in range(steps)
    ]
    return losses, [p.detach() for p in model.parameters()]


@pytest.mark.holds("sam", 3)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_radius_of_0_is_the_base_optimizer(base):
    losses, weights = run(lambda params: SAM(params, base, rho=0.0, lr=0.05, weight_decay=0.1))
    plain, alone = run(lambda params: base(params, lr=0.05, weight_decay=0.1))
    assert losses == plain
    assert all(torch.equal(a, b) for a, b in zip(weights, alone))


@pytest.mark.holds("sam", 4)
@pytest.mark.parametrize("p", [2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nothing_moves_along_0(p, dtype):
    zeros = torch.zeros(3, dtype=dtype)
    assert torch.equal(sam_perturbation([zeros], 0.1, p)[0], zeros)
    assert torch.equal(sam_perturbation([zeros], 0.1, weights=[zeros + 1])[0], zeros)


@pytest.mark.holds("sam", 5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_go_back_before_the_step_to_the_last_bit(dtype):
    """What is left is the base step at the weights before, with the gradient of elsewhere."""
    model, x, y = net()
    model, x, y = model.to(dtype), x.to(dtype), y.to(dtype)
    twin = copy.deepcopy(model)
    optimizer = SAM(model.parameters(), rho=0.3, lr=0.1, weight_decay=0.01, momentum=0.9)
    base = torch.optim.SGD(twin.parameters(), lr=0.1, weight_decay=0.01, momentum=0.9)
    for _ in range(2):
        optimizer.step(closure_of(optimizer, lambda: nn.functional.mse_loss(model(x), y)))
        for p, own in zip(twin.parameters(), model.parameters()):
            p.grad = own.grad.clone()
        base.step()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


@pytest.mark.holds("sam", 6)
def test_the_gradient_of_a_quadratic():
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    matrix, w = root @ root.T, torch.randn(4, generator=generator, dtype=torch.float64)
    p = nn.Parameter(w.clone())
    optimizer = SAM([p], lr=1.0, rho=0.2)
    optimizer.step(closure_of(optimizer, lambda: quadratic(p, matrix)))
    slope = matrix @ w
    torch.testing.assert_close(w - p.detach(), slope + 0.2 * matrix @ slope / slope.norm())
    rise = sharpness(lambda: quadratic(p, matrix), [p], 0.2)
    slope, w = matrix @ p.detach(), p.detach()
    torch.testing.assert_close(rise, quadratic(w + 0.2 * slope / slope.norm(), matrix) - quadratic(w, matrix))


@pytest.mark.holds("sam", 7)
@pytest.mark.parametrize("c", [0.1, 7.0])
def test_the_adaptive_move_scales_with_the_weights(c):
    """L(w / c) at c w: the gradient is 1 / c, the move c times as large."""
    generator = torch.Generator().manual_seed(3)
    w = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    g = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    moves = sam_perturbation(g, 0.5, weights=w)
    scaled = sam_perturbation([v / c for v in g], 0.5, weights=[c * v for v in w])
    for move, larger in zip(moves, scaled):
        torch.testing.assert_close(larger, c * move)
    assert not torch.allclose(sam_perturbation([v / c for v in g], 0.5)[0], c * sam_perturbation(g, 0.5)[0])


def by_hand(steps, rho, adaptive, lr, decay):
    """The publication's algorithm on a logistic regression, in NumPy: gradients by formula."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.integers(2, size=20).astype(float)
    w, b = rng.normal(size=3), 0.3

    def slopes(w, b):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        return x.T @ error / len(y), error.mean()

    start = (w.copy(), b)
    for _ in range(steps):
        gw, gb = slopes(w, b)
        tw, tb = (np.abs(w), abs(b)) if adaptive else (np.ones(3), 1.0)
        norm = np.sqrt(((tw * gw) ** 2).sum() + (tb * gb) ** 2)
        fw, fb = slopes(w + rho * tw**2 * gw / norm, b + rho * tb**2 * gb / norm)
        w, b = w - lr * (fw + decay * w), b - lr * (fb + decay * b)
    return x, y, start, w, b


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("two_calls", [False, True])
def test_a_loop_in_numpy(adaptive, two_calls):
    x, y, start, w, b = by_hand(5, 0.3, adaptive, 0.2, 0.05)
    weight, bias = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in start)
    inputs, target = torch.tensor(x), torch.tensor(y)
    optimizer = SAM([weight, bias], torch.optim.SGD, 0.3, adaptive, lr=0.2, weight_decay=0.05)

    def loss():
        return nn.functional.binary_cross_entropy_with_logits(inputs @ weight + bias, target)

    for _ in range(5):
        if two_calls:
            loss().backward()
            optimizer.first_step(zero_grad=True)
            loss().backward()
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step(closure_of(optimizer, loss))
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12)
    np.testing.assert_allclose(bias.item(), b, rtol=1e-12)


def test_groups_have_their_own_radius_over_one_norm():
    a, b = parameter(3.0), parameter(4.0)
    optimizer = SAM([{"params": [a], "rho": 1.0}, {"params": [b], "rho": 0.0}], lr=1.0, rho=9.0)
    optimizer.step(closure_of(optimizer, lambda: (0.5 * a**2 + 0.5 * b**2).sum()))
    torch.testing.assert_close(a.item(), 3.0 - 3.6)
    assert b.item() == 0.0
    assert optimizer.base_optimizer.param_groups[0]["rho"] == 1.0


def test_an_optimizer_that_is_there_is_wrapped():
    w = parameter(1.0, 1.0)
    base = torch.optim.SGD([w], lr=0.05)
    optimizer = SAM(base, rho=0.1)
    assert optimizer.base_optimizer is base
    optimizer.step(closure_of(optimizer, lambda: quadratic(w)))
    torch.testing.assert_close(w.detach(), torch.tensor([0.949502, 0.450248]).double(), rtol=1e-5, atol=0.0)


def test_sharpness_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    rise = sharpness(lambda: model(x).square().mean(), model.parameters(), 0.05)
    assert rise.item() > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


class Remembers(Objective):
    """Squared error weighed by each sample's last one."""

    name = "remembers"
    tasks = ("regression",)
    needs = ("index",)
    stateful = True

    def __init__(self, rows):
        super().__init__()
        self.memory = SampleMemory(rows, initial=1.0)

    def forward(self, outputs, target, *, index):
        errors = (outputs - target).square()
        loss = (errors * self.memory.read(index)).mean()
        self.memory.write(index, errors)
        return loss


def test_the_loop_freezes_memories_and_resumes_with_the_same_bits(tmp_path):
    x, y = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24).float() / 24

    def descent(rho=0.2, rows=8):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1), nn.Flatten(0))
        optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=rho, lr=0.01)
        return Descent(model, Remembers(24), ArrayBatches(x, y, batch_size=rows, seed=1), optimizer=optimizer)

    whole = descent().fit(2)
    descent().fit(1).save(tmp_path / "run.pt")
    resumed = descent().resume(tmp_path / "run.pt").fit(2)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))
    memories = [descent(rho, rows=24).fit(1).objective.memory for rho in (0.2, 0.0)]
    assert torch.equal(memories[0].values, memories[1].values), "the second pass wrote"
    assert memories[0].seen.all()
    assert whole.optimizer.skipped == 0


def test_what_it_refuses():
    w = parameter(1.0)
    with pytest.raises(ValueError, match="rho: expected a number >= 0"):
        SAM([w], rho=-0.1, lr=0.1)
    with pytest.raises(ValueError, match="p: expected a number > 1"):
        SAM([w], p=1.0, lr=0.1)
    with pytest.raises(TypeError, match="adaptive: expected"):
        SAM([w], adaptive=2, lr=0.1)
    with pytest.raises(TypeError, match="lr: expected nothing"):
        SAM(torch.optim.SGD([w], lr=0.1), lr=0.2)
    with pytest.raises(TypeError, match="closure: expected a function"):
        SAM([w], lr=0.1).step()
    with pytest.raises(ValueError, match="weights: expected"):
        sam_perturbation([torch.ones(2)], weights=[torch.ones(3)])
    with pytest.raises(ValueError, match="weights: expected 1 tensors"):
        sam_perturbation([torch.ones(2)], weights=[])
    with pytest.raises(ValueError, match="closure: expected 0 dimensions"):
        sharpness(lambda: w * 1.0, [w])


def test_how_many_passes_a_step_takes():
    w = parameter(1.0)
    assert [SAM([w], rho=rho, lr=0.1).passes for rho in (0.0, 0.1)] == [1, 2]
    still = SAM([w], rho=0.0, lr=0.1)
    (w**2).sum().backward()
    still.step()  # which loops call without a closure
    assert w.item() == pytest.approx(0.8)
