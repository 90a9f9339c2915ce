"""IGNITE: the facts of its card, a naive loop in NumPy, the one loop, search on a surrogate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steepest.descent import ArrayBatches, Descent
from steepest.losses import SquaredErrorLoss
from steepest.optim import IGNITE, IGNITE2, offline_search, surrogate_sharpness


class Square(nn.Module):
    """f = b^2 x."""

    def __init__(self, b=1.0):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, x):
        return self.b.square() * x


X = torch.tensor([1.0, 3.0], dtype=torch.float64)


def added(model, x, **kw):
    """What a step at rate 1 takes away from each parameter where the loss is flat."""
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = IGNITE2(torch.optim.SGD(model.parameters(), lr=1.0), model, **kw)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(inputs=x)
    return [b - p.detach() for b, p in zip(before, model.parameters())]


@pytest.mark.holds("ignite", 1)
def test_the_added_gradient():
    """lambda rho times the derivative of ||grad G|| = 4 b."""
    assert added(Square(), X)[0].item() == pytest.approx(2.0e-4, rel=1e-9)
    assert added(Square(), X, r=0.001, rho=0.5, lam=0.1)[0].item() == pytest.approx(0.1 * 0.5 * 4, rel=1e-9)
    assert surrogate_sharpness(Square(), X, 0.05).item() == pytest.approx(0.05 * 4)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 1)).to(dtype)
    return model, torch.randn(12, 3).to(dtype), torch.randn(12, 1).to(dtype)


def closure_of(optimizer, model, x, y):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.holds("ignite", 2)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda base, model, x: IGNITE2(base, model, lam=0.0, inputs=x),
        lambda base, model, x: IGNITE(base, model, lam=0.0, dual_lr=0.0, inputs=x),
        lambda base, model, x: IGNITE(base, model, rho=0.0, inputs=x),
    ],
)
def test_without_a_multiplier_or_a_radius_it_is_the_optimizer(wrap):
    ends = []
    for wrapped in (True, False):
        model, x, y = net()
        base = torch.optim.Adam(model.parameters(), lr=0.01)
        optimizer = wrap(base, model, x) if wrapped else base
        torch.manual_seed(3)
        losses = [optimizer.step(closure_of(optimizer, model, x, y)).item() for _ in range(4)]
        ends.append((losses, [*model.state_dict().values()], torch.rand(1)))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1]))
    assert torch.equal(ends[0][2], ends[1][2])


@pytest.mark.holds("ignite", 3)
def test_nothing_is_added_where_the_output_is_linear():
    model = nn.Linear(3, 1).double()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    for move in added(model, x, lam=10.0):
        assert move.abs().max() < 1e-12


@pytest.mark.holds("ignite", 4)
def test_the_multiplier():
    """Sharpness is 0.05 * 4 b = 0.2 b: it rises by 0.1 (0.2 - eps), falls, and stops at 0."""
    for eps, wanted in ((0.1, [0.06, 0.07, 0.08]), (0.4, [0.03, 0.01, 0.0, 0.0])):
        model = Square()
        optimizer = IGNITE(torch.optim.SGD(model.parameters(), lr=0.0), model, eps=eps, lam=0.05, dual_lr=0.1, inputs=X)
        for multiplier in wanted:
            model.b.grad = torch.zeros_like(model.b)
            optimizer.step()
            assert optimizer.lam == pytest.approx(multiplier, abs=1e-12)
            assert optimizer.norm == pytest.approx(4.0)
    saved = IGNITE(torch.optim.SGD(model.parameters(), lr=0.0), model)
    optimizer.lam = 0.7
    saved.load_state_dict(optimizer.state_dict())
    assert saved.lam == 0.7


@pytest.mark.holds("ignite", 5)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gradient_of_0_adds_nothing(dtype):
    model = Square(0.0).to(dtype)
    assert added(model, X.to(dtype), lam=1.0)[0].item() == 0.0
    assert model.b.item() == 0.0


@pytest.mark.holds("ignite", 6)
def test_parameters_buffers_and_random_numbers_are_as_after_one_pass():
    model, x, y = net()
    twin = copy.deepcopy(model)
    optimizer = IGNITE(torch.optim.SGD(model.parameters(), lr=0.0), model, r=0.3, lam=1.0, inputs=x)
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(1)
    optimizer.step(closure_of(optimizer, model, x, y))
    here = torch.rand(2)
    torch.manual_seed(1)
    twin(x)
    assert torch.equal(here, torch.rand(2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), model.buffers()))

    def fails(model, inputs):
        if not torch.equal(before[0], model[0].weight):
            raise RuntimeError("at moved weights")
        return model(inputs)

    optimizer.predict = fails
    with pytest.raises(RuntimeError, match="at moved weights"):
        optimizer.step(closure_of(optimizer, model, x, y))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def by_hand(x, y, w, *, lr, steps, rho, r, eps, lam, dual_lr):
    """The publication's algorithm for f = (x w)^2, squared error, gradients by formula, momentum 0.9."""
    buffer = np.zeros_like(w)
    multipliers = []

    def mean_slope(w):
        return (2 * (x @ w)[:, None] * x).mean(0)

    for _ in range(steps):
        z = x @ w
        loss_slope = (2 * (z**2 - y) * 2 * z)[:, None] * x
        g = mean_slope(w)
        norm = np.linalg.norm(g)
        n = (mean_slope(w + r * g / norm) - g) / r
        buffer = 0.9 * buffer + loss_slope.mean(0) + lam * rho * n
        w = w - lr * buffer
        lam = max(0.0, lam + dual_lr * (rho * norm - eps))
        multipliers.append(lam)
    return w, multipliers


