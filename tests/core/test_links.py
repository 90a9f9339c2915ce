import itertools

import networkx as nx
import pytest
import torch

from steepest.core.links import link_batches, negative_sampling, split_links


def as_set(pairs):
    return set(map(tuple, pairs.T.tolist()))


@pytest.mark.parametrize("undirected", [True, False])
def test_all_pairs_without_an_edge_come_when_all_are_asked_for(undirected):
    """The asked count, exactly, without a pair that is an edge, a node with itself or a pair twice."""
    graph = nx.les_miserables_graph()
    nodes = nx.convert_node_labels_to_integers(graph)
    edges = torch.tensor(list(nodes.edges)).T.flip(0)
    either = itertools.combinations if undirected else itertools.permutations
    taken = set(nodes.edges) | {(j, i) for i, j in nodes.edges if undirected} if undirected else as_set(edges)
    wanted = {pair for pair in either(range(77), 2) if pair not in taken}
    drawn = negative_sampling(edges, 77, len(wanted), undirected=undirected)
    assert drawn.shape[1] == len(wanted)
    assert as_set(drawn) == wanted
    with pytest.raises(ValueError, match=f"count: expected at most the {len(wanted)} pairs without an edge"):
        negative_sampling(edges, 77, len(wanted) + 1, undirected=undirected)


def test_destinations_have_the_ids_of_destinations():
    """Between users and items row 0 has users and row 1 items; a user with all items gets none and stops nobody."""
    edges = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 4]])
    drawn = negative_sampling(edges, (2, 5), 4)
    assert as_set(drawn) == {(1, 0), (1, 1), (1, 2), (1, 3)}
    with pytest.raises(ValueError, match="count: expected at most the 4 pairs"):
        negative_sampling(edges, (2, 5), 5)
    with pytest.raises(ValueError, match=r"edge_index: expected values in 0\.\.4"):
        negative_sampling(torch.tensor([[0], [5]]), (2, 5), 1)
    with pytest.raises(ValueError, match="undirected: expected False"):
        negative_sampling(edges, (2, 5), 1, undirected=True)


def test_every_free_pair_is_equally_probable():
    """2,000 draws of 3 among 45 - 2 pairs: each comes 139.5 times, with a standard deviation below 11.8."""
    edges, counts = torch.tensor([[0, 7], [1, 3]]), torch.zeros(10, 10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        pairs = negative_sampling(edges, 10, 3, undirected=True, generator=generator)
        counts[pairs[0], pairs[1]] += 1
    free = torch.ones(10, 10).triu(1).bool()
    free[0, 1] = free[3, 7] = False
    assert not counts[~free].any()
    share = 6000 / 43
    assert float((counts[free] - share).abs().max()) < 4.5 * share**0.5
    many = negative_sampling(edges, 300, 9000, generator=generator)  # a tenth: drawn with numbers that repeat
    assert len(as_set(many)) == 9000
    assert not as_set(many) & as_set(edges)
    assert bool((many[0] != many[1]).all())


def test_degenerate_graphs():
    empty = torch.empty(2, 0, dtype=torch.long)
    assert negative_sampling(empty, 0, 0).shape == (2, 0)
    assert negative_sampling(empty, 2, 2).sort(1).values.tolist() == [[0, 1], [0, 1]]
    assert negative_sampling(empty, (3, 1), 3)[1].tolist() == [0, 0, 0]
    complete = torch.combinations(torch.arange(5)).T
    assert negative_sampling(complete, 5, 0, undirected=True).shape == (2, 0)
    twice = torch.cat([complete, complete.flip(0), torch.tensor([[2], [2]])], 1)
    with pytest.raises(ValueError, match="at most the 0 pairs"):
        negative_sampling(twice, 5, 1)


def test_hidden_edges_are_hidden_in_both_directions():
    path = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    both = torch.cat([path, path.flip(0)], 1)
    for seed in range(20):
        split = split_links(both, 6, validation=0.2, test=0.4, generator=torch.Generator().manual_seed(seed))
        shares = [as_set(p) for p in (split.train, split.validation, split.test)]
        assert set.union(*shares) == as_set(path)
        assert [len(share) for share in shares] == [2, 1, 2]
        assert as_set(split.edges) == shares[0] | {(j, i) for i, j in shares[0]}
        assert not (as_set(split.test_negatives) | as_set(split.validation_negatives)) & as_set(path)
        assert split.test_negatives.shape[1] == 2
        assert not as_set(split.test_negatives) & as_set(split.validation_negatives)


def test_training_negatives_do_not_tell_what_is_hidden():
    """Every pair that is no training edge comes, the hidden ones too: their absence would reveal them."""
    graph = torch.tensor(list(nx.karate_club_graph().edges)).T
    split = split_links(graph, 34, validation=0.1, test=0.2)
    every = 34 * 33 // 2 - split.train.shape[1]
    drawn = as_set(split.training_negatives(every))
    assert as_set(split.test) | as_set(split.validation) <= drawn
    assert not drawn & as_set(split.train)
    with pytest.raises(ValueError, match="test: expected a share that leaves training edges"):
        split_links(graph, 34, validation=0.5, test=0.5)


@pytest.mark.parametrize(("number", "size"), [(10, 4), (3, 8), (8, 4), (0, 4)])
def test_every_positive_is_in_a_batch(number, size):
    """Also the last ones, and all of them where a batch is larger."""
    pairs = torch.stack([torch.arange(number), torch.arange(number) + 100])
    batches = list(link_batches(pairs, size, torch.Generator().manual_seed(1)))
    seen = torch.cat(batches, 1) if batches else pairs
    assert as_set(seen) == as_set(pairs)
    assert seen.shape == pairs.shape
    assert all(batch.shape[1] <= size for batch in batches)
