"""Group-relative REINFORCE off policy: masks, regularisers, the pairwise loss, dropped answers, groups of one."""

from __future__ import annotations

import itertools
import math
import statistics
import warnings

import pytest
import torch

from steepest.core.group_policy import clipped_surrogate
from steepest.losses import (
    GroupREINFORCE,
    asymre_loss,
    opmd_loss,
    pairwise_consistency_loss,
    rec_loss,
    red_loss,
)
from steepest.losses.policy.off_policy_reinforce import CLIPS


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


LOGP, OLD = column(-2.0, -1.0, -3.0, -1.5), column(-2.2, -1.1, -2.5, -1.7)
REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
MASK = torch.ones(4, 1, dtype=torch.bool)
EVERY = (rec_loss, opmd_loss, asymre_loss, red_loss, pairwise_consistency_loss)


def gradient(function, logp, *args, **kwargs):
    leaf = logp.clone().requires_grad_()
    value = function(leaf, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def drawn(seed=0):
    """Two prompts of three and four answers, of several tokens, one of them empty."""
    generator = torch.Generator().manual_seed(seed)
    logp, shift = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 0, 1, 4, 5])[:, None]
    rewards = torch.tensor([1.0, 0.2, -0.5, 9.0, 0.0, 0.7, 2.0], dtype=torch.float64)
    logp = -logp.abs()
    return logp, logp + 0.6 * shift, rewards, mask, torch.tensor([1, 0, 1, 1, 0, 1, 0])


def rows_of(logp, old, rewards, mask, ids):
    """Answers that are not empty: tokens of both policies, advantage."""
    filled = [i for i in range(len(rewards)) if mask[i].any()]
    rows = []
    for i in filled:
        mean = statistics.fmean(float(rewards[j]) for j in filled if ids[j] == ids[i])
        own = [t for t in range(mask.shape[1]) if mask[i, t]]
        rows.append((int(ids[i]), [(float(logp[i, t]), float(old[i, t])) for t in own], float(rewards[i]) - mean))
    return rows


@pytest.mark.holds("off-policy-reinforce", 1)
@pytest.mark.parametrize("tau", [0.01, 0.2, 3.0])
def test_the_pairwise_loss_has_the_gradient_of_reinforce(tau):
    _, slope = gradient(pairwise_consistency_loss, LOGP, LOGP, REWARDS, MASK, tau)
    torch.testing.assert_close(slope, column(-0.125, 0.125, -0.125, 0.125), rtol=1e-12, atol=0)
    logp, _, rewards, mask, ids = drawn()
    _, pairs = gradient(pairwise_consistency_loss, logp, logp, rewards, mask, tau, group_ids=ids)
    _, plain = gradient(rec_loss, logp, logp, rewards, mask, clip="none", group_ids=ids)
    torch.testing.assert_close(pairs, plain, rtol=1e-12, atol=1e-15)


def test_the_pairwise_loss_against_all_pairs():
    logp, old, rewards, mask, ids = drawn()
    tau, total = 0.3, 0.0
    constants = {0: [], 1: []}
    for i in range(7):
        if mask[i].any():
            shift = float((logp - old)[i][mask[i]].sum())
            constants[int(ids[i])].append(float(rewards[i]) - tau * shift)
    for own in constants.values():
        pairs = sum((a - b) ** 2 for a, b in itertools.combinations(own, 2)) / (2 * tau * len(own) ** 2)
        total += pairs * len(own) / 6
    value = pairwise_consistency_loss(logp, old, rewards, mask, tau, group_ids=ids)
    assert float(value) == pytest.approx(total, rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda t: pairwise_consistency_loss(t, old, rewards, mask, tau, group_ids=ids), logp.requires_grad_()
    )


@pytest.mark.holds("off-policy-reinforce", 2)
def test_values_of_one_token():
    assert float(rec_loss(LOGP, OLD, REWARDS, MASK, clip="none")) == pytest.approx(0.3125, rel=1e-12)
    assert float(opmd_loss(LOGP, OLD, REWARDS, MASK, 0.5)) == pytest.approx(0.33375, rel=1e-12)
    for clip, mask in (("one-side", [0, 1, 1, 1]), ("two-side", [0, 1, 0, 0])):
        _, slope = gradient(rec_loss, LOGP, OLD, REWARDS, MASK, clip=clip)
        assert [int(s != 0) for s in slope.flatten()] == mask


