"""Block coordinate descent: the numbers of the card, brute force for the prox, stationary points, a sweep in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from steepest.optim.optimizers import BCDTrainer, relu_prox, three_splitting_objective


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def started(sizes=(4, 6, 5, 3), n=30, seed=0, **kw):
    generator = torch.Generator().manual_seed(seed)
    trainer = BCDTrainer(sizes, dtype=torch.float64, scale=0.5, generator=generator, **kw)
    x = torch.randn(n, sizes[0], generator=generator, dtype=torch.float64)
    y = torch.randint(sizes[-1], (n,), generator=generator)
    trainer.begin(x, y)
    return trainer, x, y


@pytest.mark.holds("block-coordinate-descent", 1)
def test_the_prox():
    for (a, b, g), wanted in {
        (1.0, 0.5, 1.0): 0.75,
        (1.0, -0.2, 1.0): 0.4,
        (1.0, -0.5, 1.0): -0.5,
        (-1.0, 0.5, 1.0): 0.0,
        (2.0, -1.0, 0.5): 1.0,
    }.items():
        assert relu_prox(numbers(a), numbers(b), g).item() == pytest.approx(wanted, abs=1e-12)
    below, above = relu_prox(numbers(1.0, 1.0), numbers(-0.414215, -0.414213), 1.0).tolist()
    assert below == -0.414215
    assert above > 0


@pytest.mark.parametrize("g", [0.1, 1.0, 6.0])
def test_the_prox_is_the_best_of_a_grid(g):
    generator = torch.Generator().manual_seed(1)
    a, b = (3 * torch.randn(400, generator=generator, dtype=torch.float64) for _ in range(2))

    def value(u, a, b):
        return 0.5 * (u.clamp(min=0) - a) ** 2 + g / 2 * (u - b) ** 2

    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None]
    best = value(grid, a, b).min(0).values
    assert bool((value(relu_prox(a, b, g), a, b) <= best + 1e-12).all())


@pytest.mark.holds("block-coordinate-descent", 2)
@pytest.mark.parametrize("strengths", [(1.0, 1.0, 5.0), (0.3, 2.0, 0.1), (4.0, 0.5, 1.0)])
def test_the_objective_never_rises(strengths):
    trainer, _, _ = started((4, 6, 5, 5, 3), gamma=strengths[0], rho=strengths[1], alpha=strengths[2])
    before, names = trainer.objective(), []
    for _ in range(5):
        for name, update in trainer.blocks():
            update()
            now = trainer.objective()
            assert now <= before * (1 + 1e-13), name
            before = now
            names.append(name)
    assert names[:6] == ["V4", "U4", "W4", "b4", "V3", "U3"]
    assert names[-2:] == ["W1", "b1"]


NEAR = {"V3", "W1", "W2", "W3", "b1", "b2", "b3", "U1", "U2"}
"""Blocks with a proximal term."""


def lists(trainer):
    return {
        "V": (trainer.activations, 0),
        "U": (trainer.preactivations, 1),
        "W": (trainer.weights, 1),
        "b": (trainer.biases, 1),
    }


@pytest.mark.holds("block-coordinate-descent", 3)
def test_every_block_is_at_a_stationary_point_of_its_own_problem():
    trainer, _, _ = started(gamma=0.7, rho=1.3, alpha=2.0)
    for _ in range(2):
        for name, update in trainer.blocks():
            values, first = lists(trainer)[name[0]]
            place = int(name[1]) - first
            old = values[place].clone()
            update()
            new = values[place]
            values[place] = new.clone().requires_grad_()
            value = trainer.objective()
            if name in NEAR:
                value = value + trainer.alpha / 2 * (values[place] - old).square().sum()
            (slope,) = torch.autograd.grad(value, values[place])
            values[place] = new
            smooth = slope if name not in ("U1", "U2") else slope[new != 0]
            assert float(smooth.abs().max()) < 1e-9, name


def test_a_sweep_in_numpy():
    """The card's formulas with samples as columns, explicit inverses, two layers."""
    trainer, x, y = started((4, 6, 3), gamma=0.7, rho=1.3, alpha=2.0)
    g, r, a, n = 0.7, 1.3, 2.0, len(x)
    w1, w2 = (w.numpy() for w in trainer.weights)
    b1, b2 = (b.numpy()[:, None] for b in trainer.biases)
    v0, target = x.numpy().T, np.eye(3)[:, y.numpy()]
    u1 = w1 @ v0 + b1
    v1 = np.maximum(u1, 0)
    u2 = w2 @ v1 + b2
    v2 = (target + g * u2 + a * u2) / (1 + g + a)
    u2 = (g * v2 + r * (w2 @ v1 + b2)) / (g + r)
    w2 = (a * w2 + r * (u2 - b2) @ v1.T) @ np.linalg.inv(a * np.eye(6) + r * v1 @ v1.T)
    b2 = (a * b2 + r * (u2 - w2 @ v1).sum(1, keepdims=True)) / (r * n + a)
    v1 = np.linalg.inv(r * w2.T @ w2 + g * np.eye(6)) @ (r * w2.T @ (u2 - b2) + g * np.maximum(u1, 0))
    near = (r * (w1 @ v0 + b1) + a * u1) / (r + a)
    u1 = relu_prox(torch.tensor(v1), torch.tensor(near), (r + a) / g).numpy()
    w1 = (a * w1 + r * (u1 - b1) @ v0.T) @ np.linalg.inv(a * np.eye(4) + r * v0 @ v0.T)
    b1 = (a * b1 + r * (u1 - w1 @ v0).sum(1, keepdims=True)) / (r * n + a)
    trainer.sweep()
    for got, wanted in zip([*trainer.weights, *trainer.biases], [w1, w2, b1[:, 0], b2[:, 0]]):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10)
    np.testing.assert_allclose(trainer.activations[1].numpy(), v1.T, rtol=1e-10)
    value = 0.5 * ((v2 - target) ** 2).sum() + g / 2 * ((v1 - np.maximum(u1, 0)) ** 2).sum()
    value += g / 2 * ((v2 - u2) ** 2).sum()
    value += r / 2 * (((u1 - w1 @ v0 - b1) ** 2).sum() + ((u2 - w2 @ v1 - b2) ** 2).sum())
    assert trainer.objective().item() == pytest.approx(value, rel=1e-12)


