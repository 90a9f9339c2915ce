"""Graphs as lists of edges: checks, both directions, normalised sparse adjacency, neighbour lists and intersections.

An ``edge_index`` is an integer tensor ``[2, E]``, sources above destinations, as PyTorch Geometric has it. Where an
argument is an *adjacency*, a sparse ``[N, N]`` matrix is taken too: its entries that are not 0 are the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_choice, check_flag, check_number, check_range, check_tensor, refuse, refuse_type

FORMS = ("symmetric", "row")


def check_edges(edge_index: object, nodes: int | tuple[int, int], *, argument: str = "edge_index") -> None:
    """Check integer edges ``[2, E]`` between nodes ``0..N-1``, or of a pair of sizes from sources to destinations.

    >>> check_edges(torch.tensor([[0, 1], [1, 2]]), 2)
    Traceback (most recent call last):
    ValueError: edge_index: expected values in 0..1, got [1, 2]
    """
    check_tensor(argument, edge_index, floating=False, shape=(2, None))
    assert isinstance(edge_index, Tensor)
    if edge_index.dtype == torch.bool:
        refuse_type(argument, "nodes of an integer type", edge_index)
    for ends, size in zip(edge_index, (nodes, nodes) if isinstance(nodes, int) else nodes):
        check_range(argument, ends, 0, size - 1)


def edges_of(adjacency: Tensor, nodes: int, *, argument: str = "adj") -> I[Tensor, "2 edges"]:
    """The edges ``[2, E]`` of an adjacency: an ``edge_index``, or the entries of a sparse matrix that are not 0."""
    if isinstance(adjacency, Tensor) and adjacency.layout != torch.strided:
        if adjacency.shape != (nodes, nodes):
            refuse(argument, f"shape ({nodes}, {nodes})", adjacency)
        entries = adjacency.detach().to_sparse_coo().coalesce()
        edges: Tensor = entries.indices()[:, entries.values() != 0]
        return edges
    check_edges(adjacency, nodes, argument=argument)
    return adjacency.long()


def undirected_edges(edge_index: I[Tensor, "2 edges"], nodes: int) -> I[Tensor, "2 both"]:
    """Every edge in both directions, once, without self-loops, in order of rows.

    >>> undirected_edges(torch.tensor([[0, 1, 2, 2], [1, 0, 0, 2]]), 3)
    tensor([[0, 0, 1, 2],
            [1, 2, 0, 0]])
    """
    check_edges(edge_index, nodes)
    row, column = edge_index.long()
    apart = row != column
    keys = torch.cat([row * nodes + column, column * nodes + row])[apart.repeat(2)].unique()
    return torch.stack([keys // max(nodes, 1), keys % max(nodes, 1)])


def without_edges(edge_index: I[Tensor, "2 edges"], pairs: I[Tensor, "2 pairs"], nodes: int) -> I[Tensor, "2 rest"]:
    """The edges that are not among ``pairs`` in either direction, in their order.

    >>> without_edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.tensor([[1], [0]]), 3)
    tensor([[1, 2],
            [2, 1]])
    """
    check_edges(edge_index, nodes)
    check_edges(pairs, nodes, argument="pairs")
    (row, column), (first, second) = edge_index.long(), pairs.long()
    gone = torch.cat([first * nodes + second, second * nodes + first])
    return edge_index[:, ~torch.isin(row * nodes + column, gone)]


def sparse_matrix(edge_index: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The sparse matrix with these entries ``[2, E]``, ``[E]``; those of one place are added."""
    return torch.sparse_coo_tensor(edge_index.long(), values, shape, check_invariants=False).coalesce()


