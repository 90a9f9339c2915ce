"""Weights of samples by their current losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from steepest.data.weighting import DynamicLossReweighter, loss_reweight
from steepest.data.weighting.dynamic_reweighting import STRATEGIES

LOSSES = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)


def by_hand(losses, strategy, r, d=1.0):
    low, high = min(losses), max(losses)
    scores = []
    for value in losses:
        h = 2 * d * value / (high - low) - d * (high + low) / (high - low)
        scores.append(
            {
                "linupper": min(h + d, d),
                "upper": (h + d) / 2,
                "quadratic": 1 - h * h / d**2,
                "extremes": abs(h),
                "uniform": 0.0,
            }[strategy]
        )
    total = sum(math.exp(f / r) for f in scores)
    return [math.exp(f / r) / total for f in scores]


def drawn(seed=0, n=9):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4


@pytest.mark.holds("dynamic-reweighting", 1)
@pytest.mark.parametrize(
    ("strategy", "weights", "loss"),
    [
        ("linupper", [0.034656, 0.120960, 0.422192, 0.422192], 3.654113),
        ("quadratic", [0.048301, 0.314965, 0.588432, 0.048301], 2.685035),
        ("extremes", [0.422192, 0.120960, 0.034656, 0.422192], 2.879040),
    ],
)
def test_four_losses(strategy, weights, loss):
    assert loss_reweight(LOSSES, strategy).tolist() == pytest.approx(weights, abs=1e-6)
    assert DynamicLossReweighter(strategy, warmup=0)(LOSSES, 0).item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.holds("dynamic-reweighting", 2)
def test_temperatures():
    assert DynamicLossReweighter(temperature=1.0, warmup=0)(LOSSES, 0).item() == pytest.approx(3.221123, abs=1e-6)
    for strategy in STRATEGIES:
        flat = DynamicLossReweighter(strategy, 1e9, warmup=0)(LOSSES, 0).item()
        assert flat == pytest.approx(LOSSES.mean().item(), abs=1e-7)


@pytest.mark.holds("dynamic-reweighting", 3)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_do_not_see_scale_and_have_no_gradient(strategy):
    losses = drawn().requires_grad_()
    weights = loss_reweight(losses, strategy)
    assert not weights.requires_grad
    assert weights.sum().item() == pytest.approx(1.0)
    for a, b in ((3.0, 0.0), (0.01, 5.0), (100.0, -70.0)):
        moved = loss_reweight(a * losses + b, strategy)
        torch.testing.assert_close(moved, weights, rtol=1e-9, atol=1e-12)
    loss = DynamicLossReweighter(strategy, warmup=0)(losses, 0)
    (slope,) = torch.autograd.grad(loss, losses)
    assert torch.equal(slope, weights)


@pytest.mark.holds("dynamic-reweighting", 4)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_equal_losses(strategy, value):
    weights = loss_reweight(torch.full((7,), value), strategy)
    torch.testing.assert_close(weights, torch.full((7,), 1 / 7))
    assert loss_reweight(torch.tensor([value]), strategy).tolist() == [1.0]


@pytest.mark.holds("dynamic-reweighting", 5)
def test_above_the_middle_all_weigh_the_same():
    losses = torch.tensor([0.0, 1.0, 4.9, 5.0, 5.1, 8.0, 10.0], dtype=torch.float64)
    weights = loss_reweight(losses)
    assert weights[3:].tolist() == pytest.approx([weights[3].item()] * 4, rel=1e-12)
    assert (weights[:3].diff() > 0).all()
    assert weights[2] < weights[3]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("r", "d"), [(0.4, 1.0), (2.0, 0.5), (0.7, 3.0)])
def test_by_hand(strategy, r, d):
    losses = drawn(1)
    wanted = by_hand(losses.tolist(), strategy, r, d)
    assert loss_reweight(losses, strategy, r, d).tolist() == pytest.approx(wanted, rel=1e-12)


def test_weights_are_those_of_the_robust_reading():
    losses, r = drawn(2, 5), 0.7
    scores = 1 - by_scores(losses) ** 2

    def negative(logits):
        w = np.exp(logits - logits.max())
        w = w / w.sum()
        return -(w @ scores - r * (w * np.log(w * 5)).sum())

    best = minimize(negative, np.zeros(5), tol=1e-12).x
    w = np.exp(best - best.max())
    assert loss_reweight(losses, "quadratic", r).tolist() == pytest.approx((w / w.sum()).tolist(), abs=1e-5)


def by_scores(losses):
    low, high = losses.min().item(), losses.max().item()
    return (2 * losses.numpy() - high - low) / (high - low)


def test_an_outlier_is_cut_off():
    losses = torch.cat([drawn(3, 40), torch.tensor([1000.0], dtype=torch.float64)])
    pressed = loss_reweight(losses)
    assert pressed[:-1].max() / pressed[:-1].min() < 1.05
    cut = loss_reweight(losses, quantile=0.95)
    assert cut[:-1].max() / cut[:-1].min() > 5
    wanted = by_hand(np.minimum(losses.numpy(), np.quantile(losses.numpy(), 0.95)).tolist(), "linupper", 0.4)
    assert cut.tolist() == pytest.approx(wanted)


def test_warm_up_and_lengths():
    losses, lengths = drawn(), torch.arange(1, 10)
    loss = DynamicLossReweighter(warmup=3)
    assert loss(losses, 2).item() == pytest.approx(losses.mean().item())
    per_token = (losses * lengths).sum() / lengths.sum()
    assert loss(losses, 2, lengths=lengths).item() == pytest.approx(per_token.item())
    weights = loss_reweight(losses)
    assert loss(losses, 3).item() == pytest.approx((weights * losses).sum().item())
    wanted = 9 * (weights * losses * lengths).sum() / lengths.sum()
    assert loss(losses, 3, lengths=lengths).item() == pytest.approx(wanted.item())
    assert loss(losses, 3, lengths=torch.full((9,), 4)).item() == pytest.approx((weights * losses).sum().item())


def test_of_per_sequence_losses_of_tokens():
    from steepest.losses.language.token_cross_entropy import TokenCrossEntropyLoss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (3, 4), generator=generator)
    labels[2, 1:] = -100
    per_token, valid = TokenCrossEntropyLoss().token_losses(logits, labels, None)
    per_sequence = torch.where(valid, per_token, 0.0).sum(1) / valid.sum(1)
    value = DynamicLossReweighter(warmup=0)(per_sequence, 0, lengths=valid.sum(1))
    nll = [
        np.mean([-logits[b, t].log_softmax(0)[labels[b, t]].item() for t in range(4) if labels[b, t] >= 0])
        for b in range(3)
    ]
    w = by_hand(nll, "linupper", 0.4)
    assert value.item() == pytest.approx(3 * sum(a * b * n / 9 for a, b, n in zip(w, nll, (4, 4, 1))))


def test_nothing_nan_and_half():
    none = torch.zeros(0, requires_grad=True)
    value = DynamicLossReweighter(warmup=0)(none, 0)
    assert value == 0.0
    assert value.requires_grad
    assert loss_reweight(torch.tensor([1.0, torch.nan]), "uniform").isnan().all()
    assert loss_reweight(torch.tensor([1.0, 2.0]).half()).dtype == torch.float32
    assert DynamicLossReweighter(warmup=0)(torch.zeros(2), 0, lengths=torch.zeros(2).long()) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "lower"}, "strategy: expected one of"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"delta": 0.0}, "delta: expected a number > 0"),
        ({"quantile": 0.0}, "quantile: expected"),
        ({"warmup": -1}, "warmup: expected"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicLossReweighter(**options)
    if "warmup" not in options:
        with pytest.raises(ValueError, match=message):
            loss_reweight(LOSSES, **options)


def test_refused_calls():
    with pytest.raises(ValueError, match="losses: expected 1 dimensions"):
        loss_reweight(LOSSES[None])
    with pytest.raises(ValueError, match="step: expected"):
        DynamicLossReweighter()(LOSSES, -1)
    with pytest.raises(ValueError, match="lengths: expected shape"):
        DynamicLossReweighter()(LOSSES, 0, lengths=torch.ones(3).long())
    with pytest.raises(ValueError, match="lengths: expected values >= 0"):
        DynamicLossReweighter()(LOSSES, 0, lengths=torch.tensor([-1, 1, 1, 1]))
