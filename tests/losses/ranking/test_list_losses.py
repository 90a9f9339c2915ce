"""ListNet, ListMLE, RankNet, LambdaLoss and ApproxNDCG: naive loops, and the numbers that allRank's tests publish."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.query_lists import mask_from_padding
from steepest.losses.ranking.approx_ndcg import ApproxNDCGLoss, approx_ndcg_loss
from steepest.losses.ranking.lambda_loss import SCHEMES, LambdaLoss, lambda_loss
from steepest.losses.ranking.listmle import ListMLELoss, listmle_loss
from steepest.losses.ranking.listnet import ListNetLoss, listnet_loss
from steepest.losses.ranking.ranknet import RankNetLoss, ranknet_loss

FUNCTIONS = [approx_ndcg_loss, lambda_loss, listmle_loss, listnet_loss, ranknet_loss]
CLASSES = [ApproxNDCGLoss, LambdaLoss, ListMLELoss, ListNetLoss, RankNetLoss]


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.fixture
def lists():
    """Lists of 6, 4, 5 documents of 4 grades, without ties of scores, padded by -1."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    grades = torch.randint(4, (3, 6), generator=generator).double()
    grades[1, 4:] = grades[2, 5:] = -1
    return scores, grades


def by_list(naive, scores, grades):
    values = []
    for s, y in zip(scores.tolist(), grades.tolist()):
        here = [(a, b) for a, b in zip(s, y) if b >= 0]
        values.append(naive([a for a, _ in here], [b for _, b in here]))
    return torch.tensor(values, dtype=torch.float64)


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def naive_listnet(s, y):
    return -sum(t * math.log(p) for t, p in zip(softmax(y), softmax(s)))


def naive_listmle(s, y):
    return sum(math.log(sum(math.exp(b) for b, g in zip(s, y) if g <= h)) - a for a, h in zip(s, y))


def naive_ranknet(weight, sigma=1.0):
    def naive(s, y):
        pairs = [(i, j) for i in range(len(y)) for j in range(len(y)) if y[i] > y[j]]
        return sum(weight(y[i], y[j]) * math.log1p(math.exp(-sigma * (s[i] - s[j]))) for i, j in pairs) / len(pairs)

    return naive


def naive_approx_ndcg(alpha):
    def naive(s, y):
        rank = [
            1 + sum(1 / (1 + math.exp(alpha * (a - b))) for j, b in enumerate(s) if j != i) for i, a in enumerate(s)
        ]
        best = sum((2**g - 1) / math.log2(2 + r) for r, g in enumerate(sorted(y, reverse=True)))
        return -sum((2**g - 1) / math.log2(1 + r) for g, r in zip(y, rank)) / best

    return naive


def naive_lambda(scheme, k, sigma, mu):
    def naive(s, y):
        order = sorted(range(len(s)), key=lambda i: -s[i])
        s, y = [s[i] for i in order], [y[i] for i in order]
        top = len(s) if k is None else min(k, len(s))
        best = sum((2**g - 1) / math.log2(2 + r) for r, g in enumerate(sorted(y, reverse=True)[:top]))
        gain = [(2**g - 1) / best for g in y]
        discount = [1 / math.log2(r + 1) for r in range(1, len(s) + 2)]
        total = 0.0
        for i in range(top):
            for j in range(top):
                gap, apart = abs(gain[i] - gain[j]), abs(i - j)
                second = abs(discount[apart - 1] - discount[apart]) * gap if apart else 0.0
                third = abs(discount[i] - discount[j]) * gap
                weight = {
                    "ndcg_loss1": gain[i] * discount[i], "ndcg_loss2": second, "lambda_rank": third,
                    "ndcg_loss2++": mu * second + third, "ranknet": 1.0, "difference": abs(y[i] - y[j]),
                    "squares": abs(y[i] ** 2 - y[j] ** 2),
                }[scheme]  # fmt: skip
                if scheme == "ndcg_loss1" or y[i] > y[j]:
                    total += weight * math.log2(1 + math.exp(-sigma * (s[i] - s[j])))
        return total

    return naive


@pytest.mark.holds("listnet")
@pytest.mark.holds("listmle")
@pytest.mark.holds("ranknet")
@pytest.mark.holds("approx-ndcg")
@pytest.mark.parametrize(
    ("function", "options", "naive"),
    [
        (listnet_loss, {}, naive_listnet),
        (listmle_loss, {}, naive_listmle),
        (ranknet_loss, {}, naive_ranknet(lambda a, b: 1.0)),
        (ranknet_loss, {"sigma": 2.0, "weighing": "difference"}, naive_ranknet(lambda a, b: a - b, 2.0)),
        (ranknet_loss, {"weighing": "squares"}, naive_ranknet(lambda a, b: a**2 - b**2)),
        (approx_ndcg_loss, {}, naive_approx_ndcg(1.0)),
        (approx_ndcg_loss, {"alpha": 10.0}, naive_approx_ndcg(10.0)),
    ],
)
def test_naive_loops(function, options, naive, lists):
    scores, grades = lists
    mask = mask_from_padding(grades)
    wanted = by_list(naive, scores, grades)
    torch.testing.assert_close(function(scores, grades, mask=mask, **options, reduction="none"), wanted)
    torch.testing.assert_close(function(scores, grades, mask=mask, **options), wanted.mean())


