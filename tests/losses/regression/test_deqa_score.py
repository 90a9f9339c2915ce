"""Score distributions against the card's numbers, naive loops with scipy, and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from steepest.losses.regression.deqa_score import (
    DeQALoss,
    ScoreDistributionLoss,
    ThurstoneFidelityLoss,
    gaussian_soft_label,
    level_score,
    score_distribution_loss,
    thurstone_fidelity,
)

V = np.array([5.0, 4.0, 3.0, 2.0, 1.0])


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def naive(mu, sd, mode, levels=V):
    """The label of one rating, in loops, with scipy's normal law."""
    step, centre = abs(levels[0] - levels[1]), levels.mean()
    if sd < 0.2:
        return [max(0.0, 1 - abs(v - mu) / step) for v in levels], 1.0, 0.0
    if mode == "pdf":
        p = [norm.pdf(v, mu, sd) for v in levels]
    else:
        p = [norm.cdf(v + step / 2, mu, sd) - norm.cdf(v - step / 2, mu, sd) for v in levels]
    total, first = sum(p), sum(a * v for a, v in zip(p, levels))
    alpha = (mu - centre) / (first - centre * total)
    beta = (1 - alpha * total) / len(levels)
    q = [max(alpha * a + beta, 0.0) for a in p]
    if abs(sum(a * v for a, v in zip(q, levels)) - mu) > 0.1:
        q = [max(0.0, 1 - abs(v - mu) / step) for v in levels]
    return q, alpha, beta


@pytest.mark.holds("deqa-score", 1)
def test_card_label_by_density():
    q = gaussian_soft_label(t(3.6), t(0.7))[0].numpy()
    np.testing.assert_allclose(q, [0.076516, 0.486625, 0.396567, 0.040926, 0], atol=1e-6)
    assert q @ V == pytest.approx(3.6006, abs=5e-5)
    assert q.sum() == pytest.approx(1.0006, abs=5e-5)
    wanted, alpha, beta = naive(3.6, 0.7, "pdf")
    assert (alpha, beta) == (pytest.approx(1.007789, abs=1e-6), pytest.approx(-0.001214, abs=1e-6))
    np.testing.assert_allclose(q, wanted, atol=1e-12)


@pytest.mark.holds("deqa-score", 1)
def test_card_label_by_mass():
    q = gaussian_soft_label(t(3.6), t(0.7), mode="cdf")[0].numpy()
    np.testing.assert_allclose(q, [0.0949, 0.4625, 0.3890, 0.0550, 0], atol=1e-4)


@pytest.mark.holds("deqa-score", 1)
@pytest.mark.parametrize("mode", ["pdf", "cdf"])
@pytest.mark.parametrize("levels", [V, np.array([0.0, 10.0, 20.0, 30.0])])
def test_labels_agree_with_a_loop(mode, levels):
    unit = abs(levels[0] - levels[1])
    mu = levels.min() + unit * np.array([0.13, 0.8, 1.1, 1.9, 2.7])
    for sd in (0.1, 0.5, 0.9, 1.6):
        if unit == 1.0 or sd > 0.2:
            wanted = [naive(m, sd * unit, mode, levels)[0] for m in mu]
            found = gaussian_soft_label(
                torch.from_numpy(mu), torch.full((5,), sd * unit).double(), tuple(levels), mode=mode
            )
            np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


@pytest.mark.holds("deqa-score", 2)
def test_card_fidelity():
    pair = (t(3.2), t(3.1), t(3.6), t(3.0), t(0.7), t(0.5))
    assert ThurstoneFidelityLoss()(*pair).item() == pytest.approx(0.029142, abs=1e-6)
    g, h = norm.cdf(0.6 / math.sqrt(0.74)), norm.cdf(0.1 / math.sqrt(2))
    assert (g, h) == (pytest.approx(0.757251, abs=1e-6), pytest.approx(0.528186, abs=1e-6))
    wanted = 1 - math.sqrt(g * h + 1e-8) - math.sqrt((1 - g) * (1 - h) + 1e-8)
    assert thurstone_fidelity(*pair).item() == pytest.approx(wanted, abs=1e-12)
    h = norm.cdf(0.1 / math.hypot(0.3, 0.4))
    wanted = 1 - math.sqrt(g * h + 1e-8) - math.sqrt((1 - g) * (1 - h) + 1e-8)
    found = ThurstoneFidelityLoss(fixed_std=False)(*pair, t(0.3), t(0.4))
    assert found.item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.holds("deqa-score", 3)
def test_fidelity_is_symmetric_bounded_and_zero_at_agreement():
    generator = torch.Generator().manual_seed(1)
    a, b, ma, mb = 3 * torch.randn(4, 200, generator=generator, dtype=torch.float64)
    sa, sb = torch.rand(2, 200, generator=generator, dtype=torch.float64)
    found = thurstone_fidelity(a, b, ma, mb, sa, sb, reduction="none")
    torch.testing.assert_close(
        found, thurstone_fidelity(b, a, mb, ma, sb, sa, reduction="none"), rtol=1e-12, atol=1e-12
    )
    assert bool(((found >= -1.01e-4) & (found <= 1)).all())
    assert found.max() > 0.9
    same = thurstone_fidelity(ma, mb, ma, mb, sa, sb, std_a=sa, std_b=sb, reduction="none")
    # each root gains at most sqrt(eps), where its product is 0
    assert bool((same.abs() <= 2e-4).all())
    middle = thurstone_fidelity(t(3.0), t(2.5), t(3.0), t(2.5), t(1.0), t(1.0))
    assert abs(middle.item()) < 1e-7


