"""Orthogonal projection of the features of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.objective import TaskInfo
from steepest.losses.classification import orthogonal_projection as module
from steepest.losses.classification.comp_sum import CompSumLoss
from steepest.losses.classification.orthogonal_projection import (
    CrossEntropyWithOPL,
    OrthogonalProjectionLoss,
    orthogonal_projection_loss,
)

F4 = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
Y4 = torch.tensor([0, 0, 1, 1])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def naive(features, labels, gamma=0.5, absolute=True):
    """Over ordered pairs, as the equations have it: the loss, s and d."""
    same, apart = [], []
    for i, a in enumerate(features):
        for j, b in enumerate(features):
            if i != j:
                cosine = sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)
                (same if labels[i] == labels[j] else apart).append(cosine)
    s, d = (sum(pairs) / len(pairs) if pairs else 0.0 for pairs in (same, apart))
    return (1 - s) + gamma * (abs(d) if absolute else d), s, d


@pytest.mark.holds("orthogonal-projection", 1)
def test_card_values():
    assert orthogonal_projection_loss(F4, Y4).item() == pytest.approx(0.323223, abs=5e-7)
    assert 1 - orthogonal_projection_loss(F4, Y4, gamma=0.0).item() == pytest.approx(0.853553, abs=5e-7)
    d = orthogonal_projection_loss(F4, Y4, gamma=1.0) - orthogonal_projection_loss(F4, Y4, gamma=0.0)
    assert d.item() == pytest.approx(0.353553, abs=5e-7)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("classes", [1, 3, 9])
def test_naive_loop(gamma, absolute, classes, generator):
    f = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(9) % classes
    wanted = naive(f.tolist(), y.tolist(), gamma, absolute)[0]
    assert OrthogonalProjectionLoss(gamma, absolute)(f, y).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.holds("orthogonal-projection", 2)
def test_orthonormal_classes_are_the_minimum(generator):
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    best = rotation[:3].repeat_interleave(2, 0)
    assert orthogonal_projection_loss(best, y).item() == pytest.approx(0.0, abs=1e-12)
    for _ in range(200):
        other = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        assert orthogonal_projection_loss(other, y) > 0


@pytest.mark.holds("orthogonal-projection", 3)
def test_invariances(generator):
    f = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(8) % 3
    wanted = orthogonal_projection_loss(f, y)
    scale = torch.rand(8, 1, generator=generator, dtype=torch.float64) * 10 + 0.01
    torch.testing.assert_close(orthogonal_projection_loss(scale * f, y), wanted)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    torch.testing.assert_close(orthogonal_projection_loss(f @ rotation, y), wanted)
    order = torch.randperm(8, generator=generator)
    torch.testing.assert_close(orthogonal_projection_loss(f[order], y[order]), wanted)
    torch.testing.assert_close(orthogonal_projection_loss(f, 7 - 3 * y), wanted)


@pytest.mark.holds("orthogonal-projection", 4)
def test_missing_kinds_of_pairs(generator):
    f = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.arange(6) % 2
    _, s, _ = naive(f.tolist(), y.tolist())
    assert orthogonal_projection_loss(f, y, gamma=0.0).item() == pytest.approx(1 - s)
    one = torch.zeros(6, dtype=torch.long)
    assert torch.equal(orthogonal_projection_loss(f, one, gamma=9.0), orthogonal_projection_loss(f, one, gamma=0.0))
    different = torch.arange(6)
    _, _, d = naive(f.tolist(), different.tolist())
    assert orthogonal_projection_loss(f, different).item() == pytest.approx(1 + 0.5 * abs(d))
    alone = orthogonal_projection_loss(f, different, gamma=0.0)
    assert alone.item() == 1.0
    assert bool((torch.autograd.grad(alone, f)[0] == 0).all())
    assert orthogonal_projection_loss(f[:1], different[:1]).item() == 1.0


@pytest.mark.holds("orthogonal-projection", 5)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_signed_form_goes_below_zero(gamma):
    f = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert orthogonal_projection_loss(f, Y4, gamma=gamma, absolute=False).item() == pytest.approx(-gamma)
    assert orthogonal_projection_loss(f, Y4, gamma=gamma).item() == pytest.approx(gamma)


@pytest.mark.holds("orthogonal-projection", 6)
def test_no_gradient_along_the_norm(generator):
    f = torch.randn(8, 5, generator=generator, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(orthogonal_projection_loss(f, torch.arange(8) % 3), f)
    torch.testing.assert_close((slope * f).sum(-1).detach(), torch.zeros(8, dtype=torch.float64), atol=1e-14, rtol=0)
    assert bool((slope.norm(dim=-1) > 1e-3).all())  # both members of each pair move
    assert torch.autograd.gradcheck(lambda x: orthogonal_projection_loss(x, torch.arange(8) % 3), f)


def test_zero_and_huge_features_are_finite():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        f = F4.to(dtype).clone()
        f[0] = 0.0
        f[1] *= 1e4
        f.requires_grad_()
        loss = orthogonal_projection_loss(f, Y4)
        assert loss.dtype == torch.float32
        assert bool(torch.isfinite(torch.autograd.grad(loss, f)[0]).all())


def test_refusals():
    with pytest.raises(TypeError, match="target: expected an integer tensor"):
        orthogonal_projection_loss(F4, Y4.double())
    with pytest.raises(ValueError, match="target: expected shape"):
        orthogonal_projection_loss(F4, Y4[:3])
    with pytest.raises(ValueError, match="features: expected 2 dimensions"):
        orthogonal_projection_loss(F4[0], Y4[:2])
    with pytest.raises(ValueError, match="gamma: expected"):
        OrthogonalProjectionLoss(gamma=-1.0)


def test_with_cross_entropy(generator):
    logits = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    info = TaskInfo("binary", 9, 2, (4, 5), feature_dim=2)
    loss = CrossEntropyWithOPL.from_task(info, weight=2.0, gamma=0.3)
    found = loss(logits, Y4, features=F4)
    wanted = nn.functional.cross_entropy(logits, Y4) + 2.0 * naive(F4.tolist(), Y4.tolist(), 0.3)[0]
    torch.testing.assert_close(found, wanted)
    assert loss.name == "orthogonal_projection"
    assert loss.needs == ("features",)
    assert loss.targets == ("index",)
    assert set(loss.terms) == {"cross_entropy", "orthogonal_projection"}
    with pytest.raises(ValueError, match="target: expected"):
        loss(logits, torch.tensor([0, 1, -100, 1]), features=F4)
    with pytest.raises(TypeError, match="weight: expected None"):
        loss(logits, Y4, features=F4, weight=torch.ones(4))
    with pytest.raises(ValueError, match="weight: expected"):
        CrossEntropyWithOPL(weight=-1.0)


def test_terms_do_not_outlive_a_transform(generator):
    loss = CrossEntropyWithOPL()
    logits = torch.randn(3, 4, 2, generator=generator)
    target, features = Y4.expand(3, 4), F4.float().expand(3, 4, 2)
    torch.func.vmap(lambda a, b, c: loss(a, b, features=c))(logits, target, features)
    assert loss.terms == {}
    loss(logits[0], Y4, features=F4.float())
    torch.testing.assert_close(loss.terms["cross_entropy"], CompSumLoss()(logits[0], Y4))


@pytest.mark.parametrize("labels", ["few", "one", "distinct", "odd"])
@pytest.mark.parametrize("absolute", [True, False])
def test_large_batches_go_by_class_sums_and_give_the_same(labels, absolute, generator, monkeypatch):
    features = torch.randn(60, 7, generator=generator).requires_grad_()
    target = {
        "few": torch.randint(4, (60,), generator=generator),
        "one": torch.zeros(60, dtype=torch.long),
        "distinct": torch.arange(60),
        "odd": 1000 * torch.randint(3, (60,), generator=generator) - 500,
    }[labels]
    found = []
    for pairs in (10**6, 0):
        monkeypatch.setattr(module, "PAIRS", pairs)
        loss = orthogonal_projection_loss(features, target, absolute=absolute)
        found.append((loss, *torch.autograd.grad(loss, features)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_sixty_thousand_rows_need_no_matrix_of_rows():
    features, target = torch.randn(60_000, 4).requires_grad_(), torch.arange(60_000) % 7
    orthogonal_projection_loss(features, target).backward()  # 60,000 squared numbers would be 14 GB
    assert bool(torch.isfinite(features.grad).all())
