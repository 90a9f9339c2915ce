"""The sorting network against another library and known numbers, the loss by definition, what carries no gradient."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.contrastive import GroCoLoss, groco_loss, odd_even_sort

NEGATIVES = (0.2, 0.5, -0.1)


def network(x, steepness, interpolation="cauchy"):
    """Sorted values and matrix of one list, by scalars: each exchange of a layer one after the other."""
    n, x = len(x), list(x)
    matrix = [[float(j == r) for r in range(n)] for j in range(n)]
    for layer in range(n):
        for i in range(layer % 2, n - 1, 2):
            rise = steepness * (x[i + 1] - x[i])
            w = math.atan(rise) / math.pi + 0.5 if interpolation == "cauchy" else 1 / (1 + math.exp(-rise))
            x[i], x[i + 1] = w * x[i] + (1 - w) * x[i + 1], (1 - w) * x[i] + w * x[i + 1]
            for row in matrix:
                row[i], row[i + 1] = w * row[i] + (1 - w) * row[i + 1], (1 - w) * row[i] + w * row[i + 1]
    return x, matrix


def of_lists(negatives, positives, steepness, interpolation="cauchy"):
    """The mean of both binary cross-entropies of one anchor."""
    _, matrix = network(sorted(negatives) + sorted(positives), steepness, interpolation)
    number, total = len(negatives), 0.0
    for j, row in enumerate(matrix):
        p, q, t = sum(row[number:]), sum(row[:number]), float(j >= number)
        for probability, target in ((p, t), (q, 1 - t)):
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / 2 / len(matrix)


def views_of(negatives, positive):
    """Two views of items of which the first view of the first item has these cosines to the others and its partner."""
    items = len(negatives) + 1
    views = torch.zeros(2, items, 2 * items, dtype=torch.float64)
    views[0, 0, 0] = views[1, 0, 0] = 1.0
    for k, s in enumerate(negatives, 1):
        views[0, k, 0], views[0, k, k] = s, math.sqrt(1 - s * s)
    views[1, 0, 0], views[1, 0, items] = positive, math.sqrt(1 - positive**2)
    views[1, 1:] = torch.eye(2 * items, dtype=torch.float64)[items + 1 :]
    return views


def cosines(rows, i):
    """Of a row with the others."""
    return [float(rows[i] @ rows[j]) for j in range(len(rows)) if j != i]


def by_definition(views, topk_neg, steepness, interpolation="cauchy"):
    """The loss of all views by loops over anchors."""
    z = torch.nn.functional.normalize(views, dim=-1)
    losses = []
    for v in range(len(z)):
        for i in range(z.shape[1]):
            nearest = sorted(cosines(z[v], i), reverse=True)
            positives = [float(z[v, i] @ z[w, i]) for w in range(len(z)) if w != v]
            losses.append(of_lists(nearest[:topk_neg], positives, steepness, interpolation))
    return sum(losses) / len(losses)


@pytest.mark.holds("groco", 1)
def test_three_values_are_sorted():
    values, matrix = odd_even_sort(torch.tensor([0.1, 0.4, 0.3], dtype=torch.float64), 10.0)
    assert values.tolist() == pytest.approx([0.160038, 0.291965, 0.347997], abs=1e-6)
    assert matrix[0].tolist() == pytest.approx([0.764345, 0.164696, 0.070959], abs=1e-6)
    x = torch.tensor([3.0, -1.0, 2.0, 0.5])
    values, matrix = odd_even_sort(x, 1e6)
    assert values.tolist() == pytest.approx([-1.0, 0.5, 2.0, 3.0], abs=1e-4)
    assert matrix.argmax(0).tolist() == [1, 3, 2, 0]


@pytest.mark.holds("groco", 2)
@pytest.mark.parametrize(("steepness", "wanted"), [(1.0, 0.386176), (10.0, 0.249765), (1000.0, 0.003188)])
def test_the_loss_of_one_anchor(steepness, wanted):
    assert of_lists(NEGATIVES, (0.6,), steepness) == pytest.approx(wanted, abs=1e-6)
    views = views_of(NEGATIVES, 0.6)
    result = groco_loss(views, topk_neg=3, steepness=steepness).item()
    assert result == pytest.approx(by_definition(views, 3, steepness), rel=1e-9)
    anchors = [(n, i) for n in (0, 1) for i in range(4) if (n, i) != (0, 0)]
    rest = [of_lists(cosines(views[n], i), [float(views[n, i] @ views[1 - n, i])], steepness) for n, i in anchors]
    assert 8 * result - sum(rest) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.holds("groco", 3)
def test_a_violated_order_costs_more():
    assert of_lists((0.2, 0.8, -0.1), (0.6,), 10.0) == pytest.approx(0.673562, abs=1e-6)
    right, wrong = (groco_loss(views_of(n, 0.6), 3, 10.0) for n in (NEGATIVES, (0.2, 0.8, -0.1)))
    assert wrong > right
    views = views_of((0.2, 0.8, -0.1), 0.6)
    assert groco_loss(views, 3, 10.0).item() == pytest.approx(by_definition(views, 3, 10.0), rel=1e-9)


@pytest.mark.holds("groco", 4)
@pytest.mark.parametrize("interpolation", ["cauchy", "logistic"])
def test_weights_sum_to_one_and_groups_have_no_order(interpolation):
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, matrix = odd_even_sort(x, 4.0, interpolation)
    ones = torch.ones(4, 7, dtype=torch.float64)
    torch.testing.assert_close(matrix.sum(1), ones)
    torch.testing.assert_close(matrix.sum(2), ones)
    assert (matrix >= 0).all()
    torch.testing.assert_close(torch.einsum("bj,bjr->br", x, matrix), values)
    views = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = groco_loss(views, 4, 5.0, interpolation=interpolation)
    torch.testing.assert_close(groco_loss(views[:, torch.randperm(6)], 4, 5.0, interpolation=interpolation), before)
    torch.testing.assert_close(groco_loss(views.flip(0), 4, 5.0, interpolation=interpolation), before)


@pytest.mark.holds("groco", 5)
def test_the_network_is_that_of_another_library():
    """Numbers of diffsort 0.2.0, ``DiffSortNet("odd_even", 5, steepness=3., interpolation_type=...)`` in float64."""
    x = torch.tensor([0.3, -0.7, 0.25, 0.9, 0.1], dtype=torch.float64)
    values, matrix = odd_even_sort(x, 3.0)
    assert values.tolist() == pytest.approx(
        [-0.397734837, 0.088904928, 0.254906588, 0.292272714, 0.611650608], abs=1e-9
    )
    wanted = [
        [0.186507149, 0.326884287, 0.241989585, 0.205458486, 0.039160492],
        [0.697987871, 0.202313636, 0.055432060, 0.039798129, 0.004468303],
        [0.068654181, 0.225307318, 0.263793731, 0.272821847, 0.169422924],
        [0.016319879, 0.064478602, 0.139106574, 0.177620303, 0.602474642],
        [0.030530920, 0.181016157, 0.299678050, 0.304301234, 0.184473639],
    ]
    torch.testing.assert_close(matrix, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)
    values, _ = odd_even_sort(x, 3.0, "logistic")
    assert values.tolist() == pytest.approx(
        [-0.536023357, 0.165637463, 0.274867355, 0.292312052, 0.653206486], abs=1e-9
    )


@pytest.mark.parametrize("interpolation", ["cauchy", "logistic"])
@pytest.mark.parametrize("items", [1, 2, 5, 6])
def test_the_network_is_a_loop_over_pairs(items, interpolation):
    x = torch.randn(items, generator=torch.Generator().manual_seed(items), dtype=torch.float64)
    values, matrix = odd_even_sort(x, 2.0, interpolation)
    by_hand, weights = network(x.tolist(), 2.0, interpolation)
    assert values.tolist() == pytest.approx(by_hand, rel=1e-12)
    torch.testing.assert_close(matrix, torch.tensor(weights, dtype=torch.float64))


@pytest.mark.parametrize("interpolation", ["cauchy", "logistic"])
@pytest.mark.parametrize(("number", "topk_neg"), [(2, 2), (3, 4), (4, 1)])
def test_the_loss_is_its_definition(number, topk_neg, interpolation):
    views = torch.randn(number, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    result = groco_loss(views, topk_neg, 3.0, interpolation=interpolation)
    assert result.item() == pytest.approx(by_definition(views, topk_neg, 3.0, interpolation), rel=1e-9)
    loss = GroCoLoss(topk_neg, 3.0, interpolation=interpolation, views=number)
    assert loss(views, torch.arange(5)).item() == pytest.approx(result.item(), rel=1e-12)


def test_positives_and_negatives_are_constants_unless_asked():
    views = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf, z = views.clone().requires_grad_(), torch.nn.functional.normalize(views, dim=-1)
    slope = torch.autograd.grad(groco_loss(leaf, 2, 3.0), leaf)[0]
    step, wanted = 1e-6, torch.zeros_like(views)
    for place in range(views.numel()):  # of each anchor alone, others held
        moved = []
        for sign in (1, -1):
            other = views.flatten().clone()
            other[place] += sign * step
            anchors = torch.nn.functional.normalize(other.view_as(views), dim=-1)
            losses = []
            for v in (0, 1):
                for i in range(4):
                    nearest = sorted((float(anchors[v, i] @ z[v, j]) for j in range(4) if j != i), reverse=True)[:2]
                    losses.append(of_lists(nearest, [float(anchors[v, i] @ z[1 - v, i])], 3.0))
            moved.append(sum(losses) / 8)
        wanted.view(-1)[place] = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(slope, wanted, atol=1e-8, rtol=1e-6)
    whole = torch.autograd.grad(groco_loss(leaf, 2, 3.0, stop_grad=False), leaf)[0]
    assert (whole - slope).abs().max() > 1e-3
    assert torch.autograd.gradcheck(lambda t: groco_loss(t, 2, 3.0, stop_grad=False), leaf)


def test_a_probability_of_zero_counts_a_hundred():
    """Logistic exchanges of a large steepness leave nothing; the Cauchy ones never do."""
    views = views_of((0.9, 0.8, 0.7), -0.9).float().requires_grad_()
    loss = groco_loss(views, 3, 1e4, interpolation="logistic")
    assert loss.isfinite()
    assert loss > 10
    assert torch.autograd.grad(loss, views)[0].isfinite().all()
    gentle = groco_loss(views, 3, 1e4)
    assert 1 < gentle < 20
    assert torch.autograd.grad(gentle, views)[0].isfinite().all()


def test_a_batch_of_few_items():
    loss, views = GroCoLoss(topk_neg=10), torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(loss(views, torch.arange(4)), groco_loss(views, 3))
    alone = views[:, :1].requires_grad_()
    value = loss(alone, torch.arange(1))
    assert value == 0
    assert torch.autograd.grad(value, alone)[0].abs().sum() == 0
    assert odd_even_sort(torch.zeros(2, 0))[1].shape == (2, 0, 0)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("topk_neg: expected at most the 3 other items", lambda: groco_loss(torch.zeros(2, 4, 3), 4)),
        ("topk_neg: expected at most the 0 other items", lambda: groco_loss(torch.zeros(2, 0, 3), 1)),
        ("topk_neg: expected", lambda: GroCoLoss(0)),
        ("steepness: expected", lambda: GroCoLoss(steepness=0.0)),
        ("steepness: expected", lambda: odd_even_sort(torch.zeros(3), math.inf)),
        ("interpolation: expected", lambda: odd_even_sort(torch.zeros(3), interpolation="gaussian")),
        ("views: expected", lambda: groco_loss(torch.zeros(1, 4, 3), 2)),
        ("views: expected", lambda: GroCoLoss(views=1)),
        ("x: expected", lambda: odd_even_sort(torch.tensor(1.0))),
        ("outputs: expected", lambda: GroCoLoss(views=3)(torch.zeros(2, 4, 3), torch.arange(4))),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()
