"""Graphs of the experiments: drawn from blocks, from places and from nearest neighbours; a graph convolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..core.graphs import normalised_adjacency, undirected_edges


def block_graph(sizes: list[int], inside: float, between: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Edges in both directions ``[2, E]`` and blocks ``[N]`` of a stochastic block model.

    Args:
        sizes: nodes of each block.
        inside, between: probability of an edge within a block, and between two.
        generator: of the draws.

    >>> edges, blocks = block_graph([2, 2], 1.0, 0.0, torch.Generator())
    >>> edges.tolist(), blocks.tolist()
    ([[0, 1, 2, 3], [1, 0, 3, 2]], [0, 0, 1, 1])
    """
    blocks = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    nodes = len(blocks)
    probability = torch.where(blocks.unsqueeze(1) == blocks, inside, between)
    linked = (torch.rand(nodes, nodes, generator=generator) < probability).triu(1)
    return undirected_edges(linked.nonzero().T, nodes), blocks


def place_graph(
    nodes: int, groups: int, degrees: tuple[float, float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Edges in both directions and groups ``[N]`` of a graph of places in the unit square and of groups.

    Args:
        nodes: N.
        groups: their number, drawn independently of the places.
        degrees: mean neighbours of a node by nearness (within the radius that gives them), by group and by chance.
        generator: of the draws.

    >>> edges, groups = place_graph(50, 2, (3.0, 2.0, 1.0), torch.Generator().manual_seed(0))
    >>> 4 < edges.shape[1] / 50 < 7, groups.shape
    (True, torch.Size([50]))
    """
    places = torch.rand(nodes, 2, generator=generator, dtype=torch.float64)
    members = torch.randint(groups, (nodes,), generator=generator)
    near, group, chance = degrees
    radius = (near / (nodes * np.pi)) ** 0.5
    linked = torch.cdist(places, places) < radius
    alike = members.unsqueeze(1) == members
    draw = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    linked |= draw < torch.where(alike, groups * group / nodes, 0.0) + chance / nodes
    return undirected_edges(linked.triu(1).nonzero().T, nodes), members


def neighbor_graph(x: np.ndarray, k: int) -> Tensor:
    """Edges in both directions between rows and their k nearest ones in Euclidean distance.

    >>> neighbor_graph(np.array([[0.0], [1.0], [5.0]]), 1).tolist()
    [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    rows = np.repeat(np.arange(len(x)), k)
    return undirected_edges(torch.from_numpy(np.stack([rows, nearest.reshape(-1)])), len(x))


class GraphEncoder(nn.Module):
    """A graph convolution of two layers with a rectifier between them, and after them where ``rectified``.

    Args:
        features: width of the input.
        hidden: width between the layers.
        dim: width of the output.
        rectified: whether the output is rectified.

    >>> x, edges = torch.eye(3), torch.tensor([[0, 1], [1, 0]])
    >>> GraphEncoder(3, 4, 2)(x, GraphEncoder.adjacency(edges, x)).shape
    torch.Size([3, 2])
    """

    def __init__(self, features: int, hidden: int, dim: int, *, rectified: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.rectified = nn.Linear(features, hidden), nn.Linear(hidden, dim), rectified

    @staticmethod
    def adjacency(edges: Tensor, x: Tensor) -> Tensor:
        """The symmetric normalised adjacency with self-loops, in the type of the features."""
        return normalised_adjacency(edges, len(x), dtype=x.dtype)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Vectors of the nodes; the biases are added after messages have passed."""
        hidden = (adjacency @ (x @ self.first.weight.T) + self.first.bias).relu()
        out: Tensor = adjacency @ (hidden @ self.second.weight.T) + self.second.bias
        return out.relu() if self.rectified else out
