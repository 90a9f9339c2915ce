"""Robust Bellman errors: the Huber function as a maximum, minimisers, the step against the error of the model."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize

from steepest.losses.value.robust_bellman import (
    AbsoluteBellmanLoss,
    HuberBellmanLoss,
    mean_huber_bellman_error,
    robust_bellman_step,
)

F64 = torch.float64
TAUS = [0.3, 1.0, math.inf, None]


def one_state(error, tau):
    """p(e), of a state that ends with reward e and is worth 0."""
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    return mean_huber_bellman_error(torch.zeros(1, 1, dtype=F64), one * error, 0.9, zero, one, tau).item()


def model(states=5, seed=0):
    """P, r, gamma, v, d of a small chain whose rows end an episode with some chance."""
    generator = torch.Generator().manual_seed(seed)
    P = torch.rand(states, states, generator=generator, dtype=F64)
    P = P / P.sum(1, keepdim=True) * torch.linspace(0.7, 1.0, states, dtype=F64)[:, None]
    r, v = 2 * torch.randn(2, states, generator=generator, dtype=F64)
    d = torch.rand(states, generator=generator, dtype=F64)
    return P, r, 0.9, v, d / d.sum()


def transitions(P, d):
    """Every (s, s') and its chance; the last column is the end of the episode."""
    ends = torch.cat([P, 1 - P.sum(1, keepdim=True)], 1)
    chance = d[:, None] * ends
    s, after = torch.meshgrid(torch.arange(len(P)), torch.arange(len(P) + 1), indexing="ij")
    return s.reshape(-1), after.reshape(-1), chance.reshape(-1)


@pytest.mark.holds("robust-bellman", 1)
def test_the_huber_function_is_a_maximum():
    assert one_state(0.5, 1.0) == 0.25
    assert one_state(3.0, 1.0) == 5.0
    for tau in (0.25, 1.0, 2.0):
        h = torch.linspace(-tau, tau, 4001, dtype=F64)
        for error in (-3.0, -1.0, -0.1, 0.0, 0.5, 0.99, 1.01, 7.0):
            highest = (2 * error * h - h.square()).max().item()
            assert one_state(error, tau) == pytest.approx(highest, abs=tau * 1e-3)
            assert one_state(error, tau) >= highest - 1e-12
    h = torch.linspace(-1, 1, 3, dtype=F64)
    for error in (-3.0, 0.2):
        assert one_state(error, None) == pytest.approx((error * h).max().item(), abs=1e-15)
        assert one_state(error, math.inf) == pytest.approx(error**2, abs=1e-15)
        # divided by 2 tau it becomes the absolute error
        assert one_state(error, 1e-6) / 2e-6 == pytest.approx(abs(error), abs=1e-6)


@pytest.mark.holds("robust-bellman", 2)
@pytest.mark.parametrize(("tau", "wanted"), [(math.inf, 1.0), (1.0, 1 / 9), (None, 0.0)])
def test_one_value_for_ten_states(tau, wanted):
    zero, reward = torch.zeros(10, 10, dtype=F64), torch.zeros(10, dtype=F64)
    reward[9] = 10.0
    d = torch.full((10,), 0.1, dtype=F64)

    def error(w):
        return mean_huber_bellman_error(zero, reward, 0.0, torch.full((10,), float(w), dtype=F64), d, tau).item()

    least = optimize.minimize_scalar(error, bounds=(-2, 3), method="bounded", options={"xatol": 1e-9}).x
    assert least == pytest.approx(wanted, abs=1e-5)
    assert all(error(wanted) < error(wanted + step) for step in (-0.1, -1e-3, 1e-3, 0.1))


@pytest.mark.holds("robust-bellman", 3)
@pytest.mark.parametrize("tau", TAUS)
def test_the_expected_step_descends_the_error_of_the_model(tau):
    """With h = E[delta | s]: half the gradient, by differences of the value; the whole of the absolute error's."""
    P, r, gamma, v, d = model()
    s, after, chance = transitions(P, d)
    h = r + gamma * P @ v - v
    worth = v.clone().requires_grad_()
    v_next = torch.cat([worth, worth.new_zeros(1)])[after]
    discount = gamma * (after < len(P)).to(F64)
    loss_v, _ = robust_bellman_step(worth[s], v_next, r[s], discount, h[s], tau=tau, weight=chance, reduction="sum")
    (slope,) = torch.autograd.grad(loss_v, worth)
    step, wanted = 1e-6, []
    for state in range(len(v)):
        moved = step * torch.nn.functional.one_hot(torch.tensor(state), len(v))
        up, down = (mean_huber_bellman_error(P, r, gamma, v + sign * moved, d, tau).item() for sign in (1, -1))
        wanted.append((up - down) / (2 * step) * (1.0 if tau is None else 0.5))
    assert slope.tolist() == pytest.approx(wanted, abs=1e-8)
    assert slope.any()


@pytest.mark.parametrize("tau", TAUS)
def test_h_learns_the_expected_error_whatever_the_clip(tau):
    """In expectation its own loss is least at E[rho delta | s], beyond the clip too."""
    P, r, gamma, v, d = model(seed=1)
    s, after, chance = transitions(P, d)
    ratio = torch.linspace(0.5, 1.5, len(s), dtype=F64)
    ends = torch.cat([v, v.new_zeros(1)])
    h = torch.zeros(len(v), dtype=F64, requires_grad=True)
    discount = gamma * (after < len(P)).to(F64)
    _, loss_h = robust_bellman_step(
        v[s], ends[after], r[s], discount, h[s], ratio, tau=tau, weight=chance, reduction="sum"
    )
    (slope,) = torch.autograd.grad(loss_h, h)
    expected = torch.zeros_like(v)
    for state, place, p, rho in zip(s.tolist(), after.tolist(), chance.tolist(), ratio.tolist()):
        end = 0.0 if place == len(v) else gamma * v[place].item()
        expected[state] += p * rho * (r[state].item() + end - v[state].item())
    assert (-slope).tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert expected.abs().max() > 0.3


@pytest.mark.holds("robust-bellman", 4)
@pytest.mark.parametrize("loss", [HuberBellmanLoss(), HuberBellmanLoss(correction=True), AbsoluteBellmanLoss()])
def test_at_rest_nothing_moves_and_the_next_value_gets_its_gradient(loss):
    v, v_next = torch.tensor([2.0, 1.0, 0.5], requires_grad=True), torch.tensor([4.0, 2.0, 9.0], requires_grad=True)
    discount, h = torch.tensor([0.5, 0.5, 0.0]), torch.zeros(3, requires_grad=True)
    loss(v, v_next, torch.tensor([0.0, 0.0, 0.5]), discount, h).backward()
    assert [t.grad.any().item() for t in (v, v_next, h)] == [False, False, False]
    (slope,) = torch.autograd.grad(loss(v, v_next, torch.ones(3), discount, h + 2), v_next)
    assert slope[:2].all()
    assert slope[2] == 0.0  # the episode ends


@pytest.mark.holds("robust-bellman", 5)
@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_tau_above_zero(tau):
    row, P = torch.zeros(2), torch.zeros(2, 2)
    for call in (
        lambda: HuberBellmanLoss(tau),
        lambda: robust_bellman_step(row, row, row, row, row, tau=tau),
        lambda: mean_huber_bellman_error(P, row, 0.5, row, row, tau),
    ):
        with pytest.raises(ValueError, match="tau: expected a number > 0"):
            call()


@pytest.mark.parametrize("tau", [0.4, math.inf])
@pytest.mark.parametrize("correction", [False, True])
def test_steps_of_linear_functions(tau, correction):
    """GTD2 and TDRC as they are written, one transition after the other, with both clips; ``inf`` is the originals."""
    generator = torch.Generator().manual_seed(5)
    x, after = torch.randn(2, 60, 4, generator=generator, dtype=F64)
    reward, ratio = torch.randn(60, generator=generator, dtype=F64), torch.rand(60, generator=generator, dtype=F64) * 2
    w, u, rate, decay, gamma = [0.0] * 4, [0.0] * 4, 0.1, 1.0 if correction else 0.0, 0.9
    theta, eta = torch.zeros(4, dtype=F64, requires_grad=True), torch.zeros(4, dtype=F64, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [theta]}, {"params": [eta], "weight_decay": decay}], lr=rate)
    loss = HuberBellmanLoss(tau, correction)
    cut = lambda number: max(-tau, min(tau, number))  # noqa: E731
    for i in range(60):
        here, there, rho = x[i].tolist(), after[i].tolist(), ratio[i].item()
        value, following, estimate = (
            sum(a * b for a, b in zip(weights, features)) for weights, features in ((w, here), (w, there), (u, here))
        )
        delta = reward[i].item() + gamma * following - value
        pull = cut(rho * delta) if correction else rho * cut(estimate)
        w = [a + rate * (pull * p - rho * gamma * cut(estimate) * q) for a, p, q in zip(w, here, there)]
        u = [a + rate * ((rho * delta - estimate) * p - decay * a) for a, p in zip(u, here)]
        optimizer.zero_grad()
        rows = x[i : i + 1], after[i : i + 1]
        loss(
            rows[0] @ theta, rows[1] @ theta, reward[i : i + 1], torch.tensor([gamma], dtype=F64), rows[0] @ eta,
            ratio[i : i + 1],
        ).backward()  # fmt: skip
        optimizer.step()
        assert theta.tolist() == pytest.approx(w, abs=1e-10)
        assert eta.tolist() == pytest.approx(u, abs=1e-10)
    assert max(map(abs, w)) > 0.1