@pytest.mark.holds("off-policy-reinforce", 3)
def test_asymmetric_reinforce_in_both_forms():
    value, slope = gradient(asymre_loss, LOGP, OLD, REWARDS, MASK, 0.1)
    torch.testing.assert_close(slope, column(-0.15, 0.1, -0.15, 0.1), rtol=1e-12, atol=0)
    plain, _ = gradient(rec_loss, LOGP, OLD, REWARDS, MASK, clip="none")
    torch.testing.assert_close(value, plain + 0.1 * (OLD - LOGP).mean(), rtol=1e-12, atol=0)
    baseline = -(((REWARDS - 0.4)[:, None] * LOGP).mean())
    torch.testing.assert_close(value, baseline + 0.1 * OLD.mean(), rtol=1e-12, atol=0)


@pytest.mark.holds("off-policy-reinforce", 4)
def test_equal_rewards_teach_nothing_but_the_regulariser():
    logp, old, _, mask, ids = drawn()
    equal = torch.where(ids == 0, 0.35, 0.1).double()
    for clip, importance, std in itertools.product(CLIPS, (False, True), (False, True)):
        _, slope = gradient(
            rec_loss, logp, old, equal, mask, clip=clip, importance=importance, group_ids=ids, std_normalize=std
        )
        assert not slope.any()
    for kind in ("advantage", "drop"):
        assert not gradient(red_loss, logp, old, equal, mask, kind, group_ids=ids)[1].any()
    assert not gradient(pairwise_consistency_loss, logp, logp, equal, mask, group_ids=ids)[1].any()
    _, slope = gradient(opmd_loss, logp, old, equal, mask, 0.3, group_ids=ids)
    shift = torch.where(mask, logp - old, 0.0).sum(1, keepdim=True)
    torch.testing.assert_close(slope, 0.3 / 6 * shift * mask, rtol=1e-12, atol=0)
    _, slope = gradient(asymre_loss, logp, old, equal, mask, 0.3, group_ids=ids)
    torch.testing.assert_close(slope, -0.3 / 6 * mask.double(), rtol=1e-12, atol=0)


@pytest.mark.holds("off-policy-reinforce", 5)
@pytest.mark.parametrize("std", [False, True])
def test_one_side_with_ratios_has_the_gradient_of_the_clipped_surrogate(std):
    logp, old, rewards, mask, ids = drawn()
    _, ours = gradient(
        rec_loss, logp, old, rewards, mask, clip="one-side", importance=True, group_ids=ids, std_normalize=std
    )
    leaf = logp.clone().requires_grad_()
    advantages = torch.zeros(7, dtype=torch.float64)
    for i in range(7):
        own = [float(rewards[j]) for j in range(7) if mask[j].any() and ids[j] == ids[i]]
        scale = statistics.stdev(own) + 1e-6 if std else 1.0
        advantages[i] = (float(rewards[i]) - statistics.fmean(own)) / scale
    losses = clipped_surrogate(leaf - old, leaf, advantages[:, None])
    (ppo,) = torch.autograd.grad((losses * mask).sum() / 6, leaf)
    torch.testing.assert_close(ours, ppo, rtol=1e-12, atol=1e-15)
    assert (ours != 0).sum() < mask.sum() - 2
    ratio = (logp - old).exp()
    clipped = ((advantages[:, None] > 0) & (ratio > 1.2)) | ((advantages[:, None] < 0) & (ratio < 0.8))
    assert not ours[clipped].any()
    assert not ours[~mask].any()


@pytest.mark.holds("off-policy-reinforce", 6)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("std", [False, True])
def test_a_group_of_one(clip, std):
    for importance in (False, True):
        with pytest.warns(UserWarning, match="single answer") as seen:
            value, slope = gradient(
                rec_loss, LOGP[:1], OLD[:1], REWARDS[:1], MASK[:1], clip=clip, importance=importance, std_normalize=std
            )
        assert len(seen) == 1
        assert value == 0
        assert slope == 0


@pytest.mark.holds("off-policy-reinforce", 6)
@pytest.mark.filterwarnings("ignore:.*single answer")
def test_a_group_of_one_has_its_regulariser_alone():
    value, slope = gradient(pairwise_consistency_loss, LOGP[:1], OLD[:1], REWARDS[:1], MASK[:1])
    assert (value, slope) == (0, 0)
    _, slope = gradient(asymre_loss, LOGP[:1], OLD[:1], REWARDS[:1], MASK[:1], 0.1)
    assert float(slope) == pytest.approx(-0.1, rel=1e-12)
    _, slope = gradient(opmd_loss, LOGP[:1], OLD[:1], REWARDS[:1], MASK[:1], 0.5)
    assert float(slope) == pytest.approx(0.1, rel=1e-12)
    for kind in ("advantage", "drop"):
        assert gradient(red_loss, LOGP[:1], OLD[:1], REWARDS[:1], MASK[:1], kind)[1] == 0


