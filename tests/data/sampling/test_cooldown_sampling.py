"""Cooldown sampling: probabilities, weights, noise, the temperature and what is drawn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from steepest.data.sampling import (
    CooldownSampler,
    gradient_second_moment,
    scalarization_weights,
    temperature_probabilities,
)

SIZES = (1000, 100, 10)


@pytest.mark.holds("cooldown-sampling", 1)
def test_probabilities_and_weights():
    assert temperature_probabilities(SIZES, 1.0).tolist() == pytest.approx([0.900901, 0.090090, 0.009009], abs=5e-7)
    assert temperature_probabilities(SIZES, 5.0).tolist() == pytest.approx([0.492838, 0.310960, 0.196202], abs=5e-7)
    assert scalarization_weights(SIZES, 5.0).tolist() == pytest.approx([0.547050, 3.451653, 21.778458], abs=5e-7)
    powers = [n ** (1 / 2.5) for n in SIZES]
    result = temperature_probabilities(torch.tensor(SIZES), 2.5)
    assert result.tolist() == pytest.approx([p / sum(powers) for p in powers], rel=1e-14)
    assert temperature_probabilities(SIZES, 1e9).tolist() == pytest.approx([1 / 3] * 3, rel=1e-8)
    assert temperature_probabilities([2**40, 1], 1.0)[1].item() == pytest.approx(2.0**-40, rel=1e-9)


@pytest.mark.holds("cooldown-sampling", 2)
@pytest.mark.parametrize(("temperature", "weighted"), [(1.0, 1.0), (2.0, 1.660267), (5.0, 5.615916)])
def test_second_moments_of_equal_gradients(temperature, weighted):
    p, ones = temperature_probabilities(SIZES, temperature), torch.ones(3)
    assert gradient_second_moment(p, ones, ones).item() == pytest.approx(1.0, rel=1e-14)
    proportional = temperature_probabilities(SIZES, 1.0)
    result = gradient_second_moment(proportional, scalarization_weights(SIZES, temperature), ones)
    assert result.item() == pytest.approx(weighted, abs=5e-7)
    distance = sum((a - b) ** 2 / b for a, b in zip(p.tolist(), proportional.tolist()))
    assert result.item() - 1.0 == pytest.approx(distance, abs=1e-12)


@pytest.mark.holds("cooldown-sampling", 3)
def test_second_moments_of_gradients_that_differ():
    moments = torch.tensor([4.0, 1.0, 0.25])
    sampled = gradient_second_moment(temperature_probabilities(SIZES, 5.0), torch.ones(3), moments)
    assert sampled.item() == pytest.approx(2.331362, abs=5e-7)
    weights = scalarization_weights(SIZES, 5.0)
    weighted = gradient_second_moment(temperature_probabilities(SIZES, 1.0), weights, moments)
    assert weighted.item() == pytest.approx(3.219999, abs=5e-7)


@pytest.mark.holds("cooldown-sampling", 4)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_both_have_one_mean_gradient(temperature):
    sizes = (40, 7, 3)
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in sizes]
    p = temperature_probabilities(sizes, temperature)
    sampled = sum(share * rows.mean(0) for share, rows in zip(p, slopes))
    weights = scalarization_weights(sizes, temperature)
    weighted = sum(w * rows.sum(0) for w, rows in zip(weights, slopes)) / sum(sizes)
    torch.testing.assert_close(weighted, sampled, rtol=1e-13, atol=1e-14)


@pytest.mark.holds("cooldown-sampling", 5)
@pytest.mark.parametrize("schedule", ["switch", "linear", "cosine"])
def test_the_temperature_falls(schedule):
    sampler = CooldownSampler(torch.tensor([0] * 9 + [1]), 2, 40, 5.0, 1.0, schedule)
    path = [sampler.temperature(step) for step in range(60)]
    assert path[0] == 5.0
    assert path[39:] == [1.0] * 21
    assert all(a >= b for a, b in itertools.pairwise(path))
    by_hand = {
        "switch": [5.0] * 20 + [1.0] * 20,
        "linear": [5 - 4 * step / 39 for step in range(40)],
        "cosine": [3 + 2 * math.cos(math.pi * step / 39) for step in range(40)],
    }
    assert path[:40] == pytest.approx(by_hand[schedule], rel=1e-12)


@pytest.mark.holds("cooldown-sampling", 5)
def test_what_is_refused():
    for temperature in (0.5, 0.0, -1.0):
        with pytest.raises(ValueError, match="temperature: expected a number >= 1"):
            temperature_probabilities(SIZES, temperature)
    assert temperature_probabilities([4, 1], 0.5, allow_below_one=True).tolist() == pytest.approx([16 / 17, 1 / 17])
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature: expected a number > 0"):
            temperature_probabilities(SIZES, temperature, allow_below_one=True)
    for empty in ([3, 0], [], [-1]):
        with pytest.raises(ValueError, match="sizes: expected domains with one sample and more"):
            temperature_probabilities(torch.tensor(empty, dtype=torch.long), 2.0)
    with pytest.raises(ValueError, match="domain_ids: expected domains with one sample and more"):
        CooldownSampler(torch.tensor([0, 2, 2]), 2, 10)
    ids = torch.tensor([0, 0, 1])
    for options, message in (
        ({"high": 2.0, "low": 3.0}, "low: expected a number >= 1 and <= 2"),
        ({"high": 0.5}, "high: expected a number >= 1"),
        ({"schedule": "step"}, "schedule: expected one of"),
        ({"schedule": "linear", "switch": 0.2}, "switch: expected None with schedule='linear'"),
        ({"switch": 1.5}, "switch: expected a number >= 0 and <= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            CooldownSampler(ids, 2, 10, **options)
    with pytest.raises(ValueError, match="domain_ids: expected values in 0"):
        CooldownSampler(torch.tensor([0, -1, 1]), 2, 10)
    for arguments, message in (
        ((torch.tensor([0.5, 0.4]), torch.ones(2), torch.ones(2)), "probabilities: expected a sum of 1"),
        ((torch.tensor([0.5, 0.5]), -torch.ones(2), torch.ones(2)), "weights: expected numbers >= 0"),
        ((torch.tensor([0.5, 0.5]), torch.ones(3), torch.ones(2)), "weights: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_second_moment(*arguments)


def test_what_is_drawn_is_what_is_expected():
    """A chi-square test of the domains before and after the switch, and of the rows inside a domain."""
    ids = torch.arange(2000) % 40
    ids = (ids > 0).long() + (ids > 36).long()  # 50, 1800, 150 rows
    sizes = torch.bincount(ids)
    sampler = CooldownSampler(ids, 100, 40, 5.0, 1.0, switch=0.5, seed=3)
    for temperature in (5.0, 1.0):
        rows = torch.tensor([row for batch in sampler for row in batch])
        counts = torch.bincount(ids[rows], minlength=3)
        wanted = temperature_probabilities(sizes, temperature) * 2000
        assert stats.chisquare(counts.numpy(), wanted.numpy()).pvalue > 1e-4
        inside = torch.bincount(rows, minlength=2000)[ids == 1]
        assert stats.chisquare(inside.numpy()).pvalue > 1e-4


@pytest.mark.slow
def test_many_rows_are_all_within_reach():
    ids = torch.zeros(2**25, dtype=torch.int64)
    ids[:2] = 1
    sampler = CooldownSampler(ids, 2**24, 1)
    rows = sampler.batches()[0]
    assert rows.max() > 2**25 - 2**12
    assert (rows > 2**24).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_cooling_down_by_hand_is_kept():
    ids = torch.tensor([0] * 90 + [1] * 10)
    sampler = CooldownSampler(ids, 10, 1000, 5.0)
    hot = sampler.times(0)
    assert hot[95] > 3 * hot[0]
    next(iter(sampler))
    sampler.cool_down()
    assert sampler.cooled_at == 1
    assert torch.equal(sampler.times(0), hot)
    assert sampler.times(1).tolist() == pytest.approx([1.0] * 100)
    again = CooldownSampler(ids, 10, 1000, 5.0)
    again.load_state_dict(sampler.state_dict())
    for one in (sampler, again):
        one.set_epoch(1)
    assert list(again) == list(sampler)
    fresh = CooldownSampler(ids, 10, 1000, 5.0)
    before = fresh.batches()
    fresh.cool_down()
    assert fresh.cooled_at == 0
    assert not all(map(torch.equal, fresh.batches(), before))