def test_values_of_both_losses():
    rows = torch.tensor([[1.0, 0.5], [0.5, 0.0], [0.0, 3.0], [0.9, 0.0], [-0.5, 2.0]], dtype=F64)
    loss_v, loss_h = robust_bellman_step(*rows, reduction="none")
    assert loss_v.tolist() == pytest.approx([-0.5 * (0.45 - 1), 1.0 * -0.5])
    assert loss_h.tolist() == pytest.approx([0.5 * (-0.55 + 0.5) ** 2, 0.5 * (2.5 - 2) ** 2])
    both = HuberBellmanLoss()
    assert both(*rows).item() == pytest.approx((loss_v + loss_h).mean().item())
    assert {k: t.item() for k, t in both.terms.items()} == pytest.approx(
        {"v": loss_v.mean().item(), "h": loss_h.mean().item()}
    )


def test_the_error_of_a_model_in_plain_numbers():
    P, r, gamma, v, d = model(4, seed=3)
    for tau in (0.5, math.inf, None):
        wanted = 0.0
        for s in range(4):
            e = abs(r[s].item() + gamma * sum(P[s, t].item() * v[t].item() for t in range(4)) - v[s].item())
            p = e if tau is None else e * e if e <= tau else 2 * tau * e - tau * tau
            wanted += d[s].item() * p
        assert mean_huber_bellman_error(P, r, gamma, v, d, tau).item() == pytest.approx(wanted, rel=1e-12)
    assert mean_huber_bellman_error(P.half(), r.half(), gamma, v.half(), d.half()).dtype == torch.float32


