"""Neural bandits: the card's probabilities, the ridge identity of the perturbation, naive steps in NumPy and torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from steepest.optim.online import (
    NeuFastCB,
    NeuSquareCB,
    PerturbedNetwork,
    inverse_gap_weighting,
    online_regression_step,
)

PRED = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def network(draws=8, c_p=0.1, width=None, seed=0):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return PerturbedNetwork(net, c_p, draws, seed, width)


def move(perturbed, scale=0.3):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in perturbed.weights:
            weight.add_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def rows(n=4):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.holds("neural-bandits", 1)
def test_the_probabilities_of_the_card():
    square = torch.tensor([0.830065, 0.111111, 0.058824], dtype=torch.float64)
    fast = torch.tensor([0.955998, 0.030303, 0.013699], dtype=torch.float64)
    torch.testing.assert_close(inverse_gap_weighting(PRED, 20.0), square, rtol=0.0, atol=6e-7)
    torch.testing.assert_close(inverse_gap_weighting(PRED, 20.0, fast=True), fast, rtol=0.0, atol=6e-7)


@pytest.mark.holds("neural-bandits", 2)
@pytest.mark.parametrize("fast", [False, True])
def test_uniform_without_gamma_or_gaps_and_the_best_has_most(fast):
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(inverse_gap_weighting(PRED, 0.0, fast), even)
    torch.testing.assert_close(inverse_gap_weighting(torch.full_like(PRED, 0.4), 50.0, fast), even)
    pred = torch.rand(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = inverse_gap_weighting(pred, 12.0, fast)
    torch.testing.assert_close(shares.sum(1), torch.ones(40, dtype=torch.float64))
    assert torch.equal(shares.argmax(1), pred.argmin(1))
    for row, wanted in zip(pred.numpy(), shares.numpy()):
        best = int(row.argmin())
        naive = np.array(
            [(row[best] if fast else 1) / ((row[best] if fast else 1) * 7 + 12 * (v - row[best])) for v in row]
        )
        naive[best] = 0
        naive[best] = 1 - naive.sum()
        np.testing.assert_allclose(wanted, naive, rtol=1e-12)


@pytest.mark.holds("neural-bandits", 2)
@pytest.mark.parametrize("fast", [False, True])
def test_the_best_of_many_has_most_in_float32_too(fast):
    """In float32 its share, a difference, would be 17% too small among a million."""
    for seed in range(5):
        pred = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) + 0.1
        shares = inverse_gap_weighting(pred, 1e-4, fast)
        assert shares.dtype == torch.float32
        assert shares[pred.argmin()] == shares.max()
    even = inverse_gap_weighting(torch.full((1_000_000,), 0.4), 0.0, fast)
    torch.testing.assert_close(even, torch.full_like(even, 1e-6), rtol=1e-6, atol=0.0)


def test_large_predictions_do_not_overflow():
    pred = torch.tensor([2e38, 2e38, 3e38])
    torch.testing.assert_close(inverse_gap_weighting(pred, 0.0, fast=True), torch.full((3,), 1 / 3))
    shares = inverse_gap_weighting(pred, 3.0, fast=True)
    torch.testing.assert_close(shares, torch.tensor([1 - 1 / 3 - 2 / 9, 1 / 3, 2 / 9]))


@pytest.mark.holds("neural-bandits", 3)
def test_all_mass_on_the_best_where_its_predicted_loss_is_0():
    for pred in ([0.3, 0.0, 0.7], [0.3, 0.0, 0.0], [0.5, 0.0, 1e-30]):
        for gamma in (0.0, 20.0):
            shares = inverse_gap_weighting(torch.tensor(pred), gamma, fast=True)
            assert shares.tolist() == [0.0, 1.0, 0.0]
    assert inverse_gap_weighting(torch.tensor([0.1, 0.2]).half(), 2.0).dtype == torch.float32


@pytest.mark.holds("neural-bandits", 4)
def test_no_perturbation_at_the_start_and_draws_that_stay():
    perturbed, x = network(draws=6), rows()
    plain = perturbed.net(x).squeeze(1)
    torch.testing.assert_close(perturbed(x), plain.expand(6, 4), rtol=0.0, atol=0.0)
    signs = perturbed.signs.clone()
    move(perturbed)
    away = perturbed(x) - perturbed.net(x).squeeze(1)
    moved = np.concatenate([w.detach().numpy().ravel() for w in perturbed.net.parameters()]) - perturbed.start.numpy()
    naive = 0.1 / 5**0.25 * signs.numpy() @ moved
    np.testing.assert_allclose(away.detach().numpy(), np.repeat(naive[:, None], 4, 1), atol=1e-12)
    assert torch.equal(perturbed(x), perturbed(x))
    assert torch.equal(perturbed.signs, signs)
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert torch.equal(network(draws=6).signs, signs)
    assert not torch.equal(network(draws=6, seed=1).signs, signs)
    assert float(away.detach().std(0).min()) > 0


@pytest.mark.holds("neural-bandits", 5)
def test_the_mean_over_draws_is_the_ridge_identity():
    torch.manual_seed(1)
    perturbed, x = PerturbedNetwork(nn.Linear(3, 1).double(), 1.0, 200_000, width=9), rows(1)
    move(perturbed, 1.0)
    y = torch.tensor([0.3], dtype=torch.float64)
    ridge = perturbed.displacement().square().sum() / (2 * 9**0.5)
    wanted = float((0.5 * (y - perturbed.net(x).squeeze()).square().sum() + ridge).detach())
    assert float(ridge.detach()) > 0.05 * wanted
    # the mean's deviation is at most (1 + 2^0.5) / 200,000^0.5 of it: 0.54%
    assert float(perturbed.loss(x, y).detach()) == pytest.approx(wanted, rel=1e-2)
    perturbed.signs = 2 * torch.cartesian_prod(*[torch.arange(2.0).double()] * 4) - 1
    assert float(perturbed.loss(x, y).detach()) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("neural-bandits", 6)
def test_kl_is_cross_entropy_at_0_and_1_and_0_where_the_prediction_is_right():
    perturbed, x = network(), rows()
    move(perturbed)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    outputs = perturbed(x)
    bce = torch.stack([binary_cross_entropy_with_logits(row, y) for row in outputs]).mean()
    torch.testing.assert_close(perturbed.loss(x, y, "kl"), bce)
    soft = torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    guess = outputs.detach().sigmoid()
    naive = (soft * (soft / guess).log() + (1 - soft) * ((1 - soft) / (1 - guess)).log()).mean()
    torch.testing.assert_close(perturbed.loss(x, soft, "kl").detach(), naive)
    fresh = network()
    right = fresh.net(x).squeeze(1).sigmoid().detach()
    assert float(fresh.loss(x, right, "kl").detach()) == pytest.approx(0.0, abs=1e-12)
    for wrong in (1.01, -0.01):
        with pytest.raises(ValueError, match=r"y: expected losses in \[0, 1\]"):
            online_regression_step(perturbed, x[:1], torch.tensor([wrong], dtype=torch.float64), 0.1, loss="kl")
        bandit = NeuFastCB(network(), 5.0, 0.1)
        bandit.act(x)
        with pytest.raises(ValueError, match="loss: expected a number >= 0 and <= 1"):
            bandit.update(wrong)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ["square", "kl"])
def test_the_loss_of_half_networks_is_float32(kind, loss):
    net = PerturbedNetwork(nn.Linear(3, 1).to(kind), seed=1)
    move(net)
    x, y = rows(4).to(kind), torch.tensor([0.2, 0.9, 0.0, 1.0]).to(kind)
    outputs = net(x).detach().float()
    wide = y.float()
    kl = (
        binary_cross_entropy_with_logits(outputs, wide.expand_as(outputs))
        + (torch.xlogy(wide, wide) + torch.xlogy(1 - wide, 1 - wide)).mean()
    )
    wanted = kl if loss == "kl" else 0.5 * (wide - outputs).square().mean()
    torch.testing.assert_close(net.loss(x, y, loss).detach(), wanted)


def test_the_projection_of_a_step_beyond_squares():
    """A step of 1e25: its square is infinite in float32, the ball is reached in its direction all the same."""
    net = PerturbedNetwork(nn.Linear(2, 1, bias=False), c_p=0.0)
    nn.init.zeros_(net.net.weight)
    net.start.zero_()
    online_regression_step(net, torch.ones(1, 2), torch.tensor([1.0]), 1e25, 0.5)
    assert net.net.weight.tolist()[0] == pytest.approx([0.125**0.5] * 2)


@pytest.mark.parametrize("loss", ["square", "kl"])
def test_a_step_is_the_gradient_of_the_mean_over_draws_then_a_projection(loss):
    for radius in (None, 0.05):
        perturbed, x = network(), rows(1)
        move(perturbed, 0.2)
        weights = (perturbed.displacement() + perturbed.start).detach()
        flat = weights.clone().requires_grad_()
        hidden = torch.tanh(flat[:15].view(5, 3) @ x[0] + flat[15:20])
        f = flat[20:25] @ hidden + flat[25]
        outputs = torch.stack([f + 0.1 / 5**0.25 * (flat - perturbed.start) @ sign for sign in perturbed.signs])
        y = torch.tensor(0.8, dtype=torch.float64)
        guess = outputs.sigmoid()
        kl = y * (y / guess).log() + (1 - y) * ((1 - y) / (1 - guess)).log()
        value = (kl if loss == "kl" else 0.5 * (y - outputs) ** 2).mean()
        (slope,) = torch.autograd.grad(value, flat)
        wanted = weights - 0.3 * slope
        if radius is not None:
            away = wanted - perturbed.start
            wanted = perturbed.start + away * radius / away.norm()
        got = online_regression_step(perturbed, x, y[None], 0.3, radius, loss)
        torch.testing.assert_close(got, value.detach())
        torch.testing.assert_close(torch.cat([w.detach().flatten() for w in perturbed.weights]), wanted)


@pytest.mark.parametrize("bandit", [NeuSquareCB, NeuFastCB])
def test_a_bandit_learns_which_action_is_good(bandit):
    x, wins = torch.eye(3).double(), 0
    player = bandit(network(), 60.0, 0.3, generator=torch.Generator().manual_seed(0))
    before = player.probabilities(x)
    torch.testing.assert_close(
        before, inverse_gap_weighting(player.network.predict(x, player.loss), 60.0, bandit is NeuFastCB)
    )  # fmt: skip
    for number in range(120):
        action, prob = player.act(x)
        assert prob == pytest.approx(float(player.probabilities(x)[action]))
        player.update(float(action != 2))
        wins += action == 2 and number >= 60
    assert wins > 45
    assert int(player.probabilities(x).argmax()) == 2


def test_same_seed_same_actions():
    def actions():
        player = NeuSquareCB(network(), 5.0, 0.1, generator=torch.Generator().manual_seed(7))
        drawn = []
        for _ in range(30):
            drawn.append(player.act(rows(3))[0])
            player.update(0.5)
        return drawn

    assert actions() == actions()
    assert len(set(actions())) == 3


def test_what_it_refuses():
    with pytest.raises(ValueError, match="gamma: expected a number >= 0"):
        inverse_gap_weighting(PRED, -1.0)
    for make in (partial(inverse_gap_weighting, PRED), partial(NeuSquareCB, nn.Linear(2, 1), lr=0.1)):
        with pytest.raises(ValueError, match="gamma: expected a finite number >= 0, got inf"):
            make(gamma=torch.inf)
    with pytest.raises(ValueError, match=r"net: expected one output a row, of shape \(4,\) or \(4, 1\)"):
        PerturbedNetwork(nn.Linear(3, 2).double())(rows())
    with pytest.raises(ValueError, match=r"context: expected shape \(1, \*\)"):
        NeuSquareCB(network(), 1.0, 0.1).learn(rows(2), 0.5)
    with pytest.raises(ValueError, match="pred: expected at least 1 action"):
        inverse_gap_weighting(PRED[:0], 1.0)
    with pytest.raises(ValueError, match="pred: expected predicted losses >= 0"):
        inverse_gap_weighting(-PRED, 1.0, fast=True)
    with pytest.raises(ValueError, match="net: expected a module with weights to train"):
        PerturbedNetwork(nn.ReLU())
    with pytest.raises(ValueError, match="num_draws: expected an integer >= 1"):
        PerturbedNetwork(nn.Linear(2, 1), num_draws=0)
    with pytest.raises(ValueError, match="radius: expected a number > 0"):
        NeuSquareCB(nn.Linear(2, 1), 1.0, 0.1, 0.0)
    with pytest.raises(ValueError, match="lr: expected a number > 0"):
        online_regression_step(network(), rows(1), torch.tensor([0.5], dtype=torch.float64), 0.0)
    with pytest.raises(RuntimeError, match="expected an action first"):
        NeuSquareCB(nn.Linear(2, 1), 1.0, 0.1).update(0.5)
