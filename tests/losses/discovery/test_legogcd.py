"""SimGCD and LegoGCD, against loops over rows in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from steepest.losses.discovery import LegoGCDLoss, SimGCDLoss, dual_view_kl, local_entropy_regularization

ROWS = torch.tensor([[0.30, 0.05, 0.02], [0.04, 0.06, 0.25]], dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
NONE = torch.tensor([False, False])


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def drawn(seed=0, items=6, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(2 * items, classes, generator=generator, dtype=torch.float64) * 0.4
    logits[torch.arange(2 * items), torch.arange(items).repeat(2) % classes] += 0.4
    projections = torch.randn(2 * items, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(items) % 3
    labeled = torch.rand(items, generator=generator) < 0.5
    labeled[:2] = torch.tensor([True, False])
    return logits.to(dtype), projections.to(dtype), labels, labeled


def by_loops(o, z, labels, labeled, *, teacher=0.07, num_old=None, prior=None, threshold=0.7, adjust=0.4, lam=0.35):
    """The losses of SimGCD, and with ``num_old`` of LegoGCD, row by row."""
    o, z = o.numpy(), z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
    items, classes = len(o) // 2, o.shape[1]
    views = [range(items), range(items, 2 * items)]
    entropies = [-math.log(softmax(o[view[i]] / 0.1)[labels[i]]) for view in views for i in range(items) if labeled[i]]
    distilled = np.mean(
        [
            -(softmax(o[a[i]] / teacher) * np.log(softmax(o[b[i]] / 0.1))).sum()
            for a, b in (views, views[::-1])
            for i in range(items)
        ]
    )
    mean = np.mean([softmax(row / 0.1) for row in o], 0)
    memax = math.log(classes) + (mean * np.log(mean)).sum()
    contrast = np.mean(
        [
            -z[i] @ z[(i + items) % (2 * items)]
            + math.log(sum(math.exp(z[i] @ z[j]) for j in range(2 * items) if j != i))
            for i in range(2 * items)
        ]
    )
    own = [i for i in range(2 * items) if labeled[i % items]]
    supervised = []
    for i in own:
        log_z = math.log(sum(math.exp(z[i] @ z[j] / 0.07) for j in own if j != i))
        supervised.append(
            np.mean([log_z - z[i] @ z[j] / 0.07 for j in own if j != i and labels[j % items] == labels[i % items]])
        )
    free = distilled + 2 * memax + contrast
    of_labels = (np.mean(entropies) if entropies else 0.0) + (np.mean(supervised) if supervised else 0.0)
    if num_old is None:
        return (1 - lam) * free + lam * of_labels
    kl = np.mean(
        [(softmax(o[i] / 0.1) * np.log(softmax(o[i] / 0.1) / softmax(o[i + items] / 0.1))).sum() for i in range(items)]
    )
    total = 0.0
    for i in range(2 * items):
        confidence = softmax(o[i] / 0.1)
        if not labeled[i % items] and confidence.max() >= threshold and confidence.argmax() < num_old:
            total -= (softmax(o[i] / 0.05) * np.log(softmax(o[i] / 0.05 + adjust * np.log(prior)))).sum()
    return (1 - lam) * (free + kl) + lam * of_labels + 2 * total / (2 * items)


@pytest.mark.holds("legogcd", 1)
def test_local_entropy_of_two_rows():
    assert (ROWS / 0.1).softmax(1).max(1).values.tolist() == pytest.approx([0.874971, 0.786148], abs=1e-6)
    value = local_entropy_regularization(ROWS, NONE, PRIOR, 2)
    assert value.item() == pytest.approx(0.032282, abs=1e-6)
    first = local_entropy_regularization(ROWS[:1], NONE[:1], PRIOR, 2)
    assert first.item() == pytest.approx(0.064563, abs=1e-6)
    assert local_entropy_regularization(ROWS, ~NONE, PRIOR, 2) == 0.0
    assert local_entropy_regularization(ROWS, NONE, PRIOR, 3) > value, "of three known classes both rows count"


@pytest.mark.holds("legogcd", 2)
def test_divergence_of_views():
    a, b = torch.tensor([[0.3, 0.05, 0.02]]).double(), torch.tensor([[0.2, 0.1, 0.0]]).double()
    assert dual_view_kl(a, b).item() == pytest.approx(0.123743, abs=1e-6)
    assert dual_view_kl(b, a).item() == pytest.approx(0.165076, abs=1e-6)
    assert dual_view_kl(a, a) == 0.0
    a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(dual_view_kl, (a, b))
    dual_view_kl(a, b).backward()
    assert a.grad.abs().sum() > 0.1
    assert b.grad.abs().sum() > 0.1


@pytest.mark.holds("legogcd", 3)
def test_entropy_of_the_mean():
    loss = SimGCDLoss(3, memax_weight=1.0)
    assert loss.clustering(ROWS.unflatten(0, (2, 1)))["mean entropy"].item() == pytest.approx(0.160227, abs=1e-6)
    even = 0.1 * torch.cat([ROWS[0].roll(k)[None] for k in range(3)] * 2).unflatten(0, (2, 3))
    assert loss.clustering(even)["mean entropy"].item() == pytest.approx(0.0, abs=1e-15)
    for seed in range(5):
        rows = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed)).double()
        assert loss.clustering(rows)["mean entropy"] > 1e-3


@pytest.mark.holds("legogcd", 4)
def test_prior_follows_the_rows():
    loss = LegoGCDLoss(2, 3).double()
    loss.prior.copy_(PRIOR)
    args = (ROWS, ROWS, torch.zeros(1, dtype=torch.int64), NONE[:1])
    loss.eval()(*args)
    assert torch.equal(loss.prior, PRIOR)
    loss.train()(*args)
    assert loss.prior.tolist() == pytest.approx([0.499851, 0.300010, 0.200139], abs=1e-6)
    assert loss.prior.sum().item() == pytest.approx(1.0, abs=1e-12)
    before = loss.prior.clone()
    loss(ROWS * torch.nan, *args[1:])
    assert torch.equal(loss.prior, before), "a step that overflowed leaves no trace"


@pytest.mark.holds("legogcd", 5)
def test_what_changes_nothing():
    even = torch.full((3,), 1 / 3).double()
    plain = local_entropy_regularization(ROWS, NONE, even, 2, adjust=0.0)
    assert local_entropy_regularization(ROWS, NONE, even, 2, adjust=0.4).item() == pytest.approx(
        plain.item(), abs=1e-15
    )
    logits = ROWS.clone().requires_grad_()
    empty = local_entropy_regularization(logits, NONE, PRIOR, 2, threshold=0.9)
    empty.backward()
    assert empty == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(ROWS))
    args = drawn()
    lego = LegoGCDLoss(3, 5, ler_weight=0.0, kl_weight=0.0)
    assert lego(*args).item() == pytest.approx(SimGCDLoss(5)(*args).item(), abs=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_loops(seed):
    args = drawn(seed)
    wanted = by_loops(*args)
    assert SimGCDLoss(5)(*args).item() == pytest.approx(wanted, abs=1e-12)
    loss = LegoGCDLoss(3, 5).double()
    prior = loss.prior.clone()
    for epoch, teacher in ((1, 0.07), (30, 0.04), (2, 0.07 - 0.03 / 29), (200, 0.04)):
        loss.start_epoch(epoch, 200)
        loss.prior.copy_(prior * torch.tensor([3.0, 1.0, 0.5, 0.25, 0.25], dtype=torch.float64))
        wanted = by_loops(*args, teacher=teacher, num_old=3, prior=loss.prior.numpy())
        assert loss(*args).item() == pytest.approx(wanted, abs=1e-12)


def test_example_of_the_docstrings():
    logits = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.1, 0.8], [0.8, 0.0, 0.1], [0.1, 0.0, 0.9]]).double()
    labels, labeled = torch.tensor([0, -1]), torch.tensor([True, False])
    args = (logits, logits[:, :2], labels, labeled)
    prior = np.full(3, 1 / 3)
    assert SimGCDLoss(3)(*args).item() == pytest.approx(by_loops(*args), abs=1e-6)
    assert LegoGCDLoss(2, 3)(*args).item() == pytest.approx(by_loops(*args, num_old=2, prior=prior), abs=1e-6)


def test_the_teacher_is_constant_and_the_entropy_is_not():
    views = drawn()[0].unflatten(0, (2, 6)).requires_grad_()
    (slope,) = torch.autograd.grad(SimGCDLoss(5, memax_weight=0.0).clustering(views)["distillation"], views)
    rows = views.detach().numpy()
    for view in (0, 1):
        for i in range(6):
            step = (softmax(rows[view, i] / 0.1) - softmax(rows[1 - view, i] / 0.07)) / 0.1 / 12
            assert slope[view, i].tolist() == pytest.approx(step.tolist(), abs=1e-14)
    leaf = ROWS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: local_entropy_regularization(o, NONE, PRIOR, 2), leaf)


def test_unlabeled_labels_are_not_read_and_nothing_is_zero():
    logits, projections, labels, labeled = drawn()
    loss = LegoGCDLoss(3, 5)
    other = torch.where(labeled, labels, 77)
    assert torch.equal(
        copy.deepcopy(loss)(logits, projections, labels, labeled), loss(logits, projections, other, labeled)
    )
    none = loss(logits, projections, labels, torch.zeros_like(labeled))
    assert none.isfinite()
    assert loss.terms["cross-entropy"] == loss.terms["supervised contrastive"] == 0.0
    leaf = logits[:0].clone().requires_grad_()
    empty = loss(leaf, projections[:0], labels[:0], labeled[:0])
    assert empty == 0.0
    assert empty.requires_grad
    with pytest.raises(ValueError, match="labels: expected values in"):
        loss(logits, projections, labels + 9, labeled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_logits_are_finite(dtype):
    logits, projections, labels, labeled = drawn(dtype=dtype)
    leaf = (logits * 1e4).requires_grad_()
    loss = LegoGCDLoss(3, 5)
    loss.prior.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
    value = loss(leaf, projections, labels, labeled)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert leaf.grad.isfinite().all()


def test_state_holds_prior_and_temperature():
    args = drawn()
    loss = LegoGCDLoss(3, 5, momentum=0.5)
    loss.start_epoch(7)
    loss(*args)
    twin = LegoGCDLoss(3, 5, momentum=0.5)
    twin.load_state_dict(loss.state_dict())
    assert twin(*args).item() == loss(*args).item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_old": 6}, "num_old: expected an integer >= 1 and <= 5"),
        ({"threshold": 1.5}, "threshold: expected"),
        ({"ler_weight": -1.0}, "ler_weight: expected"),
        ({"kl_weight": -1.0}, "kl_weight: expected"),
        ({"adjust": -1.0}, "adjust: expected"),
        ({"momentum": 2.0}, "momentum: expected"),
        ({"label_weight": 2.0}, "label_weight: expected"),
        ({"memax_weight": -1.0}, "memax_weight: expected"),
        ({"temperature": 0.0}, "temperature: expected"),
        ({"teacher_start": 0.0}, "teacher_start: expected"),
        ({"teacher_end": 0.0}, "teacher_end: expected"),
        ({"warmup_epochs": -1}, "warmup_epochs: expected"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        LegoGCDLoss(**{"num_old": 3, "num_classes": 5, **options})


def test_refused_calls():
    logits, projections, labels, labeled = drawn()
    loss = SimGCDLoss(5)
    with pytest.raises(ValueError, match="logits: expected an even number of rows"):
        loss(logits[1:], projections[1:], labels, labeled)
    with pytest.raises(ValueError, match="logits: expected shape"):
        loss(logits[:, :4], projections, labels, labeled)
    with pytest.raises(ValueError, match="projections: expected shape"):
        loss(logits, projections[1:], labels, labeled)
    with pytest.raises(TypeError, match="labeled: expected a boolean tensor"):
        loss(logits, projections, labels, labeled.long())
    with pytest.raises(ValueError, match="prior: expected shape"):
        local_entropy_regularization(ROWS, NONE, PRIOR[:2], 2)
