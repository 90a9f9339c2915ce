"""True labels that don't compete, and a soft top-k."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.losses.ranking.decoupled_softmax import (
    DecoupledSoftmaxLoss,
    SoftTopKLoss,
    decoupled_softmax_loss,
    log_soft_topk,
    soft_topk_loss,
)

S = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
P = torch.tensor([[1, 1, 0, 0]])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def softmax_loss(scores, positives):
    return -(positives * scores.log_softmax(1)).sum(1).mean()


def naive(scores, labels, mean=True):
    terms = [
        -math.log(math.exp(s) / (math.exp(s) + sum(math.exp(n) for n, other in zip(scores, labels) if not other)))
        for s, own in zip(scores, labels)
        if own
    ]
    return sum(terms) / (len(terms) if mean and terms else 1)


@pytest.mark.holds("decoupled-softmax", 1)
def test_card_values():
    for place, term in ((0, 0.169846), (1, 0.407606)):
        valid = torch.tensor([[place == 0, place == 1, True, True]])
        assert decoupled_softmax_loss(S, P, valid=valid).item() == pytest.approx(term, abs=5e-7)
    assert decoupled_softmax_loss(S, P).item() == pytest.approx(0.288726, abs=5e-7)
    assert softmax_loss(S, P).item() == pytest.approx(1.880379, abs=5e-7)


@pytest.mark.holds("decoupled-softmax", 2)
def test_signs_of_gradients(generator):
    scores = S.clone().requires_grad_()
    (slope,) = torch.autograd.grad(softmax_loss(scores, P), scores)
    assert slope[0, 0].item() == pytest.approx(0.287829, abs=5e-7)
    (slope,) = torch.autograd.grad(decoupled_softmax_loss(scores, P, positive_reduction="sum"), scores)
    assert slope[0, 0].item() == pytest.approx(-0.156205, abs=5e-7)
    many = (3 * torch.randn(50, 8, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.rand(50, 8, generator=generator) < 0.4
    (slope,) = torch.autograd.grad(decoupled_softmax_loss(many, labels), many)
    assert (slope[labels] <= 0).all()
    assert (slope[~labels] >= 0).all()


@pytest.mark.holds("decoupled-softmax", 3)
def test_one_true_label(generator):
    scores = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    place = torch.randint(5, (6,), generator=generator)
    labels = nn.functional.one_hot(place, 5)
    for way in ("mean", "sum"):
        value = decoupled_softmax_loss(scores, labels, positive_reduction=way)
        torch.testing.assert_close(value, nn.functional.cross_entropy(scores, place))


def test_terms_one_by_one(generator):
    scores = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = torch.rand(6, 5, generator=generator) < 0.5
    labels[0], labels[1] = True, False
    for way in ("mean", "sum"):
        value = decoupled_softmax_loss(scores, labels, positive_reduction=way, reduction="none")
        wanted = [naive(s, y, way == "mean") for s, y in zip(scores.tolist(), labels.tolist())]
        assert value.tolist() == pytest.approx(wanted)
    weight = torch.rand(6, generator=generator, dtype=torch.float64)
    weighted = decoupled_softmax_loss(scores, labels, weight=weight)
    each = decoupled_softmax_loss(scores, labels, reduction="none")
    torch.testing.assert_close(weighted, (weight * each).sum() / weight.sum())


def test_labels_that_were_not_sampled(generator):
    scores = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[1, 1, 1, 0, 0, 0]]).expand(3, 6)
    valid = torch.tensor([[True, False, True, True, False, True]]).expand(3, 6)
    wide = torch.where(valid, scores, math.nan).requires_grad_()
    value = decoupled_softmax_loss(wide, labels, valid=valid)
    torch.testing.assert_close(value, decoupled_softmax_loss(scores[:, valid[0]], labels[:, valid[0]]))
    assert not torch.autograd.grad(value, wide)[0][~valid].any()


@pytest.mark.holds("decoupled-softmax", 4)
def test_soft_top_two():
    q = log_soft_topk(S, 2).exp()[0]
    assert q.tolist() == pytest.approx([0.817574, 0.622459, 0.377541, 0.182426], abs=5e-7)
    assert torch.logit(q[0]).item() - 2.0 == pytest.approx(-0.5)
    assert soft_topk_loss(S, P, k=2).item() == pytest.approx(0.337745, abs=5e-7)
    assert SoftTopKLoss(2)(S, P).item() == pytest.approx(0.337745, abs=5e-7)
    steep = log_soft_topk(S, 2, alpha=10.0).exp()[0]
    assert steep.tolist() == pytest.approx([1.0, 0.993307, 0.006693, 0.0], abs=6e-7)


@pytest.mark.holds("decoupled-softmax", 5)
def test_properties_of_the_soft_top_k(generator):
    scores = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    for k in (1, 4, 8):
        q = log_soft_topk(scores, k).exp()
        assert (q.sum(1) - k).abs().max() < 1e-6
        torch.testing.assert_close(log_soft_topk(scores + 5.0, k).exp(), q)
    slopes = torch.autograd.functional.jacobian(lambda s: log_soft_topk(s, 3).exp()[0], scores[:1])
    assert slopes.sum(0).abs().max() < 1e-12
    assert (log_soft_topk(scores, 1).exp() - scores.softmax(1)).abs().max() > 0.01
    each = torch.tensor([1.0, 2.0, 3.5, 4.0, 5.0, 8.9], dtype=torch.float64)
    torch.testing.assert_close(log_soft_topk(scores, each).exp().sum(1), each)


def test_implicit_gradient(generator):
    scores = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    q = log_soft_topk(scores, 2, alpha=3.0).exp()[0]
    v = 3.0 * q * (1 - q)
    wanted = 3.0 * (1 - q).unsqueeze(1) * (torch.eye(5) - v / v.sum())
    slopes = torch.autograd.functional.jacobian(lambda s: log_soft_topk(s, 2, alpha=3.0)[0], scores)
    torch.testing.assert_close(slopes[:, 0], wanted)


def test_k_of_each_sample():
    scores = torch.cat([S, S, S])
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    value = soft_topk_loss(scores, labels, k=None, reduction="none")
    assert value[0].item() == pytest.approx(0.337745, abs=5e-7)
    assert value[1] == 0
    assert value[2].item() == pytest.approx(-log_soft_topk(S, 3).mean().item())


@pytest.mark.holds("decoupled-softmax", 6)
def test_counts_out_of_range_and_samples_without_labels():
    for k in (0, 4, 5, -1):
        with pytest.raises(ValueError, match=r"^k: expected"):
            log_soft_topk(S, k)
    for k in (0.0, 4.0):
        with pytest.raises(ValueError, match=r"^k: expected numbers above 0 and below 4"):
            log_soft_topk(S, torch.tensor([k]))
    scores = torch.cat([S, S]).requires_grad_()
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
    for loss in (decoupled_softmax_loss, lambda s, y, **o: soft_topk_loss(s, y, k=2, **o)):
        value = loss(scores, labels, reduction="none")
        assert value[0] == 0
        (slope,) = torch.autograd.grad(value.sum(), scores)
        assert not slope[0].any()
        assert slope[1].any()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores(size):
    """Positives are masked by infinity and not by -100."""
    scores = (size * torch.tensor([[1.0, 0.9, -1.0, -0.9]])).requires_grad_()
    for labels in (P, 1 - P):
        value = decoupled_softmax_loss(scores, labels)
        assert value.isfinite()
        assert torch.autograd.grad(value, scores)[0].isfinite().all()
    far = decoupled_softmax_loss(torch.tensor([[-500.0, -600.0, -700.0]]), torch.tensor([[0, 1, 0]]))
    assert far.item() == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("positive_reduction", lambda: DecoupledSoftmaxLoss("max")),
        ("alpha", lambda: SoftTopKLoss(alpha=0.0)),
        ("k", lambda: SoftTopKLoss(k=0)),
        ("positives", lambda: decoupled_softmax_loss(S, 2 * P)),
        ("valid", lambda: decoupled_softmax_loss(S, P, valid=P)),
        ("scores", lambda: decoupled_softmax_loss(S[0], P[0])),
    ],
)
def test_refused(name, call):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected"):
        call()
