import copy

import networkx as nx
import pytest
import torch

from steepest.core.graphs import normalised_adjacency, undirected_edges, without_edges
from steepest.nn.graph import (
    NeuralCommonNeighbor,
    NeuralCommonNeighborCompletion,
    common_neighbors,
    completion_probability,
)

EDGES = torch.tensor([[0, 0, 1], [2, 3, 2]])
PAIR = torch.tensor([[0], [1]])
H = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, -1.0]])


def karate(dtype=torch.float64):
    """The club, with 34 random vectors and all its pairs i < j, the linked ones too."""
    edges = undirected_edges(torch.tensor(list(nx.karate_club_graph().edges)).T, 34)
    h = torch.randn(34, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return h, edges, torch.combinations(torch.arange(34)).T


def model_of(cls, **options):
    torch.manual_seed(3)
    return cls(5, 6, **options).double()


def dense(edges, nodes):
    a = torch.zeros(nodes, nodes, dtype=torch.float64)
    a[edges[0], edges[1]] = 1
    return a


@pytest.mark.holds("neural-common-neighbor", 1)
def test_pooled_vectors_of_the_smallest_graph():
    torch.manual_seed(0)
    assert NeuralCommonNeighbor(2, 4).pooled(H, EDGES, PAIR).tolist() == [[1.0, 1.0]]
    model = NeuralCommonNeighborCompletion(2, 4, scale=0.0, pt=1.0, alpha=0.6)  # every P is 0.3
    assert model.probabilities(H, EDGES, torch.tensor([[1], [3]])).tolist() == pytest.approx([0.3])
    for pairs in (PAIR, PAIR.flip(0)):
        assert model.pooled(H, EDGES, pairs)[0].tolist() == pytest.approx([1.6, 0.7], abs=1e-6)


@pytest.mark.holds("neural-common-neighbor", 2)
def test_probabilities_of_scores():
    p = completion_probability(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))
    assert p.tolist() == pytest.approx([0.003358, 0.333333, 0.986703], abs=5e-7)
    z = torch.linspace(-4, 6, 9, dtype=torch.float64)
    p0 = 1 / (1 + (-2 * (z - 1)).exp())
    ours = completion_probability(z, scale=2, offset=1, alpha=0.7, pt=0.3)
    torch.testing.assert_close(ours, 0.7 * 0.3 * p0 / (0.3 * p0 + 1 - p0), atol=1e-15, rtol=1e-12)
    extreme = completion_probability(torch.tensor([-1e4, 1e4], requires_grad=True))
    assert extreme.tolist() == [0, 1]
    assert not extreme.requires_grad
    assert completion_probability(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.holds("neural-common-neighbor", 3)
def test_scores_are_symmetric_and_alpha_0_completes_nothing():
    h, edges, pairs = karate()
    plain = model_of(NeuralCommonNeighbor, residual=True)
    completed = model_of(NeuralCommonNeighborCompletion, residual=True, scale=1.0, offset=0.0).eval()
    for model in (plain, completed):
        torch.testing.assert_close(model(h, edges, pairs), model(h, edges, pairs.flip(0)), atol=1e-12, rtol=0)
    without = model_of(NeuralCommonNeighborCompletion, residual=True, alpha=0.0).eval()
    torch.testing.assert_close(without(h, edges, pairs), plain(h, edges, pairs), atol=1e-12, rtol=0)
    assert float((completed(h, edges, pairs) - plain(h, edges, pairs)).abs().max().detach()) > 0.05
    none = model_of(NeuralCommonNeighborCompletion, residual=True, depth=0)
    torch.testing.assert_close(none(h, edges, pairs), plain(h, edges, pairs), atol=1e-12, rtol=0)
    far = torch.tensor([[16], [26]])  # no common neighbour: pooled to 0, and scored
    assert plain.pooled(h, edges, far).tolist() == [[0.0] * 5]
    assert plain(h, edges, far).shape == (1, 1)


@pytest.mark.holds("neural-common-neighbor", 4)
def test_vectors_of_one_count_common_neighbours():
    _, edges, pairs = karate()
    graph = nx.karate_club_graph()
    model = model_of(NeuralCommonNeighbor)
    counts = model.pooled(torch.ones(34, 5, dtype=torch.float64), edges, pairs)
    wanted = [len(list(nx.common_neighbors(graph, i, j))) for i, j in pairs.T.tolist()]
    assert counts[:, 0].tolist() == wanted
    assert counts[:, 4].tolist() == wanted


@pytest.mark.holds("neural-common-neighbor", 5)
def test_pooled_vectors_are_those_of_dense_products_and_p_is_a_constant():
    h, edges, pairs = karate()
    a = dense(edges, 34)
    model = model_of(NeuralCommonNeighbor)
    torch.testing.assert_close(model.pooled(h, edges, pairs), (a[pairs[0]] * a[pairs[1]]) @ h, atol=1e-12, rtol=0)
    completed = model_of(NeuralCommonNeighborCompletion, scale=1.0, offset=0.0, residual=True, beta=0.5).eval()
    some = pairs[:, ::23]
    torch.testing.assert_close(completed(h, edges, some), by_loops(completed, h, a, some, 1), atol=1e-10, rtol=0)

    h.requires_grad_()
    p = completed.probabilities(h, edges, pairs)
    assert not p.requires_grad
    pooled = completed.pooled(h, edges, pairs)
    slopes = torch.autograd.grad(pooled.sum(), [h, *completed.xlin.parameters()])
    fixed = constant_p(completed, h, a, pairs)
    torch.testing.assert_close(pooled, fixed)
    torch.testing.assert_close(slopes, torch.autograd.grad(fixed.sum(), [h, *completed.xlin.parameters()]))
    none = torch.autograd.grad(
        completed.pooled(h, edges, pairs).sum(), list(completed.lin.parameters()), allow_unused=True
    )
    assert none == (None,) * len(none)


def by_loops(model, h, a, pairs, depth):
    """The equations, a node at a time: h' once, the inner model with h."""
    h_prime = h + model.xlin(h) if model.xlin is not None else h
    scores = []
    for i, j in pairs.T.tolist():
        total = torch.zeros_like(h[0])
        for k in range(len(h)):
            share = a[i, k] * a[j, k]
            if depth and k not in (i, j) and a[i, k] != a[j, k]:
                other = j if a[i, k] else i
                z = by_loops(model, h, a, torch.tensor([[other], [k]]), depth - 1)
                p0 = torch.sigmoid(model.scale * (z[0, 0] - model.offset))
                share = (model.alpha * model.pt * p0 / (model.pt * p0 + 1 - p0)).detach()
            if share:
                total = total + share * h_prime[k]
        scores.append(model.lin(model.beta * model.cnlin(total) + model.ijlin(h[i] * h[j])))
    return torch.stack(scores)


def constant_p(model, h, a, pairs):
    """Pooled vectors with P of all pairs in a matrix that has no gradient."""
    every = torch.cartesian_prod(torch.arange(34), torch.arange(34)).T
    edges = a.nonzero().T
    p = model.probabilities(h, edges, every).view(34, 34)
    h_prime = h + model.xlin(h)
    first, second = a[pairs[0]], a[pairs[1]]
    ends = torch.zeros_like(first).scatter(1, pairs.T, 1.0)
    weight = first * second + (first - first * second) * (1 - ends) * p[pairs[1]]
    weight = weight + (second - first * second) * (1 - ends) * p[pairs[0]]
    return weight @ h_prime


def test_two_rounds_complete_the_completed():
    edges = torch.tensor([[0, 0, 1, 3, 4, 1], [2, 3, 2, 4, 5, 5]])
    h = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.combinations(torch.arange(6)).T
    model = model_of(NeuralCommonNeighborCompletion, scale=1.0, offset=0.0, depth=2).eval()
    a = dense(undirected_edges(edges, 6), 6)
    torch.testing.assert_close(model(h, edges, pairs), by_loops(model, h, a, pairs, 2), atol=1e-12, rtol=0)
    once = model_of(NeuralCommonNeighborCompletion, scale=1.0, offset=0.0).eval()
    assert not torch.allclose(model(h, edges, pairs), once(h, edges, pairs))


def test_sets_with_loops_repeated_edges_and_linked_pairs():
    """Self-loops are no common neighbours, and an end is no neighbour whose other edge could be missing."""
    edges = torch.tensor([[0, 0, 1, 0, 2, 2, 0], [2, 3, 2, 0, 2, 0, 1]])
    for given in (edges, edges.flip(0), torch.sparse_coo_tensor(edges, torch.ones(7), (4, 4), check_invariants=True)):
        sets = common_neighbors(given, torch.tensor([[0, 0], [1, 2]]), 4)
        assert sets.common.to_dense().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
        assert sets.only_first.to_dense().tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
        assert sets.only_second.to_dense().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    twin = common_neighbors(EDGES, torch.tensor([[2], [2]]), 4)
    assert twin.common.to_dense().tolist() == [[1, 1, 0, 0]]
    assert common_neighbors(EDGES, torch.empty(2, 0, dtype=torch.long), 4).common.shape == (0, 4)
    assert common_neighbors(EDGES, PAIR, 4, dtype=torch.float64).common.dtype == torch.float64


def test_sampled_neighbours_keep_their_sum_on_average():
    """A hub with 40 neighbours of its own: 8 of them count five times in training, all in eval mode."""
    edges = torch.stack([torch.zeros(40, dtype=torch.long), torch.arange(2, 42)])
    h = torch.randn(42, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.tensor([[0, 0], [1, 1]])
    model = model_of(NeuralCommonNeighborCompletion, scale=0.0, pt=1.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([model.pooled(h, edges, pairs, generator=generator) for _ in range(300)])
    wanted = 0.5 * h[2:].sum(0)
    sums = 0.5 * 40 * h[2:].std(0) / 8**0.5  # of one draw; without replacement it is less
    assert bool(((drawn.mean((0, 1)) - wanted).abs() < 4.5 * sums / 600**0.5).all())
    assert not torch.equal(drawn[0, 0], drawn[0, 1])
    torch.manual_seed(1)
    first = model.pooled(h, edges, pairs)
    torch.manual_seed(1)
    assert torch.equal(first, model.pooled(h, edges, pairs))
    counted = model.pooled(torch.ones_like(h), edges, pairs)
    torch.testing.assert_close(counted, torch.full_like(counted, 20.0))
    torch.testing.assert_close(model.eval().pooled(h, edges, pairs), wanted.expand(2, 5))
    small = model_of(NeuralCommonNeighborCompletion, scale=0.0, pt=1.0, test_samples=4).eval()
    assert not torch.allclose(small.pooled(h, edges, pairs), wanted.expand(2, 5))


def test_positives_are_deleted_before_messages_pass():
    """With the two directions of the pair gone neither its common neighbours nor its vectors know of it."""
    _, edges, _ = karate()
    pair = torch.tensor([[0], [33]])
    linked = torch.cat([edges, pair, pair.flip(0)], 1)
    clean = without_edges(linked, pair.flip(0), 34)
    x = torch.eye(34)
    after = [normalised_adjacency(e, 34) @ x for e in (edges, clean)]
    assert torch.equal(*after)
    torch.manual_seed(0)
    model = NeuralCommonNeighbor(34, 4)
    assert torch.equal(model(after[0], edges, pair), model(after[1], clean, pair))


def test_options_states_and_kinds_of_input():
    h, edges, pairs = karate(torch.float32)
    torch.manual_seed(0)
    model = NeuralCommonNeighborCompletion(5, 6, residual=True, dropout=0.5, beta=2.0, scale=1.0, offset=0.0)
    assert model.beta.item() == 2.0
    torch.manual_seed(1)
    noisy = model(h, edges, pairs)
    model.eval()
    value = model(h, edges, pairs)
    assert not torch.equal(noisy, value)
    twin = NeuralCommonNeighborCompletion(5, 6, residual=True, scale=1.0, offset=0.0).eval()
    twin.load_state_dict(copy.deepcopy(model).state_dict())
    for given in (
        edges,
        edges.int(),
        edges.flip(1),
        torch.sparse_coo_tensor(edges, torch.ones(156), (34, 34), check_invariants=True),
    ):
        torch.testing.assert_close(twin(h, given, pairs.int()), value, atol=1e-5, rtol=0)
    left_out = NeuralCommonNeighbor(5, 6, dropout=0.5)
    assert not torch.equal(left_out(h, edges, pairs), left_out(h, edges, pairs))
    assert NeuralCommonNeighbor(5, 6).xlin is None
    assert model(h, edges, torch.empty(2, 0, dtype=torch.long)).shape == (0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(h, edges, pairs).isfinite().all()


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("dim: expected", lambda: NeuralCommonNeighbor(0, 4)),
        ("hidden: expected", lambda: NeuralCommonNeighbor(2, 0)),
        ("dropout: expected", lambda: NeuralCommonNeighbor(2, 2, dropout=1.0)),
        ("alpha: expected", lambda: NeuralCommonNeighborCompletion(2, 2, alpha=1.5)),
        ("pt: expected", lambda: NeuralCommonNeighborCompletion(2, 2, pt=0.0)),
        ("scale: expected", lambda: completion_probability(torch.zeros(1), scale=-1)),
        ("depth: expected", lambda: NeuralCommonNeighborCompletion(2, 2, depth=-1)),
        ("train_samples: expected", lambda: NeuralCommonNeighborCompletion(2, 2, train_samples=0)),
        ("test_samples: expected", lambda: NeuralCommonNeighborCompletion(2, 2, test_samples=0)),
        ("pairs: expected values in 0..3", lambda: common_neighbors(EDGES, torch.tensor([[0], [4]]), 4)),
        ("h: expected shape", lambda: NeuralCommonNeighbor(3, 2)(H, EDGES, PAIR)),
        ("adj: expected values in 0..2", lambda: NeuralCommonNeighbor(2, 2)(H[:3], EDGES, PAIR)),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()
