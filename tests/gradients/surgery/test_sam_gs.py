"""Similarity-aware momentum surgery, beside its formulas step by step in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steepest.gradients import SAMGS, gradient_magnitude_similarity, similarity_aware_momentum_surgery

PAIR = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_the_formulas(calls, gamma, any_pair=False, b1=0.9, b2=0.99):
    """Each direction, as the publication writes it."""
    m, v, directions = np.zeros(calls[0].shape), 0.0, []
    for t, g in enumerate(calls, start=1):
        norms = [math.sqrt(sum(x * x for x in row)) for row in g]
        pairs = [2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2) for i in range(len(g)) for j in range(i)]
        s = sum(pairs) / len(pairs)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (1 - s) ** 2 + 1e-8
        if (min(pairs) if any_pair else s) < gamma:
            directions.append(np.mean(norms) * sum(row / n for row, n in zip(g, norms)))
        else:
            directions.append((g * abs(m / (1 - b1**t)) / math.sqrt(v / (1 - b2**t))).sum(0))
    return directions


@pytest.mark.holds("sam-gs", 1)
def test_two_tasks_by_hand():
    similarity = gradient_magnitude_similarity(PAIR)
    assert float(similarity[0, 1]) == pytest.approx(0.384615, abs=5e-7)
    aggregator = SAMGS()
    direction = aggregator(PAIR)
    assert float(aggregator.variance) == pytest.approx(0.0037869922, abs=5e-11)
    torch.testing.assert_close(direction, torch.tensor([14.624981, 27.624964], dtype=torch.float64), atol=5e-7, rtol=0)
    torch.testing.assert_close(SAMGS(gamma=0.5)(PAIR), torch.tensor([1.8, 5.4], dtype=torch.float64))


@pytest.mark.holds("sam-gs", 1)
@pytest.mark.parametrize(("gamma", "any_pair"), [(0.1, False), (0.8, False), (0.3, True), (1.0, False)])
def test_several_steps_by_the_formulas(gamma, any_pair):
    """Momenta and dissimilarity move at every step, whatever the branch."""
    lengths = torch.tensor([[1.0, 1.0, 0.1], [1.0, 0.9, 1.2], [3.0, 1.0, 1.0], [0.1, 5.0, 1.0]])
    calls = [randn(3, 5, seed=seed) * own.unsqueeze(1) for seed, own in enumerate(lengths)]
    wanted = by_the_formulas([c.numpy() for c in calls], gamma, any_pair)
    aggregator, state = SAMGS(gamma=gamma, any_pair=any_pair), None
    for call, direction in zip(calls, wanted):
        torch.testing.assert_close(aggregator(call), torch.from_numpy(direction), rtol=1e-12, atol=1e-12)
        again, state = similarity_aware_momentum_surgery(call, state, gamma=gamma, any_pair=any_pair)
        torch.testing.assert_close(again, torch.from_numpy(direction), rtol=1e-12, atol=1e-12)


@pytest.mark.holds("sam-gs", 2)
def test_equal_lengths_multiply_by_a_thousand():
    g = torch.tensor([[3.0, 4.0], [5.0, 0.0]], dtype=torch.float64)
    assert torch.equal(gradient_magnitude_similarity(g), torch.ones(2, 2, dtype=torch.float64))
    aggregator = SAMGS()
    torch.testing.assert_close(aggregator(g), 1e3 * (g * g.abs()).sum(0))
    assert float(aggregator.variance) == 1e-8


@pytest.mark.holds("sam-gs", 3)
@pytest.mark.parametrize(("gamma", "degree"), [(1.0, 1), (0.0, 2)])
def test_degree_of_either_branch(gamma, degree):
    j = randn(4, 6) * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).unsqueeze(1)
    for factor in (1e-3, 7.0):
        scaled = SAMGS(gamma=gamma)(factor * j)
        torch.testing.assert_close(scaled, factor**degree * SAMGS(gamma=gamma)(j), rtol=1e-12, atol=0.0)


@pytest.mark.holds("sam-gs", 4)
def test_similarity_is_of_lengths_alone():
    j = randn(3, 4)
    turned = torch.stack([torch.linalg.qr(randn(4, 4, seed=seed)).Q @ row for seed, row in enumerate(j, start=1)])
    for like in (turned, 1e-200 * j, 1e200 * j):
        similarity = gradient_magnitude_similarity(like)
        torch.testing.assert_close(similarity, gradient_magnitude_similarity(j), rtol=1e-12, atol=0.0)
    assert torch.equal(similarity.diagonal(), torch.ones(3, dtype=torch.float64))


@pytest.mark.holds("sam-gs", 5)
def test_one_task_and_gradients_of_zeros():
    assert torch.equal(SAMGS()(PAIR[:1]), PAIR[0])
    assert torch.equal(SAMGS(gamma=1.0)(PAIR[:1]), PAIR[0])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        with_zeros = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 10.0]], dtype=dtype)
        assert torch.equal(gradient_magnitude_similarity(with_zeros)[1], torch.tensor([0.0, 1.0, 0.0]).to(
            torch.promote_types(dtype, torch.float32)
        ))  # fmt: skip
        wanted = torch.tensor([4.5, 13.5], dtype=dtype)  # the mean length of two, 7.5, times (0.6, 0.8) + (0, 1)
        torch.testing.assert_close(SAMGS(gamma=1.0)(with_zeros), wanted)


def test_momenta_of_half_gradients_are_in_float32():
    aggregator = SAMGS()
    for _ in range(200):
        aggregator(torch.full((2, 3), 0.3, dtype=torch.bfloat16))
    assert aggregator.momenta.dtype == torch.float32
    torch.testing.assert_close(aggregator.momenta, torch.full((2, 3), float(torch.tensor(0.3).bfloat16())))


def test_another_shape_is_refused_until_it_is_reset():
    aggregator = SAMGS()
    aggregator(PAIR)
    with pytest.raises(ValueError, match=r"gradients: expected shape \(2, 2\) as in the calls before"):
        aggregator(randn(3, 2))
    aggregator.reset()
    assert aggregator(randn(3, 2)).shape == (2,)
    with pytest.raises(ValueError, match="gradients: expected at least one row"):
        similarity_aware_momentum_surgery(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="betas: expected a number >= 0 and < 1"):
        SAMGS(betas=(0.9, 1.0))
