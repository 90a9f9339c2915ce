"""Negative pairs of a batch in a margin softmax: known numbers, the loss by its definition, what is filtered."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.heads import NormedLinear
from steepest.losses.contrastive import (
    ArcFaceLoss,
    CosFaceLoss,
    UnifiedNegativePairLoss,
    box_whisker_filter,
    unpg_loss,
)
from steepest.losses.contrastive import unpg as module

VALUES = torch.tensor([-0.9, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.95], dtype=torch.float64)
COSINES, FIRST = torch.tensor([[0.45, 0.2, 0.1]], dtype=torch.float64), torch.tensor([0])


def by_definition(cosines, z, labels, scale, whisker):
    """The matrix of all logits, one number at a time."""
    z = torch.nn.functional.normalize(z, dim=1)
    count = len(z)
    values = sorted(float(z[i] @ z[j]) for i in range(count) for j in range(i + 1, count) if labels[i] != labels[j])
    if values:
        low, high = values[int(0.25 * len(values))], values[int(0.75 * len(values))]
        reach = whisker * (high - low)
        values = [v for v in values if low - reach <= v <= high + reach]
    losses = []
    for row, y in zip(cosines.tolist(), labels.tolist()):
        others = [c for k, c in enumerate(row) if k != y] + values
        losses.append(math.log1p(sum(math.exp(scale * (c - row[y])) for c in others)))
    return losses


def drawn(rows=9, classes=3):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    cosines = torch.rand(rows, classes, generator=generator, dtype=torch.float64) * 2 - 1
    return cosines, z, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.holds("unpg", 1)
def test_outliers_are_cut_by_floor_ranks():
    assert torch.equal(box_whisker_filter(VALUES), VALUES[1:7])
    turned = VALUES[torch.tensor([6, 2, 0, 4, 7, 1, 3, 5])]
    assert torch.equal(box_whisker_filter(turned), turned[(turned > -0.3) & (turned < 0.5)])
    assert torch.equal(box_whisker_filter(VALUES, 0.5), VALUES[1:7])
    assert torch.equal(box_whisker_filter(VALUES, 0.4), VALUES[2:7])
    assert torch.equal(box_whisker_filter(VALUES, 0.0), VALUES[2:7])
    assert len(box_whisker_filter(VALUES[:0])) == 0
    assert box_whisker_filter(torch.full((5,), 0.3)).tolist() == pytest.approx([0.3] * 5)
    with pytest.raises(ValueError, match="whisker: expected a number >= 0"):
        box_whisker_filter(VALUES, -1.0)


@pytest.mark.holds("unpg", 2)
def test_known_numbers_of_a_row(monkeypatch):
    """The pairs' logit is what the known values have; rows that give just these values are none."""
    for values, loss in ((VALUES[1:7], 0.446845), (VALUES, 4.028232), (VALUES[:0], 0.179104)):
        log_z = (8 * values).logsumexp(0) if len(values) else torch.tensor(-torch.inf)
        monkeypatch.setattr(module, "_negatives_logit", lambda *args, log_z=log_z: log_z)
        assert unpg_loss(COSINES, torch.ones(1, 2), FIRST, scale=8.0).item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.holds("unpg", 2)
@pytest.mark.parametrize("whisker", [0.0, 0.4, 1.5])
def test_values_are_those_of_the_matrix_of_all_logits(whisker):
    cosines, z, labels = drawn()
    losses = unpg_loss(cosines, z, labels, scale=6.0, whisker=whisker, reduction="none")
    assert losses.tolist() == pytest.approx(by_definition(cosines, z, labels, 6.0, whisker), rel=1e-9)