@pytest.mark.holds("block-coordinate-descent", 4)
def test_there_is_no_graph_and_the_module_predicts_alike():
    trainer, x, y = started()
    values = trainer.fit(x.requires_grad_(), y, sweeps=3)
    held = [*trainer.weights, *trainer.biases, *trainer.activations, *trainer.preactivations, values]
    assert not any(tensor.requires_grad for tensor in held)
    module = trainer.to_module()
    assert [type(layer) for layer in module] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(module(x), trainer.predict(x))
    assert all(p.requires_grad for p in module.parameters())
    module[0].weight.data.zero_()
    assert bool(trainer.weights[0].any())


def test_it_learns_and_a_forward_pass_starts_without_penalty():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 2, generator=generator)
    y = (x.square().sum(1) > 1.4).long()
    trainer = BCDTrainer([2, 20, 20, 2], generator=generator, scale=0.5)
    values = trainer.fit(x, y, sweeps=60)
    assert len(values) == 61
    assert float((trainer.predict(x).argmax(1) == y).float().mean()) > 0.9
    trainer.begin(x, nn.functional.one_hot(y, 2).float())
    outputs = trainer.predict(x)
    wanted = 0.5 * (outputs - nn.functional.one_hot(y, 2)).square().sum()
    torch.testing.assert_close(trainer.objective(), wanted)
    assert torch.equal(BCDTrainer([2, 3]).biases[0], torch.full((3,), 0.1))


def test_what_it_refuses():
    with pytest.raises(ValueError, match="sizes: expected at least two widths > 0"):
        BCDTrainer([3])
    with pytest.raises(ValueError, match="gamma: expected a number > 0"):
        BCDTrainer([3, 2], gamma=0.0)
    with pytest.raises(ValueError, match="alpha: expected a number >= 0"):
        BCDTrainer([3, 2], alpha=-1.0)
    trainer = BCDTrainer([3, 2])
    with pytest.raises(ValueError, match="samples: expected fit or begin before"):
        trainer.objective()
    with pytest.raises(ValueError, match="x: expected shape"):
        trainer.fit(torch.ones(4, 2), torch.zeros(4).long(), 1)
    with pytest.raises(ValueError, match=r"y: expected values in 0\.\.1"):
        trainer.fit(torch.ones(4, 3), torch.full((4,), 2), 1)
    with pytest.raises(ValueError, match="y: expected shape"):
        trainer.fit(torch.ones(4, 3), torch.ones(4, 3), 1)
    with pytest.raises(ValueError, match="g: expected a number > 0"):
        relu_prox(torch.ones(1), torch.ones(1), 0.0)
    with pytest.raises(ValueError, match="activations: expected one more than layers"):
        three_splitting_objective(torch.ones(1, 1), [torch.ones(1, 1)], [], [torch.ones(1, 1)], [torch.ones(1)])
