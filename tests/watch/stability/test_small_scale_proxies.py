"""Sensitivity to the rate, normalised queries and keys, z-loss, a sweep against torch's AdamW, a power law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.kernels import log_partition_penalty
from steepest.watch.stability import QKNorm, StabilitySweep, lr_sensitivity, predict_instability

RATES = [1e-3, 1e-2, 1e-1, 1.0]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("small-scale-proxies", 1)
def test_sensitivity():
    assert float(lr_sensitivity(RATES, torch.tensor([3.2, 3.0, 3.1, 8.0]), 7.0)) == pytest.approx(1.075)
    assert float(lr_sensitivity(RATES, torch.tensor([3.2, 3.0, torch.nan, torch.inf]), 7.0)) == pytest.approx(2.05)
    for value in (1.0, 9.0, math.nan):  # above the loss at the start all are alike
        assert float(lr_sensitivity(RATES, torch.full((4,), value), 7.0)) == 0.0
    losses = 3 + drawn(5, 4).abs()
    got = lr_sensitivity(RATES, losses, 4.0)
    for row, value in zip(losses.tolist(), got.tolist()):
        capped = [min(loss, 4.0) for loss in row]
        assert value == pytest.approx(sum(capped) / 4 - min(capped))
        assert value > 0
    starts = torch.tensor([4.0, 5.0, 4.0, 4.0, 4.0])
    assert float(lr_sensitivity(RATES, losses, starts)[1]) == pytest.approx(
        float(lr_sensitivity(RATES, losses[1], 5.0))
    )


@pytest.mark.holds("small-scale-proxies", 2)
def test_z_loss():
    """Which is the penalty on log-partitions of the room of kernels."""
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    log_z = math.log(math.exp(2) + math.exp(1) + 1)
    assert log_z == pytest.approx(2.407606, abs=5e-7)
    penalty = 1e-4 * log_partition_penalty(logits.logsumexp(1))
    assert float(penalty.detach()) == pytest.approx(5.79657e-4, abs=5e-9)
    (slope,) = torch.autograd.grad(penalty, logits)
    torch.testing.assert_close(slope, 2 * 1e-4 * log_z * logits.detach().softmax(1))


@pytest.mark.holds("small-scale-proxies", 5)
def test_a_constant_in_the_logits_changes_z_loss_alone():
    logits, target = drawn(6, 5), torch.arange(6) % 5
    plain = nn.functional.cross_entropy
    torch.testing.assert_close(plain(logits + 3, target), plain(logits, target))
    log_z = logits.logsumexp(1)
    moved = 1e-4 * (log_partition_penalty(log_z + 3) - log_partition_penalty(log_z))
    assert float(moved) == pytest.approx(1e-4 * float((6 * log_z + 9).mean()), rel=1e-9)


@pytest.mark.holds("small-scale-proxies", 3)
def test_a_query_and_a_key():
    q, k = torch.tensor([3.0, 4.0]).double(), torch.tensor([1.0, 0.0]).double()
    assert float(q @ k) / math.sqrt(2) == pytest.approx(2.121320, abs=5e-7)
    a, b = QKNorm(2).double()(q, k)
    assert float((a @ b).detach()) / math.sqrt(2) == pytest.approx(-1.414208, abs=5e-7)


@pytest.mark.holds("small-scale-proxies", 4)
def test_logits_are_bounded_whatever_the_scale():
    q, k = drawn(4, 50, 8), drawn(4, 60, 8, seed=1)
    norm = QKNorm(8, gains=False)

    def logits(q, k):
        a, b = norm(q, k)
        return a @ b.mT / math.sqrt(8)

    plain = logits(q, k)
    assert float(plain.abs().max()) <= math.sqrt(8)
    assert not list(norm.parameters())
    # eps is 1e-6 beside variances that are at least so large
    least = min(float(x.var(-1, correction=0).min()) for x in (q, k))
    for scale in (10.0, 1e6):
        torch.testing.assert_close(logits(scale * q, k), plain, rtol=2e-6 / least, atol=2e-6 / least)
        torch.testing.assert_close(logits(q, scale * k), plain, rtol=2e-6 / least, atol=2e-6 / least)
    gained = QKNorm(8).double()
    with torch.no_grad():
        gained.query.weight.fill_(5.0)
    a, b = gained(q, k)
    torch.testing.assert_close((a @ b.mT).detach() / math.sqrt(8), 5 * plain)


def quadratic(outputs_of, step):
    x = drawn(12, 3, seed=step).float()
    return (outputs_of(x) - x.sum(1, keepdim=True)).square().mean()


def network(width):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def test_a_sweep_is_training_by_torch_one_model_after_the_other():
    options = {"steps": 12, "warmup": 4, "betas": (0.8, 0.9), "eps": 1e-6, "floor": 0.1, "seed": 3}
    lrs, decay, clip = [1e-3, 1e-2, 1e-1], 1e-2, 0.5
    sweep = StabilitySweep(
        network, quadratic, lrs, [4, 6], decay=decay, clip=clip, window=2,
        measures={"first": lambda model: float(model[0].weight[0, 0])}, **options,
    )  # fmt: skip
    grid = sweep.run()
    for i, width in enumerate((4, 6)):
        for j, lr in enumerate(lrs):
            torch.manual_seed(3)
            model = network(width)
            # decay as torch has it is multiplied by the rate, so it is divided by it here
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=lr, betas=(0.8, 0.9), eps=1e-6, weight_decay=decay / lr
            )
            losses = []
            for step in range(12):
                along = (step - 4) / 8
                share = (step + 1) / 4 if step < 4 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * along))
                optimizer.param_groups[0]["lr"] = share * lr
                optimizer.zero_grad()
                loss = quadratic(model, step)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
                assert float(grid.gradient_norms[i, j, step]) == pytest.approx(float(norm), rel=1e-4)
                optimizer.step()
                losses.append(loss.item())
            np.testing.assert_allclose(grid.losses[i, j], losses, rtol=1e-4)
            assert float(grid.end_losses[i, j]) == pytest.approx(sum(losses[-2:]) / 2, rel=1e-4)
            assert float(grid.measured["first"][i, j]) == pytest.approx(float(model[0].weight[0, 0].detach()), rel=1e-3)
    wanted = lr_sensitivity(lrs, grid.end_losses, grid.losses[:, 0, 0])
    torch.testing.assert_close(grid.sensitivity, wanted)


def test_a_model_that_diverges_stops_alone():
    def loss(outputs_of, step):
        value = quadratic(outputs_of, 0)
        return value + torch.where(value.detach() > 50, torch.inf, 0.0)

    grid = StabilitySweep(network, loss, [1e-3, 1e-1, 10.0], [4], steps=8).run()
    assert bool(grid.losses[0, :2].isfinite().all())
    assert bool(grid.losses[0, 2, -1].isnan())
    assert grid.spikes()[0].tolist()[:2] == [0, 0]
    assert int(grid.spikes()[0, 2]) >= 5
    assert float(grid.sensitivity) == pytest.approx(
        float(lr_sensitivity([1e-3, 1e-1, 10.0], grid.end_losses[0], grid.init_loss[0]))
    )


def test_the_law_of_logits_by_numpy():
    sizes, logits = np.array([1e4, 3e4, 2e5, 1e6]), np.array([3.0, 7.0, 20.0, 90.0])
    slope, offset = np.polyfit(np.log(sizes), np.log(logits), 1)
    wanted = math.exp((math.log(1e4) - offset) / slope)
    assert predict_instability(sizes, logits) == pytest.approx(wanted, rel=1e-9)
    assert predict_instability([1.0, 10.0], [5.0, 5.0]) == math.inf
    assert predict_instability([1.0, 10.0], [5.0, 4.0]) == math.inf


def test_what_it_refuses():
    for lrs in ([1e-3], [1e-3, 1e-2, 1.0], [1e-2, 1e-3], [0.0, 1.0]):
        with pytest.raises(ValueError, match="lrs: expected"):
            lr_sensitivity(lrs, torch.zeros(len(lrs)), 1.0)
    with pytest.raises(ValueError, match="losses: expected shape"):
        lr_sensitivity(RATES, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="init_loss: expected a number or shape"):
        lr_sensitivity(RATES, torch.zeros(2, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="head_dim: expected an integer >= 2"):
        QKNorm(1)
    with pytest.raises(ValueError, match="k: expected shape"):
        QKNorm(4)(torch.zeros(4), torch.zeros(3))
    with pytest.raises(ValueError, match="sizes: expected at least 2"):
        predict_instability([1.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="max_logits: expected 2 numbers"):
        predict_instability([1.0, 2.0], [1.0, -2.0])
    with pytest.raises(ValueError, match="clip: expected a number > 0"):
        StabilitySweep(network, quadratic, RATES, [4], steps=3, clip=0.0)
    with pytest.raises(ValueError, match="widths: expected at least one"):
        StabilitySweep(network, quadratic, RATES, [], steps=3)


def test_a_loss_of_minus_infinity_counts_as_that_at_the_start():
    assert float(lr_sensitivity([0.1, 1.0], torch.tensor([-torch.inf, 1.0]), 2.0)) == 0.5


def test_a_model_whose_gradient_is_not_finite_stays_though_its_loss_is():
    def loss(outputs_of, step):
        return (0.0 * outputs_of(torch.ones(1, 4))).sum().sqrt()

    grid = StabilitySweep(lambda width: nn.Linear(width, 1), loss, [1e-3, 1e-2], [4], steps=2).run()
    assert bool(grid.losses.isnan().all())
    assert bool(grid.gradient_norms.isnan().all())
