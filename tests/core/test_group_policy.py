"""The clipped surrogate under its names: against loops of single tokens, reported faults, options that don't belong."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.group_policy import FORMS, GroupPolicyLoss, clipped_policy_loss
from steepest.core.policy_loss import PolicyLoss
from steepest.core.token_reductions import aggregate_tokens
from steepest.testing import check_policy_loss, policy_loss_checks


def drawn(seed=0, shape=(4, 6), spread=0.4):
    generator = torch.Generator().manual_seed(seed)
    logp, shift, ref = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    logp = -logp.abs() - 0.1
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[1] = False
    advantages = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return logp, logp + spread * shift, advantages, mask, logp + spread * ref


def options(form):
    return {"length": 9.0} if form == "dr_grpo" else {}


def by_loop(logp, old, advantages, mask, form, low=0.2, high=None, delta=None, beta=0.0, ref=None, weighted=False):
    """Each token by itself, from the definitions of the forms."""
    high = high if high is not None else 0.28 if form in ("dapo", "cispo") else low
    rows = []
    for b in range(len(logp)):
        own = [t for t in range(logp.shape[1]) if mask[b, t]]
        if not own:
            continue
        mean = sum(float(logp[b, t] - old[b, t]) for t in own) / len(own)
        losses = []
        for t in own:
            lp, a = float(logp[b, t]), float(advantages[b])
            w = math.exp(mean if form == "gspo" else lp - float(old[b, t]))
            bounded = min(max(w, 1 - low), 1 + high)
            if form == "cispo":
                loss = -bounded * a * lp
            else:
                loss = -min((min(w, delta) if delta else w) * a, bounded * a)
            if beta:
                d = lp - float(ref[b, t])
                loss += beta * (math.exp(-d) + d - 1) * (math.exp(lp - float(old[b, t])) if weighted else 1)
            losses.append(loss)
        rows.append(losses)
    if form in ("dapo", "bnpo", "cispo"):
        return sum(map(sum, rows)) / sum(map(len, rows))
    if form == "dr_grpo":
        return sum(map(sum, rows)) / 9 / len(rows)
    return sum(sum(row) / len(row) for row in rows) / len(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "given",
    [
        {}, {"epsilon": 0.1, "epsilon_high": 0.5}, {"delta": 1.5}, {"beta": 0.3}, {"beta": 0.3, "weighted_kl": True},
    ],
)  # fmt: skip
def test_against_a_loop(form, given):
    if form == "cispo" and "delta" in given:
        return
    logp, old, advantages, mask, ref = drawn()
    own = clipped_policy_loss(logp, old, advantages, mask, form, ref_logp=ref, **given, **options(form))
    names = {"epsilon": "low", "epsilon_high": "high", "weighted_kl": "weighted"}
    given = {names.get(k, k): v for k, v in given.items()}
    expected = by_loop(logp, old, advantages, mask, form, ref=ref, **given)
    assert float(own) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "cispo"])
def test_gradients_are_those_of_the_value(form):
    logp, old, advantages, mask, ref = drawn()
    assert torch.autograd.gradcheck(
        lambda t: clipped_policy_loss(
            t, old, advantages, mask, form, delta=1.5, beta=0.3, ref_logp=ref, **options(form)
        ),
        logp.clone().requires_grad_(),
    )


def test_the_weight_of_a_log_probability_has_no_gradient():
    logp, old, advantages, mask, _ = drawn()
    leaf = logp.clone().requires_grad_()
    (slope,) = torch.autograd.grad(clipped_policy_loss(leaf, old, advantages, mask, "cispo"), leaf)
    bounded = (logp - old).exp().clamp(0.8, 1.28)
    expected = torch.where(mask, -bounded * advantages[:, None], 0.0) / mask.sum()
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_mask_excludes_is_as_if_it_were_not_there(form):
    """A log-ratio of 200 and an advantage of NaN under the mask."""
    logp, old, advantages, mask, ref = (t.float() if t.is_floating_point() else t for t in drawn())
    advantages = advantages[:, None].expand_as(logp).contiguous()

    def run(logp, advantages):
        leaf = logp.clone().requires_grad_()
        value = clipped_policy_loss(
            leaf, old, advantages, mask, form, beta=0.1, ref_logp=ref, weighted_kl=True, **options(form)
        )
        return value, torch.autograd.grad(value, leaf)[0]

    clean, spoilt = (
        run(logp, advantages),
        run(torch.where(mask, logp, old + 200), torch.where(mask, advantages, math.nan)),
    )
    assert torch.equal(clean[0], spoilt[0])
    assert torch.equal(clean[1], spoilt[1])


def test_a_mean_over_a_step_is_no_mean_of_means():
    """Micro-batches of token losses 4, and 0 0 0: 1, where a mean in each and then of both gives 2."""
    losses = [torch.tensor([[4.0]]), torch.zeros(1, 3)]
    masks = [torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)]
    zero = [torch.zeros_like(t) for t in losses]
    own = [clipped_policy_loss(z, z, -t, m, "dapo", num_items=4.0) for z, t, m in zip(zero, losses, masks, strict=True)]
    assert float(sum(own)) == 1.0


def test_masked_answers_are_not_in_the_divisor():
    """Two answers of two tokens with a loss of 1 each, the second masked out: 1, not .5."""
    zero, mask = torch.zeros(2, 2), torch.tensor([[True, True], [False, False]])
    for form in FORMS:
        if form != "cispo":  # whose value is a log-probability
            own = clipped_policy_loss(
                zero, zero, -torch.ones(2), mask, form, **({"length": 2.0} if options(form) else {})
            )
            assert float(own) == 1.0


@pytest.mark.parametrize("form", FORMS)
def test_the_padded_width_is_no_divisor(form):
    generator = torch.Generator().manual_seed(2)
    logp, old = (-torch.rand(2, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    mask, advantages = torch.ones(2, 10, dtype=torch.bool), torch.tensor([1.0, -0.5], dtype=torch.float64)
    own = clipped_policy_loss(logp, old, advantages, mask, form, **options(form))
    wide = [torch.nn.functional.pad(t, (0, 4)) for t in (logp, old, mask)]
    padded = clipped_policy_loss(wide[0], wide[1], advantages, wide[2], form, **options(form))
    torch.testing.assert_close(padded, own, rtol=1e-14, atol=0)


def test_the_suite_of_policy_losses():
    check_policy_loss(GroupPolicyLoss)
    names = [name for name, _ in policy_loss_checks(GroupPolicyLoss)]
    assert {"padding", "masked_values", "micro_batches", "packing", "empty", "stopped", "extremes"} < set(names)


class Faulty(GroupPolicyLoss):
    """Example."""

    name = "faulty"

    @classmethod
    def instances(cls):
        return [cls("grpo")]


class ByWidth(Faulty):
    """Example."""

    def forward(self, logp, *args, **kwargs):
        return super().forward(logp, *args, **kwargs) / logp.shape[1]


class MultipliesByTheMask(Faulty):
    """Example."""

    def forward(self, logp, old_logp, advantages, mask, **kwargs):
        losses = -(logp - old_logp).exp() * (advantages if advantages.ndim == 2 else advantages[:, None])
        return (losses * mask).sum() / mask.sum()


class IgnoresCounts(Faulty):
    """Example."""

    def forward(self, *args, num_items=None, **kwargs):
        return super().forward(*args, **kwargs)


class IgnoresSegments(Faulty):
    """Example."""

    def forward(self, *args, segments=None, **kwargs):
        return super().forward(*args, **kwargs)


class Constant(Faulty):
    """Example."""

    def forward(self, logp, old_logp, advantages, mask, **kwargs):
        value = super().forward(logp, old_logp, advantages, mask, **kwargs)
        return value if mask.any() else logp.new_zeros(())


class LearnsTheOld(Faulty):
    """Example."""

    def forward(self, logp, old_logp, *args, **kwargs):
        return super().forward(logp, old_logp, *args, **kwargs) + 0 * logp.sum() + 1e-9 * old_logp.nansum()


class Overflows(Faulty):
    """Example."""

    def forward(self, logp, old_logp, advantages, mask, **kwargs):
        ratio = torch.where(mask.bool(), logp - old_logp, 0.0).exp()
        return aggregate_tokens(ratio, mask, "sequence_mean_token_mean")


class IgnoresAnOption(Faulty):
    """Example."""

    def forward(self, *args, **kwargs):
        self.beta = 0.0
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (ByWidth, "padding"), (MultipliesByTheMask, "masked_values"), (IgnoresCounts, "micro_batches"),
        (IgnoresSegments, "packing"), (Constant, "empty"), (LearnsTheOld, "stopped"), (Overflows, "extremes"),
        (IgnoresAnOption, "alternatives"),
    ],
)  # fmt: skip
def test_the_suite_finds_faults(cls, name):
    assert issubclass(cls, PolicyLoss)
    with pytest.raises(AssertionError):
        dict(policy_loss_checks(cls))[name]()


@pytest.mark.parametrize(
    ("form", "given", "words"),
    [
        ("ppo", {}, "form: expected one of"),
        ("dapo", {"length": 3.0}, "length: expected"),
        ("dr_grpo", {}, "length: expected"),
        ("dapo", {"epsilon": 1.5}, "epsilon: expected a number >= 0 and <= 1"),
        ("dapo", {"epsilon_high": -0.1}, "epsilon_high: expected a number >= 0"),
        ("dapo", {"delta": 1.28}, "delta: expected a number > 1.28"),
        ("grpo", {"delta": 1.2}, "delta: expected a number > 1.2"),
        ("cispo", {"delta": 3.0}, "delta: expected None"),
        ("dapo", {"beta": -0.1}, "beta: expected a number >= 0"),
        ("dapo", {"kl": "k4"}, "kl: expected one of"),
    ],
)
def test_refused(form, given, words):
    with pytest.raises(ValueError, match=words):
        GroupPolicyLoss(form, **given)
    logp, old, advantages, mask, _ = drawn()
    with pytest.raises(ValueError, match=words):
        clipped_policy_loss(logp, old, advantages, mask, form, **given)


def test_refused_tensors():
    logp, old, advantages, mask, ref = drawn()
    with pytest.raises(ValueError, match="ref_logp: expected log-probabilities of the reference"):
        clipped_policy_loss(logp, old, advantages, mask, "dapo", beta=0.1)
    with pytest.raises(ValueError, match="num_items: expected None"):
        clipped_policy_loss(logp, old, advantages, mask, "bnpo", num_items=4)
    for place, wrong in ((1, old[:, :2]), (2, advantages[:2]), (2, logp[:, :1]), (3, mask[:2])):
        args = [logp, old, advantages, mask]
        args[place] = wrong
        with pytest.raises(ValueError, match="expected shape"):
            clipped_policy_loss(*args)
    with pytest.raises(ValueError, match="ref_logp: expected shape"):
        clipped_policy_loss(logp, old, advantages, mask, ref_logp=ref[:1])
    with pytest.raises(TypeError, match="mask: expected an integer tensor"):
        clipped_policy_loss(logp, old, advantages, mask.float())
