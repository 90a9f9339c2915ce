"""Polyak steps on a model of the loss: the facts of the card, naive loops in float64, groups, bounds, resuming."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.optim import Momo, MomoAdam

CURVES = np.array([1.0, 4.0])


def parameter(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.detach()

    return closure


def quadratic(p):
    return 0.5 * (torch.as_tensor(CURVES, dtype=p.dtype) * p.square()).sum()


def path(make, steps, start=(1.0, 1.0)):
    p = parameter(*start)
    optimizer = make([p])
    way = []
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, lambda: quadratic(p)))
        way.append(p.detach().clone())
    return torch.stack(way), optimizer


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **tolerance)


@pytest.mark.holds("momo", 1)
def test_card_values():
    way, optimizer = path(Momo, 1)
    close(way[0], [0.852941, 0.411765], rtol=0.0, atol=1e-6)
    assert float(optimizer.factor) == pytest.approx(0.147059, abs=1e-6)
    way, optimizer = path(Momo, 2)
    close(way[1], [0.848368, 0.394292], rtol=0.0, atol=1e-6)
    assert float(optimizer.factor) == pytest.approx(0.004641, abs=1e-6)
    way, _ = path(lambda p: Momo(p, bias_correction=True), 2)
    close(way, [[0.852941, 0.411765], [0.812684, 0.291262]], rtol=0.0, atol=1e-6)
    _, optimizer = path(lambda p: Momo(p, bias_correction=True), 1)
    assert float(optimizer.factor) == pytest.approx(1.470588, abs=1e-6)
    close(path(lambda p: MomoAdam(p, lr=10.0), 1)[0][0], [0.5, 0.5], rtol=0.0, atol=1e-6)
    close(path(lambda p: MomoAdam(p, lr=0.01), 1)[0][0], [0.99, 0.99], rtol=0.0, atol=1e-6)


def naive(kind, steps, lr, lam=0.0, beta=0.9, b2=0.999, eps=1e-8, lb0=0.0, zero=False, fstar=False):
    """One group, as the publication writes it."""
    x, d, v, f, gam, lb = np.ones(2), np.zeros(2), np.zeros(2), 0.0, 0.0, lb0
    way = []
    for k in range(1, steps + 1):
        loss, g = 0.5 * (CURVES * x * x).sum(), CURVES * x
        if k == 1 and not zero:
            f, d, gam = loss, g, g @ x
        else:
            f, d, gam = beta * f + (1 - beta) * loss, beta * d + (1 - beta) * g, beta * gam + (1 - beta) * (g @ x)
        v = b2 * v + (1 - b2) * g * g
        metric = np.sqrt(v / (1 - b2**k)) + eps if kind == "adam" else np.ones(2)
        rho, c, square = 1 - beta**k if zero else 1.0, 1 + lr * lam, (d * d / metric).sum()
        cap = c * f + d @ x - c * gam
        if fstar and cap < c * rho * lb:
            lb = max(cap / (2 * c * rho), lb0)
        tau = min(lr / rho, max(0.0, cap - c * rho * lb) / square)
        if fstar:
            lb = max((f + d @ x - gam - 0.5 * tau * square) / rho, lb0)
        x = (x - tau * d / metric) / c
        way.append(x)
    return np.stack(way)


@pytest.mark.parametrize("lr", [0.05, 5.0])
@pytest.mark.parametrize("options", [{}, {"lam": 0.1}, {"lb0": 0.3}, {"fstar": True, "lb0": -1.0, "lam": 0.1}])
def test_the_publication_in_a_naive_loop(lr, options):
    given = {"lam": "weight_decay", "lb0": "lb", "fstar": "use_fstar"}
    ours = {given[name]: value for name, value in options.items()}
    for zero in (False, True):
        way, _ = path(lambda p, zero=zero: Momo(p, lr, bias_correction=zero, **ours), 12)
        close(way, naive("sgd", 12, lr, zero=zero, **options), rtol=1e-9, atol=1e-12)
    way, _ = path(lambda p: MomoAdam(p, lr, **ours), 12)
    close(way, naive("adam", 12, lr, zero=True, **options), rtol=1e-9, atol=1e-12)


@pytest.mark.holds("momo", 2)
def test_ends_of_the_family():
    capped, _ = path(lambda p: Momo(p, lr=0.2, beta=0.0), 5)
    x = np.ones(2)
    for row in capped.numpy():  # SPS_max
        loss, g = 0.5 * (CURVES * x * x).sum(), CURVES * x
        x = x - min(0.2, loss / (g @ g)) * g
        np.testing.assert_allclose(row, x, rtol=1e-12)
    free = path(lambda p: Momo(p, lr=0.01, lb=-math.inf, bias_correction=True), 6)[0]
    x, m = np.ones(2), np.zeros(2)
    for k, row in enumerate(free.numpy(), start=1):
        m = 0.9 * m + 0.1 * CURVES * x
        x = x - 0.01 / (1 - 0.9**k) * m
        np.testing.assert_allclose(row, x, rtol=1e-12)
    adam = path(lambda p: MomoAdam(p, lr=0.01, lb=-math.inf), 6)[0]
    p = parameter(1.0, 1.0)
    theirs = torch.optim.Adam([p], lr=0.01)
    for row in adam:
        theirs.step(closure_of(theirs, lambda: quadratic(p)))
        close(row, p.detach())


@pytest.mark.holds("momo", 3)
def test_the_cap_and_the_bound():
    for make in (lambda p: Momo(p, 0.3, bias_correction=True), lambda p: MomoAdam(p, 0.3)):
        p = parameter(1.0, 1.0)
        optimizer = make([p])
        for k in range(1, 10):
            optimizer.step(closure_of(optimizer, lambda p=p: quadratic(p)))
            assert 0.0 <= float(optimizer.factor) <= (1 + 1e-12) / (1 - 0.9**k)
    p = parameter(1.0, 1.0)
    optimizer = Momo([p], lb=2.5)  # the first loss is at the bound
    optimizer.step(closure_of(optimizer, lambda: quadratic(p)))
    assert float(optimizer.factor) == 0.0
    assert torch.equal(p.detach(), torch.ones(2).double())


@pytest.mark.holds("momo", 4)
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_what_is_refused_and_no_direction(cls):
    p = parameter(1.0, 1.0)
    optimizer = cls([p])
    with pytest.raises(TypeError, match="closure: expected"):
        optimizer.step()
    with pytest.raises(TypeError, match="closure: expected"):
        optimizer.step(lambda: torch.ones(()), torch.ones(()))
    for wrong in ({"lr": -1.0}, {"weight_decay": -0.1}, {"lb": math.inf}, {"lb": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cls([p], **wrong)
    with pytest.raises(ValueError, match="beta"):
        cls([p], **({"beta": 1.0} if cls is Momo else {"betas": (0.9, 1.0)}))
    p.grad = torch.zeros(2).double()
    for _ in range(3):
        optimizer.step(loss=0.7)
    assert torch.equal(p.detach(), torch.ones(2).double())


@pytest.mark.holds("momo", 5)
@pytest.mark.parametrize(
    ("decay", "u", "x"), [(0.0, 0.277778, [0.722222, 0.444444]), (0.1, 0.270408, [0.663265, 0.459184])]
)
def test_groups_solve_one_problem(decay, u, x):
    a, b = parameter(1.0), parameter(1.0)
    optimizer = Momo([{"params": [a], "weight_decay": decay}, {"params": [b], "lr": 0.5}])
    optimizer.step(closure_of(optimizer, lambda: quadratic(torch.cat([a, b]))))
    assert float(optimizer.factor) == pytest.approx(u, abs=1e-6)
    close(torch.cat([a, b]).detach(), x, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_groups_of_one_rate_are_one_group(cls):
    ends = []
    for together in (True, False):
        a, b = parameter(1.0), parameter(1.0)
        groups = [a, b] if together else [{"params": [a]}, {"params": [b]}]
        optimizer = cls(groups, lr=0.4, weight_decay=0.1, use_fstar=True)
        for _ in range(8):
            optimizer.step(closure_of(optimizer, lambda a=a, b=b: quadratic(torch.cat([a, b]))))
        ends.append(torch.cat([a, b]).detach())
    close(*ends)


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_a_large_model_makes_its_directions_twice(cls, monkeypatch):
    whole, _ = path(lambda p: cls(p, 0.5, use_fstar=True), 6)
    monkeypatch.setattr("steepest.optim.optimizers.momo._KEPT", 0)
    again, _ = path(lambda p: cls(p, 0.5, use_fstar=True), 6)
    close(again, whole)


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_averages_are_saved_wide_and_a_late_parameter_starts_at_0(cls):
    p, late = parameter(1.0, 1.0, dtype=torch.bfloat16), parameter(2.0, dtype=torch.bfloat16)
    optimizer = cls([p, late], lr=0.3, use_fstar=True)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: quadratic(p)))
    assert "average" not in optimizer.state.get(late, {})
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    q, later = copy.deepcopy(p), copy.deepcopy(late)
    twin = cls([q, later], lr=9.0)
    twin.use_fstar = True
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert type(twin.averages["loss"]) is float
    for own, one, two in ((optimizer, p, late), (twin, q, later)):
        for _ in range(3):
            own.step(closure_of(own, lambda one=one, two=two: quadratic(one) + two.square().sum()))
    assert torch.equal(p, q)
    assert torch.equal(late, later)
    assert float(late.detach()) < 2.0


def test_decay_beside_the_model():
    p = parameter(1.0, 1.0)
    optimizer = Momo([p], 0.1, weight_decay=0.5, divide=False)
    optimizer.step(closure_of(optimizer, lambda: quadratic(p)))
    close(p.detach(), 0.95 - 0.1 * CURVES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_usual_eps_in_half_types(dtype):
    p = parameter(1.0, -2.0, dtype=dtype)
    optimizer = MomoAdam([p])
    optimizer.step(closure_of(optimizer, lambda: (p * p * 0).sum()))
    assert torch.equal(p.detach(), torch.tensor([1.0, -2.0], dtype=dtype))


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_a_step_is_by_the_mean_of_the_losses_of_all_ranks(cls, monkeypatch):
    def end(own, other=None):
        with monkeypatch.context() as patches:
            if other is not None:
                patches.setattr(torch.distributed, "is_initialized", lambda: True)
                patches.setattr(torch.distributed, "get_world_size", lambda: 2)
                patches.setattr(torch.distributed, "all_reduce", lambda value: value.add_(other))
            p = parameter(1.0, -2.0)
            p.grad = torch.tensor([0.5, 1.0], dtype=torch.float64)
            cls([p], lr=100.0).step(loss=own)
            return p.detach()

    assert torch.equal(end(0.25, 1.75), end(1.0))
    assert torch.equal(end(1.75, 0.25), end(1.0))
    assert not torch.equal(end(0.25), end(1.0)), "the length of the step does not depend on the loss"
