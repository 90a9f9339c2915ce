"""Link prediction from the vectors of common neighbours, seen or probable."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_tensor
from ...core.graphs import Neighbors, check_edges, sparse_matrix
from ...core.reductions import widen


class NeighborSets(NamedTuple):
    """Sparse matrices ``[E, N]`` of ones: for each pair (i, j) the nodes of a set."""

    common: Tensor
    """N(i) and N(j)."""
    only_first: Tensor
    """N(i) without N(j) and j."""
    only_second: Tensor
    """N(j) without N(i) and i."""


def common_neighbors(
    adj: Tensor, pairs: I[Tensor, "2 pairs"], nodes: int, *, dtype: torch.dtype = torch.float32
) -> NeighborSets:
    r"""Common and one-sided neighbours of pairs in an undirected graph.

    .. math:: N(i) \cap N(j), \qquad N(i) \setminus (N(j) \cup \{j\}), \qquad N(j) \setminus (N(i) \cup \{i\})

    Self-loops don't count, an edge that is given twice or in one direction alone counts once, in both. The neighbours
    of one end are looked up in the sorted edges of the other: time and memory grow with the degrees of the pairs.

    Args:
        adj: edges ``[2, M]``, or a sparse matrix ``[N, N]``.
        pairs: ``[2, E]``, i above j.
        nodes: N.
        dtype: of the ones.

    Returns:
        Three sparse matrices ``[E, N]``; their products with features sum them, their row sums count.

    Raises:
        ValueError: nodes out of range.

    Example:
        >>> sets = common_neighbors(torch.tensor([[0, 0, 1], [2, 3, 2]]), torch.tensor([[0], [1]]), 4)
        >>> sets.common.to_dense(), sets.only_first.to_dense()
        (tensor([[0., 0., 1., 0.]]), tensor([[0., 0., 0., 1.]]))

    Source: Neural Common Neighbor with Completion for Link Prediction, arXiv:2302.00890.
    """
    check_number("nodes", nodes, low=0, integer=True)
    check_edges(pairs, nodes, argument="pairs")
    shape = (pairs.shape[1], nodes)
    return NeighborSets(
        *(
            sparse_matrix(entries, torch.ones(entries.shape[1], dtype=dtype, device=entries.device), shape)
            for entries in _entries(Neighbors.of(adj, nodes), pairs.long())
        )
    )


def _entries(neighbors: Neighbors, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pair and node ``[2, T]`` of each member of the three sets."""
    first, second = pairs
    place, node = neighbors.lists(first)
    shared = neighbors.linked(second[place], node)
    own = torch.stack([place, node])
    place_other, node_other = neighbors.lists(second)
    alone = ~neighbors.linked(first[place_other], node_other) & (node_other != first[place_other])
    return own[:, shared], own[:, ~shared & (node != second[place])], torch.stack([place_other, node_other])[:, alone]


def completion_probability(
    z: F[Tensor, "*shape"], *, scale: float = 5.0, offset: float = 3.0, alpha: float = 1.0, pt: float = 0.5
) -> F[Tensor, "*shape"]:
    r"""The probability that an edge which is not seen is there, from the score of a link predictor; a constant.

    .. math:: p_0 = \sigma(\text{scale} (z - \text{offset})), \qquad P = \alpha \frac{p_t p_0}{p_t p_0 + 1 - p_0}

    Args:
        z: scores, any shape.
        scale: >= 0, how steep.
        offset: the score at which p_0 is a half.
        alpha: factor in [0, 1].
        pt: in (0, 1], how probable it is that an edge with p_0 of a half is there.

    Returns:
        Probabilities without a gradient, in float32 or wider.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> completion_probability(torch.tensor([2.0, 3.0, 4.0]))
        tensor([0.0034, 0.3333, 0.9867])

    Source: Neural Common Neighbor with Completion for Link Prediction, arXiv:2302.00890.
    """
    check_tensor("z", z, floating=True)
    _check_completion(scale, offset, alpha, pt)
    return alpha * torch.sigmoid(scale * (widen(z.detach()) - offset) + math.log(pt))


