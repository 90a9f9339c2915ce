"""Norm and direction of a student's features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.method import Plain
from steepest.core.objective import Batch, WithPenalty
from steepest.losses.distillation.knowledge_distillation import DistillationLoss
from steepest.losses.distillation.nd_loss import NDLoss, class_means, nd_loss
from steepest.nn.networks import Network


@pytest.fixture
def batch():
    """Features of a student, half of them longer than the teacher's, the teacher's, means and labels."""
    generator = torch.Generator().manual_seed(0)
    s, t, means = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (12, 12, 4))
    return s, t, means, torch.arange(12) % 4


def by_loop(s, t, means, labels):
    """One sample after the other, in Python's numbers."""
    losses = []
    for a, b, y in zip(s.tolist(), t.tolist(), labels.tolist()):
        m = means[y].tolist()
        length = max(math.hypot(*a), math.hypot(*b))
        losses.append(1 - sum(u * v for u, v in zip(a, m)) / math.hypot(*m) / length)
    return torch.tensor(losses, dtype=torch.float64)


def one(s, t=(3.0, 4.0), mean=(0.0, 2.0), **options):
    """The loss of one sample of class 0, and its gradient in s."""
    s = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    t, means = (torch.tensor([row], dtype=torch.float64) for row in (t, mean))
    loss = nd_loss(s, t, means, torch.tensor([0]), **options)
    return loss.item(), torch.autograd.grad(loss, s)[0][0].tolist()


@pytest.mark.holds("nd-loss", 1)
def test_known_values():
    assert one((1.0, 2.0))[0] == pytest.approx(0.6)
    assert one((0.0, 10.0))[0] == 0.0


@pytest.mark.holds("nd-loss", 2)
@pytest.mark.parametrize("scale", [1e-30, 0.3, 1e30])
def test_length_of_class_means_does_not_count(batch, scale):
    s, t, means, labels = batch
    for wide, rows in ((torch.float64, means), (torch.float32, means.float())):
        a = nd_loss(s.to(wide), t.to(wide), rows, labels, reduction="none")
        torch.testing.assert_close(nd_loss(s.to(wide), t.to(wide), rows * scale, labels, reduction="none"), a)
        module = NDLoss(rows * scale)
        torch.testing.assert_close(module(s.to(wide), labels, t.to(wide)), a.mean())


@pytest.mark.holds("nd-loss", 2)
def test_length_of_a_student_beyond_the_teacher_does_not_count(batch):
    s, t, means, labels = batch
    s = s / torch.linalg.vector_norm(s, dim=1, keepdim=True) * torch.linalg.vector_norm(t, dim=1, keepdim=True)
    losses = nd_loss(1.01 * s, t, means, labels, reduction="none")
    torch.testing.assert_close(nd_loss(7 * s, t, means, labels, reduction="none"), losses)
    torch.testing.assert_close(losses, 1 - nn.functional.cosine_similarity(s, means[labels]))
    assert not torch.allclose(nd_loss(0.9 * s, t, means, labels, reduction="none"), losses)


@pytest.mark.holds("nd-loss", 3)
def test_gradient_of_a_short_student_is_the_direction(batch):
    _, t, means, labels = batch
    e = means[labels] / torch.linalg.vector_norm(means[labels], dim=1, keepdim=True)
    t_norm = torch.linalg.vector_norm(t, dim=1, keepdim=True)
    for seed in (1, 2):
        s = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        s = (0.9 * t_norm * s / torch.linalg.vector_norm(s, dim=1, keepdim=True)).requires_grad_()
        (slope,) = torch.autograd.grad(nd_loss(s, t, means, labels), s)
        torch.testing.assert_close(slope, -e / t_norm / 12, rtol=1e-14, atol=1e-16)


@pytest.mark.holds("nd-loss", 4)
def test_opposite_and_zero_features():
    for k in (5.0, 60.0):
        assert one((0.0, -k))[0] == 2.0
    assert one((0.0, 0.0)) == (1.0, [0.0, pytest.approx(-1 / 5)])


@pytest.mark.parametrize("form", ["norm_and_direction", "direction", "norm"])
def test_rectified_features_may_all_be_zero(form):
    """Of the student, and of the teacher too."""
    value, slope = one((0.0, 0.0), t=(0.0, 0.0), form=form)
    assert value == (0.0 if form == "norm" else 1.0)
    assert slope == [0.0, 0.0]


@pytest.mark.holds("nd-loss", 5)
def test_a_class_without_rows_is_refused(batch):
    s, t, means, labels = batch
    means = means.clone()
    means[2] = 0
    with pytest.raises(ValueError, match="class_means: expected a mean other than zero for every class"):
        nd_loss(s, t, means, torch.full((12,), 2))
    with pytest.raises(ValueError, match=r"class_means: expected .* got 'zeros in rows \[2\]'"):
        NDLoss(means)
    with pytest.raises(ValueError, match="labels: expected rows of each of 4 classes"):
        class_means(nn.Identity(), [(s.float(), labels % 3)], 4, head=None)


