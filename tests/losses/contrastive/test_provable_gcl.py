import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch

from steepest.core.graphs import normalised_adjacency
from steepest.losses import NodeCompactness, adjacency_bounds, pot_loss
from steepest.losses.contrastive.provable_gcl import allowed_drops, node_compactness, relu_relaxation

PATH = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def weights(nodes=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((nodes, 5), (5, 6), (6,), (6, 4), (4,), (nodes, 4))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def graph(nodes=8):
    return torch.from_numpy(nx.to_numpy_array(nx.watts_strogatz_graph(nodes, 4, 0.3, seed=1)))


def normalised(adj):
    return normalised_adjacency(adj.nonzero().T, len(adj), dtype=torch.float64).to_dense()


def views(adj, rate, count, seed=0):
    """Random graphs that lack at most the allowed edges of each node."""
    rng = np.random.default_rng(seed)
    most = allowed_drops(adj, rate).tolist()
    edges = adj.triu(1).nonzero().tolist()
    for _ in range(count):
        view, left = adj.clone(), list(most)
        for i, j in rng.permutation(edges).tolist():
            if left[i] and left[j] and rng.random() < 0.7:
                view[i, j] = view[j, i] = 0
                left[i], left[j] = left[i] - 1, left[j] - 1
        yield view


def score(adj_view, x, w1, b1, w2, b2, z_other):
    """Z_i . C_i, a node at a time."""
    z = (adj_view @ ((adj_view @ x @ w1 + b1).relu() @ w2) + b2).relu()
    n = [row / row.norm() for row in z_other]
    scores = []
    for i in range(len(z)):
        mean = sum(n[j] for j in range(len(z)) if j != i) / (len(z) - 1)
        scores.append(z[i] @ (n[i] - mean))
    return torch.stack(scores)


def by_loops(a_view, low, up, x, w1, b1, w2, b2, z_other):
    """The bound by its definition, a number at a time."""
    n_nodes, hidden, dim = len(x), w1.shape[1], w2.shape[1]
    a_view, low, up, q = a_view.tolist(), low.tolist(), up.tolist(), (x @ w1).tolist()
    b1, w2, b2 = b1.tolist(), w2.tolist(), b2.tolist()
    nodes, unit = range(n_nodes), [row / row.norm() for row in z_other]

    def line(lo, hi):
        if lo >= 0:
            return 1.0, 0.0
        return (0.0, 0.0) if hi <= 0 else (hi / (hi - lo), -lo)

    def ends(i, column_low, column_high, bias):
        terms = [[m * v for m in (low[i][j], up[i][j]) for v in (column_low[j], column_high[j])] for j in nodes]
        return sum(map(min, terms)) + bias, sum(map(max, terms)) + bias

    p1 = [[sum(a_view[j][m] * q[m][k] for m in nodes) + b1[k] for k in range(hidden)] for j in nodes]
    columns = [[q[j][k] for j in nodes] for k in range(hidden)]
    box1 = [[ends(j, columns[k], columns[k], b1[k]) for k in range(hidden)] for j in nodes]
    h = [[(max(lo, 0), max(hi, 0)) for lo, hi in row] for row in box1]
    q2 = [
        [
            tuple(
                sum(w2[k][c] * h[j][k][side if w2[k][c] >= 0 else 1 - side] for k in range(hidden)) for side in (0, 1)
            )
            for c in range(dim)
        ]
        for j in nodes
    ]
    bounds = []
    for i in nodes:
        c = (unit[i] - sum(unit[j] for j in nodes if j != i) / (n_nodes - 1)).tolist()
        total, outer = 0.0, []
        for d in range(dim):
            lo, hi = ends(i, [q2[j][d][0] for j in nodes], [q2[j][d][1] for j in nodes], b2[d])
            slope, offset = line(lo, hi)
            outer.append(slope * c[d])
            total += slope * c[d] * (b2[d] + (0.0 if c[d] >= 0 else offset))
        for j in nodes:
            for k in range(hidden):
                m = sum(w2[k][d] * outer[d] for d in range(dim))
                slope, offset = line(*box1[j][k])
                total += a_view[i][j] * m * slope * (p1[j][k] + (0.0 if m >= 0 else offset))
        bounds.append(total)
    return torch.tensor(bounds, dtype=torch.float64)


@pytest.mark.holds("provable-gcl", 1)
def test_the_bound_is_below_the_score_of_every_allowed_view():
    adj, given = graph(), weights()
    assert allowed_drops(adj, 0.5).sum() > 8
    lower, upper = adjacency_bounds(adj, 0.5)
    tightest, drawn = math.inf, 0
    for view in views(adj, 0.5, 80):
        a = normalised(view)
        assert bool(((a >= lower - 1e-15) & (a <= upper + 1e-15)).all())
        gap = score(a, *given) - node_compactness(given[0], a, lower, upper, *given[1:])
        tightest, drawn = min(tightest, float(gap.min())), drawn + bool((view != adj).any())
    assert tightest > -1e-12
    assert drawn > 60
    a = normalised(view)
    ours = node_compactness(given[0], a, lower, upper, *given[1:])
    torch.testing.assert_close(ours, by_loops(a, lower, upper, *given), atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_for_many_views_and_other_weights(seed):
    adj, given = graph(), weights(seed=seed + 1)
    lower, upper = adjacency_bounds(adj, 0.5)
    for view in views(adj, 0.5, 500, seed):
        a = normalised(view)
        assert float((score(a, *given) - node_compactness(given[0], a, lower, upper, *given[1:])).min()) > -1e-12


@pytest.mark.holds("provable-gcl", 2)
def test_where_the_bounds_meet_it_is_the_score():
    given = weights()
    for view in itertools.islice(views(graph(), 0.5, 3), 3):
        a = normalised(view)
        exact = node_compactness(given[0], a, a, a, *given[1:])
        torch.testing.assert_close(exact, score(a, *given), atol=1e-12, rtol=0)


@pytest.mark.holds("provable-gcl", 3)
def test_lines_around_a_rectifier():
    low = torch.tensor([-1.0, 0.5, -2.0, 0.0, -1.0], dtype=torch.float64)
    high = torch.tensor([3.0, 2.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    slope, offset = relu_relaxation(low, high)
    assert slope.tolist() == [0.75, 1, 0, 1, 0]
    assert offset.tolist() == [1, 0, 0, 0, 0]
    for share in torch.linspace(0, 1, 11, dtype=torch.float64):
        x = low + share * (high - low)
        assert bool((slope * x <= x.relu() + 1e-15).all())
        assert bool((slope * (x + offset) >= x.relu() - 1e-15).all())


@pytest.mark.holds("provable-gcl", 4)
def test_bounds_of_a_path():
    assert allowed_drops(PATH, 0.5).tolist() == [0, 1, 0]
    lower, upper = adjacency_bounds(PATH, 0.5)
    torch.testing.assert_close(lower, torch.diag(torch.tensor([1 / 2, 1 / 3, 1 / 2], dtype=torch.float64)))
    torch.testing.assert_close(upper, 0.5 * (PATH + torch.eye(3)))
    looped = PATH + torch.eye(3)  # given self-loops don't count
    assert all(map(torch.equal, adjacency_bounds(looped, 0.5), (lower, upper)))
    sparse = adjacency_bounds(PATH.to_sparse(), 0.5)
    assert all(m.is_sparse for m in sparse)
    assert all(map(torch.equal, (m.to_dense() for m in sparse), (lower, upper)))
    star = torch.zeros(6, 6)
    star[0, 1:] = star[1:, 0] = 1
    for rate, wanted in ((0.5, 2), (0.3, 2), (0.1, 0), (1.0, 4), (0.7, 4)):  # halves to even: 2.5, 1.5, 0.5, 3.5
        assert allowed_drops(star, rate).tolist() == [wanted, 0, 0, 0, 0, 0]
    lonely = torch.zeros(2, 2).int()
    assert adjacency_bounds(lonely, 0.5)[1].tolist() == [[1, 0], [0, 1]]


@pytest.mark.holds("provable-gcl", 5)
def test_the_gradient_reaches_the_weights():
    assert pot_loss(torch.tensor([0.5])).item() == pytest.approx(0.474077, abs=5e-7)
    adj, given = graph(), weights()
    given = [t.requires_grad_() for t in given]
    a = normalised(next(views(adj, 0.5, 1)))
    value = NodeCompactness()(given[0], a, *adjacency_bounds(adj, 0.5), *given[1:])
    slopes = torch.autograd.grad(value, given[1:5])
    assert all(bool(slope.any()) for slope in slopes)
    assert pot_loss(torch.tensor([-1e4, 1e4])).item() == pytest.approx(5e3)


@pytest.mark.parametrize("fast", [False, True])
def test_sparse_matrices_half_precision_and_terms(fast):
    adj, given = graph(), weights()
    lower, upper = adjacency_bounds(adj, 0.5)
    a = normalised(next(views(adj, 0.5, 1)))
    dense = node_compactness(given[0], a, lower, upper, *given[1:], fast=fast)
    sparse = node_compactness(given[0], a.to_sparse(), *adjacency_bounds(adj.to_sparse(), 0.5), *given[1:], fast=fast)
    torch.testing.assert_close(sparse, dense)
    halves = [t.half() for t in given]
    small = node_compactness(halves[0], a.half(), lower.half(), upper.half(), *halves[1:], fast=fast)
    assert small.dtype == torch.float32
    loss = NodeCompactness(fast)
    assert loss(given[0], a, lower, upper, *given[1:]).item() == pytest.approx(
        float(torch.log1p((-dense).exp()).mean())
    )
    assert loss.terms["mean"].item() == pytest.approx(float(dense.mean()))
    assert loss.terms["positive"].item() == pytest.approx(float((dense > 0).double().mean()))


def test_the_fast_estimate_is_that_of_the_published_code():
    """Hidden units of the second bound from the whole graph, a neighbour's lines from its own direction, by loops."""
    adj, (x, w1, b1, w2, b2, z_other) = graph(), weights()
    lower, upper = adjacency_bounds(adj, 0.4)
    clean, a = normalised(adj), normalised(next(views(adj, 0.4, 1)))
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    n = torch.nn.functional.normalize(z_other)
    c = n * (8 / 7) - n.sum(0) / 7

    def lines(values, bias, direction):
        up = middle @ values + half @ values.abs() + bias
        lo = middle @ values - half @ values.abs() + bias
        slope, shift = torch.zeros_like(up), torch.zeros_like(up)
        slope[lo >= 0] = 1
        crossing = (lo < 0) & (up > 0)
        slope[crossing] = (up / (up - lo))[crossing]
        shift[crossing] = -lo[crossing]
        shift[direction >= 0] = 0
        return slope * direction, shift

    hidden = (clean @ x @ w1 + b1).relu() @ w2
    outer, shift2 = lines(hidden, b2, c)
    inner, shift1 = lines(x @ w1, b1, outer @ w2.T)
    own = torch.stack([x[j] @ (w1 @ inner[j]) for j in range(8)])
    constant1 = torch.stack([inner[j] @ (shift1[j] + b1) for j in range(8)])
    constant2 = torch.stack([outer[j] @ (shift2[j] + b2) for j in range(8)])
    wanted = a @ (a @ own + constant1) + constant2
    ours = node_compactness(x, a, lower, upper, w1, b1, w2, b2, z_other, fast=True)
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=0)
    assert not torch.allclose(ours, node_compactness(x, a, lower, upper, w1, b1, w2, b2, z_other))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("rate: expected", lambda: adjacency_bounds(PATH, 1.5)),
        ("rate: expected", lambda: allowed_drops(PATH, -0.1)),
        ("adj: expected a square matrix", lambda: adjacency_bounds(PATH[:2], 0.5)),
        ("adj: expected a symmetric matrix", lambda: adjacency_bounds(PATH.triu(), 0.5)),
        ("compactness: expected", lambda: pot_loss(torch.zeros(2, 2))),
        ("x: expected two nodes", lambda: node_compactness(*case(1))),
        ("w1: expected shape", lambda: node_compactness(*case(w1=torch.zeros(4, 6)))),
        ("b1: expected shape", lambda: node_compactness(*case(b1=torch.zeros(5)))),
        ("w2: expected shape", lambda: node_compactness(*case(w2=torch.zeros(5, 4)))),
        ("b2: expected shape", lambda: node_compactness(*case(b2=torch.zeros(5)))),
        ("z_other: expected shape", lambda: node_compactness(*case(z_other=torch.zeros(3, 5)))),
        ("upper: expected shape", lambda: node_compactness(*case(upper=torch.zeros(2, 2)))),
        ("lower: expected at most upper", lambda: node_compactness(*case(lower=torch.ones(3, 3)))),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def case(nodes=3, **changed):
    x, w1, b1, w2, b2, z_other = weights(nodes)
    matrix = torch.eye(nodes, dtype=torch.float64)
    named = {
        "x": x, "adj_view": matrix, "lower": matrix, "upper": matrix, "w1": w1, "b1": b1, "w2": w2, "b2": b2,
        "z_other": z_other,
    }  # fmt: skip
    return (named | changed).values()