def _check_completion(scale: float, offset: float, alpha: float, pt: float) -> None:
    check_number("scale", scale, low=0.0, open_high=True)
    check_number("offset", offset, open_low=True, open_high=True)
    check_number("alpha", alpha, low=0.0, high=1.0)
    check_number("pt", pt, low=0.0, high=1.0, open_low=True)


class NeuralCommonNeighbor(nn.Module):
    r"""A score of a candidate link from its common neighbours and the product of its ends.

    .. math:: z_{ij} = \text{lin}\Big(\beta\, \text{cnlin}\Big(\sum_{k \in N(i) \cap N(j)} h'_k\Big)
        + \text{ijlin}(h_i \odot h_j)\Big), \qquad h' = h + \text{xlin}(h)

    z is symmetric in i and j, and a logit of the link. A pair without common neighbours has the sum 0. The graph must
    not hold the links that are asked for: delete the positives of a batch from it first
    (:func:`steepest.core.graphs.without_edges`), before messages pass too.

    Args:
        dim: d, width of the node vectors.
        hidden: width of the layers.
        residual: whether h' has the second term; else h' is h.
        dropout: share of units that are left out in training, in [0, 1).
        beta: first value of the learned weight of common neighbours.

    Example:
        >>> edges = torch.tensor([[0, 0, 1], [2, 3, 2]])
        >>> model = NeuralCommonNeighbor(2, 8)
        >>> h = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, -1.0]])
        >>> model.pooled(h, edges, torch.tensor([[0], [1]]))
        tensor([[1., 1.]])
        >>> model(h, edges, torch.tensor([[0], [1]])).shape
        torch.Size([1, 1])

    Source: Neural Common Neighbor with Completion for Link Prediction, arXiv:2302.00890.
    """

    def __init__(
        self, dim: int, hidden: int, *, residual: bool = False, dropout: float = 0.0, beta: float = 1.0
    ) -> None:
        super().__init__()
        check_number("dim", dim, low=1, integer=True)
        check_number("hidden", hidden, low=1, integer=True)
        check_flag("residual", residual)
        check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        check_number("beta", beta, open_low=True, open_high=True)
        self.dim = dim

        def linear(inputs: int, outputs: int, *, norm: bool = False, relu: bool = True) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
            layers += [nn.LayerNorm(outputs)] if norm else []
            return layers + ([nn.Dropout(dropout), nn.ReLU()] if relu else [])

        self.xlin = nn.Sequential(*linear(dim, dim), *linear(dim, dim, norm=True)) if residual else None
        self.cnlin = nn.Sequential(
            *linear(dim, hidden), *linear(hidden, hidden, norm=True), *linear(hidden, hidden, relu=False)
        )
        self.ijlin = nn.Sequential(*linear(dim, hidden, norm=True), *linear(hidden, hidden, relu=False))
        self.lin = nn.Sequential(*linear(hidden, hidden, norm=True), *linear(hidden, 1, relu=False))
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, h: F[Tensor, "nodes dim"], adj: Tensor, pairs: I[Tensor, "2 pairs"]) -> F[Tensor, "pairs 1"]:
        """Logits of pairs.

        Args:
            h: node vectors ``[N, d]``, made without the links that are asked for.
            adj: edges ``[2, M]`` or a sparse matrix ``[N, N]``, likewise.
            pairs: ``[2, E]``.
        """
        neighbors, pairs = self._checked(h, adj, pairs)
        return self._scores(h, self._with_residual(h), neighbors, pairs, 0, None)

    def pooled(self, h: F[Tensor, "nodes dim"], adj: Tensor, pairs: I[Tensor, "2 pairs"]) -> F[Tensor, "pairs dim"]:
        """The sum of h' over common neighbours, of each pair."""
        neighbors, pairs = self._checked(h, adj, pairs)
        return self._pooled(h, self._with_residual(h), neighbors, pairs, 0, None)

    def _checked(self, h: Tensor, adj: Tensor, pairs: Tensor) -> tuple[Neighbors, Tensor]:
        check_tensor("h", h, floating=True, shape=(None, self.dim))
        check_edges(pairs, len(h), argument="pairs")
        return Neighbors.of(adj, len(h)), pairs.long()

    def _with_residual(self, h: Tensor) -> Tensor:
        return h if self.xlin is None else h + self.xlin(h)

    def _scores(
        self,
        h: Tensor,
        with_residual: Tensor,
        neighbors: Neighbors,
        pairs: Tensor,
        depth: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Logits, with so many rounds of completion."""
        pooled = self._pooled(h, with_residual, neighbors, pairs, depth, generator)
        ends = h[pairs[0]] * h[pairs[1]]
        scores: Tensor = self.lin(self.beta * self.cnlin(pooled) + self.ijlin(ends))
        return scores

    def _pooled(
        self,
        h: Tensor,
        with_residual: Tensor,
        neighbors: Neighbors,
        pairs: Tensor,
        depth: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The vectors of common neighbours, summed."""
        common, _, _ = _entries(neighbors, pairs)
        return _sum_of_nodes(with_residual, common, None, pairs.shape[1])


def _sum_of_nodes(h: Tensor, entries: Tensor, weight: Tensor | None, rows: int) -> Tensor:
    """Sums of node vectors ``[rows, d]``: row and node ``[2, T]`` of each term, weights ``[T]``."""
    terms = h[entries[1]]
    if weight is not None:
        terms = terms * weight.to(h.dtype).unsqueeze(1)
    return h.new_zeros(rows, h.shape[1]).index_add(0, entries[0], terms)


class NeuralCommonNeighborCompletion(NeuralCommonNeighbor):
    r"""The same, where a neighbour of one end counts by the probability that its other edge is there too.

    .. math:: \sum_{k \in N(i) \cap N(j)} h'_k + \sum_{k \in N(i) \setminus N(j)} P_{jk} h'_k
        + \sum_{k \in N(j) \setminus N(i)} P_{ik} h'_k

    P is :func:`completion_probability` of the model's own scores without completion (or with ``depth - 1`` rounds),
    of the same h, without a gradient. Of one-sided neighbours more than ``train_samples`` (``test_samples`` in eval
    mode) a random part is taken and weighted by their number over its.

    Args:
        dim, hidden, residual, dropout, beta: see :class:`NeuralCommonNeighbor`.
        scale, offset, alpha, pt: see :func:`completion_probability`; alpha = 0 is the model without completion.
        depth: rounds of completion, >= 0.
        train_samples, test_samples: one-sided neighbours of each end that are taken at most, >= 1.

    Example:
        >>> edges = torch.tensor([[0, 0, 1], [2, 3, 2]])
        >>> model = NeuralCommonNeighborCompletion(2, 8)
        >>> model(torch.randn(4, 2), edges, torch.tensor([[0, 2], [1, 3]])).shape
        torch.Size([2, 1])

    Source: Neural Common Neighbor with Completion for Link Prediction, arXiv:2302.00890.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        residual: bool = False,
        dropout: float = 0.0,
        beta: float = 1.0,
        scale: float = 5.0,
        offset: float = 3.0,
        alpha: float = 1.0,
        pt: float = 0.5,
        depth: int = 1,
        train_samples: int = 8,
        test_samples: int = 128,
    ) -> None:
        super().__init__(dim, hidden, residual=residual, dropout=dropout, beta=beta)
        _check_completion(scale, offset, alpha, pt)
        check_number("depth", depth, low=0, integer=True)
        check_number("train_samples", train_samples, low=1, integer=True)
        check_number("test_samples", test_samples, low=1, integer=True)
        self.scale, self.offset, self.alpha, self.pt, self.depth = scale, offset, alpha, pt, depth
        self.train_samples, self.test_samples = train_samples, test_samples

    def forward(
        self,
        h: F[Tensor, "nodes dim"],
        adj: Tensor,
        pairs: I[Tensor, "2 pairs"],
        *,
        generator: torch.Generator | None = None,
    ) -> F[Tensor, "pairs 1"]:
        """Logits of pairs; arguments as without completion, and a generator of the sampled neighbours."""
        neighbors, pairs = self._checked(h, adj, pairs)
        return self._scores(h, self._with_residual(h), neighbors, pairs, self.depth, generator)

    def pooled(
        self,
        h: F[Tensor, "nodes dim"],
        adj: Tensor,
        pairs: I[Tensor, "2 pairs"],
        *,
        generator: torch.Generator | None = None,
    ) -> F[Tensor, "pairs dim"]:
        """The sum of h' over common neighbours, seen and probable."""
        neighbors, pairs = self._checked(h, adj, pairs)
        return self._pooled(h, self._with_residual(h), neighbors, pairs, self.depth, generator)

    def probabilities(
        self,
        h: F[Tensor, "nodes dim"],
        adj: Tensor,
        pairs: I[Tensor, "2 pairs"],
        *,
        generator: torch.Generator | None = None,
    ) -> F[Tensor, " pairs"]:
        """P of pairs: what a round of completion takes them for."""
        neighbors, pairs = self._checked(h, adj, pairs)
        return self._probabilities(h, self._with_residual(h), neighbors, pairs, self.depth, generator)

    @torch.no_grad()
    def _probabilities(
        self,
        h: Tensor,
        with_residual: Tensor,
        neighbors: Neighbors,
        pairs: Tensor,
        depth: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """P of pairs by the model with one round less; a pair that is asked for more than once is scored once."""
        low, high = pairs.amin(0), pairs.amax(0)
        keys, place = (low * len(h) + high).unique(return_inverse=True)
        unique = torch.stack([keys // max(len(h), 1), keys % max(len(h), 1)])
        z = self._scores(h, with_residual, neighbors, unique, max(depth - 1, 0), generator).squeeze(1)
        return completion_probability(z, scale=self.scale, offset=self.offset, alpha=self.alpha, pt=self.pt)[place]

    def _pooled(
        self,
        h: Tensor,
        with_residual: Tensor,
        neighbors: Neighbors,
        pairs: Tensor,
        depth: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        common, only_first, only_second = _entries(neighbors, pairs)
        pooled = _sum_of_nodes(with_residual, common, None, pairs.shape[1])
        if not depth:
            return pooled
        most = self.train_samples if self.training else self.test_samples
        sides = [_sampled(entries, pairs.shape[1], most, generator) for entries in (only_first, only_second)]
        missing = [torch.stack([pairs[end][entries[0]], entries[1]]) for end, (entries, _) in zip((1, 0), sides)]
        p = self._probabilities(h, with_residual, neighbors, torch.cat(missing, 1), depth, generator)
        for (entries, share), weight in zip(sides, p.split([m.shape[1] for m in missing])):
            pooled = pooled + _sum_of_nodes(with_residual, entries, weight * share, pairs.shape[1])
        return pooled


def _sampled(entries: Tensor, rows: int, most: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Of each row at most ``most`` entries ``[2, T]``, drawn without replacement, and the weight of each that is left.

    >>> _sampled(torch.tensor([[0, 0, 0, 1], [4, 5, 6, 7]]), 2, 2, None)[1]
    tensor([1.5000, 1.5000, 1.0000])
    """
    counts = torch.zeros(rows, dtype=torch.long, device=entries.device).index_add(
        0, entries[0], torch.ones_like(entries[0])
    )
    if not bool((counts > most).any()):
        return entries, torch.ones(entries.shape[1], device=entries.device)
    mixed = torch.randperm(entries.shape[1], generator=generator).to(entries.device)
    entries = entries[:, mixed]
    entries = entries[:, entries[0].argsort(stable=True)]
    rank = torch.arange(entries.shape[1], device=entries.device) - (counts.cumsum(0) - counts)[entries[0]]
    entries = entries[:, rank < most]
    return entries, (counts / counts.clamp_max(most))[entries[0]]
