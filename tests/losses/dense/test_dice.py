"""Dice against plain sums and MONAI; segment scores against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss as Peer
from torch.nn.functional import binary_cross_entropy

from steepest.core.confusion import soft_counts
from steepest.losses.classification.anyloss import soft_confusion
from steepest.losses.dense.dice import DiceLoss, sed_error_rate, sed_f1, soft_dice_loss

P = torch.tensor([[0.8, 0.1], [0.4, 0.0], [0.6, 0.3]], dtype=torch.float64)
Y = torch.tensor([[1, 0], [0, 0], [1, 1]])


def of_p(p, y, **options):
    return soft_dice_loss(p, y, from_logits=False, **options)


def naive(p, y, squared, eps):
    """The card's form, cell by cell."""
    pairs = list(zip(p.flatten().tolist(), y.flatten().tolist()))
    both = math.fsum(a * b for a, b in pairs)
    size = math.fsum((a * a + b * b) if squared else (a + b) for a, b in pairs)
    return 1 - (2 * both + eps) / (size + eps)


def maps(seed=0, shape=(3, 5, 4)):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return z, (torch.rand(shape, generator=generator) < 0.3).long()


@pytest.mark.holds("dice", 1)
def test_card_values():
    assert of_p(P, Y).item() == pytest.approx(0.346154, abs=1e-6)
    assert of_p(P, Y, squared=True).item() == pytest.approx(0.201878, abs=1e-6)
    for squared, wanted in ((False, (0.2632, 0.5714)), (True, (0.1139, 0.4545))):
        columns = [of_p(P[:, [c]], Y[:, [c]], squared=squared).item() for c in (0, 1)]
        assert columns == pytest.approx(wanted, abs=5e-5)
        assert of_p(P, Y, squared=squared, reduce="class").item() == pytest.approx(sum(columns) / 2, abs=1e-9)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_against_plain_sums(squared, eps):
    z, y = maps()
    options = {"squared": squared, "eps": eps}
    p = z.sigmoid()
    assert soft_dice_loss(z, y, **options).item() == pytest.approx(naive(p, y, squared, eps), abs=1e-12)
    for kept, by in ((2, {"reduce": "class"}), (0, {"reduce": "sample"}), (1, {"reduce": "class", "class_dim": 1})):
        each = [naive(a, b, squared, eps) for a, b in zip(p.unbind(kept), y.unbind(kept))]
        assert soft_dice_loss(z, y, **options, **by).item() == pytest.approx(sum(each) / len(each), abs=1e-12)


@pytest.mark.holds("dice", 2)
@pytest.mark.parametrize("squared", [False, True])
def test_hard_predictions(squared):
    for seed in range(4):
        _, y = maps(seed)
        _, pred = maps(seed + 10)
        assert of_p(pred.double(), y, squared=squared).item() == pytest.approx(1 - sed_f1(pred, y).item(), abs=1e-6)
        for reduce in ("micro", "class", "sample"):
            assert of_p(y.double(), y, squared=squared, reduce=reduce).item() == 0.0


@pytest.mark.holds("dice", 3)
@pytest.mark.parametrize("squared", [False, True])
def test_true_negatives_count_for_nothing(squared):
    silent = torch.zeros(20, 2, dtype=torch.float64)
    longer, labels = torch.cat([P, silent]), torch.cat([Y, silent.long()])
    plain = of_p(P, Y, squared=squared).item()
    assert of_p(longer, labels, squared=squared).item() == pytest.approx(plain, abs=1e-14)
    assert binary_cross_entropy(longer, labels.double()) < 0.5 * binary_cross_entropy(P, Y.double())


@pytest.mark.holds("dice", 4)
@pytest.mark.parametrize("reduce", ["micro", "class", "sample"])
def test_nothing_to_find(reduce):
    nothing, none = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.long)
    assert of_p(nothing, none, reduce=reduce).item() == 0.0
    assert of_p(nothing + 0.01, none, reduce=reduce).item() == pytest.approx(1.0, abs=1e-3)
    assert of_p(nothing + 0.01, none, reduce=reduce, skip_empty=True).item() == 0.0


@pytest.mark.holds("dice", 5)
def test_gradient_of_the_linear_form():
    p = P.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of_p(p, Y, eps=0.0), p)
    overlap, size = (P * Y).sum().item(), P.sum().item() + Y.sum().item()
    assert slope[Y == 0].tolist() == pytest.approx([2 * overlap / size**2] * 3, abs=1e-12)
    assert slope[Y == 1].tolist() == pytest.approx([-2 * (size - overlap) / size**2] * 3, abs=1e-12)
    (slope,) = torch.autograd.grad(of_p(p, Y, squared=True), p)
    assert slope[Y == 0].std() > 0.01