@pytest.mark.holds("lambda-loss")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("k", [None, 1, 3])
def test_schemes_of_lambda_loss(scheme, k, lists):
    scores, grades = lists
    mask = mask_from_padding(grades)
    options = {"scheme": scheme, "k": k, "sigma": 0.7, **({"mu": 4.0} if scheme == "ndcg_loss2++" else {})}
    wanted = by_list(naive_lambda(scheme, k, 0.7, 4.0), scores, grades)
    value = lambda_loss(scores, grades, mask=mask, **options, reduction="none")
    torch.testing.assert_close(value, wanted)
    natural = lambda_loss(scores, grades, mask=mask, **options, natural=True, reduction="none")
    torch.testing.assert_close(natural, wanted * math.log(2))


@pytest.mark.parametrize(
    ("function", "options", "scores", "grades", "published"),
    [
        (lambda_loss, {"scheme": "ndcg_loss1"}, (0.5, 0.3, 0.5), (0.5, 0.3, 0.5), 2.9272110462),
        (lambda_loss, {"scheme": "ndcg_loss2++"}, (0.5, 0.3, 0.5), (0.5, 0.3, 0.5), 1.1244146823),
        (lambda_loss, {"scheme": "ranknet", "natural": True}, (0.5, 0.3, 0.5), (0.5, 0.3, 0.5), 1.1962778568),
        (approx_ndcg_loss, {}, (0.5, 0.3, 0.5), (0.5, 0.3, 0.5), -0.8499219417),
        (listmle_loss, {}, (0.5, 0.3), (1.0, 0.0), 0.5981389284133911),
    ],
)
def test_numbers_of_allrank(function, options, scores, grades, published):
    assert function(row(*scores), row(*grades), **options).item() == pytest.approx(published, rel=1e-6)
    padded = row(*grades, -1.0)
    value = function(row(*scores, 1.0), padded, mask=mask_from_padding(padded), **options)
    assert value.item() == pytest.approx(published, rel=1e-6)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_padding_is_in_no_normaliser(width):
    """The Plackett-Luce likelihood grew with the width where padding entered it."""
    scores = torch.cat([row(1.5, 0.3), torch.zeros(1, width - 2, dtype=torch.float64)], 1).requires_grad_()
    grades = torch.cat([row(2.0, 1.0), -torch.ones(1, width - 2, dtype=torch.float64)], 1)
    value = listmle_loss(scores, grades, mask=mask_from_padding(grades))
    assert value.item() == pytest.approx(0.263282, abs=5e-7)
    (slope,) = torch.autograd.grad(value, scores)
    assert slope[0].tolist() == pytest.approx([-0.231475, 0.231475] + [0.0] * (width - 2), abs=5e-7)


@pytest.mark.parametrize("cls", CLASSES)
def test_lists_that_order_nothing(cls):
    """Tied grades and single documents were means of nothing; they are 0, and leave the others alone."""
    scores = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    grades, query = torch.tensor([1.0, 1, 0, 2, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 2, 2, 2])
    value = cls()(scores, grades, query=query)
    (slope,) = torch.autograd.grad(value, scores)
    assert not slope[query != 1].any()
    alone = cls()(scores[query == 1], grades[query == 1], query=query[query == 1])
    torch.testing.assert_close(value, alone)
    nothing = cls()(scores, torch.ones(7), query=query)
    assert nothing == 0
    assert not torch.autograd.grad(nothing, scores)[0].any()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("grades", [(3.0, 0.0, 1.0), (0.0, 3.0, 1.0)])
def test_scores_far_apart(function, grades):
    scores = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = function(scores, torch.tensor([grades]))
    assert value.isfinite()
    assert torch.autograd.grad(value, scores)[0].isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_lists_of_no_documents_and_no_lists(function):
    for shape in ((2, 0), (0, 3)):
        scores = torch.zeros(shape, requires_grad=True)
        value = function(scores, torch.zeros(shape))
        assert value == 0
        assert value.requires_grad


def test_weights_of_lambda_loss_are_constants():
    """The gradient is that of logistic losses with the weights of these ranks."""
    scores, grades = row(0.2, 1.0, 0.5).requires_grad_(), row(2.0, 0.0, 1.0)
    (slope,) = torch.autograd.grad(lambda_loss(scores, grades, scheme="lambda_rank", natural=True), scores)
    best, discount = 3 + 1 / math.log2(3), [1.0, 1 / math.log2(3), 0.5]  # ranks: documents 1, 2, 0
    wanted = [0.0, 0.0, 0.0]
    rank, gain, s = {0: 2, 1: 0, 2: 1}, {0: 3 / best, 1: 0.0, 2: 1 / best}, scores[0].tolist()
    for i, j in ((0, 1), (0, 2), (2, 1)):
        weight = abs(discount[rank[i]] - discount[rank[j]]) * abs(gain[i] - gain[j])
        pull = weight / (1 + math.exp(s[i] - s[j]))
        wanted[i] -= pull
        wanted[j] += pull
    assert slope[0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (ranknet_loss, {"sigma": 0.0}),
        (ranknet_loss, {"weighing": "square"}),
        (approx_ndcg_loss, {"alpha": 0.0}),
        (lambda_loss, {"scheme": "ndcg"}),
        (lambda_loss, {"k": 0}),
        (lambda_loss, {"sigma": -1.0}),
        (lambda_loss, {"mu": 0.0}),
    ],
)
def test_options_outside_their_range(function, options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        function(row(1.0, 2.0), row(1.0, 0.0), **options)
