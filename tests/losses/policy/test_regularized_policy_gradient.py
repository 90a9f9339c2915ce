"""Regularised policy gradients: the paper's table in numbers, exact expectations, styles, clipping, saturation."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.kl_estimators import kl_of_logits
from steepest.losses import RPGLoss, kl_estimator, rpg_loss
from steepest.losses.policy.regularized_policy_gradient import DIVERGENCES, STYLES

LOGP, OLD, A = ([-1.0, -2.0, -0.5], [-1.2, -1.5, -0.5], [1.0, -1.0, 0.5])
TABLE = {
    "fkl": (-0.254957, [-0.4405, 0.1688, -0.2000]),
    "rkl": (-0.373590, [-0.3583, 0.2123, -0.1333]),
    "ufkl": (-0.367360, [-0.3998, 0.1891, -0.1667]),
    "urkl": (-0.367855, [-0.3990, 0.1921, -0.1667]),
}


def row(*numbers):
    return [torch.tensor([n], dtype=torch.float64) for n in numbers]


def gradient(logp, *args, **kwargs):
    leaf = logp.clone().requires_grad_()
    value = rpg_loss(leaf, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def drawn(seed=0, shape=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    logp, shift, advantages, ref = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    logp = -logp.abs()
    return logp, logp + 0.5 * shift, advantages, torch.rand(shape, generator=generator) < 0.7, logp + 0.5 * ref


@pytest.mark.holds("regularized-policy-gradient", 1)
@pytest.mark.parametrize("kl", DIVERGENCES)
def test_table(kl):
    logp, old, advantages = row(LOGP, OLD, A)
    value, slope = gradient(logp, old, advantages, torch.ones(1, 3, dtype=torch.bool), kl, 0.1)
    assert float(value) == pytest.approx(TABLE[kl][0], abs=5e-7)
    assert slope[0].tolist() == pytest.approx(TABLE[kl][1], abs=6e-5)


def by_loop(logp, old, advantages, mask, ref, kl, beta):
    """Each token by itself, from probabilities."""
    losses = []
    for lp, lo, a, m, lr in zip(*(t.flatten().tolist() for t in (logp, old, advantages, mask, ref))):
        if not m:
            continue
        p, q, r = math.exp(lp), math.exp(lo), math.exp(lr)
        penalty = {
            "fkl": -r / q * lp,
            "rkl": p / q * math.log(p / r),
            "ufkl": r / q * (p / r - math.log(p / r) - 1),
            "urkl": p / q * (math.log(p / r) - 1 + r / p),
        }[kl]
        losses.append(-p / q * a + beta * penalty)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kl", DIVERGENCES)
def test_against_a_loop_with_a_reference_of_its_own(kl):
    logp, old, advantages, mask, ref = drawn()
    own = rpg_loss(logp, old, advantages, mask, kl, 0.3, ref_logp=ref)
    assert float(own) == pytest.approx(by_loop(logp, old, advantages, mask, ref, kl, 0.3), rel=1e-12)
    same = rpg_loss(logp, old, advantages, mask, kl, 0.3, ref_logp=old)
    torch.testing.assert_close(rpg_loss(logp, old, advantages, mask, kl, 0.3), same, rtol=1e-13, atol=0)


@pytest.mark.holds("regularized-policy-gradient", 2)
@pytest.mark.parametrize("kl", DIVERGENCES)
@pytest.mark.parametrize("with_reference", [False, True])
def test_styles_have_one_gradient(kl, with_reference):
    logp, old, advantages, mask, ref = drawn()
    old[0, 0] = logp[0, 0] - 19.9  # ratios up to e^20
    own = {"ref_logp": ref} if with_reference else {}
    (_, first), (_, second) = (gradient(logp, old, advantages, mask, kl, 0.3, style, **own) for style in STYLES)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kl", DIVERGENCES)
def test_differentiable_losses_have_the_gradient_of_their_value(kl):
    logp, old, advantages, mask, ref = drawn()
    for own in ({}, {"ref_logp": ref}):
        assert torch.autograd.gradcheck(
            lambda t, own=own: rpg_loss(t, old, advantages, mask, kl, 0.3, **own), logp.clone().requires_grad_()
        )


@pytest.mark.holds("regularized-policy-gradient", 3)
@pytest.mark.parametrize(("kl", "score"), [("fkl", -1.0), ("rkl", 1.0), ("ufkl", 0.0), ("urkl", 0.0)])
def test_on_policy_gradients(kl, score):
    logp, _, advantages, _, _ = drawn()
    _, slope = gradient(logp, logp, advantages, torch.ones(4, 5, dtype=torch.bool), kl, 0.3)
    rest = slope + advantages / 20
    torch.testing.assert_close(rest, torch.full_like(rest, 0.3 * score / 20), rtol=1e-12, atol=1e-15)
    if score == 0:
        assert rest.abs().max() <= 1e-16


@pytest.mark.holds("regularized-policy-gradient", 4)
@pytest.mark.parametrize("kl", DIVERGENCES)
def test_no_divergence_is_the_weighted_policy_gradient(kl):
    logp, old, advantages, mask, _ = drawn()
    _, slope = gradient(logp, old, advantages, mask, kl, 0.0)
    expected = -torch.where(mask, (logp - old).exp() * advantages, 0.0) / mask.sum()
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)


@pytest.mark.holds("regularized-policy-gradient", 4)
@pytest.mark.parametrize("kl", ["ufkl", "urkl"])
def test_unnormalised_integrands_are_not_negative(kl):
    d = torch.linspace(-12, 12, 241, dtype=torch.float64)[:, None]
    for ref in (None, d.flip(0) / 3):
        own = {} if ref is None else {"ref_logp": ref - 2}
        values = [
            float(rpg_loss(t[None] - 2, torch.full((1, 1), -2.0).double(), torch.zeros(1).double(), ONE, kl, 1.0,
                           **{k: v[i][None] for k, v in own.items()}))
            for i, t in enumerate(d)
        ]  # fmt: skip
        assert min(values) >= -1e-12
        assert max(values) > 1


ONE = torch.ones(1, 1, dtype=torch.bool)


def objective(z, log_old, rewards, log_ref, kl, beta):
    """J of logits over four actions, without a sample: the definition."""
    log_p = z.log_softmax(0)
    p, r = log_p.exp(), log_ref.exp()
    divergence = {
        "fkl": (r * (log_ref - log_p)).sum(),
        "ufkl": (r * (log_ref - log_p)).sum() - r.sum() + p.sum(),
        "rkl": (p * (log_p - log_ref)).sum(),
        "urkl": (p * (log_p - log_ref)).sum() - p.sum() + r.sum(),
    }[kl]
    return (p * rewards).sum() - beta * divergence


@pytest.mark.holds("regularized-policy-gradient", 5)
@pytest.mark.parametrize("kl", DIVERGENCES)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("with_reference", [False, True])
def test_exact_expectation_on_four_actions(kl, style, with_reference):
    generator = torch.Generator().manual_seed(3)
    z, o, f, rewards = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(4))
    log_old = o.log_softmax(0)
    log_ref = f.log_softmax(0) if with_reference else log_old
    first, second = (z.clone().requires_grad_() for _ in range(2))
    log_p = first.log_softmax(0)
    own = {"ref_logp": log_ref[:, None]} if with_reference else {}
    losses = [
        rpg_loss(
            log_p[None, a : a + 1], log_old[None, a : a + 1], rewards[None, a : a + 1], ONE, kl, 0.3, style,
            **{k: v[None, a] for k, v in own.items()},
        )
        for a in range(4)
    ]  # fmt: skip
    expected_loss = sum(q * loss for q, loss in zip(log_old.exp(), losses))
    (ours,) = torch.autograd.grad(expected_loss, first)
    (true,) = torch.autograd.grad(objective(second, log_old, rewards, log_ref, kl, 0.3), second)
    torch.testing.assert_close(ours, -true, rtol=1e-12, atol=1e-15)


@pytest.mark.holds("regularized-policy-gradient", 6)
@pytest.mark.parametrize("kl", DIVERGENCES)
@pytest.mark.parametrize("style", STYLES)
def test_masks_and_huge_ratios(kl, style):
    logp, old, advantages, mask, ref = (t.float() if t.is_floating_point() else t for t in drawn())
    clean = gradient(logp, old, advantages, mask, kl, 0.3, style, ref_logp=ref)
    for bad in (math.nan, math.inf, -200.0):
        spoilt = [torch.where(mask, t, bad) for t in (logp, old, advantages, ref)]
        value, slope = gradient(*spoilt[:3], mask, kl, 0.3, style, ref_logp=spoilt[3])
        assert torch.equal(value, clean[0])
        assert torch.equal(slope, clean[1])
        assert not slope[~mask].any()
    for d in (200.0, -1e4):
        value, slope = gradient(old + d, old, advantages, mask, kl, 0.3, style)
        assert value.isfinite()
        assert slope.isfinite().all()


@pytest.mark.holds("regularized-policy-gradient", 6)
def test_saturation_point():
    old, one = torch.zeros(1, 1), torch.ones(1)
    value, slope = gradient(torch.full((1, 1), 200.0), old, -one, ONE, "fkl", 0.0)
    torch.testing.assert_close(value.item(), 8.7815e10, rtol=1e-4, atol=0)
    torch.testing.assert_close(slope.item(), 4.8517e8, rtol=1e-4, atol=0)
    below, above = (
        gradient(torch.full((1, 1), d).double(), old.double(), -one.double(), ONE, "fkl", 0.0)
        for d in (20 - 1e-9, 20 + 1e-9)
    )
    torch.testing.assert_close(below, above, rtol=1e-8, atol=0)


def test_clipping_bounds_the_factor():
    """Of one token each: c by hand."""
    w = torch.tensor([[0.5, 1.1, 2.0, 4.0]], dtype=torch.float64)
    old = torch.full_like(w, -3.0)
    logp, mask = old + w.log(), torch.ones(1, 4, dtype=torch.bool)
    for sign in (1.0, -1.0):
        advantages = sign * torch.ones(1, dtype=torch.float64)
        value, slope = gradient(logp, old, advantages, mask, "urkl", 0.5, "reinforce", (0.2, 0.28))
        bounded = torch.tensor([0.8, 1.1, 1.28, 1.28], dtype=torch.float64)
        c = sign * bounded - 0.5 * bounded * bounded.log()
        torch.testing.assert_close(-4 * slope[0], c, rtol=1e-12, atol=0)
        torch.testing.assert_close(value, -(c * logp[0]).mean(), rtol=1e-12, atol=0)
        dual, slope = gradient(logp, old, advantages, mask, "urkl", 0.5, "reinforce", (0.2, 0.28), 3.0)
        ratio = [0.5, 1.1, 1.28, 1.28] if sign > 0 else [0.8, 1.1, 2.0, 3.0]
        acts = [1, 1, 0, 0] if sign > 0 else [0, 1, 1, 0]
        c = sign * torch.tensor(ratio, dtype=torch.float64) - 0.5 * bounded * bounded.log()
        torch.testing.assert_close(-4 * slope[0], c * torch.tensor(acts), rtol=1e-12, atol=0)
        torch.testing.assert_close(dual, -(c * logp[0]).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [("fkl", lambda w: 1.0), ("rkl", lambda w: -w * (math.log(w) + 1)), ("ufkl", lambda w: 1 - w)],
)
def test_clipped_divergences_of_the_other_forms(kl, factor):
    old = torch.full((1, 1), -3.0, dtype=torch.float64)
    _, slope = gradient(old + math.log(2), old, torch.zeros(1).double(), ONE, kl, 0.5, "reinforce", (0.2, 0.28))
    assert float(-slope) == pytest.approx(0.5 * factor(1.28), rel=1e-12)


def test_num_items_is_the_count_of_the_step():
    logp, old, advantages, mask, _ = drawn()
    whole = rpg_loss(logp, old, advantages, mask, "rkl", 0.3)
    halves = [
        rpg_loss(logp[s], old[s], advantages[s], mask[s], "rkl", 0.3, num_items=mask.sum())
        for s in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(halves), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl": "k3"}, "kl: expected one of"),
        ({"beta": -1.0}, "beta: expected a number >= 0"),
        ({"style": "ppo"}, "style: expected one of"),
        ({"clip": (0.2, 0.28)}, "clip: expected None with style"),
        ({"style": "reinforce", "clip": (1.0, 0.2)}, "clip: expected a number >= 0 and < 1"),
        ({"style": "reinforce", "clip": (0.2, -0.1)}, "clip: expected a number >= 0"),
        ({"style": "reinforce", "clip": (0.2,)}, "clip: expected a pair"),
        ({"style": "reinforce", "clip": (0.2, 0.3), "dual_clip": 1.3}, "dual_clip: expected a number > 1.3"),
        ({"style": "reinforce", "dual_clip": 3.0}, "dual_clip: expected None without clip"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RPGLoss(**options)
    with pytest.raises(ValueError, match=words):
        rpg_loss(*row(LOGP, OLD, A), torch.ones(1, 3, dtype=torch.bool), **options)
    with pytest.raises(TypeError, match="clip: expected a pair"):
        RPGLoss(style="reinforce", clip=0.2)


def test_the_estimator_is_that_of_core():
    policy, reference = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.9, 0.1], [0.5, 0.5]))
    expected = (policy.exp() * kl_estimator(policy, reference, "k3")).sum()
    torch.testing.assert_close(expected, kl_of_logits(policy, reference), rtol=1e-12, atol=0)