@pytest.mark.holds("unpg", 3)
@pytest.mark.parametrize(
    ("kind", "plain"), [("cosine", CosFaceLoss(0.2, 8.0)), ("angle", ArcFaceLoss(0.2, 8.0))], ids=["CosFace", "ArcFace"]
)
def test_above_the_margin_softmax_and_equal_to_it_in_a_batch_of_one_class(kind, plain):
    _, z, labels = drawn()
    head = NormedLinear(4, 3).double()
    loss = UnifiedNegativePairLoss(0.2, 8.0, kind=kind)
    outputs = head(z)
    value, below = loss(outputs, labels, features=z), plain(outputs, labels)
    assert value > below + 1e-3
    assert loss.terms["pairs"].item() == pytest.approx((value - below).item(), rel=1e-9)
    alone = torch.ones_like(labels)
    z.requires_grad_()
    value = loss(outputs, alone, features=z)
    torch.testing.assert_close(value, plain(outputs, alone), rtol=1e-12, atol=1e-12)
    for rows in (0, 1):
        value = loss(outputs[:rows], labels[:rows], features=z[:rows])
        (slope,) = torch.autograd.grad(value, z, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert value.isfinite()
        assert not slope.any()


@pytest.mark.holds("unpg", 4)
def test_each_pair_counts_once():
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    labels, cosines = torch.tensor([0, 1, 0]), torch.zeros(3, 2, dtype=torch.float64)
    wanted = math.log(1 + 1 + math.exp(2 * 0.6) + math.exp(2 * 0.8))
    for whisker in (1.5, 1e9, math.inf):
        assert unpg_loss(cosines, z, labels, scale=2.0, whisker=whisker).item() == pytest.approx(wanted, rel=1e-12)
    cosines, z, labels = drawn()
    wanted = by_definition(cosines, z, labels, 5.0, 1e12)
    assert unpg_loss(cosines, z, labels, scale=5.0, whisker=math.inf).item() == pytest.approx(sum(wanted) / 9, rel=1e-9)


@pytest.mark.holds("unpg", 5)
def test_gradients_reach_embeddings_by_the_head_and_by_pairs_but_for_outliers():
    _, z, labels = drawn()
    z.requires_grad_()
    head = NormedLinear(4, 3).double()
    loss = UnifiedNegativePairLoss(0.1, 4.0)
    (both,) = torch.autograd.grad(loss(head(z), labels, features=z), z)
    (by_head,) = torch.autograd.grad(loss(head(z), labels, features=z.detach()), z)
    (by_pairs,) = torch.autograd.grad(loss(head(z.detach()), labels, features=z), z)
    assert by_head.abs().max() > 1e-3
    assert by_pairs.abs().max() > 1e-3
    torch.testing.assert_close(both, by_head + by_pairs)

    angles = torch.tensor([0.0, 1.5, 1.55, 1.6, 1.65, 1.52, 1.57, 1.62, 0.1], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    few = torch.tensor([0, *[1] * 7, 2])  # the pair of the first and the last row is the only one that is alike
    value = unpg_loss(torch.zeros(9, 3, dtype=torch.float64), rows, few, scale=8.0)
    (slope,) = torch.autograd.grad(value, rows)
    left, right = rows.detach()[:1], rows.detach()[8:]
    similar = rows.detach() @ rows.detach().T
    counts = (few.unsqueeze(1) != few).triu(1)
    outlier = similar > 0.9
    share = torch.where(counts & ~outlier, 8 * similar, -torch.inf)
    p = (share - torch.logaddexp(share.flatten().logsumexp(0), torch.tensor(3.0).double().log())).exp() * 8
    wanted = p @ rows.detach() + p.T @ rows.detach()
    wanted = wanted - (wanted * rows.detach()).sum(1, keepdim=True) * rows.detach()  # by way of the norm
    assert counts[0, 8]
    assert (left @ right.T).item() > 0.99
    torch.testing.assert_close(slope, wanted)


def test_half_rows_zero_rows_and_wrong_arguments():
    cosines, z, labels = drawn()
    half = torch.zeros(9, 4, dtype=torch.float16, requires_grad=True)
    value = unpg_loss(cosines.half(), half, labels)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, half)[0].isfinite().all()
    with pytest.raises(ValueError, match=r"embeddings: expected shape \(9, \*\)"):
        unpg_loss(cosines, z[:8], labels)
    with pytest.raises(ValueError, match="kind: expected one of 'cosine', 'angle'"):
        UnifiedNegativePairLoss(kind="arc")
    with pytest.raises(ValueError, match="margin: expected an angle in radians"):
        UnifiedNegativePairLoss(margin=28.6, kind="angle")
    assert unpg_loss(cosines, z.index_fill(0, torch.tensor([2]), math.nan), labels).isnan()
