"""Coverage against exact arithmetic, binomial counts of another library, and its limits."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from steepest.core.log_complement import log1mexp
from steepest.losses.language import DirectCoverageLoss, dco_loss, pass_at_n


def slope_of(logp, n):
    leaf = logp.clone().requires_grad_()
    (slope,) = torch.autograd.grad(dco_loss(leaf, n, reduction="sum"), leaf)
    return slope


def factor(n, p):
    """F(N, p) from exact fractions."""
    p = Fraction(p)
    return float(n * (1 - p) ** (n - 1) * p / (1 - (1 - p) ** n))


def drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[0, 0] = labels[2, 3:] = -100
    return logits, labels


@pytest.mark.holds("direct-coverage", 1)
def test_one_sample_is_cross_entropy():
    logits, labels = drawn()
    z, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = DirectCoverageLoss(1.0, "token")(z, labels)
    wanted = cross_entropy(y.flatten(0, 1), labels.flatten())
    assert value.item() == pytest.approx(wanted.item(), rel=1e-14)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-15)
    logp = torch.tensor([-1e-3, -2.0, 0.0], dtype=torch.float64)
    assert torch.equal(dco_loss(logp, 1, reduction="none"), -logp)
    assert slope_of(logp, 1).tolist() == [-1, -1, -1]


@pytest.mark.holds("direct-coverage", 2)
def test_numbers_of_the_card():
    tenth, half = torch.tensor([0.1]).double().log(), torch.tensor([0.5]).double().log()
    for logp, n, value in ((tenth, 4, 1.067404), (tenth, 16, 0.204938), (half, 4, 0.0645385)):
        assert dco_loss(logp, n).item() == pytest.approx(value, abs=5e-7)
    assert -slope_of(half, 4).item() == pytest.approx(0.266667, abs=1e-6)
    assert -slope_of(tenth, 4).item() == pytest.approx(0.847921, abs=1e-6)


@pytest.mark.holds("direct-coverage", 3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1.5, 4.0, 64.0, 1e6])
def test_it_falls_and_is_never_nan(dtype, n):
    logp = torch.tensor([-1e4, -100.0, -40.0, -5.0, -1.0, -0.1, -1e-4, -1e-12, 0.0], dtype=dtype)
    losses, slopes = dco_loss(logp, n, reduction="none"), slope_of(logp, n)
    assert (losses.diff() <= 0).all()
    assert (losses >= 0).all()
    assert slopes.isfinite().all()
    assert (slopes <= 0).all()
    assert (dco_loss(logp, 2 * n, reduction="none") <= losses).all()
    assert losses[0].item() == pytest.approx(1e4 - math.log(n), rel=1e-6)
    assert slopes[0].item() == -1
    assert losses[-1] == 0
    assert slopes[-1] == 0
    assert dco_loss(torch.tensor([-math.inf], dtype=dtype), n) == math.inf


@pytest.mark.holds("direct-coverage", 4)
@pytest.mark.parametrize("n", [2, 4, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_likelihood_times_a_factor(n, dtype):
    for p in ("1/1000000000", "1/1000", "1/10", "9/100", "1/4", "1/2", "3/4", "999/1000"):
        logp = torch.tensor([math.log(Fraction(p))], dtype=torch.float64).to(dtype)
        # the rounding of log p moves p by a few units, and 1 - p by p / (1 - p) times as much
        near = max(1.0, float(Fraction(p) / (1 - Fraction(p)))) * n * 8 * torch.finfo(dtype).eps
        assert -slope_of(logp, n).item() == pytest.approx(factor(n, p), rel=near)
        exact = -math.log(1 - (1 - Fraction(p)) ** n)
        assert dco_loss(logp, n).item() == pytest.approx(exact, rel=near, abs=near * 1e-3)


@pytest.mark.holds("direct-coverage", 5)
def test_which_numbers_of_samples():
    for wrong in (0.5, 0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="n: expected"):
            dco_loss(torch.zeros(1), wrong)
        with pytest.raises(ValueError, match="n: expected"):
            DirectCoverageLoss(wrong)
    between = dco_loss(torch.tensor([-1.0]).double(), 2.5).item()
    assert between == pytest.approx(-math.log(1 - (1 - math.exp(-1)) ** 2.5), rel=1e-14)


def test_likely_answers_leave_the_gradient():
    assert -slope_of(torch.tensor([-1e-4]).double(), 4).item() == pytest.approx(3.9990e-12, rel=1e-4)
    assert -slope_of(torch.tensor([-1e-4]), 4).item() == pytest.approx(3.9990e-12, rel=1e-3)
    assert log1mexp(torch.tensor([-1e-9])).item() == pytest.approx(-20.723266, abs=2e-6)


def test_the_probability_of_a_sequence():
    logits, labels = drawn()
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    sums = torch.where(labels == -100, 0.0, log_p).sum(1)
    assert DirectCoverageLoss(8)(logits, labels).item() == pytest.approx(dco_loss(sums, 8).item(), rel=1e-13)


def test_steps_of_a_sequence():
    logits, labels = drawn()
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    steps = torch.tensor([[9, 3, 3, 3, 1], [0, 0, 0, 2, 2], [1, 1, 1, 7, 7]])
    of_steps = [log_p[0, 1:4].sum(), log_p[0, 4], log_p[1, :3].sum(), log_p[1, 3:].sum(), log_p[2, :3].sum()]
    wanted = dco_loss(torch.stack(of_steps), 3, reduction="sum") / 3
    assert DirectCoverageLoss(3)(logits, labels, steps=steps).item() == pytest.approx(wanted.item(), rel=1e-13)
    labels[0, 2] = -100  # inside a step
    wanted = dco_loss(torch.stack([log_p[0, 1] + log_p[0, 3], *of_steps[1:]]), 3, reduction="sum") / 3
    steps[0, 2] = 4
    assert DirectCoverageLoss(3)(logits, labels, steps=steps).item() == pytest.approx(wanted.item(), rel=1e-13)


def test_the_mean_over_rationales():
    logp = torch.tensor([[-1.0, -3.0, -0.2], [-4.0, -5.0, -6.0]]).double()
    p = logp.exp().mean(1)
    wanted = -(1 - (1 - p) ** 5).log().mean()
    assert dco_loss(logp, 5).item() == pytest.approx(wanted.item(), rel=1e-14)
    assert dco_loss(torch.zeros(2, 3), 5) == 0


@pytest.mark.parametrize("n", [1, 3, 20])
def test_pass_at_n_against_the_hypergeometric_distribution(n):
    right, total = torch.arange(21), torch.full((21,), 20)
    wanted = [1 - stats.hypergeom.pmf(0, 20, c, n) for c in range(21)]
    assert pass_at_n(right, total, n).tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-14)
    assert pass_at_n(3, 2000, n).item() == pytest.approx(1 - stats.hypergeom.pmf(0, 2000, 3, n), rel=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="logp: expected logarithms of probabilities"):
        dco_loss(torch.tensor([0.1]), 4)
    with pytest.raises(ValueError, match="num_samples: expected 5 or more"):
        pass_at_n(1, 4, 5)
    with pytest.raises(ValueError, match="num_correct: expected numbers from 0 to num_samples"):
        pass_at_n(torch.tensor([5]), 4, 2)
    with pytest.raises(ValueError, match="answer: expected one of"):
        DirectCoverageLoss(4, "word")
    with pytest.raises(ValueError, match="steps: expected shape"):
        DirectCoverageLoss(4)(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), steps=torch.zeros(3, 2).long())


def test_steps_that_would_run_into_another_sequence_are_refused():
    logits, labels = torch.zeros(1, 4, 3), torch.zeros(1, 4).long()
    segments = torch.tensor([[0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"steps: expected values in 0\.\.3"):
        DirectCoverageLoss(4)(logits, labels, steps=torch.tensor([[0, 4, 0, 1]]), segments=segments)
    labels[0, 1] = -100  # what stands beside no token is nothing
    DirectCoverageLoss(4)(logits, labels, steps=torch.tensor([[0, 4, 0, 1]]), segments=segments)
    with pytest.raises(ValueError, match='steps: expected None with answer="token"'):
        DirectCoverageLoss(4, "token")(logits, labels, steps=segments)


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_the_mean_of_no_answers_is_zero_with_a_graph(shape):
    logp = torch.zeros(shape, requires_grad=True)
    value = dco_loss(logp, 4)
    assert value == 0
    assert not torch.autograd.grad(value, logp)[0].any()
    assert dco_loss(torch.zeros(2) - 1, 4, weight=torch.zeros(2)) == 0