class Squared(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        return (x @ self.w).square()


def test_a_loop_in_numpy():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(20, 3)), rng.uniform(size=20), 0.5 * rng.normal(size=3)
    settings = {"rho": 0.2, "r": 0.1, "eps": 0.05, "lam": 0.3, "dual_lr": 0.5}
    wanted, multipliers = by_hand(x, y, w, lr=0.01, steps=6, **settings)
    model, inputs, target = Squared(w), torch.tensor(x), torch.tensor(y)
    optimizer = IGNITE(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), model, **settings)
    for multiplier in multipliers:
        closure_of(optimizer, model, inputs, target)()
        optimizer.step(inputs=inputs)
        assert optimizer.lam == pytest.approx(multiplier, rel=1e-10)
    np.testing.assert_allclose(model.w.detach().numpy(), wanted, rtol=1e-10)


class Gaussian(nn.Module):
    """Gives a mean and a logarithm of a variance."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_variance = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x):
        return self.mean(x) ** 3, self.log_variance(x)


def test_variances_take_no_part():
    torch.manual_seed(0)
    model = Gaussian()
    moves = added(model, torch.randn(5, 2), lam=1.0, predict=lambda model, x: model(x)[0])
    assert [bool(move.any()) for move in moves] == [True, True, False, False]


def test_what_is_not_finite_changes_nothing():
    model = Square()
    optimizer = IGNITE(torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), model, inputs=X)
    for inputs, slope in ((X * torch.inf, 0.0), (X, torch.nan)):
        model.b.grad = torch.full_like(model.b, slope)
        optimizer.step(inputs=inputs)
    assert model.b.item() == 1.0
    assert (optimizer.lam, optimizer.skipped) == (1e-3, 2)


def test_in_the_one_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    optimizer = IGNITE(torch.optim.Adam(model.parameters(), lr=0.01), model, lam=0.1)
    batches = ArrayBatches(x, x.sum(1), batch_size=8, seed=0)
    run = Descent(model, SquaredErrorLoss(), batches, optimizer=optimizer).fit(5)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert optimizer.lam > 0.1


def test_ranks_share_the_gradient_of_the_mean(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda slope: slope.mul_(3.0))
    assert surrogate_sharpness(Square(), X, 1.0).item() == pytest.approx(4.0 * 3 / 2)


def test_search_climbs_within_bounds_and_leaves_no_trace():
    model, x, _ = net()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = x[:4].requires_grad_()
    found = offline_search(model, x, 5, 0.1, bounds=(-0.5, 0.5))
    assert found.abs().max() <= 0.5
    assert not found.requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    hill = Hill()
    torch.testing.assert_close(offline_search(hill, torch.tensor([[3.0]]), 2, 0.1), torch.tensor([[3.0 * 0.8**2]]))


class Hill(nn.Module):
    def forward(self, x):
        return -x.square().sum(1)


def test_what_it_refuses():
    model = Square()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in ({"rho": -1.0}, {"r": 0.0}, {"eps": -1.0}, {"lam": -1.0}, {"dual_lr": -1.0}, {"mode": "dual"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            IGNITE(base, model, **wrong)
    with pytest.raises(TypeError, match="model: expected a module"):
        IGNITE(base, lambda x: x)
    with pytest.raises(TypeError, match="inputs: expected designs"):
        IGNITE(base, model).step()
    with pytest.raises(ValueError, match="rho: expected"):
        surrogate_sharpness(model, X, -1.0)
    with pytest.raises(ValueError, match="bounds: expected"):
        offline_search(model, X, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="lr: expected"):
        offline_search(model, X, lr=0.0)
