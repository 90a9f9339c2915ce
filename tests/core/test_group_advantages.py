"""Rewards less the mean of their group: exact where rewards are equal, groups of one, three scales, other answers."""

from __future__ import annotations

import statistics
import warnings

import pytest
import torch

from steepest.core.group_advantages import group_advantages

IDS = torch.tensor([2, 0, 2, 0, 2, 0, 0])
REWARDS = torch.tensor([1.0, 0.5, -0.3, 2.0, 0.7, 0.1, -1.0], dtype=torch.float64)


def by_loop(scale, leave_one_out):
    rewards, ids = REWARDS.tolist(), IDS.tolist()
    advantages = []
    for i, (r, g) in enumerate(zip(rewards, ids)):
        own = [x for x, h in zip(rewards, ids) if h == g]
        others = [x for j, (x, h) in enumerate(zip(rewards, ids)) if h == g and j != i]
        a = r - statistics.fmean(others if leave_one_out else own)
        advantages.append(
            a / {"none": 1, "group": statistics.stdev(own) + 1e-4, "batch": statistics.stdev(rewards) + 1e-4}[scale]
        )
    return advantages


@pytest.mark.parametrize(
    ("scale", "leave_one_out"),
    [("none", False), ("group", False), ("batch", False), ("none", True), ("batch", True)],
)
def test_against_a_loop(scale, leave_one_out):
    own = group_advantages(REWARDS, IDS, scale, leave_one_out=leave_one_out)
    assert own.tolist() == pytest.approx(by_loop(scale, leave_one_out), rel=1e-12)


def test_the_deviation_is_the_unbiased_one_of_the_field():
    """0.5 / (0.57735 + 1e-4) of two rewards of 1 among four, as GRPO in trl."""
    own = group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.long), "group")
    torch.testing.assert_close(own, torch.tensor([0.865875, -0.865875] * 2), rtol=1e-6, atol=0)
    wider = group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.long), "group", eps=0.1)
    torch.testing.assert_close(wider, torch.tensor([0.738164, -0.738164] * 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_rewards_are_exactly_nothing(scale):
    for reward in (0.35, 0.1, 1e6 + 0.3):
        own = group_advantages(torch.full((7,), reward), torch.zeros(7, dtype=torch.long), scale)
        assert not own.any()


def test_one_answer_that_differs_from_seven():
    """Centred before anything is squared: no residue of the other seven, which are equal."""
    rewards, ids = torch.tensor([0.35] * 7 + [-0.25]), torch.zeros(8, dtype=torch.long)
    own = group_advantages(rewards, ids, leave_one_out=True)
    torch.testing.assert_close(own, torch.tensor([0.6 / 7] * 7 + [-0.6]), rtol=0, atol=1.2e-7)
    assert len(set(own[:7].tolist())) == 1
    scaled = group_advantages(rewards, ids, "group").double()
    deviation = statistics.stdev([0.35] * 7 + [-0.25])
    expected = [0.075 / (deviation + 1e-4)] * 7 + [-0.525 / (deviation + 1e-4)]
    assert scaled.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_group_of_one_is_zero_with_one_warning(scale, leave_one_out):
    if leave_one_out and scale == "group":
        return
    rewards = torch.tensor([5.0, 1.0, 3.0])
    with pytest.warns(UserWarning, match="1 groups have a single answer") as seen:
        own = group_advantages(rewards, torch.tensor([2, 1, 1]), scale, leave_one_out=leave_one_out)
    assert len(seen) == 1
    assert own[0] == 0
    assert own.isfinite().all()
    with pytest.warns(UserWarning, match="single answer"):
        assert group_advantages(rewards[:1], torch.tensor([0]), scale).tolist() == [0.0]


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_answers_that_do_not_count_are_as_if_they_were_not_there(scale):
    valid = torch.tensor([True, True, False, True, True, False, True])
    spoilt = torch.where(valid, REWARDS, torch.nan)
    own = group_advantages(spoilt, IDS, scale, valid=valid)
    alone = group_advantages(REWARDS[valid], torch.tensor([1, 0, 0, 1, 0]), scale)
    torch.testing.assert_close(own[valid], alone, rtol=1e-13, atol=0)
    assert not own[~valid].any()


def test_no_warning_without_a_group_of_one_and_no_gradient():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = group_advantages(REWARDS.clone().requires_grad_(), IDS)
        assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert not own.requires_grad
    half = group_advantages(REWARDS.bfloat16(), IDS)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        ((REWARDS, IDS, "std"), {}, "scale_rewards: expected one of"),
        ((REWARDS, IDS, "group"), {"leave_one_out": True}, 'scale_rewards: expected "none" or "batch"'),
        ((REWARDS, IDS + 6), {}, r"group_ids: expected values in 0..6"),
        ((REWARDS, IDS[:3]), {}, r"group_ids: expected shape \(7\)"),
        ((REWARDS[None], IDS), {}, "rewards: expected 1 dimensions"),
        ((REWARDS, IDS), {"eps": 0.0}, "eps: expected a number > 0"),
    ],
)
def test_refused(args, options, words):
    with pytest.raises(ValueError, match=words):
        group_advantages(*args, **options)


def test_means_of_many_rewards_are_as_exact_as_the_rewards():
    """Rewards up to 60 in float32: nothing is lost to sums of hundreds of them."""
    rewards = 20 * torch.randn(512, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(512) % 10
    error = group_advantages(rewards, ids).double() - group_advantages(rewards.double(), ids)
    assert error.abs().max() <= 8e-6  # two roundings at 64


def test_a_mask_of_integers():
    rewards, ids = torch.tensor([1.0, 0.0, 5.0]), torch.zeros(3).long()
    own = group_advantages(rewards, ids, valid=torch.tensor([1, 1, 0]))
    assert own.tolist() == group_advantages(rewards, ids, valid=torch.tensor([True, True, False])).tolist()
