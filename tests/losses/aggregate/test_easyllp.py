"""EasyLLP: debiased labels, the unbiased risk of random bags, proportion matching."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from steepest.losses.aggregate.easyllp import (
    EasyLLPLoss,
    ProportionMatchingLoss,
    debiased_bag_loss,
    easyllp_loss,
    proportion_matching_loss,
    pseudo_labels,
)

SCORES = (0.9, 0.2, 0.6, 0.4)
LOGITS = torch.tensor([math.log(s / (1 - s)) for s in SCORES], dtype=torch.float64)
ONE = torch.zeros(4, dtype=torch.long)


def share(*values):
    return torch.tensor(values, dtype=torch.float64)


def naive(scores, index, alpha, prior):
    """The equation of the log loss in plain numbers."""
    total = 0.0
    for b, a in enumerate(alpha):
        own = [s for s, i in zip(scores, index) if i == b]
        label = len(own) * (a - prior) + prior
        total += sum(-label * math.log(s) - (1 - label) * math.log(1 - s) for s in own) / len(own)
    return total / len(alpha)


@pytest.mark.holds("easyllp", 1)
def test_card_values():
    assert easyllp_loss(LOGITS, ONE, share(0.75), 0.4).item() == pytest.approx(0.623293, abs=5e-7)
    at_prior = easyllp_loss(LOGITS, ONE, share(0.4), 0.4).item()
    assert at_prior == pytest.approx(0.907118, abs=5e-7)
    first, second = (sum(-math.log(s) for s in v) / 4 for v in (SCORES, [1 - s for s in SCORES]))
    assert at_prior == pytest.approx(0.4 * first + 0.6 * second, abs=1e-12)


@pytest.mark.parametrize("index", [[0, 1, 1, 0, 2, 1, 0], [0, 0, 0, 0, 0, 1, 2]])
def test_naive_loop_over_unequal_bags(index):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, generator=generator, dtype=torch.float64)
    alpha = [0.2, 1.0, 0.0]
    wanted = naive(logits.sigmoid().tolist(), index, alpha, 0.3)
    assert EasyLLPLoss(0.3)(logits, torch.tensor(index), share(*alpha)).item() == pytest.approx(wanted, abs=1e-12)
    assert EasyLLPLoss.from_proportions(share(*alpha)).prior.item() == pytest.approx(0.4)


@pytest.mark.holds("easyllp", 2)
def test_bags_of_one_are_supervised():
    assert easyllp_loss(LOGITS[:1], ONE[:1], share(1.0), 0.3).item() == pytest.approx(0.105361, abs=5e-7)
    y = share(1.0, 0.0, 0.0, 1.0)
    index = torch.arange(4)
    wanted = nn.functional.binary_cross_entropy_with_logits(LOGITS, y)
    assert torch.allclose(easyllp_loss(LOGITS, index, y, 0.3), wanted, atol=1e-14)
    assert torch.allclose(proportion_matching_loss(LOGITS, index, y), wanted, atol=1e-14)
    logits, target = torch.randn(4, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 1])
    one_hot = nn.functional.one_hot(target, 3).double()
    wanted = nn.functional.cross_entropy(logits, target)
    assert torch.allclose(easyllp_loss(logits, index, one_hot, share(0.2, 0.3, 0.5)), wanted, atol=1e-14)
    assert torch.allclose(proportion_matching_loss(logits, index, one_hot), wanted, atol=1e-14)


@pytest.mark.holds("easyllp", 3)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_unbiased_by_enumeration(k):
    """Every bag of k draws of a bit x with P(y = 1 | x) of .2 and .8, weighted by its probability."""
    score, positive = (0.3, 0.6), (0.2, 0.8)
    risk = 0.0
    for x, y in itertools.product((0, 1), (0, 1)):
        p = 0.5 * (positive[x] if y else 1 - positive[x])
        risk -= p * math.log(score[x] if y else 1 - score[x])
    expectation = 0.0
    for xs in itertools.product((0, 1), repeat=k):
        logits = torch.tensor([math.log(score[x] / (1 - score[x])) for x in xs], dtype=torch.float64)
        for ys in itertools.product((0, 1), repeat=k):
            p = math.prod(0.5 * (positive[x] if y else 1 - positive[x]) for x, y in zip(xs, ys))
            expectation += p * easyllp_loss(logits, ONE[:k], share(sum(ys) / k), 0.5).item()
    assert risk == pytest.approx(0.559026581, abs=5e-10)
    assert expectation == pytest.approx(risk, abs=1e-12)


def test_unbiased_for_classes_and_any_loss():
    """All bags of two from three classes, each class with its own probability; a table in place of a loss."""
    p = share(0.5, 0.3, 0.2)
    table = torch.tensor([[0.4, -1.0, 2.0]], dtype=torch.float64)
    expectation = 0.0
    for first, second in itertools.product(range(3), repeat=2):
        alpha = (nn.functional.one_hot(torch.tensor([[first, second]]), 3).double()).mean(1)
        found = debiased_bag_loss(table.expand(2, 3), ONE[:2], alpha, p)
        expectation += (p[first] * p[second] * found.squeeze()).item()
    assert expectation == pytest.approx((table[0] * p).sum().item(), abs=1e-12)


@pytest.mark.holds("easyllp", 4)
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_linear_in_the_share_and_blind_to_order(loss):
    index = torch.tensor([0, 0, 1, 1])

    def at(a, b):
        return easyllp_loss(LOGITS, index, share(a, b), 0.4, loss).item()

    for t in (0.25, 0.5):
        mixed = at(t * 0.1 + (1 - t) * 0.9, t * 1.0 + (1 - t) * 0.3)
        assert mixed == pytest.approx(t * at(0.1, 1.0) + (1 - t) * at(0.9, 0.3), abs=1e-12)
    assert at(0.1, 1.0) != pytest.approx(at(0.9, 0.3), abs=1e-3)
    inside = torch.tensor([1, 0, 3, 2])
    assert torch.allclose(
        easyllp_loss(LOGITS[inside], index, share(0.5, 1.0), 0.4, loss),
        easyllp_loss(LOGITS, index, share(0.5, 1.0), 0.4, loss),
        atol=1e-14,
    )


@pytest.mark.holds("easyllp", 5)
def test_sums_of_pseudo_labels():
    k, prior = 4, 0.4
    labels = pseudo_labels(ONE, share(0.75), prior)
    assert labels.tolist() == pytest.approx([1.8] * 4)
    assert labels.sum().item() == pytest.approx(k * (k * (0.75 - prior) + prior), abs=1e-12)
    y = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1])
    alpha = y.reshape(3, 4).double().mean(1)
    labels = pseudo_labels(torch.arange(12) // 4, alpha, alpha.mean().item())
    assert labels.mean().item() == pytest.approx(y.double().mean().item(), abs=1e-12)


@pytest.mark.holds("easyllp", 6)
@pytest.mark.parametrize(
    ("index", "alpha", "prior", "message"),
    [
        ([0, 0, 0, 0], [1.2], 0.4, r"proportions: expected values in \[0, 1\], got 1.2"),
        ([0, 0, 0, 0], [-0.5], 0.4, r"proportions: expected values in \[0, 1\], got -0.5"),
        ([0, 0, 0, 0], [0.5], 0.0, "prior: expected a number > 0 and < 1"),
        ([0, 0, 0, 0], [0.5], 1.0, "prior: expected a number > 0 and < 1"),
        ([0, 0, 2, 2], [0.5, 0.5, 0.5], 0.4, "no row of bag 1"),
        ([0, 0, 1, 1], [0.5], 0.4, "bag_index: expected values in 0..0"),
        ([0, 0, 1, 1], [[0.5, 0.5]], 0.4, "proportions: expected 1 dimensions"),
    ],
)
def test_refused(index, alpha, prior, message):
    with pytest.raises(ValueError, match=message):
        easyllp_loss(LOGITS, torch.tensor(index), torch.tensor(alpha, dtype=torch.float64), prior)


def test_refused_priors_and_options():
    for bad in (torch.tensor([0.5, 0.5]), torch.tensor([[0.5]]), torch.tensor(1.5)):
        with pytest.raises(ValueError, match="prior: expected"):
            easyllp_loss(LOGITS, ONE, share(0.5), bad)
    with pytest.raises(ValueError, match="proportions: expected rows that sum to 1"):
        easyllp_loss(torch.zeros(4, 2), ONE, torch.tensor([[0.5, 0.4]]), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="prior: expected a tensor with a share for each class"):
        easyllp_loss(torch.zeros(4, 2), ONE, torch.tensor([[0.5, 0.5]]), 0.5)
    with pytest.raises(ValueError, match="loss: expected one of 'logistic', 'squared'"):
        EasyLLPLoss(0.5, "hinge")
    with pytest.raises(ValueError, match="loss: expected the loss of each row under each label"):
        easyllp_loss(LOGITS, ONE, share(0.5), 0.5, lambda logits: logits)
    with pytest.raises(ValueError, match="correction: expected one of 'none', 'abs'"):
        EasyLLPLoss(0.5, correction="clip")


def test_squared_loss_and_own_loss():
    """The squared loss of probabilities, in one column or two; a function takes the place of a name."""
    wanted = sum(1.8 * (1 - s) ** 2 - 0.8 * s**2 for s in SCORES) / 4
    assert easyllp_loss(LOGITS, ONE, share(0.75), 0.4, "squared").item() == pytest.approx(wanted, abs=1e-12)
    both = torch.stack([torch.zeros_like(LOGITS), LOGITS], 1)
    shares, prior = torch.tensor([[0.25, 0.75]], dtype=torch.float64), share(0.6, 0.4)
    assert easyllp_loss(both, ONE, shares, prior, "squared").item() == pytest.approx(2 * wanted, abs=1e-12)
    assert easyllp_loss(both, ONE, shares, prior).item() == pytest.approx(0.623293, abs=5e-7)

    def own(z):
        return torch.stack([z.sigmoid().square(), (1 - z.sigmoid()).square()], -1)

    assert easyllp_loss(LOGITS, ONE, share(0.75), 0.4, own).item() == pytest.approx(wanted, abs=1e-12)


def test_absolute_value_correction():
    """The part of the negatives, -0.8 l0, is turned round; without negative parts nothing changes."""
    plain = easyllp_loss(LOGITS, ONE, share(0.75), 0.4)
    corrected = easyllp_loss(LOGITS, ONE, share(0.75), 0.4, correction="abs")
    negatives = 0.8 * sum(-math.log(1 - s) for s in SCORES) / 4
    assert (corrected - plain).item() == pytest.approx(2 * negatives, abs=1e-12)
    same = [easyllp_loss(LOGITS, ONE, share(0.4), 0.4, correction=c).item() for c in ("none", "abs")]
    assert same[0] == same[1]
    far = torch.full((4,), 1e4, dtype=torch.float64)
    assert easyllp_loss(far, ONE, share(0.75), 0.4).item() < -1000
    assert easyllp_loss(far, ONE, share(0.75), 0.4, correction="abs").item() > 0


def test_proportion_matching():
    wanted = -0.75 * math.log(sum(SCORES) / 4) - 0.25 * math.log(1 - sum(SCORES) / 4)
    assert proportion_matching_loss(LOGITS, ONE, share(0.75)).item() == pytest.approx(wanted, abs=1e-12)
    # all mass in one probability that float32 cannot hold: still finite, with a gradient
    far = torch.tensor([-200.0, -201.0], requires_grad=True)
    loss = ProportionMatchingLoss()(far, ONE[:2], torch.tensor([1.0]))
    assert loss.item() == pytest.approx(200 - math.log((1 + math.exp(-1)) / 2), rel=1e-6)
    loss.backward()
    assert far.grad.tolist() == pytest.approx([-1 / (1 + math.exp(-1)), -1 / (1 + math.e)], rel=1e-5)
