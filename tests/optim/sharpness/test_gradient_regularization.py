"""Gradient regularisation: the facts of its card, a dual check by differentiating twice, flooding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steepest.descent import ArrayBatches, Descent
from steepest.losses import CrossEntropyLoss
from steepest.optim import GradientRegularization, finite_difference_gr, flooding

MODES = ("forward", "backward", "exact")


class Closure:
    def __init__(self, optimizer, loss):
        self.optimizer, self.loss = optimizer, loss

    def __call__(self):
        self.optimizer.zero_grad()
        value = self.loss()
        value.backward()
        return value.detach()


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def direction_of(loss, start, gamma, eps, mode):
    """What a step at rate 1 takes away, and the function's own direction: they are the same."""
    w = parameter(*start)
    optimizer = GradientRegularization(torch.optim.SGD([w], lr=1.0), gamma, eps, mode)
    value = optimizer.step(Closure(optimizer, lambda: loss(w)))
    stepped = torch.tensor(start, dtype=torch.float64) - w.detach()
    w = parameter(*start)
    own, (direction,) = finite_difference_gr(lambda: loss(w), [w], gamma, eps, mode)
    assert own == value
    torch.testing.assert_close(stepped, direction, rtol=1e-12, atol=1e-15)
    return direction


@pytest.mark.holds("gradient-regularization", 1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("eps", [1e-3, 0.05, 1.0])
def test_a_quadratic(mode, eps):
    found = direction_of(lambda w: 0.5 * (w[0] ** 2 + 3 * w[1] ** 2), (2.0, -1.0), 0.1, eps, mode)
    torch.testing.assert_close(found, torch.tensor([2.2, -3.9]).double(), rtol=1e-6, atol=0.0)


@pytest.mark.holds("gradient-regularization", 2)
@pytest.mark.parametrize(("mode", "wanted"), [("forward", 3.31), ("backward", 2.71), ("exact", 3.0)])
def test_a_quartic(mode, wanted):
    """The difference alone: what the direction has more than g = 1, at gamma = 1."""
    found = direction_of(lambda w: w[0] ** 4 / 4, (1.0,), 1.0, 0.1, mode)
    assert found.item() - 1.0 == pytest.approx(wanted)


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 1).double()
    return model, lambda: nn.functional.mse_loss(model(x), y)


@pytest.mark.holds("gradient-regularization", 3)
def test_differences_tend_to_the_hessian_product():
    """By torch's own product, and with an error that falls as eps."""
    model, loss = net()
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss(), parameters, create_graph=True)
    products = torch.autograd.grad(slopes, parameters, [s.detach() for s in slopes])
    wanted = [s.detach() + 0.3 * h for s, h in zip(slopes, products)]
    _, exact = finite_difference_gr(loss, parameters, 0.3, mode="exact")
    torch.testing.assert_close(exact, wanted)
    for mode in ("forward", "backward"):
        errors = []
        for eps in (1e-2, 1e-3, 1e-4):
            _, found = finite_difference_gr(loss, parameters, 0.3, eps, mode)
            errors.append(float(sum((a - b).square().sum() for a, b in zip(found, wanted)).sqrt()))
        assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)
        assert errors[2] == pytest.approx(errors[1] / 10, rel=0.1)


@pytest.mark.holds("gradient-regularization", 4)
def test_no_penalty_is_the_optimizer_and_equal_numbers_are_one_gradient_uphill():
    ends = []
    for wrap in (lambda base: GradientRegularization(base, 0.0), lambda base: base):
        model, loss = net()
        optimizer = wrap(torch.optim.AdamW(model.parameters(), lr=0.05))
        for _ in range(3):
            optimizer.step(Closure(optimizer, loss))
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends))
    model, loss = net()
    parameters = list(model.parameters())
    _, found = finite_difference_gr(loss, parameters, 0.07, 0.07)
    slopes = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for p, slope in zip(parameters, slopes):
            p.add_(0.07 * slope)
    assert all(torch.equal(a, b) for a, b in zip(found, torch.autograd.grad(loss(), parameters)))


@pytest.mark.holds("gradient-regularization", 5)
def test_flooding():
    for level, sign in ((0.2, 1.0), (3.0, -1.0)):
        w = parameter(1.0, -1.0)
        loss = (w**2).sum() / 2
        value = flooding(loss, level)
        value.backward()
        assert value.item() == pytest.approx(abs(1.0 - level) + level)
        torch.testing.assert_close(w.grad, sign * torch.tensor([1.0, -1.0]).double())
    w = parameter(1.0, -1.0)
    flooding((w**2).sum() / 2, 1.0).backward()
    assert w.grad.tolist() == [0.0, 0.0]
    assert flooding(torch.tensor([0.3, 0.05]), 0.1).tolist() == pytest.approx([0.3, 0.15])


