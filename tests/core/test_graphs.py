import networkx as nx
import numpy as np
import pytest
import torch

from steepest.core.graphs import (
    Neighbors,
    edges_of,
    normalised_adjacency,
    sparse_product,
    undirected_edges,
    without_edges,
)


def karate():
    graph = nx.karate_club_graph()
    return graph, torch.tensor(list(graph.edges)).T


@pytest.mark.parametrize("form", ["symmetric", "row"])
@pytest.mark.parametrize("loops", [True, False])
def test_the_normalised_adjacency_is_that_of_dense_loops(form, loops):
    _, edges = karate()
    weight = torch.rand(edges.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    both = torch.cat([edges, edges.flip(0)], 1)
    ours = normalised_adjacency(both, 34, weight=weight.repeat(2), loops=loops, form=form).to_dense()
    a = np.zeros((34, 34))
    for (i, j), w in zip(edges.T.tolist(), weight.tolist()):
        a[i, j] = a[j, i] = w
    if loops:
        a += np.eye(34)
    d = a.sum(1)
    wanted = np.array(
        [[a[i, j] / (d[i] if form == "row" else (d[i] * d[j]) ** 0.5) for j in range(34)] for i in range(34)]
    )
    torch.testing.assert_close(ours, torch.from_numpy(wanted), atol=1e-14, rtol=1e-14)


def test_the_normalised_laplacian_is_that_of_networkx():
    graph, edges = karate()
    ours = normalised_adjacency(undirected_edges(edges, 34), 34, loops=False, dtype=torch.float64).to_dense()
    laplacian = nx.normalized_laplacian_matrix(graph, weight=None).toarray()
    torch.testing.assert_close(ours, torch.from_numpy(np.eye(34) - laplacian), atol=1e-14, rtol=0)


def test_nodes_without_edges_and_given_loops():
    edges = torch.tensor([[0, 1, 2], [1, 0, 2]])
    dense = normalised_adjacency(edges, 4, loops=False).to_dense()
    assert dense[3].tolist() == [0, 0, 0, 0]
    assert dense[2].tolist() == [0, 0, 1, 0]
    assert normalised_adjacency(edges, 4, form="row").to_dense()[2].tolist() == [0, 0, 1, 0]
    assert normalised_adjacency(edges, 4).dtype == torch.float32


def test_neighbours_are_those_of_networkx():
    graph, edges = karate()
    twice = torch.cat([edges, edges[:, :9], torch.tensor([[5], [5]])], 1)
    lists = Neighbors.of(twice, 34)
    place, node = lists.lists(torch.tensor([33, 0, 33, 11]))
    for number, asked in enumerate([33, 0, 33, 11]):
        assert node[place == number].tolist() == sorted(graph[asked])
    first, second = torch.cartesian_prod(torch.arange(34), torch.arange(34)).T
    linked = lists.linked(first, second).view(34, 34)
    assert torch.equal(linked, torch.from_numpy(nx.to_numpy_array(graph, weight=None) > 0))
    assert lists.degrees.tolist() == [graph.degree[i] for i in range(34)]


def test_a_graph_without_edges():
    empty = Neighbors.of(torch.empty(2, 0, dtype=torch.long), 3)
    assert empty.degrees.tolist() == [0, 0, 0]
    assert not empty.linked(torch.tensor([0, 1]), torch.tensor([1, 2])).any()
    assert empty.lists(torch.tensor([2, 0]))[1].numel() == 0


def test_a_sparse_matrix_and_its_edges_are_one_graph():
    matrix = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).to_sparse()
    assert edges_of(matrix, 3).tolist() == [[0, 1], [1, 2]]
    zero = torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.0, 1.0]), (3, 3), check_invariants=True
    )
    assert edges_of(zero, 3).tolist() == [[1], [2]]
    with pytest.raises(ValueError, match=r"adj: expected shape \(4, 4\)"):
        edges_of(matrix, 4)


def test_edges_are_deleted_in_both_directions():
    path = undirected_edges(torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]), 6)
    left = without_edges(path, torch.tensor([[3, 0], [2, 1]]), 6)
    assert sorted(map(tuple, left.T.tolist())) == [(1, 2), (2, 1), (3, 4), (4, 3), (4, 5), (5, 4)]


def test_a_sparse_product():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (torch.where(m < 0.5, m, 0.0) for m in (a, b))
    torch.testing.assert_close(sparse_product(a.to_sparse(), b.to_sparse()).to_dense(), a @ b, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("edge_index: expected values in", lambda: normalised_adjacency(torch.tensor([[0], [3]]), 3)),
        ("edge_index: expected shape", lambda: normalised_adjacency(torch.tensor([0, 1]), 3)),
        ("form: expected", lambda: normalised_adjacency(torch.tensor([[0], [1]]), 3, form="column")),
        ("weight: expected", lambda: normalised_adjacency(torch.tensor([[0], [1]]), 3, weight=torch.ones(2))),
        ("pairs: expected", lambda: without_edges(torch.tensor([[0], [1]]), torch.tensor([[0], [5]]), 3)),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_edges_of_another_type_are_named():
    with pytest.raises(TypeError, match="edge_index: expected an integer tensor"):
        undirected_edges(torch.zeros(2, 3), 3)
    with pytest.raises(TypeError, match="edge_index: expected nodes of an integer type"):
        undirected_edges(torch.zeros(2, 3, dtype=torch.bool), 3)
