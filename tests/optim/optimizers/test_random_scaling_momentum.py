"""Random scaling: the facts of the card, the identity by quadrature, torch's momentum, averages, state."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from steepest.optim import ExponentiatedO2NC, RandomScalingSGDM, exponential_scaling


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(optimizer, p, *gradients):
    way = []
    for gradient in gradients:
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        way.append(p.detach().clone())
    return torch.stack(way)


@pytest.mark.holds("random-scaling-momentum", 1)
def test_card_values():
    o2nc = ExponentiatedO2NC(torch.ones(1).double(), eta=0.1, beta=0.9)
    points, moves = [], []
    for s, g in ((1.0, 1.0), (0.5, 2.0), (2.0, -1.0)):
        points.append(float(o2nc.advance(s)[0]))
        moves.append(float(o2nc.feed([torch.tensor([g]).double()])[0]))
    assert points == pytest.approx([1.0, 0.955, 0.433])
    assert moves == pytest.approx([-0.09, -0.261, -0.1449])


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_the_optimizer_is_the_framework_one_step_on(mu, monkeypatch):
    scales = iter([0.5, 2.0, 0.3, 1.7])
    monkeypatch.setattr("steepest.optim.optimizers.random_scaling_momentum._drawn", lambda *_: next(scales))
    eta, beta, p = 0.1, 0.9, parameter(1.0)
    shrunk = beta / (1 + eta * mu)
    way = stepped(RandomScalingSGDM([p], eta * shrunk, beta, eta * mu), p, [1.0], [2.0], [-1.0], [0.5])
    o2nc = ExponentiatedO2NC(torch.ones(1).double(), eta, beta, mu)
    o2nc.advance(1.0)
    for g, s, point in zip((1.0, 2.0, -1.0, 0.5), (0.5, 2.0, 0.3, 1.7), way):
        o2nc.feed([torch.tensor([g]).double()])
        torch.testing.assert_close(o2nc.advance(s)[0], point)


@pytest.mark.holds("random-scaling-momentum", 2)
def test_the_identity():
    """F = |x - 1| at 0.3 along 0.5: both sides by quadrature in the quantiles of Exp(1), and by draws."""
    u = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    s = -torch.log1p(-u)
    x = 0.3 + 0.5 * s
    change, product = ((x - 1).abs() - 0.7).mean(), (0.5 * (x - 1).sign()).mean()
    assert float(change) == pytest.approx(-0.253403, abs=2e-6)
    assert float(product) == pytest.approx(-0.253403, abs=2e-6)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([exponential_scaling(generator) for _ in range(4000)], dtype=torch.float64)
    assert float(drawn.sort().values.sub(-torch.log1p(-(torch.arange(4000.0) + 0.5) / 4000)).abs().median()) < 0.03


@pytest.mark.holds("random-scaling-momentum", 3)
def test_constant_scaling_is_momentum():
    p, q = parameter(1.0, -2.0), parameter(1.0, -2.0)
    slopes = [[1.0, 0.3], [-2.0, 0.1], [0.5, 4.0], [0.0, 1.0]]
    ours = stepped(RandomScalingSGDM([p], 0.05, 0.9, scaling="constant"), p, *slopes)
    torch.testing.assert_close(ours, stepped(torch.optim.SGD([q], 0.05, momentum=0.9), q, *slopes))


@pytest.mark.holds("random-scaling-momentum", 4)
def test_draws():
    generator = torch.Generator().manual_seed(3)
    drawn = torch.tensor([exponential_scaling(generator) for _ in range(20)])
    generator.manual_seed(3)
    assert torch.equal(drawn, torch.tensor([exponential_scaling(generator) for _ in range(20)]))
    many = torch.tensor([exponential_scaling(generator) for _ in range(100_000)])
    assert float(many.min()) > 0
    assert float(many.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(many.var()) == pytest.approx(1.0, abs=0.05)
    runs = []
    for _ in range(2):
        p = parameter(1.0)
        optimizer = RandomScalingSGDM([p], 0.1, generator=torch.Generator().manual_seed(7))
        runs.append(stepped(optimizer, p, [1.0], [2.0], [3.0]))
        assert 0 < optimizer.scale != 1.0
    assert torch.equal(*runs)
    p = parameter(1.0)
    uniform = RandomScalingSGDM([p], 0.1, scaling="uniform", generator=generator)
    stepped(uniform, p, [1.0])
    assert 0 <= uniform.scale <= 2


@pytest.mark.holds("random-scaling-momentum", 5)
def test_state_goes_through_a_file_with_its_generator():
    p = parameter(1.0)
    optimizer = RandomScalingSGDM([p], 0.1, generator=torch.Generator().manual_seed(7), averaging=True)
    stepped(optimizer, p, [1.0], [2.0])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    q = nn.Parameter(p.detach().clone())
    twin = RandomScalingSGDM([q], 9.0, generator=torch.Generator(), averaging=True)
    twin.load_state_dict(torch.load(file, weights_only=True))
    third = copy.deepcopy(optimizer)
    wanted = stepped(optimizer, p, [0.5], [-1.0])
    assert torch.equal(stepped(twin, q, [0.5], [-1.0]), wanted)
    assert torch.equal(stepped(third, third.param_groups[0]["params"][0], [0.5], [-1.0]), wanted)


def test_averages_of_the_iterates():
    p, unused = parameter(1.0, 2.0), parameter(5.0)
    optimizer = RandomScalingSGDM([p, unused], 0.1, 0.8, averaging=True)
    way = stepped(optimizer, p, [1.0, 0.5], [2.0, -1.0], [-1.0, 3.0])
    weights = torch.tensor([0.64, 0.8, 1.0]).double()
    wanted = (weights[:, None] * way).sum(0) * (1 - 0.8) / (1 - 0.8**3)
    with optimizer.averaged_parameters():
        torch.testing.assert_close(p.detach(), wanted)
        assert float(unused.detach()) == 5.0
    assert torch.equal(p.detach(), way[-1])
    with pytest.raises(RuntimeError, match="stop"), optimizer.averaged_parameters():
        raise RuntimeError("stop")
    assert torch.equal(p.detach(), way[-1])
    with pytest.raises(ValueError, match="averaging: expected True"), RandomScalingSGDM([p]).averaged_parameters():
        pass


def test_bad_values():
    p = parameter(1.0)
    for wrong in ({"lr": -1.0}, {"momentum": 1.0}, {"mu": -0.1}, {"scaling": "normal"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RandomScalingSGDM([p], **wrong)
    for wrong in ({"eta": 0.0}, {"beta": 1.1}, {"mu": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ExponentiatedO2NC(p, **{"eta": 0.1, **wrong})
    assert math.isfinite(exponential_scaling())