@pytest.mark.holds("dice", 6)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_agrees_with_monai(squared, eps):
    """MONAI's maps are [B, C, ...]: a mean over samples and classes, or over classes of the whole batch."""
    z, y = maps(5, (3, 4, 6))
    options = {"sigmoid": True, "squared_pred": squared, "smooth_nr": eps, "smooth_dr": eps}
    by_class = Peer(batch=True, **options)(z, y.double())
    found = DiceLoss(squared, "class", eps, class_dim=1)(z, y)
    assert found.item() == pytest.approx(by_class.item(), abs=1e-12)
    one = Peer(**options)(z[:, :1], y[:, :1].double())
    assert DiceLoss(squared, "sample", eps)(z[:, :1], y[:, :1]).item() == pytest.approx(one.item(), abs=1e-12)


def test_empty_classes_are_left_out():
    z, y = maps(7)
    y[..., 1] = 0
    kept = [0, 2, 3]
    wanted = soft_dice_loss(z[..., kept], y[..., kept], reduce="class").item()
    assert soft_dice_loss(z, y, reduce="class", skip_empty=True).item() == pytest.approx(wanted, abs=1e-12)
    assert soft_dice_loss(z, y, reduce="class").item() > wanted


def test_predictions_from_logits_and_from_probabilities():
    p = torch.tensor([[0.2, 0.6], [0.5, 0.9]])
    for loss, outputs in ((DiceLoss(), p.logit()), (DiceLoss(from_logits=False), p)):
        assert loss.predict(outputs).tolist() == [[0, 1], [0, 1]]
        torch.testing.assert_close(loss.probabilities(outputs), p)
    assert DiceLoss(from_logits=False)(p.double(), Y[:2]).item() == of_p(p.double(), Y[:2]).item()


def test_half_precision_sums_in_float32():
    cells = torch.full((300, 1000), 4.0, dtype=torch.float16)
    found = DiceLoss()(cells, torch.ones(300, 1000, dtype=torch.long))
    p = torch.sigmoid(torch.tensor(4.0)).item()
    assert found.item() == pytest.approx(1 - 2 * p / (1 + p), rel=1e-4)


def test_soft_counts_are_those_of_anyloss():
    z, y = maps(3, (40, 1))
    p, labels = z[:, 0].sigmoid(), y[:, 0]
    wanted = soft_confusion(p, labels, L=5.0)
    high, low = torch.sigmoid(5 * (p - 0.5)), torch.sigmoid(5 * (0.5 - p))
    found = soft_counts(high, labels.double(), (0,), complement=low)
    assert [v.item() for v in found] == pytest.approx([v.item() for v in wanted], abs=1e-12)
    found = soft_counts(high, labels.double(), (0,))
    assert [v.item() for v in found] == pytest.approx([v.item() for v in wanted], abs=1e-12)


@pytest.mark.parametrize("segment", [1, 3, 4])
def test_segment_scores_against_a_loop(segment):
    (_, pred), (_, target) = maps(1, (2, 10, 3)), maps(2, (2, 10, 3))
    hits = misses = alarms = errors = events = 0
    for sequence in range(2):
        for start in range(0, 10, segment):
            own = [v[sequence, start : start + segment].any(0).tolist() for v in (pred.bool(), target.bool())]
            fn = sum(b and not a for a, b in zip(*own))
            fp = sum(a and not b for a, b in zip(*own))
            hits += sum(a and b for a, b in zip(*own))
            misses, alarms, events = misses + fn, alarms + fp, events + sum(own[1])
            errors += min(fn, fp) + max(0, fn - fp) + max(0, fp - fn)
    assert sed_f1(pred, target, segment=segment).item() == pytest.approx(2 * hits / (2 * hits + misses + alarms))
    assert sed_error_rate(pred, target, segment=segment).item() == pytest.approx(errors / events)


def test_segment_scores_at_the_edges():
    none = torch.zeros(4, 2)
    assert sed_f1(none, none).isnan()
    assert sed_error_rate(1 - none, none).item() == math.inf
    assert sed_f1(1 - none, 1 - none, segment=100).item() == 1.0
    with pytest.raises(ValueError, match="pred: expected labels in"):
        sed_f1(none + 0.5, none)
    with pytest.raises(ValueError, match="segment: expected an integer >= 1"):
        sed_error_rate(none, none, segment=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_p(P + 0.5, Y), r"outputs: expected probabilities in \[0, 1\]"),
        (lambda: of_p(P, Y + 1), r"target: expected labels in \{0, 1\}"),
        (lambda: of_p(P, Y[:2]), "target: expected shape"),
        (lambda: of_p(P[0], Y[0]), "outputs: expected two dimensions or more"),
        (lambda: of_p(P, Y, class_dim=2), "class_dim: expected an integer >= -2 and <= 1"),
        (lambda: DiceLoss(reduce="macro"), "reduce: expected one of 'micro', 'class', 'sample'"),
        (lambda: DiceLoss(eps=-1.0), "eps: expected a number >= 0"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