ROW, SQUARE = torch.zeros(2), torch.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: robust_bellman_step(ROW, ROW, ROW, ROW + 1.1, ROW), r"discount: expected values in \[0, 1\]"),
        (lambda: robust_bellman_step(ROW, ROW, ROW, ROW - 0.1, ROW), r"discount: expected values in \[0, 1\]"),
        (lambda: robust_bellman_step(ROW, ROW, ROW, ROW, ROW, ROW - 1), "rho: expected importance ratios >= 0"),
        (lambda: robust_bellman_step(ROW, ROW, ROW, ROW, ROW[:, None]), r"h: expected shape \(2,?\)"),
        (lambda: robust_bellman_step(*[ROW] * 5, tau=None, correction=True), "correction: expected False for the abs"),
        (lambda: robust_bellman_step(*[ROW] * 5, weight=ROW - 1), "weight: expected values >= 0"),
        (lambda: mean_huber_bellman_error(SQUARE * 2, ROW, 0.5, ROW, ROW), r"P: expected chances in \[0, 1\]"),
        (lambda: mean_huber_bellman_error(SQUARE + 0.5 - SQUARE / 4, ROW, 0.5, ROW, ROW), "P: expected"),
        (lambda: mean_huber_bellman_error(SQUARE[:1], ROW, 0.5, ROW, ROW), r"P: expected shape \(2, 2\)"),
        (lambda: mean_huber_bellman_error(SQUARE, ROW[:1], 0.5, ROW, ROW), "r: expected shape"),
        (lambda: mean_huber_bellman_error(SQUARE, ROW, 1.5, ROW, ROW), "gamma: expected a number >= 0 and <= 1"),
        (lambda: mean_huber_bellman_error(SQUARE, ROW, 0.5, ROW, ROW - 1), "weight: expected values >= 0"),
        (lambda: mean_huber_bellman_error(SQUARE, ROW, 0.5, SQUARE, ROW), "v: expected 1 dimensions"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_correction_is_true_or_false():
    with pytest.raises(TypeError, match="correction: expected True or False"):
        HuberBellmanLoss(correction="yes")
    with pytest.raises(TypeError, match="tau: expected a number"):
        HuberBellmanLoss(None)
