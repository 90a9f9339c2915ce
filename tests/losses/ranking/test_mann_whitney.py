"""All pairs of positive and negative scores."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as nnf

from steepest.core.allocations import peak_bytes
from steepest.losses.ranking import mann_whitney
from steepest.losses.ranking.mann_whitney import (
    MannWhitneyLoss,
    area_over_curve,
    mann_whitney_loss,
    mann_whitney_loss_flat,
)

POS, NEG = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
S = torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.5, -0.5], [1.0, 0.2, 0.8]], dtype=torch.float64)
OWN = torch.eye(3, dtype=torch.bool)


def contrastive(scores):
    return nnf.cross_entropy(scores, torch.arange(len(scores)))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def naive(scores, mask, temperature=1.0):
    pairs = [(p, n) for p in scores[mask].tolist() for n in scores[~mask].tolist()]
    return sum(math.log1p(math.exp(-(p - n) / temperature)) for p, n in pairs) / len(pairs)


@pytest.mark.holds("mann-whitney", 1)
def test_flat_scores():
    loss = mann_whitney_loss_flat(POS, NEG).item()
    assert loss == pytest.approx(0.356391, abs=5e-7)
    assert 1 - area_over_curve(POS, NEG).item() == pytest.approx(5 / 6)
    assert loss / math.log(2) == pytest.approx(0.514163, abs=5e-7)
    assert loss / math.log(2) >= area_over_curve(POS, NEG).item()


@pytest.mark.holds("mann-whitney", 2)
def test_a_matrix():
    assert mann_whitney_loss(S).item() == pytest.approx(0.345429, abs=5e-7)
    assert 1 - area_over_curve(S[OWN], S[~OWN]).item() == pytest.approx(0.888889, abs=5e-7)
    assert contrastive(S).item() == pytest.approx(0.611379, abs=5e-7)
    assert mann_whitney_loss(S, scope="query").item() == pytest.approx(0.352668, abs=5e-7)


@pytest.mark.holds("mann-whitney", 3)
def test_constants_on_rows():
    moved = S + torch.tensor([[0.0], [5.0], [-3.0]])
    assert contrastive(moved).item() == pytest.approx(0.611379, abs=5e-7)
    assert mann_whitney_loss(moved).item() == pytest.approx(1.566866, abs=5e-7)
    assert 1 - area_over_curve(moved[OWN], moved[~OWN]).item() == pytest.approx(0.611111, abs=5e-7)
    assert mann_whitney_loss(moved, scope="query").item() == pytest.approx(0.352668, abs=5e-7)


@pytest.mark.holds("mann-whitney", 4)
def test_a_constant_on_all_scores():
    scores = S.clone().requires_grad_()
    value = mann_whitney_loss(scores)
    torch.testing.assert_close(mann_whitney_loss(scores + 7.0), value)
    (slope,) = torch.autograd.grad(value, scores)
    assert abs(slope.sum().item()) < 1e-15


@pytest.mark.holds("mann-whitney", 5)
@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (5, 7)])
def test_binary_cross_entropy_of_all_pairs(shape, generator, monkeypatch):
    """Two negatives for two positives are four pairs, and not two that are matched."""
    monkeypatch.setattr(mann_whitney, "PAIRS", 6)
    pos, neg = (torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for n in shape)
    gaps = pos[:, None] - neg
    wanted = nnf.binary_cross_entropy_with_logits(gaps, torch.ones_like(gaps))
    value = mann_whitney_loss_flat(pos, neg)
    torch.testing.assert_close(value, wanted)
    for a, b in zip(*(torch.autograd.grad(v, (pos, neg)) for v in (value, wanted))):
        torch.testing.assert_close(a, b)


def test_pairs_that_were_matched_elsewhere():
    pos, neg = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.0])
    assert mann_whitney_loss_flat(pos, neg).item() == pytest.approx(0.472086, abs=1e-6)


@pytest.mark.parametrize("scope", ["batch", "query"])
def test_columns_masks_and_hard_negatives(scope, generator):
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    columns = torch.tensor([4, 0, 2])
    mask = nnf.one_hot(columns, 5).bool()
    value = mann_whitney_loss(scores, columns, scope=scope, temperature=0.5)
    torch.testing.assert_close(mann_whitney_loss(scores, mask, scope=scope, temperature=0.5), value)
    diagonal = mann_whitney_loss(scores, torch.arange(3), scope=scope)
    torch.testing.assert_close(mann_whitney_loss(scores, scope=scope), diagonal)
    if scope == "batch":
        assert value.item() == pytest.approx(naive(scores, mask, 0.5))
    else:
        by_row = [naive(row, own, 0.5) for row, own in zip(scores, mask)]
        assert value.item() == pytest.approx(sum(by_row) / 3)


def test_several_positives_in_a_row(generator):
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5, [True] * 5])
    assert mann_whitney_loss(scores, mask).item() == pytest.approx(naive(scores, mask))
    assert mann_whitney_loss(scores, mask, scope="query").item() == pytest.approx(naive(scores[0], mask[0]))


def test_the_module_of_flat_scores_and_of_matrices(generator):
    scores = torch.cat([POS, NEG])
    labels = torch.tensor([1, 1, 0, 0, 0])
    order = torch.randperm(5, generator=generator)
    value = MannWhitneyLoss(temperature=2.0)(scores[order], labels[order])
    torch.testing.assert_close(value, mann_whitney_loss_flat(POS, NEG, temperature=2.0))
    torch.testing.assert_close(MannWhitneyLoss()(S), mann_whitney_loss(S))
    torch.testing.assert_close(MannWhitneyLoss("query")(S), mann_whitney_loss(S, scope="query"))


def test_no_pair():
    scores = torch.tensor([0.3, -0.2], requires_grad=True)
    for labels in (torch.zeros(2), torch.ones(2)):
        value = MannWhitneyLoss()(scores, labels)
        assert value == 0
        assert value.requires_grad
    one = torch.zeros(1, 2, requires_grad=True)
    assert mann_whitney_loss(one, torch.tensor([[True, True]]), scope="query") == 0


def test_second_derivatives(generator):
    pos, neg = (torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for n in (3, 4))
    assert torch.autograd.gradgradcheck(mann_whitney_loss_flat, (pos, neg))


def test_scores_far_apart():
    pos, neg = torch.tensor([-1e4, 1e4]).requires_grad_(), torch.tensor([1e4, -1e4])
    value = mann_whitney_loss_flat(pos, neg)
    assert value.item() == pytest.approx(5000 + math.log(2) / 2)
    assert torch.autograd.grad(value, pos)[0].tolist() == pytest.approx([-0.375, -0.125])


def test_memory_is_that_of_pieces(generator):
    pos, neg = torch.randn(1000, generator=generator).requires_grad_(), torch.randn(20_000, generator=generator)
    assert peak_bytes(lambda: torch.autograd.grad(mann_whitney_loss_flat(pos, neg), pos)) < 20e6


def test_the_area_against_counting(generator):
    pos = torch.randint(5, (40,), generator=generator).double()
    neg = torch.randint(5, (60,), generator=generator).double()
    wanted = ((pos[:, None] < neg).double() + 0.5 * (pos[:, None] == neg).double()).mean()
    torch.testing.assert_close(area_over_curve(pos, neg), wanted)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("scope", lambda: mann_whitney_loss(S, scope="row")),
        ("temperature", lambda: mann_whitney_loss(S, temperature=0.0)),
        ("temperature", lambda: mann_whitney_loss_flat(POS, NEG, temperature=-1.0)),
        ("scores", lambda: mann_whitney_loss(S[:, :2])),
        ("positives", lambda: mann_whitney_loss(S, torch.tensor([0, 1, 3]))),
        ("positives", lambda: mann_whitney_loss(S, torch.ones(3, 2))),
        ("pos", lambda: mann_whitney_loss_flat(POS.long(), NEG)),
        ("neg", lambda: area_over_curve(POS, S)),
        ("target", lambda: MannWhitneyLoss()(POS, torch.tensor([2, 0]))),
    ],
)
def test_refused(name, call):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected"):
        call()


def test_scores_that_are_not_numbers_have_no_area():
    nan, plain = torch.tensor([math.nan, 1.0]), torch.tensor([0.0, 1.0])
    assert area_over_curve(nan, plain).isnan()
    assert area_over_curve(plain, nan).isnan()
