"""A provable lower bound of how well a node is trained by graph contrast, and a loss that raises it."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_number, check_tensor, refuse, values_visible
from ...core.cosine import unit_rows
from ...core.graphs import edges_of, sparse_matrix, undirected_edges
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms


def allowed_drops(adj: Tensor, rate: float) -> I[Tensor, " nodes"]:
    r"""How many edges of each node a view may lack for the bound to hold.

    .. math:: \delta_i = \min(\max(d_i - 1, 0), \mathrm{round}(\text{rate} \cdot d_i))

    Halves are rounded to even numbers.

    Args:
        adj: the whole graph, symmetric ``[N, N]``, dense or sparse; entries that are not 0 are edges, but for the
            diagonal.
        rate: share of the edges that a view lacks, in [0, 1].

    Returns:
        Counts ``[N]``.

    Raises:
        ValueError: a matrix that is not square or not symmetric, a rate out of range.

    Example:
        >>> allowed_drops(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), 0.5)
        tensor([0, 1, 0])

    Source: Provable Training for Graph Contrastive Learning (code VoidHaruhi/POT-GCL).
    """
    check_number("rate", rate, low=0.0, high=1.0)
    return _drops(_degrees(_edges(adj), len(adj)), rate)


def _edges(adj: Tensor) -> Tensor:
    """The edges ``[2, E]`` in both directions of a symmetric matrix."""
    check_tensor("adj", adj, ndim=2)
    if adj.shape[0] != adj.shape[1]:
        refuse("adj", "a square matrix", adj)
    entries = edges_of(adj, len(adj)) if adj.layout != torch.strided else adj.nonzero().T
    both = undirected_edges(entries, len(adj))
    if both.shape[1] != int((entries[0] != entries[1]).sum()):
        refuse("adj", "a symmetric matrix", adj)
    return both


def _degrees(edges: Tensor, nodes: int) -> Tensor:
    return torch.zeros(nodes, dtype=torch.long, device=edges.device).index_add(0, edges[0], torch.ones_like(edges[0]))


def _drops(degree: Tensor, rate: float) -> Tensor:
    return torch.minimum((degree - 1).clamp_min(0), (rate * degree.double()).round().long())


def adjacency_bounds(adj: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    r"""Entrywise bounds of the normalised adjacency of every view that lacks at most the allowed edges.

    .. math:: U_{ij} = \frac{1}{\sqrt{(d_i + 1 - \delta_i)(d_j + 1 - \delta_j)}} \text{ on edges and the diagonal},
        \qquad L = \mathrm{diag}\Big(\frac{1}{d_i + 1}\Big)

    They hold for :math:`\hat A = D^{-1/2} (A' + I) D^{-1/2}` of each view A' that lacks at most
    :func:`allowed_drops` of every node's edges. Views that drop edges independently may lack more: then nothing holds.

    Args:
        adj: the whole graph, symmetric ``[N, N]``, dense or sparse.
        rate: share of the edges that a view lacks, in [0, 1].

    Returns:
        L and U ``[N, N]``, dense or sparse as ``adj`` is.

    Raises:
        ValueError: a matrix that is not square or not symmetric, a rate out of range.

    Example:
        >>> lower, upper = adjacency_bounds(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), 0.5)
        >>> lower.diagonal(), upper
        (tensor([0.5000, 0.3333, 0.5000]), tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.5000],
                [0.0000, 0.5000, 0.5000]]))

    Source: Provable Training for Graph Contrastive Learning (code VoidHaruhi/POT-GCL).
    """
    check_number("rate", rate, low=0.0, high=1.0)
    edges, nodes = _edges(adj), len(adj)
    degree = _degrees(edges, nodes)
    dtype = adj.dtype if adj.is_floating_point() else torch.float32
    own = torch.arange(nodes, device=edges.device).expand(2, -1)
    places = torch.cat([edges, own], 1)
    least = (degree + 1 - _drops(degree, rate)).double()
    upper = sparse_matrix(places, (1 / (least[places[0]] * least[places[1]]).sqrt()).to(dtype), (nodes, nodes))
    lower = sparse_matrix(own, (1 / (degree + 1).double()).to(dtype), (nodes, nodes))
    return (lower.to_dense(), upper.to_dense()) if adj.layout == torch.strided else (lower, upper)


def relu_relaxation(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    r"""Two parallel lines between which a rectifier lies on an interval [l, u].

    .. math:: r x \le \max(x, 0) \le r (x + o), \qquad r = \frac{u}{u - l}, \quad o = -l \quad (l < 0 < u)

    with r = 1 where l >= 0, r = 0 where u <= 0, and o = 0 in both.

    Args:
        low, high: l <= u, of one shape.

    Returns:
        r and o, of that shape.

    Example:
        >>> relu_relaxation(torch.tensor([-1.0, 0.5, -2.0]), torch.tensor([3.0, 2.0, -1.0]))
        (tensor([0.7500, 1.0000, 0.0000]), tensor([1., 0., 0.]))

    Source: Provable Training for Graph Contrastive Learning (code VoidHaruhi/POT-GCL).
    """
    on, off = low >= 0, high <= 0
    slope = high / torch.where(on | off, 1.0, high - low)
    slope = torch.where(on, 1.0, torch.where(off, 0.0, slope))
    return slope, torch.where(on | off, 0.0, -low)


def node_compactness(
    x: F[Tensor, "nodes features"],
    adj_view: F[Tensor, "nodes nodes"],
    lower: F[Tensor, "nodes nodes"],
    upper: F[Tensor, "nodes nodes"],
    w1: F[Tensor, "features hidden"],
    b1: F[Tensor, " hidden"],
    w2: F[Tensor, "hidden dim"],
    b2: F[Tensor, " dim"],
    z_other: F[Tensor, "nodes dim"],
    *,
    fast: bool = False,
) -> F[Tensor, " nodes"]:
    r"""A lower bound, for each node, of how much nearer it is to its positive than to the mean negative.

    The encoder is a graph convolution of two layers; the score of a node is :math:`Z_i \cdot C_i`,

    .. math:: Z = \mathrm{relu}(\hat A\, \mathrm{relu}(\hat A X W_1 + b_1) W_2 + b_2), \qquad
        C_i = n_i - \frac{1}{N - 1} \sum_{j \ne i} n_j, \quad n_i = \frac{z_i}{\|z_i\|}.

    Rectifiers are replaced by lines (:func:`relu_relaxation`) between bounds that hold for every :math:`\hat A` in
    [L, U]; by the sign of what follows each takes the lower or the upper one. The result is linear in
    :math:`\hat A`'s products, is read at the view's own matrix, and is at most :math:`Z_i \cdot C_i` there. Where
    L = U it is equal to it.

    Args:
        x: features ``[N, f]``.
        adj_view: the view's normalised adjacency with self-loops ``[N, N]``
            (:func:`steepest.core.graphs.normalised_adjacency`), dense or sparse.
        lower, upper: bounds of it, from :func:`adjacency_bounds`, dense or sparse.
        w1, b1, w2, b2: weights ``[f, h]``, ``[h, d]`` and biases of the encoder.
        z_other: embeddings of the other view ``[N, d]``.
        fast: the published code's estimate, which takes hidden units of the second bound from the whole graph and the
            lines of a neighbour from that neighbour's own direction: no bound, and cheaper by a few products.

    Returns:
        ``[N]``, in float32 or wider, with a gradient in weights, features and the other view.

    Raises:
        ValueError: other shapes, fewer than two nodes, bounds that cross.

    Example:
        >>> path = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> lower, upper = adjacency_bounds(path, 0.0)
        >>> x, one = torch.eye(3), torch.eye(3)
        >>> node_compactness(x, upper, upper, upper, one, torch.zeros(3), one, torch.zeros(3), torch.eye(3))
        tensor([0.1632, 0.1042, 0.1632])

    Source: Provable Training for Graph Contrastive Learning (code VoidHaruhi/POT-GCL).
    """
    x, w1, b1, w2, b2, z_other = _checked(x, w1, b1, w2, b2, z_other)
    check_flag("fast", fast)
    nodes = len(x)
    for name, matrix in (("adj_view", adj_view), ("lower", lower), ("upper", upper)):
        check_tensor(name, matrix, floating=True, shape=(nodes, nodes))
    adj_view, lower, upper = (matrix.to(x.dtype) for matrix in (adj_view, lower, upper))
    _check_order(lower, upper)
    n = unit_rows(z_other)
    direction = n - (n.sum(0) - n) / (nodes - 1)

    q = x @ w1
    low, high = _propagated(lower, upper, q, q, b1)
    slope1, offset1 = relu_relaxation(low, high)
    if fast:
        root = _diagonal(lower).sqrt().unsqueeze(1)
        hidden = (root * (_pattern(upper) @ (root * q)) + b1).relu() @ w2
        low, high = _propagated(lower, upper, hidden, hidden, b2)
    else:
        h_low, h_high = low.relu(), high.relu()
        positive, negative = w2.clamp_min(0), w2.clamp_max(0)
        low, high = _propagated(
            lower, upper, h_low @ positive + h_high @ negative, h_high @ positive + h_low @ negative, b2
        )
    slope2, offset2 = relu_relaxation(low, high)
    outer = slope2 * direction
    constant = (outer * (b2 + torch.where(direction >= 0, 0.0, offset2))).sum(1)
    inner = outer @ w2.T
    if fast:
        lines = slope1 * inner
        own = (lines * q).sum(1, keepdim=True)
        shift = (lines * (b1 + torch.where(inner >= 0, 0.0, offset1))).sum(1, keepdim=True)
        return (adj_view @ (adj_view @ own + shift)).squeeze(1) + constant
    first = adj_view @ q + b1
    both = adj_view @ torch.cat([slope1 * first, slope1 * (first + offset1)], 1)
    at_least, at_most = both.chunk(2, 1)
    return (inner.clamp_min(0) * at_least + inner.clamp_max(0) * at_most).sum(1) + constant


def _checked(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Features, weights, biases and the other view, checked and in one type of float32 or wider."""
    x, w1, b1, w2, b2, z_other = tensors
    check_tensor("x", x, ndim=2, floating=True)
    if len(x) < 2:
        refuse("x", "two nodes and more", x)
    check_tensor("w1", w1, floating=True, shape=(x.shape[1], None))
    check_tensor("b1", b1, floating=True, shape=(w1.shape[1],))
    check_tensor("w2", w2, floating=True, shape=(w1.shape[1], None))
    check_tensor("b2", b2, floating=True, shape=(w2.shape[1],))
    check_tensor("z_other", z_other, floating=True, shape=(len(x), w2.shape[1]))
    wide = [widen(t) for t in tensors]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in wide) else torch.float32
    return tuple(t.to(dtype) for t in wide)