def test_no_gradient_reaches_the_ratings():
    tensors = [t(v).requires_grad_() for v in (3.2, 3.1, 3.6, 3.0, 0.7, 0.5)]
    thurstone_fidelity(*tensors).backward()
    assert all(x.grad is None for x in tensors[2:])
    assert tensors[0].grad.item() == -tensors[1].grad.item() != 0.0


@pytest.mark.holds("deqa-score", 4)
@pytest.mark.parametrize("mode", ["pdf", "cdf"])
def test_a_small_spread_interpolates(mode):
    mu = torch.linspace(1, 5, 33, dtype=torch.float64)
    for sd in (0.0, 1e-3, 0.19):
        q = gaussian_soft_label(mu, torch.full_like(mu, sd), mode=mode)
        torch.testing.assert_close(q @ torch.from_numpy(V), mu, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(q.sum(1), torch.ones_like(mu), rtol=1e-14, atol=1e-14)
        assert int((q > 0).sum(1).max()) <= 2
    assert gaussian_soft_label(t(3.25), t(0.0)).tolist() == [[0, 0.25, 0.75, 0, 0]]


@pytest.mark.holds("deqa-score", 5)
def test_uniform_scores_the_middle():
    score, std = level_score(torch.zeros(2, 5, dtype=torch.float64))
    assert score.tolist() == pytest.approx([3.0, 3.0], abs=1e-12)
    assert std.tolist() == pytest.approx([math.sqrt(2.0)] * 2, rel=1e-12)


def test_score_and_spread_agree_with_numpy():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    score, std = level_score(logits)
    np.testing.assert_allclose(score.numpy(), [np.average(V, weights=w) for w in p], rtol=1e-12)
    np.testing.assert_allclose(
        std.numpy(), [np.sqrt(np.average((V - np.average(V, weights=w)) ** 2, weights=w)) for w in p]
    )
    sure = torch.tensor([[1e4, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(level_score(sure)[1].sum(), sure)
    assert bool(slope.isfinite().all())


def test_the_middle_is_symmetric_and_no_uniform_label():
    for mode in ("pdf", "cdf"):
        q = gaussian_soft_label(t(3.0), t(0.6), mode=mode)[0]
        torch.testing.assert_close(q, q.flip(0))
        assert q[2] > 0.5
        assert q.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_clipping_breaks_the_sum_and_renormalising_mends_it():
    raw = gaussian_soft_label(t(4.5), t(1.0), largest_gap=1.0)
    assert raw.sum().item() > 1.05
    mended = gaussian_soft_label(t(4.5), t(1.0), largest_gap=1.0, renormalize=True)
    torch.testing.assert_close(mended, raw / raw.sum())


def test_divergence_pays_for_other_words():
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    soft = gaussian_soft_label(t(1.2, 2.0, 3.3, 4.1, 5.0), t(0.5, 0.1, 0.9, 0.6, 0.3), renormalize=True)
    tokens = (6, 1, 0, 7, 3)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    wanted = [
        sum(q * math.log(q / p[i, k]) for q, k in zip(row, tokens) if q > 0) for i, row in enumerate(soft.tolist())
    ]
    found = score_distribution_loss(logits, soft, level_tokens=tokens, reduction="none")
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    closed = ScoreDistributionLoss()(logits[:, list(tokens)], soft)
    assert closed < found.mean()
    perfect = ScoreDistributionLoss()(soft.clamp_min(1e-300).log(), soft)
    assert perfect.item() == pytest.approx(0.0, abs=1e-12)


def test_the_whole_loss_is_the_weighted_sum_of_its_parts():
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    mu_a, mu_b, sd = t(1.5, 2.0, 4.4, 3.0), t(3.5, 2.2, 1.4, 3.0), t(0.5, 0.6, 0.7, 0.1)
    tokens = [6, 1, 0, 4, 3]
    for fixed in (True, False):
        loss = DeQALoss(level_tokens=tokens, fixed_std=fixed, weight_rank=2.0, weight_kl=0.5)
        (sa, da), (sb, db) = (level_score(x[:, tokens]) for x in (a, b))
        rank = thurstone_fidelity(sa, sb, mu_a, mu_b, sd, sd, **({} if fixed else {"std_a": da, "std_b": db}))
        both = torch.cat([gaussian_soft_label(mu_a, sd), gaussian_soft_label(mu_b, sd)])
        kl = score_distribution_loss(torch.cat([a, b]), both, level_tokens=tokens)
        wanted = 2 * rank + 0.5 * kl + 0.05 * 1.7
        torch.testing.assert_close(loss(a, b, mu_a, mu_b, sd, sd, next_token=t(1.7)[0]), wanted)
        assert set(loss.terms) == {"fidelity", "kl", "next_token"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_soft_label(t(5.5), t(1.0)), r"mu: expected means in \[1, 5\]"),
        (lambda: gaussian_soft_label(t(3.0), t(-1.0)), "sd: expected values >= 0"),
        (lambda: gaussian_soft_label(t(3.0), t(1.0), (1, 2, 4)), "levels: expected at least two evenly spaced"),
        (lambda: gaussian_soft_label(t(3.0), t(1.0), mode="mid"), "mode: expected one of"),
        (lambda: level_score(torch.zeros(2, 4)), r"logits: expected shape \(\*, 5\)"),
        (lambda: ThurstoneFidelityLoss()(*[t(1.0)] * 8), "std_a, std_b: expected None"),
        (lambda: ThurstoneFidelityLoss(fixed_std=False)(*[t(1.0)] * 6), "std_a, std_b: expected predicted"),
        (lambda: score_distribution_loss(torch.zeros(1, 5), torch.ones(1, 2), level_tokens=(1, 5)), "level_tokens"),
        (lambda: score_distribution_loss(torch.zeros(1, 5), -torch.ones(1, 2)), "soft: expected values >= 0"),
        (lambda: DeQALoss(weight_rank=-1.0), "weight_rank: expected"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
