"""Pairs of gradients: closed forms, two-task PCGrad, and what the curriculum leaves out."""

from __future__ import annotations

import io

import pytest
import torch
import torchjd.aggregation as peers

from steepest.gradients import CrossModalityGradientHarmonization, GradientConflictCurriculum, realign_gradients

ONE, TWO = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])


def pairs(rows=40, width=6):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(rows, width, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.holds("gradient-harmonization", 1)
def test_a_pair_by_hand():
    first, second = realign_gradients(ONE, TWO)
    torch.testing.assert_close(first, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(second, torch.tensor([0.0, 1.0]))
    harmonize = CrossModalityGradientHarmonization()
    torch.testing.assert_close(harmonize(ONE[None], TWO[None]), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(harmonize.cosine, torch.tensor([-0.707107]))


@pytest.mark.holds("gradient-harmonization", 2)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_afterwards_neither_conflicts_with_the_other(size):
    g1, g2 = (g.float() * size for g in pairs())
    first, second = realign_gradients(g1, g2)
    unit = [g.double() / g.double().norm(dim=1, keepdim=True) for g in (g1, g2, first, second)]
    before = (unit[0] * unit[1]).sum(1)
    assert (before < 0).any()
    assert (before > 0).any()
    for products in ((unit[2] * unit[1]).sum(1), (unit[3] * unit[0]).sum(1)):
        assert (products >= -1e-5).all()
        assert (products[before < 0].abs() <= 1e-5).all()


@pytest.mark.holds("gradient-harmonization", 3)
def test_without_conflict_nothing_changes_and_the_order_does_not_matter():
    g1, g2 = pairs()
    first, second = realign_gradients(g1, g2)
    agree = (g1 * g2).sum(1) >= 0
    assert torch.equal(first[agree], g1[agree])
    assert torch.equal(second[agree], g2[agree])
    swapped = realign_gradients(g2, g1)
    assert torch.equal(swapped[0], second)
    assert torch.equal(swapped[1], first)
    for one, two, a, b in zip(g1, g2, first, second):
        torch.testing.assert_close(a + b, peers.PCGrad()(torch.stack([one, two])))
        single = realign_gradients(one, two)
        torch.testing.assert_close((single[0], single[1]), (a, b))


@pytest.mark.holds("gradient-harmonization", 4)
def test_the_threshold_and_whom_it_keeps():
    every = GradientConflictCurriculum(5, start=-1.0, end=-1.0)
    assert every.mask(torch.tensor([-1.0, -1.0 - 1e-7, 1.0]), 0).all()
    rising = GradientConflictCurriculum(5)
    assert [round(rising.threshold(t), 6) for t in (0, 1, 2, 3, 4, 9)] == [-0.3, -0.225, -0.15, -0.075, 0.0, 0.0]
    constant = GradientConflictCurriculum(5, start=0.2, end=0.2)
    assert {constant.threshold(t) for t in range(7)} == {0.2}
    assert GradientConflictCurriculum(1).threshold(0) == -0.3
    g1, g2 = pairs()
    cosine = torch.nn.functional.cosine_similarity(g1, g2)
    for realign in (False, True):
        harmonize = CrossModalityGradientHarmonization(realign, GradientConflictCurriculum(3, start=-0.5, end=0.5))
        for threshold in (-0.5, 0.0, 0.5, 0.5):
            counted = cosine >= threshold
            rows = realign_gradients(g1, g2) if realign else (g1, g2)
            torch.testing.assert_close(harmonize(g1, g2), (rows[0] + rows[1])[counted].mean(0))
    nobody = CrossModalityGradientHarmonization(curriculum=GradientConflictCurriculum(2, start=1.0, end=1.0))
    assert torch.equal(nobody(ONE[None], TWO[None]), torch.zeros(2))


@pytest.mark.holds("gradient-harmonization", 5)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_gradient_stays_with_a_cosine_of_zero(dtype):
    zero, other = torch.zeros(3, 2, dtype=dtype), torch.tensor([[1.0, -2.0]] * 3, dtype=dtype)
    first, second = realign_gradients(zero, other)
    assert torch.equal(first, zero)
    assert torch.equal(second, other)
    harmonize = CrossModalityGradientHarmonization()
    direction = harmonize(zero, other)
    assert torch.equal(direction, other[0])
    assert direction.dtype == dtype
    assert not harmonize.cosine.any()
    assert realign_gradients(torch.zeros(2, 0), torch.zeros(2, 0))[0].shape == (2, 0)


def test_state_and_evaluation():
    harmonize = CrossModalityGradientHarmonization(curriculum=GradientConflictCurriculum(4, start=-1.0, end=1.0))
    harmonize(ONE[None], TWO[None])
    file = io.BytesIO()
    torch.save(harmonize.state_dict(), file)
    file.seek(0)
    again = CrossModalityGradientHarmonization(curriculum=GradientConflictCurriculum(4, start=-1.0, end=1.0))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert int(again.steps) == 1
    again.eval()(ONE[None], TWO[None])
    assert int(again.steps) == 1, "only training counts"
    again.reset()
    assert int(again.steps) == 0


def test_nan_stays_and_what_is_refused():
    broken = torch.tensor([[torch.nan, 1.0]])
    assert CrossModalityGradientHarmonization()(broken, TWO[None]).isnan().any()
    with pytest.raises(ValueError, match=r"g2: expected shape \(2\)"):
        realign_gradients(ONE, torch.ones(3))
    with pytest.raises(TypeError, match="g1: expected a floating tensor"):
        realign_gradients(ONE.long(), TWO)
    with pytest.raises(ValueError, match="g1: expected 1 or 2 dimensions"):
        realign_gradients(ONE[None, None], TWO[None, None])
    with pytest.raises(ValueError, match="g1: expected a row for each sample"):
        CrossModalityGradientHarmonization()(ONE, TWO)
    for wrong in ({"total": 0}, {"total": 3, "start": -2.0}, {"total": 3, "end": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            GradientConflictCurriculum(**wrong)
    with pytest.raises(ValueError, match="step: expected"):
        GradientConflictCurriculum(3).threshold(-1)