def test_a_step_down_and_one_up_are_a_backward_difference():
    """Around the level: theta moves by -eta^2 times the backward difference with eps = eta."""
    eta, start = 0.05, (0.7, -0.4)
    w = parameter(*start)

    def loss(w):
        return (w**4).sum() + w[0] * w[1]

    (slope,) = torch.autograd.grad(loss(w), [w])
    optimizer = torch.optim.SGD([w], lr=eta)
    for level in (-9.0, 9.0):
        optimizer.zero_grad()
        flooding(loss(w), level).backward()
        optimizer.step()
    moved = w.detach() - torch.tensor(start).double()
    w = parameter(*start)
    _, (both,) = finite_difference_gr(lambda: loss(w), [w], 1.0, eta, "backward")
    torch.testing.assert_close(moved, -(eta**2) * (both - slope))


@pytest.mark.holds("gradient-regularization", 6)
@pytest.mark.parametrize("mode", MODES)
def test_parameters_buffers_and_random_numbers_are_as_after_one_pass(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    twin, x = copy.deepcopy(model), torch.randn(8, 3)
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(1)
    finite_difference_gr(lambda: model(x).square().mean(), model.parameters(), 0.1, 0.3, mode)
    here = torch.rand(2)
    torch.manual_seed(1)
    twin(x).square().mean()
    assert torch.equal(here, torch.rand(2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), model.buffers()))


def test_a_loop_in_numpy():
    """Least squares with a cubic link, gradients by formula; momentum and decay are the base optimizer's."""
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=(15, 3)), rng.normal(size=15), rng.normal(size=3)

    def slope(w):
        z = x @ w
        return x.T @ ((z + 0.1 * z**3 - y) * (1 + 0.3 * z**2)) / len(y)

    weight = nn.Parameter(torch.tensor(w))
    inputs, target = torch.tensor(x), torch.tensor(y)
    base = torch.optim.SGD([weight], lr=0.05, momentum=0.9, weight_decay=0.1)
    optimizer = GradientRegularization(base, 0.02, 0.08)

    def loss():
        z = inputs @ weight
        return 0.5 * (z + 0.1 * z**3 - target).square().mean()

    buffer = np.zeros(3)
    for _ in range(6):
        optimizer.step(Closure(optimizer, loss))
        g = slope(w)
        direction = g + 0.02 * (slope(w + 0.08 * g) - g) / 0.08
        buffer = 0.9 * buffer + direction + 0.1 * w
        w = w - 0.05 * buffer
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_in_the_one_loop_with_groups_of_their_own(mode):
    x, y = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    groups = [{"params": model[0].parameters(), "gamma": 0.0}, {"params": [*model[1:].parameters()]}]
    optimizer = GradientRegularization(torch.optim.SGD(groups, lr=0.1), 0.05, 0.05, mode)
    run = Descent(model, CrossEntropyLoss(), ArrayBatches(x, y, batch_size=8, seed=1), optimizer=optimizer).fit(4)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert model[1].num_batches_tracked == 12
    assert optimizer.skipped == 0


def test_exact_skips_what_is_infinite():
    w = parameter(1.0)
    optimizer = GradientRegularization(torch.optim.SGD([w], lr=0.1), 0.1, mode="exact")
    optimizer.step(Closure(optimizer, lambda: w.sum() * torch.inf))
    assert w.item() == 1.0
    assert optimizer.skipped == 1


def test_what_it_refuses():
    w = parameter(1.0)
    base = torch.optim.SGD([w], lr=0.1)
    with pytest.raises(ValueError, match="gamma: expected a number >= 0"):
        GradientRegularization(base, -0.1)
    with pytest.raises(ValueError, match="eps: expected a number > 0"):
        GradientRegularization(base, eps=0.0)
    with pytest.raises(ValueError, match="mode: expected"):
        GradientRegularization(base, mode="central")
    with pytest.raises(TypeError, match="base_optimizer: expected an optimizer"):
        GradientRegularization([w])
    with pytest.raises(TypeError, match=r"closure: expected one with loss\(\)"):
        GradientRegularization(base, mode="exact").step(lambda: w.sum())
    with pytest.raises(ValueError, match="closure: expected 0 dimensions"):
        finite_difference_gr(lambda: w * 1.0, [w], 0.1)
    with pytest.raises(ValueError, match="level: expected"):
        flooding(torch.ones(()), float("inf"))
    with pytest.raises(TypeError, match="loss: expected"):
        flooding(torch.ones((), dtype=torch.int64), 0.1)