BOUNDS = {"epsilon": 0.1, "epsilon_high": 0.15, "outer": 0.4, "outer_high": 0.5}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("importance", [False, True])
def test_against_a_loop(clip, importance):
    data = drawn()
    total, rows = 0.0, rows_of(*data)
    for _, tokens, a in rows:
        for lp, lo in tokens:
            rho = math.exp(lp - lo)
            two = 0.9 <= rho <= 1.15
            counts = {
                "none": True,
                "one-side": (a > 0 and rho <= 1.15) or (a < 0 and rho >= 0.9),
                "two-side": two,
                "ring": two or (a > 0 and rho <= 0.6) or (a < 0 and rho >= 1.5),
            }[clip]
            total -= counts * a * (rho if importance else lp)
    logp, old, rewards, mask, ids = data
    value = rec_loss(logp, old, rewards, mask, clip=clip, importance=importance, group_ids=ids, **BOUNDS)
    assert float(value) == pytest.approx(total / len(rows), rel=1e-12)
    same = GroupREINFORCE(clip, importance, **BOUNDS)(logp, old, rewards, mask, group_ids=ids)
    assert torch.equal(value, same)


def test_weights_of_advantages_and_the_module():
    logp, old, rewards, mask, ids = drawn()
    rows = rows_of(logp, old, rewards, mask, ids)
    for temperature in (1.0, 0.4):
        expected = -sum(math.exp(a / temperature) * a * sum(lp for lp, _ in tokens) for _, tokens, a in rows) / len(
            rows
        )
        value = red_loss(logp, old, rewards, mask, "advantage", temperature, group_ids=ids)
        assert float(value) == pytest.approx(expected, rel=1e-12)
        module = GroupREINFORCE(reweight="advantage", temperature=temperature)
        assert torch.equal(module(logp, old, rewards, mask, group_ids=ids), value)
    for name, function in (("opmd", opmd_loss), ("asymre", asymre_loss)):
        module = GroupREINFORCE(regularizer=name, coef=0.7)
        assert torch.equal(
            module(logp, old, rewards, mask, group_ids=ids), function(logp, old, rewards, mask, 0.7, group_ids=ids)
        )
    squares = [sum(lp - lo for lp, lo in tokens) ** 2 for _, tokens, _ in rows]
    plain = rec_loss(logp, old, rewards, mask, clip="none", group_ids=ids)
    quadratic = opmd_loss(logp, old, rewards, mask, 0.7, group_ids=ids)
    assert float(quadratic - plain) == pytest.approx(0.35 * statistics.fmean(squares), rel=1e-9)


