"""Asymmetric loss: the numbers of its card, its special cases, its slopes, and its adaptive and single-label forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as nnf

from steepest.losses.classification.asymmetric_loss import (
    AdaptiveAsymmetry,
    AsymmetricLoss,
    AsymmetricLossSingleLabel,
    asymmetric_loss,
)
from steepest.losses.classification.focal import focal_loss

X = torch.tensor([[2.0, -1.0, 0.0, -4.0]], dtype=torch.float64)
Y = torch.tensor([[1, 0, 0, 0]])
LOGITS = 3 * torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = (torch.rand(8, 5, generator=torch.Generator().manual_seed(3)) < 0.4).long()
INDEX = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
PEER_X = torch.tensor([[2.0, -1.0, 0.0, -4.0], [-2.5, 3.0, 0.5, 1.0]], dtype=torch.float64)
PEER_Y = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0]])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cell(x, y, gamma_neg, gamma_pos, clip):
    """One label as the definition has it."""
    p = sigmoid(x)
    if y:
        return -((1 - p) ** gamma_pos) * math.log(p)
    shifted = max(p - clip, 0.0)
    return -(shifted**gamma_neg) * math.log(1 - shifted)


def naive(logits, labels, *hyper):
    rows = [[cell(x, y, *hyper) for x, y in zip(*row)] for row in zip(logits.tolist(), labels.tolist())]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.holds("asymmetric-loss", 1)
def test_card_values():
    cells = asymmetric_loss(X, Y, reduction="none")
    torch.testing.assert_close(cells, cells.new_tensor([[0.0151, 0.0006, 0.0245, 0.0]]), atol=5e-5, rtol=0)
    assert asymmetric_loss(X, Y).item() == pytest.approx(0.0402, abs=5e-5)
    assert asymmetric_loss(X, Y, gamma_pos=0.0).item() == pytest.approx(0.1520, abs=5e-5)


@pytest.mark.holds("asymmetric-loss", 1)
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("gamma_pos", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
def test_equals_a_loop(gamma_neg, gamma_pos, clip):
    wanted = naive(LOGITS, LABELS, gamma_neg, gamma_pos, clip)
    hyper = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    torch.testing.assert_close(asymmetric_loss(LOGITS, LABELS, **hyper, reduction="none"), wanted)
    torch.testing.assert_close(asymmetric_loss(LOGITS, LABELS, **hyper), wanted.sum())
    torch.testing.assert_close(asymmetric_loss(LOGITS, LABELS, **hyper, reduction="mean"), wanted.mean())
    torch.testing.assert_close(AsymmetricLoss(**hyper, reduction="none")(LOGITS, LABELS), wanted.mean(-1))
    weight = torch.arange(8.0, dtype=torch.float64)
    weighted = (weight[:, None] * wanted).sum()
    torch.testing.assert_close(asymmetric_loss(LOGITS, LABELS, **hyper, weight=weight), weighted)
    found = AsymmetricLoss(**hyper)(LOGITS, LABELS, weight=weight)
    torch.testing.assert_close(found, weighted / weight.sum() / 5)


@pytest.mark.holds("asymmetric-loss", 2)
def test_without_focus_and_clip_it_is_binary_cross_entropy():
    plain = {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}
    assert asymmetric_loss(X, Y, **plain).item() == pytest.approx(1.1515, abs=5e-5)
    logits = torch.cat([LOGITS, 200 * LOGITS])  # also where the sigmoid rounds to 0 and 1
    labels = torch.cat([LABELS, LABELS])
    wanted = nnf.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    torch.testing.assert_close(asymmetric_loss(logits, labels, **plain, reduction="none"), wanted)


@pytest.mark.holds("asymmetric-loss", 3)
def test_equal_exponents_without_clip_are_the_focal_loss():
    focal = {"gamma_neg": 2.0, "gamma_pos": 2.0, "clip": 0.0}
    assert asymmetric_loss(X, Y, **focal).item() == pytest.approx(0.1978, abs=5e-5)
    # two classes with logits (0, x): their softmax is the sigmoid of x
    pairs = torch.stack([torch.zeros_like(LOGITS), LOGITS], -1).reshape(-1, 2)
    wanted = focal_loss(pairs, LABELS.reshape(-1), gamma=2.0, reduction="none").reshape(8, 5)
    torch.testing.assert_close(asymmetric_loss(LOGITS, LABELS, **focal, reduction="none"), wanted)


@pytest.mark.holds("asymmetric-loss", 4)
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_easy_negatives_are_free(gamma_neg, dtype):
    x = torch.tensor([[-1e4, -30.0, -5.0, -3.0]], dtype=dtype, requires_grad=True)  # sigmoid(-3) = 0.047
    loss = asymmetric_loss(x, torch.zeros(1, 4), gamma_neg=gamma_neg)
    assert loss.item() == 0.0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))
    above = torch.tensor([[-2.9]], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(asymmetric_loss(above, torch.zeros(1, 1), gamma_neg=0.0), above)
    assert slope.item() > 0


@pytest.mark.holds("asymmetric-loss", 4)
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
def test_negative_exactly_at_the_clip(gamma_neg):
    x = torch.zeros(1, 1, requires_grad=True)
    loss = asymmetric_loss(x, torch.zeros(1, 1), gamma_neg=gamma_neg, clip=0.5)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, x)[0].item() == 0.0


@pytest.mark.holds("asymmetric-loss", 5)
def test_slope_of_negatives():
    p = torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    x = torch.logit(p).reshape(4, 1).requires_grad_()
    slope = torch.autograd.grad(asymmetric_loss(x, torch.zeros(4, 1)), x)[0].squeeze(1)
    assert slope[0].item() == pytest.approx(2.9e-6, abs=5e-8)
    assert slope[1:].tolist() == pytest.approx([0.0731, 0.7326, 0.2214], abs=5e-5)
    # a difference quotient of the loop
    for x0, found in zip(x.flatten().tolist(), slope.tolist()):
        step = 1e-5
        wanted = (cell(x0 + step, 0, 4.0, 1.0, 0.05) - cell(x0 - step, 0, 4.0, 1.0, 0.05)) / (2 * step)
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-10)
    m = p - 0.05
    closed = m**4 * (1 / (1 - m) - 4 * torch.log(1 - m) / m) * p * (1 - p)
    torch.testing.assert_close(slope, closed)


@pytest.mark.holds("asymmetric-loss", 6)
@pytest.mark.parametrize(
    ("hyper", "wanted"),
    [
        ((4.0, 1.0, 0.05), 4.393706998452753),
        ((4.0, 0.0, 0.05), 4.996228343922791),
        ((2.0, 3.0, 0.1), 3.936788002905981),
    ],
)
def test_agrees_with_timm(hyper, wanted):
    """The numbers are those of AsymmetricLossMultiLabel of timm 1.0.15 in float64."""
    gamma_neg, gamma_pos, clip = hyper
    found = asymmetric_loss(PEER_X, PEER_Y, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("asymmetric-loss", 6)
def test_defaults_are_those_of_timm():
    assert asymmetric_loss(PEER_X, PEER_Y).item() == pytest.approx(4.393706998452753, rel=1e-12)
    assert AsymmetricLoss(reduction="sum")(PEER_X, PEER_Y).item() == pytest.approx(4.393706998452753 / 4, rel=1e-12)


@pytest.mark.holds("asymmetric-loss", 6)
@pytest.mark.parametrize("bad", [{"gamma_neg": -1.0}, {"gamma_pos": -0.1}, {"clip": -0.01}, {"clip": 1.0}])
def test_hyper_parameters_out_of_range(bad):
    for call in (
        lambda: asymmetric_loss(X, Y, **bad),
        lambda: AsymmetricLoss(**bad),
        lambda: AdaptiveAsymmetry(**bad),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            call()


@pytest.mark.parametrize("call", [lambda: asymmetric_loss(X, Y + 1), lambda: asymmetric_loss(X, Y[:, :3])])
def test_targets_refused(call):
    with pytest.raises(ValueError, match="target: expected"):
        call()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_detached_focus_leaves_the_slope_of_the_logarithm_alone(clip):
    x = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(asymmetric_loss(x, LABELS, clip=clip, detach_focus=True), x)
    p = torch.sigmoid(LOGITS)
    m = (p - clip).clamp_min(0)
    positive, negative = -((1 - p) ** 2), m**4 / (1 - m) * p * (1 - p)
    torch.testing.assert_close(slope, torch.where(LABELS == 1, positive, negative))
    value = asymmetric_loss(LOGITS, LABELS, clip=clip)
    torch.testing.assert_close(asymmetric_loss(LOGITS, LABELS, clip=clip, detach_focus=True), value)


def test_nan_is_not_swallowed_by_the_clip():
    x = X.clone()
    x[0, 3] = math.nan
    assert asymmetric_loss(x, Y).isnan()


def test_low_positive_keeps_its_gradient():
    x = torch.tensor([[-40.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(asymmetric_loss(x, torch.ones(1, 1)), x)
    assert slope.item() == pytest.approx(-1.0)


# --- adaptive ----------------------------------------------------------------------------------------------------


def gap_of(logits, labels, weights):
    """By loops: the weighted mean of p over positives less that of 1 - p over negatives."""
    sums = {1: [0.0, 0.0], 0: [0.0, 0.0]}
    for row, ys, w in zip(logits.tolist(), labels.tolist(), weights):
        for x, y in zip(row, ys):
            p = sigmoid(x)
            sums[y][0] += w * (p if y else 1 - p)
            sums[y][1] += w
    return sums[1][0] / sums[1][1] - sums[0][0] / sums[0][1]


@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 0.5, 0.0]])
def test_adaptive_moves_after_the_step_and_only_in_training(weights):
    loss = AdaptiveAsymmetry(target_gap=0.3, rate=0.5, gamma_neg=2.0)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    found = loss(LOGITS, LABELS, weight=weight)
    wanted = AsymmetricLoss(gamma_neg=2.0, gamma_pos=0.0)(LOGITS, LABELS, weight=weight)
    torch.testing.assert_close(found, wanted)
    assert loss.gamma_neg.item() == 2.0
    gap = gap_of(LOGITS, LABELS, weights or [1.0] * 8)
    assert loss.terms["gap"].item() == pytest.approx(gap)
    loss.after_step()
    moved = 2.0 + 0.5 * (0.3 - gap)
    assert loss.gamma_neg.item() == pytest.approx(moved)
    loss.after_step()
    assert loss.gamma_neg.item() == pytest.approx(moved)
    loss.eval()(LOGITS, LABELS)
    loss.after_step()
    assert loss.gamma_neg.item() == pytest.approx(moved)


def test_adaptive_exponent_never_goes_below_zero():
    loss = AdaptiveAsymmetry(target_gap=-1.0, rate=100.0)
    loss(LOGITS, LABELS)
    loss.after_step()
    assert loss.gamma_neg.item() == 0.0
    assert math.isfinite(loss(LOGITS, LABELS))


@pytest.mark.parametrize("labels", [torch.zeros(2, 3), torch.ones(2, 3)])
def test_adaptive_rests_without_positives_or_negatives(labels):
    loss = AdaptiveAsymmetry(rate=1.0)
    loss(torch.randn(2, 3), labels)
    loss.after_step()
    assert loss.gamma_neg.item() == 4.0


def test_adaptive_rests_when_the_model_has_diverged():
    loss = AdaptiveAsymmetry(rate=1.0)
    loss(torch.full((2, 3), math.nan), torch.eye(2, 3))
    loss.after_step()
    assert loss.gamma_neg.item() == 4.0


@pytest.mark.parametrize("target_gap", [-0.1, 0.2])
def test_adaptive_gap_reaches_its_target(target_gap):
    """A model of one logit a label, at rest under the loss, whose gap is where it was told to be."""
    labels = torch.zeros(10, 2)
    labels[:2, 0] = 1.0
    labels[:3, 1] = 1.0
    logit = torch.zeros(2, requires_grad=True)
    loss = AdaptiveAsymmetry(target_gap=target_gap, rate=0.3, gamma_neg=1.0, clip=0.0)
    optimizer = torch.optim.SGD([logit], lr=2.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss(logit.expand(10, 2), labels).backward()
        optimizer.step()
        loss.after_step()
    assert gap_of(logit.detach().expand(10, 2), labels.long(), [1.0] * 10) == pytest.approx(target_gap, abs=2e-3)


# --- one label ---------------------------------------------------------------------------------------------------


@pytest.mark.holds("asymmetric-loss", 6)
@pytest.mark.parametrize(
    ("hyper", "wanted"),
    [((4.0, 1.0, 0.1), 5.478244868990435), ((4.0, 0.0, 0.1), 5.493022982539506), ((1.0, 2.0, 0.2), 5.046344103389231)],
)
def test_single_label_agrees_with_timm(hyper, wanted):
    """The numbers are those of AsymmetricLossSingleLabel of timm 1.0.15 in float64."""
    found = AsymmetricLossSingleLabel(*hyper)(PEER_X, torch.tensor([3, 0]))
    assert found.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("gamma_pos", [0.0, 2.0])
def test_single_label_equals_a_loop(gamma_neg, gamma_pos):
    wanted = []
    for row, y in zip(LOGITS.tolist(), INDEX.tolist()):
        total = sum(map(math.exp, row))
        loss = 0.0
        for k, x in enumerate(row):
            p = math.exp(x) / total
            share, factor = (0.9 + 0.02, (1 - p) ** gamma_pos) if k == y else (0.02, p**gamma_neg)
            loss -= share * factor * math.log(p)
        wanted.append(loss)
    found = AsymmetricLossSingleLabel(gamma_neg, gamma_pos, reduction="none")(LOGITS, INDEX)
    torch.testing.assert_close(found.tolist(), wanted)


def test_single_label_special_cases():
    smoothed = nnf.cross_entropy(LOGITS, INDEX, label_smoothing=0.1)
    torch.testing.assert_close(AsymmetricLossSingleLabel(0.0, 0.0)(LOGITS, INDEX), smoothed)
    focal = focal_loss(LOGITS, INDEX, gamma=2.0)
    torch.testing.assert_close(AsymmetricLossSingleLabel(4.0, 2.0, label_smoothing=0.0)(LOGITS, INDEX), focal)


@pytest.mark.parametrize("bad", [{"gamma_neg": -1.0}, {"gamma_pos": -1.0}, {"label_smoothing": 1.1}])
def test_single_label_refused(bad):
    with pytest.raises(ValueError, match=": expected "):
        AsymmetricLossSingleLabel(**bad)
