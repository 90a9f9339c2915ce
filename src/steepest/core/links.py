"""Pairs of nodes as the samples of link prediction: splits that hide edges, negatives, batches of positives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_flag, check_number, refuse
from .graphs import check_edges, undirected_edges


def negative_sampling(
    edge_index: I[Tensor, "2 edges"],
    nodes: int | tuple[int, int],
    count: int,
    *,
    undirected: bool = False,
    generator: torch.Generator | None = None,
) -> I[Tensor, "2 count"]:
    """Distinct pairs without an edge, each equally probable: exactly as many as are asked for.

    The pairs without an edge are numbered, and numbers are drawn: nothing is rejected, so a nearly complete graph is
    no harder than another.

    Args:
        edge_index: edges ``[2, E]``, in any order, repeated or not.
        nodes: N, of which no pair of a node with itself is drawn; or the numbers of sources and of destinations, where
            row 0 of the result has sources and row 1 destinations.
        count: >= 0.
        undirected: pairs i < j alone, and an edge in either direction counts.
        generator: of the draws; None for torch's own.

    Returns:
        Pairs ``[2, count]``.

    Raises:
        ValueError: nodes out of range, or fewer than ``count`` pairs without an edge.

    Example:
        >>> negative_sampling(torch.tensor([[0, 0, 1], [1, 2, 2]]), 4, 3, undirected=True).sort(1).values
        tensor([[0, 1, 2],
                [3, 3, 3]])
    """
    sides = (nodes, nodes) if isinstance(nodes, int) else tuple(nodes)
    for size in sides:
        check_number("nodes", size, low=0, integer=True)
    check_number("count", count, low=0, integer=True)
    check_flag("undirected", undirected)
    check_edges(edge_index, nodes)
    sources, destinations = sides
    row, column = edge_index.long()
    if undirected:
        if not isinstance(nodes, int):
            refuse("undirected", "False between sources and destinations", undirected)
        row, column = torch.minimum(row, column), torch.maximum(row, column)
        first = _first_of_rows(sources).to(row.device)
        cells = int(first[-1])
        keys = (first[row] + column - row - 1)[row != column]
    elif isinstance(nodes, int):
        # row i has the N - 1 other nodes
        cells = sources * max(sources - 1, 0)
        keys = (row * (sources - 1) + column - (column > row).long())[row != column]
    else:
        cells, keys = sources * destinations, row * destinations + column
    taken = keys.unique()
    free = cells - len(taken)
    if count > free:
        refuse("count", f"at most the {free} pairs without an edge", count)
    rank = _distinct(free, count, generator).to(taken.device)
    # the cell of rank r comes after all taken cells k_t with k_t - t <= r
    cell = rank + torch.searchsorted(taken - torch.arange(len(taken), device=taken.device), rank, right=True)
    if undirected:
        low = torch.searchsorted(first, cell, right=True) - 1
        return torch.stack([low, cell - first[low] + low + 1])
    if isinstance(nodes, int):
        low, high = cell // max(sources - 1, 1), cell % max(sources - 1, 1)
        return torch.stack([low, high + (high >= low).long()])
    return torch.stack([cell // max(destinations, 1), cell % max(destinations, 1)])


def _first_of_rows(nodes: int) -> Tensor:
    """The number of the first pair i < j of each row i ``[N + 1]``; the last is the number of pairs."""
    rows = torch.arange(nodes + 1)
    return (rows * (2 * nodes - rows - 1)) // 2


def _distinct(size: int, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` different numbers below ``size``, every set equally probable."""
    if 4 * count >= size:
        return torch.randperm(size, generator=generator)[:count]
    numbers = torch.empty(0, dtype=torch.long)
    while len(numbers) < count:  # at most a quarter is taken, so that each turn leaves at most a third of what was left
        drawn = torch.randint(size, (count - len(numbers) + 8,), generator=generator)
        joined = torch.cat([numbers, drawn])
        unique, inverse = joined.unique(return_inverse=True)
        first = torch.full_like(unique, len(joined)).scatter_reduce(0, inverse, torch.arange(len(joined)), "amin")
        numbers = joined[first.sort().values]
    return numbers[:count]


@dataclass(frozen=True)
class LinkSplit:
    """Edges of an undirected graph in three groups of pairs, and what may be seen of them in training.

    Args:
        nodes: N.
        edges: ``[2, 2 P]``, the training edges in both directions: what messages may pass along.
        train, validation, test: pairs ``[2, P]``, each edge once.
        validation_negatives, test_negatives: pairs that are no edge of the whole graph, as many as positives.
    """

    nodes: int
    edges: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    validation_negatives: Tensor
    test_negatives: Tensor

    def training_negatives(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Pairs ``[2, count]`` that are no training edge, drawn anew at each call.

        Hidden edges are among them as often as any pair that isn't known: were they left out, the pairs that never
        come would be the hidden edges.
        """
        return negative_sampling(self.edges, self.nodes, count, undirected=True, generator=generator)


def split_links(
    edge_index: I[Tensor, "2 edges"],
    nodes: int,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    generator: torch.Generator | None = None,
) -> LinkSplit:
    """Hide a share of the edges of an undirected graph, each in both directions.

    Args:
        edge_index: edges ``[2, E]``, one direction of each or both; self-loops don't count.
        nodes: N.
        validation, test: shares of the edges, each in [0, 1), together below 1, rounded down.
        generator: of the draws; None for torch's own.

    Returns:
        The split, with as many negatives as hidden edges.

    Raises:
        ValueError: nodes or shares out of range, or too few pairs without an edge.

    Example:
        >>> path = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
        >>> split = split_links(path, 6, validation=0.2, test=0.2, generator=torch.Generator().manual_seed(0))
        >>> split.train.shape, split.edges.shape, split.test_negatives.shape
        (torch.Size([2, 3]), torch.Size([2, 6]), torch.Size([2, 1]))
    """
    for name, share in (("validation", validation), ("test", test)):
        check_number(name, share, low=0.0, high=1.0, open_high=True)
    if validation + test >= 1.0:
        refuse("test", "a share that leaves training edges", test)
    both = undirected_edges(edge_index, nodes)
    pairs = both[:, both[0] < both[1]]
    number = pairs.shape[1]
    hidden, tested = int(number * validation), int(number * test)
    order = torch.randperm(number, generator=generator).to(pairs.device)
    held, of_test, train = (pairs[:, rows] for rows in order.tensor_split([hidden, hidden + tested]))
    drawn = negative_sampling(pairs, nodes, hidden + tested, undirected=True, generator=generator)
    return LinkSplit(nodes, undirected_edges(train, nodes), train, held, of_test, drawn[:, :hidden], drawn[:, hidden:])


def link_batches(
    pairs: I[Tensor, "2 pairs"], size: int, generator: torch.Generator | None = None
) -> Iterator[I[Tensor, "2 batch"]]:
    """Every pair once in an order drawn anew, ``size`` at a time; the last batch may be smaller.

    >>> [batch.shape[1] for batch in link_batches(torch.arange(10).view(2, 5), 2)]
    [2, 2, 1]
    """
    check_number("size", size, low=1, integer=True)
    for rows in torch.randperm(pairs.shape[1], generator=generator).split(size):
        yield pairs[:, rows.to(pairs.device)]