@pytest.mark.holds("nd-loss", 5)
@pytest.mark.parametrize("form", ["norm_and_direction", "direction", "norm"])
def test_no_gradient_to_the_teacher_or_the_means(batch, form):
    s, t, means, labels = batch
    s, t, means = (x.clone().requires_grad_() for x in (s, t, means))
    nd_loss(s, t, means, labels, form=form).backward()
    assert s.grad is not None
    assert t.grad is None
    assert means.grad is None
    loss = NDLoss(means)
    assert not loss.directions.requires_grad
    assert list(loss.parameters()) == []


@pytest.mark.holds("nd-loss", 6)
def test_agrees_with_a_loop(batch):
    s, t, means, labels = batch
    losses = by_loop(s, t, means, labels)
    lengths = torch.linalg.vector_norm(s, dim=1) < torch.linalg.vector_norm(t, dim=1)
    assert 3 <= int(lengths.sum()) <= 9
    torch.testing.assert_close(nd_loss(s, t, means, labels, reduction="none"), losses)
    torch.testing.assert_close(nd_loss(s, t, means, labels), losses.mean())
    weight = torch.linspace(0, 2, 12, dtype=torch.float64)
    torch.testing.assert_close(nd_loss(s, t, means, labels, weight=weight), (weight * losses).sum() / weight.sum())
    torch.testing.assert_close(NDLoss(means)(s, labels, t), losses.mean())


@pytest.mark.holds("nd-loss", 6)
def test_forms_alone_agree_with_loops(batch):
    s, t, means, labels = batch
    norms = [max(math.hypot(*b) - math.hypot(*a), 0) / math.hypot(*b) for a, b in zip(s.tolist(), t.tolist())]
    values = nd_loss(s, t, means, labels, form="norm", reduction="none")
    torch.testing.assert_close(values, torch.tensor(norms, dtype=torch.float64))
    cosines = nn.functional.cosine_similarity(s, means[labels])
    torch.testing.assert_close(nd_loss(s, t, means, labels, form="direction", reduction="none"), 1 - cosines)


def test_only_the_length_of_the_teacher_counts(batch):
    s, t, means, labels = batch
    other = torch.zeros(12, 9, dtype=torch.float64)
    other[:, 3] = torch.linalg.vector_norm(t, dim=1)
    torch.testing.assert_close(nd_loss(s, other, means, labels), nd_loss(s, t, means, labels))


def test_a_narrow_student_is_mapped(batch):
    s, t, means, labels = batch
    torch.manual_seed(0)
    loss = NDLoss(means.float(), student_dim=2)
    mapped = loss.projection(s[:, :2].float())
    torch.testing.assert_close(
        loss(s[:, :2].float(), labels, t.float()), nd_loss(mapped, t.float(), means.float(), labels)
    )
    loss(s[:, :2].float(), labels, t.float()).backward()
    assert all(bool(p.grad.any()) for p in loss.parameters())
    assert isinstance(NDLoss(means, student_dim=5).projection, nn.Identity)


def test_class_means_of_a_network_are_those_of_its_features():
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.ReLU()), nn.Linear(6, 2)).train()
    x, y = torch.randn(9, 3), torch.arange(9) % 2
    means = class_means(net, [(x[:5], y[:5]), (x[5:], y[5:])], 2)
    assert net.backbone[1].training
    features = net.backbone.eval()(x).detach()
    torch.testing.assert_close(means, torch.stack([features[y == c].mean(0) for c in (0, 1)]))


def test_as_a_term_beside_distillation(batch):
    torch.manual_seed(0)
    net = Network(nn.Linear(3, 5), nn.Linear(5, 4)).double()
    _, t, means, labels = batch
    x, logits = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    objective = WithPenalty(DistillationLoss(), NDLoss(means), weight=2.0)
    loss = Plain().loss(net, Batch(x, labels, extra={"teacher": logits, "teacher_features": t}), objective)
    features = net.backbone(x)
    wanted = DistillationLoss()(net(x), labels, teacher=logits) + 2 * nd_loss(features, t, means, labels)
    torch.testing.assert_close(loss, wanted)


def test_refusals(batch):
    s, t, means, labels = batch
    wrong = (
        ((s[0], t, means, labels), {}, "student_feat: expected 2 dimensions"),
        ((s, t[:5], means, labels), {}, r"teacher_feat: expected shape \(12, \*\)"),
        ((s, t, means[:, :3], labels), {}, r"class_means: expected shape \(\*, 5\)"),
        ((s, t, means, labels + 1), {}, r"labels: expected values in 0..3"),
        ((s, t, means, labels[:4]), {}, r"labels: expected shape \(12\)"),
        ((s, t, means, labels), {"form": "both"}, "form: expected one of"),
    )
    for args, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            nd_loss(*args, **options)
    for options in ({"form": "both"}, {"student_dim": 0}):
        with pytest.raises(ValueError, match=": expected"):
            NDLoss(means, **options)
    with pytest.raises(ValueError, match=r"features: expected shape \(\*, 3\)"):
        NDLoss(means, student_dim=3)(s, labels, t)
