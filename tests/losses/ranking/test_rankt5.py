"""Losses of candidates, and the heads that score them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steepest.losses.ranking.rankt5 import (
    KINDS,
    FirstTokenHead,
    ListwiseSoftmaxLoss,
    PairwiseLogisticLoss,
    PointwiseLogisticLoss,
    Poly1SoftmaxLoss,
    SequenceRanker,
    VocabularyTokenHead,
    ranking_loss,
)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


S = row(1.0, 0.2, -0.5)
CLASSES = {
    "softmax": ListwiseSoftmaxLoss,
    "poly1": Poly1SoftmaxLoss,
    "pairwise": PairwiseLogisticLoss,
    "pointwise": PointwiseLogisticLoss,
}


def both(kind, scores, grades, **options):
    """What the function gives, asserted of the module."""
    value = ranking_loss(scores, grades, kind=kind, **options)
    query = torch.arange(len(scores)).repeat_interleave(scores.shape[1])
    torch.testing.assert_close(CLASSES[kind](**options)(scores.flatten(), grades.flatten(), query=query), value)
    return value.item()


@pytest.mark.holds("rankt5", 1)
@pytest.mark.parametrize(
    ("kind", "value"), [("pointwise", 1.585478), ("pairwise", 0.572514), ("softmax", 0.514295), ("poly1", 0.916373)]
)
def test_one_positive(kind, value):
    assert both(kind, S, row(1.0, 0.0, 0.0)) == pytest.approx(value, abs=5e-7)


@pytest.mark.holds("rankt5", 2)
@pytest.mark.parametrize(("kind", "value"), [("pairwise", 0.975700), ("softmax", 2.342885), ("poly1", 3.878378)])
def test_grades(kind, value):
    assert both(kind, S, row(2.0, 1.0, 0.0)) == pytest.approx(value, abs=5e-7)


def test_plain_torch():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    place = torch.randint(7, (5,), generator=generator)
    grades = nn.functional.one_hot(place, 7).double()
    assert both("softmax", scores, grades) == pytest.approx(nn.functional.cross_entropy(scores, place).item())
    each = nn.functional.binary_cross_entropy_with_logits(scores, grades, reduction="none")
    assert both("pointwise", scores, 3 * grades) == pytest.approx(each.sum(1).mean().item())
    gaps = torch.stack([s[p] - torch.cat([s[:p], s[p + 1 :]]) for s, p in zip(scores, place)])
    pairs = nn.functional.binary_cross_entropy_with_logits(gaps, torch.ones_like(gaps), reduction="none")
    assert both("pairwise", scores, grades) == pytest.approx(pairs.sum(1).mean().item())
    assert both("pairwise", scores, grades, mean_pairs=True) == pytest.approx(pairs.mean().item())
    p = scores.softmax(1).gather(1, place.unsqueeze(1))
    assert both("poly1", scores, grades, epsilon=0.3) == pytest.approx((-p.log() + 0.3 * (1 - p)).mean().item())


@pytest.mark.holds("rankt5", 3)
def test_special_cases():
    assert both("poly1", S, row(2.0, 1.0, 0.0), epsilon=0.0) == pytest.approx(both("softmax", S, row(2.0, 1.0, 0.0)))
    for grades in (row(1.0, 0.0), row(0.0, 1.0)):
        pair = both("pairwise", S[:, :2], grades)
        assert both("softmax", S[:, :2], grades) == pytest.approx(pair)


@pytest.mark.holds("rankt5", 4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_on_a_list(kind):
    moved, before = (both(kind, s, row(2.0, 1.0, 0.0)) for s in (S + 3.0, S))
    assert (moved == pytest.approx(before)) == (kind != "pointwise")


@pytest.mark.holds("rankt5", 5)
def test_gradient_of_the_softmax_loss():
    scores, grades = S.clone().requires_grad_(), row(0.0, 1.0, 0.0)
    (slope,) = torch.autograd.grad(ranking_loss(scores, grades), scores)
    torch.testing.assert_close(slope, S.softmax(1) - grades)


@pytest.mark.holds("rankt5", 6)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_lists_and_negative_grades_are_refused(kind):
    scores, grades = torch.cat([S, S]), torch.cat([row(1.0, 0.0, 0.0)] * 2)
    with pytest.raises(ValueError, match=r"^mask: expected a candidate in every list"):
        ranking_loss(scores, grades, kind=kind, mask=torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match=r"^grades: expected grades >= 0"):
        ranking_loss(S, row(1.0, -1.0, 0.0), kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_candidates(kind):
    grades, mask = row(2.0, 1.0, 0.0, 5.0), torch.tensor([[True, True, True, False]])
    wide = torch.cat([S, row(float("nan"))], 1).requires_grad_()
    value = ranking_loss(wide, grades, kind=kind, mask=mask)
    torch.testing.assert_close(value, ranking_loss(S, grades[:, :3], kind=kind))
    assert torch.autograd.grad(value, wide)[0][0, 3] == 0


def test_lists_without_a_positive():
    scores, grades = torch.cat([S, S]), torch.cat([row(1.0, 0.0, 0.0), row(0.0, 0.0, 0.0)])
    for kind in ("softmax", "poly1", "pairwise"):
        losses = ranking_loss(scores, grades, kind=kind, reduction="none")
        assert losses[1] == 0
        assert both(kind, scores, grades) == pytest.approx(losses[0].item() / 2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kind", {"kind": "listwise"}),
        ("mean_pairs", {"mean_pairs": True}),
        ("epsilon", {"kind": "poly1", "epsilon": float("nan")}),
        ("epsilon", {"epsilon": 0.5}),
    ],
)
def test_options_outside_their_range(name, options):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        ranking_loss(S, row(1.0, 0.0, 0.0), **options)


def test_first_token_and_mean():
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    first, mean = FirstTokenHead(4), FirstTokenHead(4, "mean")
    torch.testing.assert_close(first(tokens), first.dense(tokens[:, 0]).squeeze(1))
    torch.testing.assert_close(mean(tokens), mean.dense(tokens.mean(1)).squeeze(1))
    torch.testing.assert_close(mean(tokens, mask)[0], mean.dense(tokens[0, :2].mean(0)).squeeze())
    torch.testing.assert_close(first(tokens, mask), first(tokens))
    with pytest.raises(ValueError, match=r"^pool: expected"):
        FirstTokenHead(4, "last")


def test_logit_of_a_reserved_token():
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for layer in (nn.Linear(4, 9), nn.Linear(4, 9, bias=False)):
        head = VocabularyTokenHead(layer, token_id=7)
        torch.testing.assert_close(head(tokens), layer(tokens[:, 0])[:, 7])
        assert head.lm_head is layer
    with pytest.raises(ValueError, match=r"^token_id: expected"):
        VocabularyTokenHead(nn.Linear(4, 9), token_id=9)
    with pytest.raises(TypeError, match=r"^lm_head: expected"):
        VocabularyTokenHead(nn.ReLU(), token_id=0)


def test_a_ranker_of_hidden_states():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)

        def forward(self, tokens):
            return SimpleNamespace(last_hidden_state=self.embedding(tokens))

    ranker, tokens = SequenceRanker(Model(), FirstTokenHead(4)), torch.tensor([[1, 2], [3, 4]])
    torch.testing.assert_close(ranker(tokens), ranker.head(ranker.model.embedding(tokens)))
    ranker(tokens).sum().backward()
    assert ranker.model.embedding.weight.grad is not None


@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_no_score(pool, left):
    torch.manual_seed(0)
    table = nn.Embedding(9, 4)
    ranker = SequenceRanker(lambda ids, attention_mask=None: table(ids), FirstTokenHead(4, pool))
    ids, padding = torch.tensor([[1, 2]]), torch.tensor([[7, 7]])
    wanted = ranker(ids, attention_mask=torch.ones(1, 2, dtype=torch.long))
    joined = [padding, ids] if left else [ids, padding]
    mask = torch.tensor([[0, 0, 1, 1] if left else [1, 1, 0, 0]])
    assert torch.equal(ranker(torch.cat(joined, 1), attention_mask=mask), wanted)