def sparse_product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two coalesced sparse matrices, sparse, by scipy on the CPU and without a gradient.

    >>> a = sparse_matrix(torch.tensor([[0, 1], [1, 0]]), torch.tensor([2.0, 3.0]), (2, 2))
    >>> sparse_product(a, a).to_dense()
    tensor([[6., 0.],
            [0., 6.]])
    """
    from scipy import sparse  # type: ignore[import-untyped]

    factors = []
    for matrix in (a.detach().cpu(), b.detach().cpu()):
        rows, columns = matrix.indices().numpy()
        factors.append(sparse.csr_array((matrix.values().numpy(), (rows, columns)), shape=tuple(matrix.shape)))
    product = (factors[0] @ factors[1]).tocoo()
    places = torch.stack([torch.from_numpy(ends.astype("int64")) for ends in product.coords])
    return sparse_matrix(places, torch.from_numpy(product.data), (a.shape[0], b.shape[1])).to(a.device)


def normalised_adjacency(
    edge_index: I[Tensor, "2 edges"],
    nodes: int,
    *,
    weight: F[Tensor, " edges"] | None = None,
    loops: bool = True,
    form: str = "symmetric",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""The adjacency matrix by which a layer of message passing multiplies, sparse.

    .. math:: D^{-1/2} A D^{-1/2} \quad\text{or}\quad D^{-1} A, \qquad D_{ii} = \sum_j A_{ij}

    Entry (i, j) is that of the edge from i to j; a node without edges has a row of zeros.

    Args:
        edge_index: edges ``[2, E]``, both directions of each where the graph is undirected; those that are given twice
            count twice.
        nodes: N >= 1.
        weight: weights ``[E]`` >= 0; None: 1.
        loops: add a self-loop of weight 1 to every node; those that are given are left out before.
        form: ``"symmetric"`` or ``"row"``.
        dtype: of the entries where no weights are given.

    Returns:
        A coalesced sparse tensor ``[N, N]``.

    Raises:
        ValueError: nodes out of range, weights of another shape, an unknown form.

    Example:
        >>> normalised_adjacency(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3, form="row").to_dense()
        tensor([[0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333],
                [0.0000, 0.5000, 0.5000]])
    """
    check_number("nodes", nodes, low=1, integer=True)
    check_edges(edge_index, nodes)
    check_flag("loops", loops)
    check_choice("form", form, FORMS)
    row, column = edge_index.long()
    if weight is None:
        weight = torch.ones(row.shape, dtype=dtype, device=row.device)
    check_tensor("weight", weight, floating=True, shape=tuple(row.shape))
    if loops:
        apart = row != column
        own = torch.arange(nodes, device=row.device)
        row, column = torch.cat([row[apart], own]), torch.cat([column[apart], own])
        weight = torch.cat([weight[apart], weight.new_ones(nodes)])
    degree = weight.new_zeros(nodes).index_add(0, row, weight)
    if form == "row":
        values = weight / torch.where(degree > 0, degree, torch.inf)[row]
    else:
        root = torch.where(degree > 0, degree, torch.inf).rsqrt()
        values = weight * root[row] * root[column]
    return sparse_matrix(torch.stack([row, column]), values, (nodes, nodes))


@dataclass(frozen=True)
class Neighbors:
    """The sorted neighbour lists of an undirected graph, without self-loops.

    Args:
        starts: ``[N + 1]``, where the list of each node begins.
        nodes: ``[E]``, the neighbours, list after list.
        keys: ``[E]``, row * N + neighbour, which rises.
    """

    starts: Tensor
    nodes: Tensor
    keys: Tensor

    @classmethod
    def of(cls, adjacency: Tensor, nodes: int) -> Self:
        """Of an ``edge_index`` or a sparse matrix: each edge counts in both directions, once."""
        row, column = undirected_edges(edges_of(adjacency, nodes), nodes)
        return cls(torch.searchsorted(row, torch.arange(nodes + 1, device=row.device)), column, row * nodes + column)

    @property
    def degrees(self) -> Tensor:
        """``[N]``."""
        return self.starts.diff()

    def lists(self, rows: I[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
        """The neighbours of ``rows``, list after list: the place in ``rows`` and the neighbour, both ``[T]``."""
        counts = self.degrees[rows]
        place = torch.repeat_interleave(counts)
        offset = torch.arange(len(place), device=rows.device) - (counts.cumsum(0) - counts)[place]
        return place, self.nodes[self.starts[rows][place] + offset]

    def linked(self, first: Tensor, second: Tensor) -> Tensor:
        """Whether there is an edge between nodes of two tensors of one shape."""
        if not len(self.keys):
            return torch.zeros_like(first, dtype=torch.bool)
        keys = first * (len(self.starts) - 1) + second
        return self.keys[torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)] == keys
