"""Estimates of a divergence: values and gradients in expectation, on small vocabularies where both are known."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.kl_estimators import KINDS, at_least_zero, kl_of_logits, kl_of_samples
from steepest.core.ratios import saturating_exp, saturating_expm1


def logits(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def expected_gradient(kind, z, ref, old=None):
    """Of the mean over all tokens, each with the probability of being drawn, which carries no gradient."""
    z = z.clone().requires_grad_()
    log_p = z.log_softmax(0)
    drawn = log_p if old is None else old
    estimate = kl_of_samples(log_p, ref, kind, old)
    value = (drawn.detach().exp() * estimate).sum()
    return value.detach(), torch.autograd.grad(value, z)[0]


def divergence(z, ref, direction):
    z = z.clone().requires_grad_()
    value = kl_of_logits(z, ref, direction)
    return value.detach(), torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        ("k1", 0.0), ("kl", 0.0), ("k2", 0.197750), ("mse", 0.197750), ("k3", 0.4), ("low_var_kl", 0.4),
        ("k3+", 0.197750), ("k1+", 0.197750), ("low_var_kl+", 0.197750), ("abs+", 0.197750),
    ],
)  # fmt: skip
def test_on_policy_gradients_on_two_tokens(kind, slope):
    _, gradient = expected_gradient(kind, logits(0.9, 0.1), logits(0.5, 0.5))
    assert gradient.tolist() == pytest.approx([slope, -slope], abs=5e-7)


def test_whole_vocabularies_on_two_tokens():
    value, gradient = divergence(logits(0.9, 0.1), logits(0.5, 0.5), "reverse")
    assert float(value) == pytest.approx(0.368064, abs=5e-7)
    assert gradient.tolist() == pytest.approx([0.197750, -0.197750], abs=5e-7)
    value, gradient = divergence(logits(0.9, 0.1), logits(0.5, 0.5), "forward")
    assert float(value) == pytest.approx(0.510826, abs=5e-7)
    assert gradient.tolist() == pytest.approx([0.4, -0.4], abs=5e-7)


def drawn(classes=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(classes, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize(("kind", "direction"), [("k2", "reverse"), ("k3+", "reverse"), ("k3", "forward")])
def test_gradients_on_policy(kind, direction):
    z, r, _ = drawn()
    _, gradient = expected_gradient(kind, z, r.log_softmax(0))
    torch.testing.assert_close(gradient, divergence(z, r, direction)[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_off_policy_tokens_need_the_ratio(kind):
    z, r, o = drawn()
    log_old = o.log_softmax(0)
    value, gradient = expected_gradient(kind, z, r.log_softmax(0), log_old)
    true_value, true_gradient = divergence(z, r, "reverse")
    torch.testing.assert_close(value, true_value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, true_gradient, rtol=1e-12, atol=1e-15)
    leaf = z.clone().requires_grad_()
    plain = (log_old.exp() * kl_of_samples(leaf.log_softmax(0), r.log_softmax(0), kind)).sum()
    assert (torch.autograd.grad(plain, leaf)[0] - true_gradient).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_values_token_by_token(kind):
    z, r, _ = drawn()
    formula = {
        "k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) + d - 1, "abs": abs,
        "kl": lambda d: d, "mse": lambda d: d * d / 2, "low_var_kl": lambda d: math.exp(-d) + d - 1,
    }[kind.removesuffix("+")]  # fmt: skip
    expected = [formula(a - b) for a, b in zip(z.tolist(), r.tolist())]
    assert kl_of_samples(z, r, kind).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_policy_has_a_gradient_and_all_is_finite(kind):
    policy, reference, old = (torch.tensor(t, requires_grad=True) for t in ([-1e4, -1.0], [-1.0, -1e4], [-300.0, -1.0]))
    for own in (None, old):
        value = kl_of_samples(policy, reference, kind, own).sum()
        assert value.isfinite()
        slope, *stopped = torch.autograd.grad(value, [policy, reference, old], allow_unused=True)
        assert slope.isfinite().all()
        assert stopped == [None, None]
    half = kl_of_samples(policy.bfloat16(), reference.bfloat16(), kind)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_whole_vocabularies_give_both_sides_a_gradient_or_one(direction):
    z, r, _ = drawn()
    both = lambda a, b: kl_of_logits(a, b, direction, stop_reference=False)  # noqa: E731
    assert torch.autograd.gradcheck(both, (z.requires_grad_(), r.requires_grad_()))
    slopes = torch.autograd.grad(kl_of_logits(z, r, direction), (z, r), allow_unused=True)
    assert slopes[1] is None
    p, q = (z, r) if direction == "reverse" else (r, z)
    expected = torch.nn.functional.kl_div(q.log_softmax(0), p.log_softmax(0), log_target=True, reduction="sum")
    torch.testing.assert_close(kl_of_logits(z, r, direction), expected, rtol=1e-12, atol=0)
    far = kl_of_logits(torch.tensor([1e4, -1e4]).half().float(), torch.tensor([-1e4, 1e4]), direction)
    assert far.isfinite()


def test_ratios_go_on_along_their_tangent():
    d = torch.tensor([-1e4, -1.0, 0.0, 20.0, 21.0, 200.0], dtype=torch.float64, requires_grad=True)
    w = saturating_exp(d)
    top = math.exp(20)
    assert w.tolist() == pytest.approx([0.0, math.exp(-1), 1.0, top, 2 * top, 181 * top], rel=1e-14)
    (slope,) = torch.autograd.grad(w.sum(), d)
    assert slope.tolist() == pytest.approx([0.0, math.exp(-1), 1.0, top, top, top], rel=1e-14)
    assert torch.autograd.gradcheck(saturating_expm1, torch.tensor([-3.0, 0.0, 2.0]).double().requires_grad_())
    torch.testing.assert_close(saturating_expm1(d), w - 1)
    assert saturating_exp(torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((torch.zeros(2), torch.zeros(2), "k4"), "kind: expected one of"),
        ((torch.zeros(2), torch.zeros(3)), r"ref_logp: expected shape \(2\)"),
        ((torch.zeros(2), torch.zeros(2), "k1", torch.zeros(1)), r"old_logp: expected shape \(2\)"),
    ],
)
def test_refused(args, words):
    with pytest.raises(ValueError, match=words):
        kl_of_samples(*args)
    with pytest.raises(ValueError, match="direction: expected one of"):
        kl_of_logits(torch.zeros(2), torch.zeros(2), "both")
    with pytest.raises(ValueError, match=r"ref_logits: expected shape \(2\)"):
        kl_of_logits(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_whole_vocabularies_never_give_less_than_zero(direction):
    """Distributions that differ by a rounding: their terms cancel, and what is left over has either sign."""
    z = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    leaf = (z * (1 + 1e-7)).requires_grad_()
    values = kl_of_logits(leaf, z, direction)
    log_p, log_r = leaf.detach().log_softmax(-1), z.log_softmax(-1)
    own, against = (log_p, log_r) if direction == "reverse" else (log_r, log_p)
    assert ((own.exp() * (own - against)).sum(-1) < 0).any()  # as it is written
    assert (values >= 0).all()
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    assert slope.isfinite().all()


def test_a_rounding_below_zero_keeps_its_gradient():
    x = torch.tensor([-1e-9, 0.0, 2.0], requires_grad=True)
    value = at_least_zero(3 * x)
    assert value.tolist() == [0.0, 0.0, 6.0]
    assert torch.autograd.grad(value.sum(), x)[0].tolist() == [3.0, 3.0, 3.0]
    assert at_least_zero(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_classes_that_both_rule_out_add_nothing(direction):
    z, ref = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide_z, wide_ref = (torch.cat([t, torch.full((4, 1), -torch.inf).double()], 1) for t in (z, ref))
    value, slope = divergence(z[0], ref[0], direction)
    wide_value, wide_slope = divergence(wide_z[0], wide_ref[0], direction)
    torch.testing.assert_close(wide_value, value)
    torch.testing.assert_close(wide_slope[:-1], slope)
    assert wide_slope[-1] == 0