def test_dropped_answers_leave_a_balanced_group():
    """Five below the mean and one above it in the first group, whose first one stays; none goes in the second."""
    rewards = torch.tensor([0.0, 5.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    ids = torch.tensor([3, 5, 3, 3, 3, 3, 3, 5, 5])
    logp = torch.linspace(-1, -3, 9, dtype=torch.float64)[:, None]
    mask = torch.ones(9, 1, dtype=torch.bool)
    value, slope = gradient(red_loss, logp, logp, rewards, mask, "drop", group_ids=ids)
    stays = [0, 1, 3, 7]  # of the second group one lies above its mean, so one of two below stays
    advantages = {0: -0.5, 3: 0.5, 1: 2.0, 7: -2.0}
    assert slope.flatten().nonzero().flatten().tolist() == stays
    for place, a in advantages.items():
        assert float(slope[place]) == pytest.approx(-a / 4, rel=1e-12)
    assert float(value) == pytest.approx(-sum(a * float(logp[p]) for p, a in advantages.items()) / 4, rel=1e-12)
    module = GroupREINFORCE(reweight="drop")
    assert torch.equal(module(logp, logp, rewards, mask, group_ids=ids), value)


def test_rewards_of_empty_answers_do_not_count():
    logp, old, rewards, mask, ids = drawn()
    spoilt = torch.where(mask.any(1), rewards, math.nan)
    for function in EVERY:
        own = function(logp, old, rewards, mask, group_ids=ids)
        assert torch.equal(own, function(logp, old, spoilt, mask, group_ids=ids))
        filled = mask.any(1)
        without = function(logp[filled], old[filled], rewards[filled], mask[filled], group_ids=ids[filled])
        torch.testing.assert_close(own, without, rtol=1e-12, atol=0)
        empty, slope = gradient(function, logp, old, rewards, torch.zeros_like(mask), group_ids=ids)
        assert empty == 0
        assert not slope.any()


def test_parts_of_a_step_add_up():
    logp, old, rewards, mask, ids = drawn()
    for function in (rec_loss, opmd_loss, asymre_loss, pairwise_consistency_loss):
        whole = function(logp, old, rewards, mask, group_ids=ids)
        own = [ids == g for g in (0, 1)]
        parts = [function(logp[s], old[s], rewards[s], mask[s], num_items=6) for s in own]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert function(logp.float(), old, rewards, mask, group_ids=ids).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": "both"}, "clip: expected one of"),
        ({"epsilon": 1.2}, "epsilon: expected a number"),
        ({"epsilon_high": -0.2}, "epsilon_high: expected a number >= 0"),
        ({"outer": 0.1}, "outer: expected a number >= 0.2 and <= 1"),
        ({"outer_high": 0.1}, "outer_high: expected a number >= 0.2"),
        ({"regularizer": "kl"}, "regularizer: expected one of"),
        ({"coef": -1.0}, "coef: expected a number >= 0"),
        ({"reweight": "top"}, "reweight: expected one of"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"reweight": "drop", "std_normalize": True}, "std_normalize: expected False"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        GroupREINFORCE(**options)


def test_refused_calls():
    for function, name in ((opmd_loss, "tau"), (asymre_loss, "b"), (pairwise_consistency_loss, "tau")):
        with pytest.raises(ValueError, match=f"{name}: expected a number"):
            function(LOGP, OLD, REWARDS, MASK, -1.0)
    with pytest.raises(ValueError, match="kind: expected one of"):
        red_loss(LOGP, OLD, REWARDS, MASK, "best")
    with pytest.raises(ValueError, match="temperature: expected a number > 0"):
        red_loss(LOGP, OLD, REWARDS, MASK, temperature=0.0)
    for function in EVERY:
        with pytest.raises(ValueError, match="rewards: expected 1 dimensions"):
            function(LOGP, OLD, LOGP, MASK)
        with pytest.raises(ValueError, match=r"group_ids: expected shape \(4\)"):
            function(LOGP, OLD, REWARDS, MASK, group_ids=torch.zeros(3, dtype=torch.long))
        with pytest.raises(ValueError, match=r"group_ids: expected values in 0..3"):
            function(LOGP, OLD, REWARDS, MASK, group_ids=torch.tensor([0, 0, 0, 4]))
        with pytest.raises(ValueError, match="expected shape"):
            function(LOGP, OLD[:2], REWARDS, MASK)
    with pytest.raises(ValueError, match="clip: expected one of"):
        rec_loss(LOGP, OLD, REWARDS, MASK, clip="both")
    with pytest.raises(TypeError, match="importance: expected True or False"):
        rec_loss(LOGP, OLD, REWARDS, MASK, importance=1)


def test_a_count_that_does_not_know_what_is_dropped_is_refused():
    loss, row = GroupREINFORCE(reweight="drop"), torch.tensor([[-2.0], [-1.0], [-3.0]])
    mask, rewards = torch.ones(3, 1, dtype=torch.bool), torch.tensor([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match='num_items: expected None with reweight="drop"'):
        loss(row, row, rewards, mask, num_items=loss.count_items(mask))


@pytest.mark.parametrize("size", [1e-3, 0.1, 0.7, 1e5])
def test_equal_rewards_lie_at_their_mean_whatever_it_rounds_to(size):
    rows = torch.linspace(-3, -1, 7)[:, None]
    mask, ids = torch.ones(7, 1, dtype=torch.bool), torch.tensor([0, 0, 0, 0, 0, 0, 1])
    rewards = torch.tensor([size] * 6 + [1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = red_loss(rows, rows, rewards, mask, "drop", group_ids=ids)
        whole = rec_loss(rows, rows, rewards, mask, clip="none", group_ids=ids)
    assert result.item() == pytest.approx(whole.item(), abs=1e-6 * size)
    exact = red_loss(rows[:3], rows[:3], torch.tensor([size * 1.001, size, size]), mask[:3], "drop")
    assert exact.item() == pytest.approx(-0.00025 * size * (rows[0] - rows[1]).item(), rel=1e-2)