def _check_order(lower: Tensor, upper: Tensor) -> None:
    """Refuse dense bounds that cross by more than what half precision rounds."""
    if lower.layout != torch.strided or upper.layout != torch.strided or not values_visible(lower, upper):
        return
    if bool((lower > upper + 1e-2 * upper.abs()).any()):
        refuse("lower", "at most upper in every entry", float((lower - upper).max()))


def _propagated(lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of A V + b for A in [lower, upper], which is not negative, and V in [low, high]."""
    width = low.shape[1]
    by_upper = upper @ torch.cat([low.clamp_max(0), high.clamp_min(0)], 1)
    by_lower = lower @ torch.cat([low.clamp_min(0), high.clamp_max(0)], 1)
    bounds = by_upper + by_lower
    return bounds[:, :width] + bias, bounds[:, width:] + bias


def _diagonal(matrix: Tensor) -> Tensor:
    return (matrix.to_dense() if matrix.layout != torch.strided else matrix).diagonal()


def _pattern(matrix: Tensor) -> Tensor:
    """Ones where a matrix that is not negative has entries."""
    if matrix.layout == torch.strided:
        return (matrix > 0).to(matrix.dtype)
    entries = matrix.to_sparse_coo().coalesce()
    return sparse_matrix(entries.indices(), (entries.values() > 0).to(matrix.dtype), (matrix.shape[0], matrix.shape[1]))


def pot_loss(compactness: F[Tensor, " nodes"]) -> F[Tensor, ""]:
    r"""Binary cross-entropy that takes each node's compactness for a logit of being well trained.

    .. math:: \frac1N \sum_i \log(1 + e^{-c_i})

    Args:
        compactness: c ``[N]``, from :func:`node_compactness`.

    Returns:
        The mean, a scalar in float32 or wider; 0 of no nodes.

    Raises:
        ValueError: another shape.

    Example:
        >>> pot_loss(torch.tensor([0.5]))
        tensor(0.4741)

    Source: Provable Training for Graph Contrastive Learning (code VoidHaruhi/POT-GCL).
    """
    check_tensor("compactness", compactness, ndim=1, floating=True)
    return nnf.softplus(-widen(compactness)).sum() / max(len(compactness), 1)


class NodeCompactness(Loss):
    """The loss of the nodes' compactness, to be added to a contrastive loss of two views.

    The publication takes ``(1 - kappa) * contrast + kappa * mean`` of the loss of view 1 against 2 and of view 2
    against 1, with kappa 0.2 to 0.5. ``terms`` has the mean compactness and the share of nodes above 0. See
    :func:`node_compactness` for the arguments.

    Args:
        fast: the published code's estimate in place of the bound.

    Example:
        >>> path = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> lower, upper = adjacency_bounds(path, 0.5)
        >>> one, zero = torch.eye(3), torch.zeros(3)
        >>> NodeCompactness()(one, upper, lower, upper, one, zero, one, zero, torch.eye(3))
        tensor(0.6137)

    Source: Provable Training for Graph Contrastive Learning (code VoidHaruhi/POT-GCL).
    """

    name = "node_compactness"
    differentiable = (0, 4, 5, 6, 7, 8)

    def __init__(self, fast: bool = False) -> None:
        super().__init__()
        check_flag("fast", fast)
        self.fast = fast

    def forward(
        self,
        x: F[Tensor, "nodes features"],
        adj_view: F[Tensor, "nodes nodes"],
        lower: F[Tensor, "nodes nodes"],
        upper: F[Tensor, "nodes nodes"],
        w1: F[Tensor, "features hidden"],
        b1: F[Tensor, " hidden"],
        w2: F[Tensor, "hidden dim"],
        b2: F[Tensor, " dim"],
        z_other: F[Tensor, "nodes dim"],
    ) -> F[Tensor, ""]:
        """The mean over nodes."""
        compactness = node_compactness(x, adj_view, lower, upper, w1, b1, w2, b2, z_other, fast=self.fast)
        with torch.no_grad():
            self.terms = kept_terms({"mean": compactness.mean(), "positive": (compactness > 0).double().mean()})
        return pot_loss(compactness)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """A cycle of six nodes with a chord, of which a view lacks an edge; the bound, and the published estimate."""
        ring = torch.arange(6)
        whole = torch.zeros(6, 6, dtype=torch.float64)
        whole[ring, ring.roll(-1)] = whole[0, 3] = 1
        whole = whole + whole.T
        view = whole.clone()
        view[0, 3] = view[3, 0] = 0
        looped = view + torch.eye(6)
        root = looped.sum(1).rsqrt()
        bounds = adjacency_bounds(whole, 0.4)
        shapes = ((6, 4), (4, 5), (5,), (5, 3), (3,), (6, 3))
        x, *weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        args = (x, root.unsqueeze(1) * looped * root, *bounds, *weights)
        sample: Sample = (tuple(t.to(device, dtype) for t in args), {})
        return [(cls(), sample), (cls(fast=True), sample)]
