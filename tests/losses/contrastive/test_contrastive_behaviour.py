"""Known numbers, limits of the temperature, shares of the gradient, hardest negatives by a loop, another library."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss as PeerLoss

from steepest.losses.contrastive import (
    HardContrastiveLoss,
    SimpleContrastiveLoss,
    hard_contrastive_loss,
    negative_penalty,
    similarities_of_views,
    simple_contrastive_loss,
    tolerance,
    uniformity,
)

POSITIVE = torch.tensor([0.9], dtype=torch.float64)
NEGATIVES = torch.tensor([[0.7, 0.2, -0.4]], dtype=torch.float64)


def entropy(p):
    return float(-(p * p.log()).sum())


@pytest.mark.holds("contrastive-behaviour", 1)
def test_the_loss_of_one_anchor():
    for temperature, wanted in ((0.1, 0.127733), (0.5, 0.688733), (1.0, 0.950827)):
        value = hard_contrastive_loss(POSITIVE, NEGATIVES, temperature=temperature).item()
        assert value == pytest.approx(wanted, abs=1e-6)
        terms = [math.exp(s / temperature) for s in (0.9, 0.7, 0.2, -0.4)]
        assert value == pytest.approx(-math.log(terms[0] / sum(terms)), rel=1e-12)


@pytest.mark.holds("contrastive-behaviour", 2)
def test_shares_of_negatives_and_their_entropy():
    cold, warm = negative_penalty(NEGATIVES, 0.1)[0], negative_penalty(NEGATIVES, 1.0)[0]
    assert cold.tolist() == pytest.approx([0.993291, 0.006693, 0.0000166], abs=1e-6)
    assert warm.tolist() == pytest.approx([0.515623, 0.312741, 0.171636], abs=1e-6)
    assert entropy(cold) == pytest.approx(0.040378, abs=1e-6)
    assert entropy(warm) == pytest.approx(1.007550, abs=1e-6)


@pytest.mark.holds("contrastive-behaviour", 3)
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_gradients_have_these_shares_and_balance(temperature):
    positive, negatives = POSITIVE.clone().requires_grad_(), NEGATIVES.clone().requires_grad_()
    loss = hard_contrastive_loss(positive, negatives, temperature=temperature)
    own, others = torch.autograd.grad(loss, (positive, negatives))
    torch.testing.assert_close(others / -own, negative_penalty(NEGATIVES, temperature))
    assert (own.sum() + others.sum()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.holds("contrastive-behaviour", 4)
def test_a_low_temperature_leaves_the_hardest_negative():
    positive, negatives = torch.tensor([0.5], dtype=torch.float64), torch.tensor([[0.7, 0.2]], dtype=torch.float64)
    for temperature, wanted in ((0.1, 0.213285), (0.01, 0.2), (1e-4, 0.2)):
        value = temperature * hard_contrastive_loss(positive, negatives, temperature=temperature).item()
        assert value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.holds("contrastive-behaviour", 5)
def test_a_high_temperature_leaves_means():
    for temperature, wanted, within in ((1e3, -0.549874, 1e-6), (1e6, -0.55, 1e-6)):
        loss = hard_contrastive_loss(POSITIVE, NEGATIVES, temperature=temperature).item()
        assert temperature * (loss - math.log(4)) == pytest.approx(wanted, abs=within)


@pytest.mark.holds("contrastive-behaviour", 6)
def test_all_negatives_are_the_contrastive_loss_and_uniformity_has_no_diagonal():
    z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    ours = HardContrastiveLoss(temperature=0.3, keep_fraction=1.0)(z, torch.arange(5))
    peer = PeerLoss(temperature=0.3)(z.flatten(0, 1), torch.arange(5).repeat(2))
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(peer, z))
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert uniformity(three).item() == pytest.approx(-4.396349, abs=1e-6)
    assert uniformity(5 * three).item() == pytest.approx(-4.396349, abs=1e-6)


def test_uniformity_and_tolerance_are_their_definitions():
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = [0, 1, 0, 2, 1, 0, 3]
    rows = [v / v.norm() for v in z]
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    kernel = [math.exp(-3.0 * float((rows[i] - rows[j]).square().sum())) for i, j in pairs]
    assert uniformity(z, t=3.0).item() == pytest.approx(math.log(sum(kernel) / len(kernel)), rel=1e-12)
    same = [float(rows[i] @ rows[j]) for i, j in pairs if labels[i] == labels[j]]
    assert tolerance(z, torch.tensor(labels)).item() == pytest.approx(sum(same) / len(same), rel=1e-12)
    assert tolerance(z, torch.arange(7)) == 0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_the_hardest_negatives_are_those_of_a_sorted_list(share):
    s = torch.randn(6, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    positive = torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    number = max(1, math.ceil(share * 8 - 1e-9))
    hardest = [sorted(row, reverse=True)[:number] for row in s.tolist()]
    logs = [
        -math.log(math.exp(p / 0.4) / (math.exp(p / 0.4) + sum(math.exp(v / 0.4) for v in row)))
        for p, row in zip(positive.tolist(), hardest)
    ]
    result = hard_contrastive_loss(positive, s, temperature=0.4, keep_fraction=share)
    assert result.item() == pytest.approx(sum(logs) / 6, rel=1e-12)
    plain = [-p + 0.7 * sum(row) for p, row in zip(positive.tolist(), hardest)]
    result = simple_contrastive_loss(positive, s, lam=0.7, keep_fraction=share)
    assert result.item() == pytest.approx(sum(plain) / 6, rel=1e-12)
    averaged = [-p + 0.7 * sum(row) / number for p, row in zip(positive.tolist(), hardest)]
    result = simple_contrastive_loss(positive, s, lam=0.7, keep_fraction=share, mean=True)
    assert result.item() == pytest.approx(sum(averaged) / 6, rel=1e-12)


def test_the_quantile_is_of_an_anchors_own_negatives_and_equal_ones_stay():
    s = torch.tensor([[0.5, 0.9, 0.1, 0.9], [0.3, 0.2, 0.1, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    positive = torch.zeros(2, dtype=torch.float64)
    result = simple_contrastive_loss(positive, s, keep_fraction=0.5, mask=mask)
    assert result.item() == pytest.approx(((0.9 + 0.5) + (0.3 + 0.2)) / 2)
    tied = simple_contrastive_loss(positive[:1], s[:1], keep_fraction=0.25)
    assert tied.item() == pytest.approx(1.8)


def test_simple_views_are_the_means_of_cosines():
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ids = torch.tensor([0, 1, 2, 0])
    positive, s, mask = similarities_of_views(z, ids)
    assert mask.sum(1).tolist() == [4, 6, 6, 4] * 2
    wanted = (-positive + 0.5 * torch.where(mask, s, 0.0).sum(1) / mask.sum(1)).mean()
    torch.testing.assert_close(SimpleContrastiveLoss(lam=0.5)(z, torch.arange(4), ids=ids), wanted)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("temperature: expected", lambda: HardContrastiveLoss(temperature=0.0)),
        ("keep_fraction: expected", lambda: HardContrastiveLoss(keep_fraction=0.0)),
        ("keep_fraction: expected", lambda: simple_contrastive_loss(POSITIVE, NEGATIVES, keep_fraction=1.5)),
        ("positive: expected", lambda: simple_contrastive_loss(torch.zeros(2), NEGATIVES)),
        ("lam: expected", lambda: SimpleContrastiveLoss(lam=-1.0)),
        ("negatives: expected", lambda: negative_penalty(POSITIVE, 1.0)),
        ("labels: expected", lambda: tolerance(NEGATIVES, torch.zeros(2).long())),
        ("t: expected", lambda: uniformity(torch.ones(2, 3), t=0.0)),
        ("z: expected two rows", lambda: uniformity(NEGATIVES)),
        ("z: expected two rows", lambda: uniformity(NEGATIVES[:0])),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_what_is_not_a_number_is_not_left_out(keep):
    negatives = torch.tensor([[math.nan, 0.2, 0.1, 0.0]])
    assert hard_contrastive_loss(torch.tensor([0.9]), negatives, temperature=0.5, keep_fraction=keep).isnan()


@pytest.mark.parametrize("loss", [lambda **o: hard_contrastive_loss(temperature=1.0, **o), simple_contrastive_loss])
def test_a_mask_of_numbers_is_refused(loss):
    for mask in (torch.tensor([[1, 0, 1]]), torch.tensor([[1.0, 0.0, 1.0]])):
        with pytest.raises(TypeError, match="mask: expected a boolean tensor"):
            loss(positive=POSITIVE, negatives=NEGATIVES, keep_fraction=0.5, mask=mask)
