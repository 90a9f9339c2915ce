"""A scale and a margin that follow the median sample; triplets of matched descriptors, by loops."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steepest.losses.contrastive import (
    AdaptiveMarginCosineLoss,
    LocalTripletLoss,
    MadaCos,
    adaptive_margin_logits,
    local_triplet_loss,
)

COSINES = torch.tensor([[0.7, 0.1, -0.2, 0.0], [0.2, 0.5, 0.1, 0.3], [0.0, 0.3, 0.4, -0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


def drawn(rows, classes, low, generator):
    cosines = 0.5 * torch.rand(rows, classes, generator=generator, dtype=torch.float64) - 0.25
    labels = torch.randint(classes, (rows,), generator=generator)
    cosines[range(rows), labels] = low + (0.95 - low) * torch.rand(rows, generator=generator, dtype=torch.float64)
    return cosines, labels


def by_numbers(cosines, labels, alpha, min_scale):
    """Scale and margin of the batch, a number at a time."""
    of_target = [row[y] for row, y in zip(cosines.tolist(), labels.tolist())]
    median = statistics.median_low(of_target)
    row = of_target.index(median)
    scale = max(min_scale, math.log(9999999 * (1 - alpha) / alpha) / (1 - median))
    others = sum(math.exp(scale * c) for k, c in enumerate(cosines[row].tolist()) if k != labels[row])
    return scale, max(0.0, median - math.log(others * alpha / (1 - alpha)) / scale)


@pytest.mark.holds("cfcd", 1)
def test_known_numbers():
    layer, loss = MadaCos(), AdaptiveMarginCosineLoss()
    layer(COSINES, LABELS)
    assert layer.last_scale.item() == pytest.approx(40.019832, abs=1e-6)
    assert layer.last_margin.item() == pytest.approx(0.296786, abs=1e-6)
    assert loss(COSINES, LABELS).item() == pytest.approx(3.929259, abs=1e-6)
    assert loss.terms["margin"].item() == pytest.approx(0.296786, abs=1e-6)
    assert by_numbers(COSINES, LABELS, 0.02, 32.0) == pytest.approx((40.019832, 0.296786), abs=1e-6)


@pytest.mark.holds("cfcd", 2)
@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("rows", [5, 6])
def test_a_positive_margin_leaves_the_median_sample_alpha(alpha, rows):
    generator = torch.Generator().manual_seed(rows)
    cosines, labels = drawn(rows, 7, 0.6, generator)
    logits, scale, margin = adaptive_margin_logits(cosines, labels, alpha=alpha, min_scale=4.0)
    assert (scale.item(), margin.item()) == pytest.approx(by_numbers(cosines, labels, alpha, 4.0), rel=1e-9)
    assert margin > 0
    of_target = cosines[range(rows), labels].tolist()
    row = of_target.index(statistics.median_low(of_target))
    assert logits.softmax(1)[row, labels[row]].item() == pytest.approx(alpha, rel=1e-9)
    twice = adaptive_margin_logits(cosines[[row, row]], labels[[row, row]], alpha=alpha, min_scale=4.0)
    assert twice.margin.item() == pytest.approx(margin.item(), rel=1e-12)


@pytest.mark.holds("cfcd", 3)
def test_eval_mode_the_least_scale_and_the_gradient():
    generator = torch.Generator().manual_seed(0)
    for low, min_scale in ((-0.9, 40.0), (-0.9, 48.0), (0.7, 32.0)):
        cosines, labels = drawn(9, 5, low, generator)
        scale, margin = by_numbers(cosines, labels, 0.02, min_scale)
        assert scale >= min_scale
        assert (scale == min_scale) == (low < 0)
        loss = AdaptiveMarginCosineLoss(min_scale=min_scale)
        cosines.requires_grad_()
        for training in (True, False):
            value = loss.train(training)(cosines, labels)
            onehot = torch.nn.functional.one_hot(labels, 5).double()
            z = scale * (cosines - (margin if training else 0.0) * onehot)
            torch.testing.assert_close(value, torch.nn.functional.cross_entropy(z, labels))
            (slope,) = torch.autograd.grad(value, cosines)
            torch.testing.assert_close(slope, scale * (z.softmax(1) - onehot).detach() / 9)
            assert loss.terms["margin"].item() == pytest.approx(margin if training else 0.0, rel=1e-9, abs=1e-12)
    assert margin > 0


@pytest.mark.holds("cfcd", 4)
def test_nothing_matches_and_ranges_and_medians_near_1():
    maps = torch.ones(8, 4, 3, requires_grad=True)
    value = local_triplet_loss(maps, torch.ones(8, 4))
    assert value == 0
    assert torch.equal(torch.autograd.grad(value, maps)[0], torch.zeros_like(maps))
    for rows in (0, 1):  # of one location no half has attention
        value = local_triplet_loss(maps[:, :rows], torch.ones(8, rows))
        assert value == 0
        assert value.requires_grad
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="alpha: expected a number > 0 and < 1"):
            AdaptiveMarginCosineLoss(alpha=alpha)
        with pytest.raises(ValueError, match="alpha: expected a number > 0 and < 1"):
            adaptive_margin_logits(COSINES, LABELS, alpha=alpha)
    ends = torch.tensor([[1.0, -1.0, 0.3], [0.2, 1.0, 1.0], [0.0, 0.0, 1.0]], requires_grad=True)
    loss = AdaptiveMarginCosineLoss()
    value = loss(ends, LABELS)
    assert value.isfinite()
    assert torch.autograd.grad(value, ends)[0].isfinite().all()
    assert loss.terms["scale"].item() == pytest.approx(math.log(9999999 * 49) / 1e-3, rel=1e-5)
    assert loss(ends.half(), LABELS).dtype == torch.float32
    with pytest.raises(ValueError, match="cosines: expected one row and more"):
        adaptive_margin_logits(ends[:0], LABELS[:0])
    with pytest.raises(ValueError, match="maps: expected query, positive and one negative"):
        local_triplet_loss(maps[:2], torch.ones(2, 4))


def triplets_by_loops(maps, attention, margin, ratio):
    """Pairs of nearest neighbours, and the nearest of each negative, one at a time."""
    rows = torch.nn.functional.normalize(maps, dim=2)

    def distance(a, b):
        return float((a - b).square().sum()) ** 0.5

    count = rows.shape[1]
    best = attention[1].argsort(descending=True)[: count // 2].tolist()
    total, pairs = 0.0, []
    for p in range(count):
        to_query = [distance(q, rows[1, p]) for q in rows[0]]
        q = min(range(count), key=to_query.__getitem__)
        back = [distance(rows[0, q], other) for other in rows[1]]
        second = min(d for i, d in enumerate(to_query) if i != q)
        if min(range(count), key=back.__getitem__) == p and to_query[q] <= ratio * second and p in best:
            pairs.append((q, p))
            for negative in rows[2:]:
                nearest = min(distance(rows[0, q], n) for n in negative)
                total += max(0.0, to_query[q] ** 2 - nearest**2 + margin)
    return total, pairs


@pytest.mark.parametrize(("margin", "ratio"), [(0.1, 0.9), (2.0, 0.9), (2.0, 1.0), (2.0, 0.3)])
def test_triplets_are_those_of_loops(margin, ratio):
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn(8, 10, 4, generator=generator, dtype=torch.float64)
    maps[1] = maps[0].roll(3, 0) + 0.4 * maps[1]
    attention = torch.rand(8, 10, generator=generator)
    wanted, pairs = triplets_by_loops(maps, attention, margin, ratio)
    assert len(pairs) > (0 if ratio < 0.5 else 2)
    assert local_triplet_loss(maps, attention, margin, ratio).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    loss = LocalTripletLoss(margin, ratio, weight=0.3)
    assert loss(maps, attention).item() == pytest.approx(0.3 * wanted, rel=1e-9, abs=1e-12)
    longer = maps * torch.linspace(0.5, 3, 10).double().unsqueeze(1)
    assert local_triplet_loss(longer, attention, margin, ratio).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_two_ranks_of_unequal_batches_are_one_process(tmp_path):
    cosines, labels = drawn(9, 5, 0.7, torch.Generator().manual_seed(1))
    cosines.requires_grad_()
    loss = AdaptiveMarginCosineLoss()
    wanted = loss(cosines, labels)
    (slope,) = torch.autograd.grad(wanted, cosines)
    torch.save((cosines.detach(), labels), tmp_path / "batch.pt")
    script = Path(__file__).with_name("cfcd_ranks.py")
    subprocess.run([sys.executable, script, tmp_path], check=True)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for value, _, margin in ranks:
        torch.testing.assert_close(value, wanted.detach())
        torch.testing.assert_close(margin, loss.terms["margin"])
    torch.testing.assert_close(torch.cat([ranks[0][1], ranks[1][1]]), slope)
