"""Distillation of good rationales against poor ones, weighed by a judge."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.losses.distillation.qcrd import QCRDLoss, QCRDSchedule, RationaleDiscriminator, qcrd_loss

GOOD, POOR, Q_GOOD, Q_POOR = torch.tensor(
    [[[1.2, 0.8]], [[2.0, 4.0]], [[0.9, 0.6]], [[0.3, 0.1]]], dtype=torch.float64
).unbind()
NONE = torch.zeros(1, dtype=torch.float64)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def contrast(*call, **settings):
    """The part of the rationales alone, P - beta N."""
    label = torch.zeros(len(call[0]), dtype=torch.float64)
    return qcrd_loss(label, *call, **settings, label_weight=0.0, rationale_weight=1.0)


def drawn(generator, rows=6):
    """Losses and qualities of three good and four poor candidates, masks with gaps, a row without any of either."""
    of = lambda columns, size=1.0: size * torch.rand(rows, columns, generator=generator, dtype=torch.float64)  # noqa: E731
    masks = [torch.rand(rows, columns, generator=generator) < 0.6 for columns in (3, 4)]
    masks[0][0], masks[1][0] = False, True
    masks[1][1], masks[0][1] = False, True
    return of(1, 3.0)[:, 0], of(3, 3.0), of(4, 6.0), of(3), of(4), *masks


@pytest.mark.holds("qcrd", 1)
def test_values_of_one_sample():
    call = (GOOD, POOR, Q_GOOD, Q_POOR)
    for negative, part, wanted in (("max", 0.0, 0.48), ("min", -0.7, 0.62)):
        loss = QCRDLoss(negative=negative, label_weight=0.0, rationale_weight=1.0)
        value = loss(NONE, *call)
        assert value.item() == pytest.approx(wanted, abs=1e-12)
        assert contrast(*call, negative=negative).item() == pytest.approx(wanted, abs=1e-12)
        assert loss.terms["positive"].item() == pytest.approx(0.48, abs=1e-12)
        assert loss.terms["negative"].item() == pytest.approx(part, abs=1e-12)
    assert contrast(*call).item() == pytest.approx(0.48), "the largest is the default"


@pytest.mark.holds("qcrd", 2)
@pytest.mark.parametrize("negative", ["max", "min"])
def test_negatives_above_the_margin_get_no_gradient(negative):
    poor = torch.tensor([[3.2, 4.0], [3.5, 9.0]], dtype=torch.float64, requires_grad=True)
    good = GOOD.repeat(2, 1).requires_grad_()
    value = contrast(good, poor, Q_GOOD.repeat(2, 1), Q_POOR.repeat(2, 1), negative=negative)
    value.backward()
    assert not poor.grad.any()
    assert good.grad.any()
    assert value.item() == pytest.approx(0.48)


@pytest.mark.holds("qcrd", 2)
def test_without_negatives_it_is_distillation_of_rationales(generator):
    """beta 0, one candidate, quality 1: the mean of two cross-entropies."""
    label, good, poor, *_ = drawn(generator)
    one = good[:, :1].clone().requires_grad_()
    ones = torch.ones_like(one)
    value = qcrd_loss(label, one, poor, ones, torch.rand_like(poor), beta=0.0)
    value.backward()
    torch.testing.assert_close(value, (label.mean() + one.mean()) / 2)
    torch.testing.assert_close(one.grad, torch.full_like(one, 1 / 12))


@pytest.mark.holds("qcrd", 3)
@pytest.mark.parametrize(("beta", "margin"), [(0.2, 3.0), (0.7, 5.0)])
def test_gradient_of_the_negative_below_the_margin(beta, margin):
    poor = torch.tensor([[2.0, 2.9]], dtype=torch.float64, requires_grad=True)
    for negative, place, q in (("max", 1, 0.1), ("min", 0, 0.3)):
        value = contrast(GOOD, poor, Q_GOOD, Q_POOR, beta=beta, margin=margin, negative=negative)
        (slope,) = torch.autograd.grad(value, poor)
        wanted = torch.zeros(1, 2).double()
        wanted[0, place] = -beta * (1 - q)
        torch.testing.assert_close(slope, wanted)


@pytest.mark.holds("qcrd", 4)
def test_quality_silences_either_side():
    good, poor = GOOD.clone().requires_grad_(), torch.tensor([[2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    for negative in ("max", "min"):
        value = contrast(good, poor, torch.zeros(1, 2), torch.ones(1, 2), negative=negative)
        assert value.item() == 0
        for slope in torch.autograd.grad(value, [good, poor]):
            assert not slope.any()
        assert contrast(good, poor, torch.zeros(1, 2), torch.zeros(1, 2), negative=negative) > 0
        assert contrast(good, poor, torch.ones(1, 2), torch.ones(1, 2), negative=negative) == 0.8


@pytest.mark.holds("qcrd", 5)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, -1e30, 1e30])
@pytest.mark.parametrize("negative", ["max", "min"])
def test_masked_candidates_are_never_selected(negative, junk, generator):
    """The same bits, of the value and of all gradients, whatever stands there, in losses and in qualities."""
    label, good, poor, q_good, q_poor, has_good, has_poor = drawn(generator)

    def both(fill):
        inputs = [torch.where(mask, x, fill).requires_grad_() for x, mask in ((good, has_good), (poor, has_poor))]
        qualities = [torch.where(mask, q, fill) for q, mask in ((q_good, has_good), (q_poor, has_poor))]
        value = QCRDLoss(6.0, negative=negative)(label, *inputs, *qualities, has_good, has_poor)
        return value, torch.autograd.grad(value, inputs)

    clean, slopes = both(0.5)
    dirty, slopes_of_dirty = both(junk)
    assert torch.equal(clean, dirty)
    assert all(torch.equal(a, b) for a, b in zip(slopes, slopes_of_dirty))
    assert not slopes[0][~has_good].any()
    assert not slopes[1][~has_poor].any()
    assert slopes[0].any()
    assert slopes[1].any()


class Words(nn.Module):
    """Embeddings of tokens, or a map of features; the mask is written down."""

    def __init__(self, dim=4):
        super().__init__()
        self.of_tokens, self.of_features = nn.Embedding(9, dim), nn.Linear(dim, dim)

    def forward(self, inputs, mask):
        self.mask = mask
        return self.of_features(inputs) if inputs.is_floating_point() else self.of_tokens(inputs)


def judge():
    torch.manual_seed(1)
    return RationaleDiscriminator(Words(), 4).double()


@pytest.mark.holds("qcrd", 5)
def test_the_judge_gets_no_gradient_from_the_student(generator):
    label, good, poor, *_ = drawn(generator)
    discriminator = judge()
    tokens, mask = torch.randint(9, (6, 7, 5), generator=generator), torch.ones(6, 7, 5, dtype=torch.bool)
    open_quality = discriminator(tokens, mask).sigmoid()
    assert open_quality.requires_grad
    good = good.requires_grad_()
    qcrd_loss(label, good, poor, open_quality[:, :3], open_quality[:, 3:], negative="min").backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert good.grad.any()
    assert not discriminator.quality(tokens, mask).requires_grad
    assert torch.equal(discriminator.quality(tokens, mask), open_quality)


def in_loops(label, good, poor, q_good, q_poor, has_good, has_poor, margin, beta, negative, a1, a2):
    total = 0.0
    for row, of_label in enumerate(label.tolist()):
        candidates = [(good[row, i].item(), q_good[row, i].item()) for i in range(3) if has_good[row, i]]
        l_good, q = min(candidates, default=(0.0, 0.0))
        others = [(poor[row, i].item(), q_poor[row, i].item()) for i in range(4) if has_poor[row, i]]
        l_poor, worth = {"max": max, "min": min}[negative](others, default=(0.0, 1.0))
        total += a1 * of_label + a2 * (q * l_good - beta * (1 - worth) * min(l_poor - margin, 0.0))
    return total / len(label)


@pytest.mark.parametrize("negative", ["max", "min"])
@pytest.mark.parametrize(
    ("margin", "beta", "a1", "a2"), [(3.0, 0.2, 0.5, 0.5), (5.0, 1.5, 1.0, 0.1), (0.0, 0.2, 0.0, 2.0)]
)
def test_loops(negative, margin, beta, a1, a2, generator):
    call = drawn(generator)
    wanted = in_loops(*call, margin, beta, negative, a1, a2)
    loss = QCRDLoss(margin, beta, negative, a1, a2)
    assert loss(*call).item() == pytest.approx(wanted, rel=1e-12)
    function = qcrd_loss(*call, margin, beta, negative, label_weight=a1, rationale_weight=a2)
    assert torch.equal(function, loss(*call))
    mean_of_labels = qcrd_loss(call[0].mean(), *call[1:], margin, beta, negative, label_weight=a1, rationale_weight=a2)
    torch.testing.assert_close(mean_of_labels, function)


def test_no_candidates():
    empty, none = torch.zeros(2, 0).double(), torch.zeros(2, 2, dtype=torch.bool)
    label = torch.tensor([1.0, 3.0]).double()
    good, poor = GOOD.repeat(2, 1).requires_grad_(), POOR.repeat(2, 1).requires_grad_()
    assert qcrd_loss(label, empty, empty, empty, empty).item() == 1
    value = qcrd_loss(label, good, poor, Q_GOOD.repeat(2, 1), Q_POOR.repeat(2, 1), none, none)
    assert value.item() == 1
    for slope in torch.autograd.grad(value, [good, poor]):
        assert not slope.any()
    assert qcrd_loss(label[:0], empty[:0], empty[:0], empty[:0], empty[:0]).isnan()


def test_nan_that_counts_is_seen(generator):
    label, good, poor, q_good, q_poor, _, _ = drawn(generator)
    for place in (0, 1, 2, 3, 4):
        call = [label, good, poor, q_good, q_poor]
        call[place] = torch.full_like(call[place], math.nan)
        assert qcrd_loss(*call, negative="min").isnan()


def test_half_and_large(generator):
    call = drawn(generator)
    half = [x.half() if x.is_floating_point() else x for x in call]
    value = qcrd_loss(*half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), qcrd_loss(*(x.double() if x.dtype == torch.half else x for x in half)))
    assert qcrd_loss(call[0], 1e4 * call[1], 1e4 * call[2], *call[3:]).isfinite()


def test_the_judge_in_loops(generator):
    """Maximum over the tokens that are there, two linear layers."""
    discriminator = judge()
    tokens = torch.randint(9, (2, 3, 5), generator=generator)
    mask = torch.rand(2, 3, 5, generator=generator) < 0.5
    mask[0, 0], mask[1, 1] = True, False
    logits = discriminator(tokens, mask)
    assert torch.equal(discriminator.encoder.mask, mask.flatten(0, 1))
    for row in range(2):
        for candidate in range(3):
            words = tokens[row, candidate][mask[row, candidate]]
            states = discriminator.encoder.of_tokens(words).tolist()
            pooled = torch.tensor([max((s[i] for s in states), default=0.0) for i in range(4)]).double()
            hidden = (discriminator.hidden.weight @ pooled + discriminator.hidden.bias).clamp_min(0)
            wanted = (discriminator.output.weight @ hidden + discriminator.output.bias)[0]
            torch.testing.assert_close(logits[row, candidate], wanted)
    torch.testing.assert_close(discriminator.quality(tokens, mask), 1 / (1 + (-logits).exp()))
    torch.testing.assert_close(discriminator(tokens[0, 0], mask[0, 0]), logits[0, 0])


def test_the_judge_does_not_see_padding(generator):
    discriminator = judge()
    features = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 5, generator=generator) < 0.5
    values, slopes = [], []
    for junk in (0.0, math.nan, math.inf):
        inputs = torch.where(mask[..., None], features, junk).requires_grad_()
        values.append(discriminator(inputs, mask))
        slopes.append(torch.autograd.grad(values[-1].sum(), [inputs, *discriminator.parameters()], allow_unused=True))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    for of_clean, of_nan, of_inf in zip(*slopes):
        assert of_clean is of_nan or (torch.equal(of_clean, of_nan) and torch.equal(of_clean, of_inf))


def test_the_judges_loss(generator):
    logits = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    good, mask = torch.rand(2, 3, 4, generator=generator) < 0.5
    wanted = [
        -math.log(1 / (1 + math.exp(-z if y else z)))
        for z, y, present in zip(logits.flatten().tolist(), good.flatten().tolist(), mask.flatten().tolist())
        if present
    ]
    loss = RationaleDiscriminator.loss
    assert loss(logits, good, mask).item() == pytest.approx(sum(wanted) / len(wanted))
    torch.testing.assert_close(loss(logits, good), loss(logits, good, torch.ones_like(mask)))
    dirty = torch.where(mask, logits, math.nan).requires_grad_()
    clean = torch.where(mask, logits, 0.0).requires_grad_()
    assert torch.equal(loss(dirty, good, mask), loss(clean, good, mask))
    slopes = [torch.autograd.grad(loss(x, good, mask), x)[0] for x in (dirty, clean)]
    assert torch.equal(*slopes)
    nothing = loss(clean, good, torch.zeros_like(mask))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, clean)[0].any()
    assert loss(logits.bfloat16(), good).dtype == torch.float32


def test_the_weight_of_the_judges_loss():
    assert [QCRDSchedule()(t) for t in range(4)] == pytest.approx([0.5, 0.45, 0.405, 0.3645])
    assert QCRDSchedule(2.0, 0.5)(3) == 0.25
    assert QCRDSchedule(decay=1.0)(100) == 0.5
    for bad in ({"a3": -1.0}, {"decay": 0.0}, {"decay": 1.1}, {"a3": "1"}):
        with pytest.raises((ValueError, TypeError), match=f"^{next(iter(bad))}: expected"):
            QCRDSchedule(**bad)
    for iteration in (-1, 0.5):
        with pytest.raises((ValueError, TypeError), match=r"^iteration: expected an integer"):
            QCRDSchedule()(iteration)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_losses": GOOD[0]}, r"^pos_losses: expected shape"),
        ({"pos_losses": GOOD.long()}, "^pos_losses: expected a floating tensor"),
        ({"neg_losses": POOR.repeat(2, 1)}, r"^neg_losses: expected shape \(1, \*\)"),
        ({"pos_quality": Q_GOOD[:, :1]}, r"^pos_quality: expected shape \(1, 2\)"),
        ({"neg_quality": Q_POOR[:, :1]}, r"^neg_quality: expected shape \(1, 2\)"),
        ({"pos_quality": Q_GOOD + 1}, r"^pos_quality: expected values in \[0, 1\], got 1\.9"),
        ({"neg_quality": -Q_POOR}, r"^neg_quality: expected values in \[0, 1\], got -0\.3"),
        ({"pos_mask": torch.ones(1, 2)}, "^pos_mask: expected a boolean tensor"),
        ({"neg_mask": torch.ones(1, 3).bool()}, r"^neg_mask: expected shape \(1, 2\)"),
        ({"label_loss": torch.zeros(2).double()}, r"^label_loss: expected shape \(1\)"),
        ({"label_loss": torch.zeros(1, 1)}, "^label_loss: expected 0 or 1 dimensions"),
        ({"margin": -1.0}, "^margin: expected a number >= 0"),
        ({"beta": -0.1}, "^beta: expected a number >= 0"),
        ({"negative": "mean"}, "^negative: expected one of 'max', 'min'"),
        ({"label_weight": -1.0}, "^label_weight: expected a number >= 0"),
        ({"rationale_weight": -1.0}, "^rationale_weight: expected a number >= 0"),
    ],
)
def test_what_is_refused(change, message):
    call = {"label_loss": NONE, "pos_losses": GOOD, "neg_losses": POOR, "pos_quality": Q_GOOD, "neg_quality": Q_POOR}
    with pytest.raises((ValueError, TypeError), match=message):
        qcrd_loss(**call | change)
    if change.keys() & {"margin", "beta", "negative", "label_weight", "rationale_weight"}:
        with pytest.raises((ValueError, TypeError), match=message):
            QCRDLoss(**change)


def test_what_the_judge_refuses():
    with pytest.raises(TypeError, match=r"^encoder: expected a module"):
        RationaleDiscriminator(torch.sin, 4)
    with pytest.raises(ValueError, match=r"^dim: expected an integer >= 1"):
        RationaleDiscriminator(Words(), 0)
    tokens, mask = torch.zeros(2, 3, 5, dtype=torch.long), torch.ones(2, 3, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^mask: expected the first dimensions of inputs \(2, 3, 5\)"):
        judge()(tokens, mask[:, :2])
    with pytest.raises(TypeError, match=r"^mask: expected a boolean tensor"):
        judge()(tokens, mask.long())
    with pytest.raises(ValueError, match=r"^states of the encoder: expected shape \(6, 5, 4\)"):
        RationaleDiscriminator(Words(3), 4)(tokens, mask)
    with pytest.raises(ValueError, match=r"^good: expected shape \(2\)"):
        RationaleDiscriminator.loss(torch.zeros(2), mask[0, 0])
    with pytest.raises(TypeError, match=r"^mask: expected a boolean tensor"):
        RationaleDiscriminator.loss(torch.zeros(2), mask[0, 0, :2], torch.ones(2))
