"""Preconditioned Polyak steps: the facts of the card, naive loops in float64, curvature by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steepest.descent import ArrayBatches, Descent
from steepest.losses import CrossEntropyLoss
from steepest.optim import PSPS, PSPSL1, PSPSL2, HutchinsonPreconditioner


def parameter(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **tolerance)


class Given(PSPS):
    """A diagonal that is given."""

    def _directions(self, share):
        return [g / torch.tensor([1.0, 8.0]).double() for g in share.slopes]


@pytest.mark.holds("preconditioned-sps", 1)
def test_card_values():
    moves = {}
    for kind in (None, "L1", "L2"):
        w = parameter(0.0, 0.0)
        w.grad = torch.tensor([2.0, 4.0]).double()
        optimizer = Given([w], slack=kind, lam=0.1)
        optimizer.slack = torch.tensor(0.5).double()
        optimizer.step(loss=3.0)
        moves[kind] = w.detach(), float(optimizer.slack)
    close(moves[None][0], [-1.0, -0.25])
    close(moves["L1"][0], 0.371429 * torch.tensor([-2.0, -0.5]).double(), rtol=1e-5, atol=0.0)
    close(moves["L2"][0], 0.368421 * torch.tensor([-2.0, -0.5]).double(), rtol=1e-5, atol=0.0)
    assert moves["L1"][1] == pytest.approx(0.771429, abs=1e-6)
    assert moves["L2"][1] == pytest.approx(0.789474, abs=1e-6)


@pytest.mark.holds("preconditioned-sps", 2)
def test_without_a_diagonal_it_is_sps_and_the_model_is_zero_after_it():
    x, y = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.ones(8).double()
    for kind in ("none", "adam", "adagrad"):
        w = parameter(0.5, -1.0, 2.0)
        before = w.detach().clone()
        loss = (x @ w - y).square().mean()
        loss.backward()
        slope = w.grad.clone()
        PSPS([w], kind).step(loss=loss.detach())
        assert float(loss.detach() + slope @ (w.detach() - before)) == pytest.approx(0.0, abs=1e-12)
        if kind == "none":
            close(w.detach(), before - loss.detach() / slope.square().sum() * slope)


@pytest.mark.holds("preconditioned-sps", 3)
def test_slack_that_costs_nothing():
    w = parameter(0.0, 0.0)
    w.grad = torch.tensor([2.0, 4.0]).double()
    PSPSL2([w], lam=0.0).step(loss=3.0)
    close(w.detach(), -3.0 / 21.0 * torch.tensor([2.0, 4.0]).double())


@pytest.mark.holds("preconditioned-sps", 4)
def test_predictions_don_t_see_the_scale_of_a_feature():
    """Columns are orthogonal, so that products with random signs are the curvature itself."""
    x = torch.linalg.qr(torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    y, scale = torch.arange(9.0).double(), torch.tensor([1e-3, 1.0, 200.0]).double()
    ways = []
    for columns, start in ((x, torch.ones(3).double()), (x * scale, 1 / scale)):
        w = nn.Parameter(start.clone())
        optimizer = PSPS([w], "hutchinson", "L2", floor=1e-12, init_samples=2)
        way = []
        for _ in range(6):
            optimizer.step(lambda columns=columns, w=w: (columns @ w - y).square().mean())
            way.append(columns @ w.detach())
        ways.append(torch.stack(way))
    close(ways[1], ways[0])
    assert float((ways[0][0] - ways[0][-1]).norm()) > 0.1


@pytest.mark.holds("preconditioned-sps", 5)
def test_samples_of_the_curvature():
    h = torch.tensor([[3.0, 1.0], [1.0, 2.0]]).double()
    w = parameter(0.3, 0.7)
    (slope,) = torch.autograd.grad(0.5 * w @ h @ w, [w], create_graph=True)
    estimate = HutchinsonPreconditioner(init_samples=64, generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([estimate.sample([slope], [w])[0] for _ in range(40)])
    assert {tuple(row) for row in drawn.tolist()} == {(4.0, 3.0), (2.0, 1.0)}
    close(torch.stack([torch.tensor([4.0, 3.0]), torch.tensor([2.0, 1.0])]).mean(0), [3.0, 2.0])
    mean = estimate.first([slope], [w])[0]
    assert float(mean[0] - mean[1]) == pytest.approx(1.0)
    assert abs(float(mean[0]) - 3.0) < 0.5
    close(HutchinsonPreconditioner(floor=0.5).used([torch.tensor([-2.0, 0.1])])[0], [2.0, 0.5])


@pytest.mark.holds("preconditioned-sps", 6)
@pytest.mark.parametrize("kind", ["none", "adam", "hutchinson"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_losses_that_are_refused(kind, value):
    w = parameter(1.0, 2.0)
    optimizer = PSPS([w], kind)
    loss = w.square().sum() * 0 + value
    with pytest.raises(ValueError, match=r"loss: expected a finite number >= 0"):
        optimizer.step(loss=loss)
    assert torch.equal(w.detach(), torch.tensor([1.0, 2.0]).double())
    assert "squares" not in optimizer.state.get(w, {}) or not optimizer.state[w]["squares"].any()


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
@pytest.mark.parametrize("cls", [PSPSL1, PSPSL2])
def test_a_naive_loop(kind, cls):
    w = parameter(1.0, -1.0)
    optimizer = cls([w], kind, lam=0.2, lr=0.9, cap=0.7)
    x, squares, slack, lam = np.array([1.0, -1.0]), np.zeros(2), 0.0, 0.2
    for k in range(1, 9):
        optimizer.zero_grad()
        loss = 0.5 * w[0] ** 2 + 2 * w[1] ** 2 + 0.3
        loss.backward()
        optimizer.step(loss=loss.detach())
        f, g = 0.5 * x[0] ** 2 + 2 * x[1] ** 2 + 0.3, np.array([x[0], 4 * x[1]])
        squares = squares + g * g if kind == "adagrad" else 0.999 * squares + 0.001 * g * g
        d = np.sqrt(squares if kind == "adagrad" else squares / (1 - 0.999**k)) + 1e-8
        q = (g * g / d).sum()
        if cls is PSPSL1:
            t = max(0.0, f - slack + lam) / (1 + q)
            step, slack = min(t, f / q), max(0.0, slack - lam + t)
        else:
            c = 1 / (1 + lam)
            step = max(0.0, f - c * slack) / (q + c)
            slack = c * (slack + step)
        x = x - 0.9 * min(step, 0.7) * g / d
        close(w.detach(), x)
        assert float(optimizer.slack) == pytest.approx(slack)


def test_curvature_in_the_loop_and_resuming():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator)
    y = (x[:, 0] > 0).long()

    def training(epochs, state=None):
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        own = torch.Generator().manual_seed(5)
        optimizer = PSPS(model.parameters(), "hutchinson", "L2", lr=0.5, init_samples=3, generator=own)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        batches = ArrayBatches(x, y, batch_size=24)
        run = Descent(model, CrossEntropyLoss(), batches, optimizer=optimizer).fit(epochs)
        return run.history, model, optimizer

    history, model, _ = training(6)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    _, half, optimizer = training(3)
    state = copy.deepcopy((half.state_dict(), optimizer.state_dict()))
    _, resumed, _ = training(3, state)
    for a, b in zip(model.parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b)


def test_what_curvature_needs_is_said():
    w = parameter(1.0, 2.0)
    optimizer = PSPS([w], "hutchinson", init_samples=1)
    with pytest.raises(TypeError, match="closure: expected a forward pass alone"):
        optimizer.step(loss=torch.ones(()))
    with pytest.raises(TypeError, match="closure: expected"):
        optimizer.step()
    optimizer.step(lambda: (3.0 * w).sum())  # no curvature at all: the floor
    close(w.detach(), [-0.5, 0.5])
    for wrong in ({"preconditioner": "newton"}, {"slack": "L3"}, {"lam": -1.0}, {"floor": 0.0}, {"cap": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PSPS([w], **wrong)


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_the_usual_eps_in_half_types(kind):
    w = parameter(1.0, -2.0, dtype=torch.float16)
    w.grad = torch.tensor([0.0, 1.0], dtype=torch.float16)
    PSPS([w], kind).step(loss=0.5)
    assert w.tolist() == [1.0, -2.5]


def test_curvature_is_averaged_and_a_late_parameter_begins_with_its_own():
    w, late = parameter(1.0, 2.0), parameter(3.0)
    optimizer = PSPS([w, late], "hutchinson", beta=0.9, init_samples=1)
    optimizer.step(lambda: 1.5 * w.square().sum())
    close(optimizer.state[w]["curvature"], [3.0, 3.0])
    optimizer.step(lambda: 2.5 * w.square().sum() + late.square().sum())
    close(optimizer.state[w]["curvature"], [3.2, 3.2])
    close(optimizer.state[late]["curvature"], [2.0])
