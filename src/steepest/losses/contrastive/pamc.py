"""A contrastive loss on a graph whose negatives are sums over clusters, linear in nodes and edges."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_number, check_range, check_tensor, refuse, refuse_type, values_visible
from ...core.cosine import unit_rows
from ...core.distances import distances
from ...core.graphs import check_edges, normalised_adjacency, sparse_product
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms


def influence_graph(
    edge_index: I[Tensor, "2 edges"],
    nodes: int,
    order: int,
    *,
    cumulative: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[I[Tensor, "2 reached"], F[Tensor, " reached"]]:
    r"""Nodes within a few steps of each other, and how much a random walk leads from one to the other.

    .. math:: A_r = \sum_{p=1}^{r} \tilde A^p \quad\text{or}\quad \tilde A^r, \qquad
        \tilde A = D^{-1} (A + I)

    Args:
        edge_index: edges ``[2, E]``, both directions where the graph is undirected.
        nodes: N >= 1.
        order: r >= 1, the longest walk.
        cumulative: whether shorter walks count too.
        dtype: of the weights.

    Returns:
        Edges ``[2, E']`` and their weights ``[E']`` > 0. Every node has an edge: its self-loop.

    Raises:
        ValueError: nodes out of range, an order below 1.

    Example:
        >>> influence_graph(torch.tensor([[0, 1], [1, 0]]), 2, 2)[1]
        tensor([1., 1., 1., 1.])

    Source: Efficient block contrastive learning via parameter-free meta-node approximation, arXiv:2209.14067.
    """
    check_number("order", order, low=1, integer=True)
    check_flag("cumulative", cumulative)
    step = normalised_adjacency(edge_index, nodes, form="row", dtype=dtype)
    power = total = step
    for _ in range(order - 1):
        power = sparse_product(power, step)
        total = (total + power).coalesce() if cumulative else power
    return total.indices(), total.values()


def pamc_loss(
    z: F[Tensor, "nodes dim"],
    assignment: I[Tensor, " nodes"],
    edge_index: I[Tensor, "2 edges"],
    edge_weight: F[Tensor, " edges"],
    *,
    tau: float = 0.5,
    clusters: int | None = None,
) -> F[Tensor, ""]:
    r"""Neighbours against clusters: positives along weighted edges, negatives between sums of clusters.

    .. math:: L = -\frac1N \sum_i \log \sum_{j} A_{ij} e^{\tau c_{ij}} + \frac1K \sum_k \log \sum_l e^{\tau S_{kl}}

    c are cosines of embeddings, S those of the clusters' *meta-nodes* :math:`C_k = \sum_{i: a_i = k} z_i`, sums of
    the embeddings as they are; both are 0 between equals. With a cluster of its own for each node it is the
    contrastive loss over all pairs. tau multiplies. The loss doesn't change with a common scale of all z, but with
    that of one.

    Args:
        z: embeddings ``[N, d]``.
        assignment: cluster of each node ``[N]``, >= 0; clusters without nodes don't count.
        edge_index: edges i to j ``[2, E]``; every node has one: give self-loops, as :func:`influence_graph` does.
        edge_weight: A ``[E]`` >= 0, with a positive sum for each node.
        tau: > 0.
        clusters: K, above all assignments; None looks it up, which costs a synchronisation on an accelerator.

    Returns:
        The loss, a scalar in float32 or wider; 0 of no nodes.

    Raises:
        ValueError: other shapes, numbers out of range, a node without an edge of positive weight.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> edges, weight = influence_graph(torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), 4, 1)
        >>> pamc_loss(z, torch.tensor([0, 0, 1, 1]), edges, weight)
        tensor(0.4596)

    Source: Efficient block contrastive learning via parameter-free meta-node approximation, arXiv:2209.14067.
    """
    check_tensor("z", z, ndim=2, floating=True)
    nodes = len(z)
    check_tensor("assignment", assignment, floating=False, shape=(nodes,))
    if assignment.dtype == torch.bool:
        refuse_type("assignment", "clusters of an integer type", assignment)
    check_edges(edge_index, nodes)
    check_tensor("edge_weight", edge_weight, floating=True, shape=(edge_index.shape[1],))
    check_number("tau", tau, low=0.0, open_low=True, open_high=True)
    if clusters is None:
        clusters = int(assignment.max()) + 1 if nodes else 1
    check_number("clusters", clusters, low=1, integer=True)
    check_range("assignment", assignment, 0, clusters - 1)
    row, column = edge_index.long()
    weight = widen(edge_weight)
    _check_weights(weight, row, nodes)
    z = widen(z)
    log_positive = _log_positive(unit_rows(z), row, column, weight, tau)
    log_negative, present = _log_negative(z, assignment.long(), clusters, tau)
    count = present.sum().clamp_min(1)
    return torch.where(present, log_negative, 0.0).sum() / count - log_positive.sum() / max(nodes, 1)


def _check_weights(weight: Tensor, row: Tensor, nodes: int) -> None:
    if not values_visible(weight, row):
        return
    if bool((weight < 0).any()):
        refuse("edge_weight", "values >= 0", float(weight.min()))
    sums = weight.detach().new_zeros(nodes).index_add(0, row, weight.detach())
    if bool((sums == 0).any()):
        refuse("edge_index", "an edge of positive weight from every node", f"none from {int((sums == 0).sum())} nodes")


def _log_positive(unit: Tensor, row: Tensor, column: Tensor, weight: Tensor, tau: float) -> Tensor:
    """The logarithm of each node's positives ``[N]``."""
    similarity = tau * torch.where(row == column, 0.0, (unit[row] * unit[column]).sum(1))
    with torch.no_grad():
        top = unit.new_full((len(unit),), -tau).scatter_reduce(0, row, similarity.detach(), "amax")
    terms = weight * (similarity - top[row]).exp()
    return unit.new_zeros(len(unit)).index_add(0, row, terms).log() + top


def _log_negative(z: Tensor, assignment: Tensor, clusters: int, tau: float) -> tuple[Tensor, Tensor]:
    """The logarithm of each cluster's negatives ``[K]``, and which clusters have nodes."""
    present = z.new_zeros(clusters).index_add(0, assignment, z.new_ones(len(z))) > 0
    unit = unit_rows(z.new_zeros(clusters, z.shape[1]).index_add(0, assignment, z))
    own = torch.eye(clusters, dtype=torch.bool, device=z.device)
    similarity = torch.where(own, 0.0, tau * unit @ unit.T)
    return torch.where(present | own, similarity, -torch.inf).logsumexp(1), present


def student_assignment(z: F[Tensor, "nodes dim"], centers: F[Tensor, "clusters dim"]) -> F[Tensor, "nodes clusters"]:
    r"""Soft clusters by Student's t with one degree of freedom.

    .. math:: q_{ik} \propto \frac{1}{1 + \|z_i - \mu_k\|^2}

    Args:
        z: ``[N, d]``.
        centers: mu ``[K, d]``.

    Returns:
        q ``[N, K]``, rows that sum to 1, in float32 or wider.

    Raises:
        ValueError: other shapes.

    Example:
        >>> student_assignment(torch.tensor([[0.5], [-1.0]]), torch.tensor([[0.0], [-2.0]]))
        tensor([[0.8529, 0.1471],
                [0.5000, 0.5000]])

    Source: Efficient block contrastive learning via parameter-free meta-node approximation, arXiv:2209.14067.
    """
    check_tensor("z", z, ndim=2, floating=True)
    check_tensor("centers", centers, floating=True, shape=(None, z.shape[1]))
    affinity = 1 / (1 + distances(z, centers).square())
    return affinity / affinity.sum(1, keepdim=True)


def target_distribution(q: F[Tensor, "nodes clusters"]) -> F[Tensor, "nodes clusters"]:
    r"""The assignment sharpened and freed of the clusters' sizes, a constant.

    .. math:: P_{ik} \propto \frac{q_{ik}^2}{\sum_i q_{ik}}

    Args:
        q: ``[N, K]``, rows that sum to 1.

    Returns:
        P ``[N, K]``, rows that sum to 1, without a gradient.

    Example:
        >>> target_distribution(torch.tensor([[0.8, 0.2], [0.5, 0.5]]))
        tensor([[0.8960, 0.1040],
                [0.3500, 0.6500]])

    Source: Efficient block contrastive learning via parameter-free meta-node approximation, arXiv:2209.14067.
    """
    check_tensor("q", q, ndim=2, floating=True)
    q = widen(q.detach())
    size = q.sum(0)
    sharp = q.square() / torch.where(size == 0, 1.0, size)
    return sharp / sharp.sum(1, keepdim=True)


def deep_cluster_kl(q: F[Tensor, "nodes clusters"], target: F[Tensor, "nodes clusters"] | None = None) -> F[Tensor, ""]:
    r"""How far soft clusters are from their sharpened form, the mean over nodes.

    .. math:: \frac1N \sum_i \sum_k P_{ik} \log \frac{P_{ik}}{q_{ik}}

    Args:
        q: ``[N, K]``, rows that sum to 1.
        target: P ``[N, K]``, a constant, for example that of the epoch's start; None: :func:`target_distribution`.

    Returns:
        The divergence, a scalar in float32 or wider; 0 of no nodes.

    Raises:
        ValueError: other shapes.

    Example:
        >>> deep_cluster_kl(torch.tensor([[0.8, 0.2], [0.5, 0.5]]))
        tensor(0.0396)

    Source: Efficient block contrastive learning via parameter-free meta-node approximation, arXiv:2209.14067.
    """
    check_tensor("q", q, ndim=2, floating=True)
    if target is None:
        p = target_distribution(q)
    else:
        check_tensor("target", target, floating=True, shape=tuple(q.shape))
        p = widen(target.detach())
    q = widen(q)
    log_q = torch.where(p == 0, 1.0, q).log()
    return (torch.xlogy(p, p) - p * log_q).sum() / max(len(q), 1)


class MetaNodeContrastiveLoss(Loss):
    r"""Contrast and clustering of nodes together.

    .. math:: L = \alpha\, \text{PAMC}(z, \operatorname{argmax}_k q) + \beta\, \mathrm{KL}(P \,\|\, q)

    See :func:`pamc_loss` and :func:`deep_cluster_kl`; the hard clusters are constants. ``terms`` has both parts.

    Args:
        tau: > 0, multiplies cosines; 0.25 to 1.5 are usual.
        alpha: weight of the contrast, >= 0.
        beta: weight of the divergence, >= 0.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> edges, weight = influence_graph(torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), 4, 1)
        >>> q = student_assignment(z, torch.tensor([[1.0, 0.0], [-0.5, 1.0]]))
        >>> MetaNodeContrastiveLoss()(z, q, edges, weight)
        tensor(0.5262)

    Source: Efficient block contrastive learning via parameter-free meta-node approximation, arXiv:2209.14067.
    """

    name = "pamc"
    differentiable = (0, 1, 3)

    def __init__(self, tau: float = 0.5, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        check_number("tau", tau, low=0.0, open_low=True, open_high=True)
        check_number("alpha", alpha, low=0.0, open_high=True)
        check_number("beta", beta, low=0.0, open_high=True)
        self.tau, self.alpha, self.beta = tau, alpha, beta

    def forward(
        self,
        z: F[Tensor, "nodes dim"],
        q: F[Tensor, "nodes clusters"],
        edge_index: I[Tensor, "2 edges"],
        edge_weight: F[Tensor, " edges"],
        target: F[Tensor, "nodes clusters"] | None = None,
    ) -> F[Tensor, ""]:
        """The loss of embeddings, soft clusters, an influence graph and the target of the clusters."""
        check_tensor("z", z, ndim=2, floating=True)
        check_tensor("q", q, floating=True, shape=(len(z), None))
        if not q.shape[1]:
            refuse("q", "one cluster and more", q)
        contrast = pamc_loss(z, q.detach().argmax(1), edge_index, edge_weight, tau=self.tau, clusters=q.shape[1])
        divergence = deep_cluster_kl(q, target)
        self.terms = kept_terms({"contrast": contrast, "divergence": divergence})
        return self.alpha * contrast + self.beta * divergence

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """A cycle of seven nodes and a chord, in three clusters of which one may be empty."""
        ring = torch.arange(7)
        edges = torch.stack([torch.cat([ring, torch.tensor([0])]), torch.cat([ring.roll(-1), torch.tensor([3])])])
        index, weight = influence_graph(torch.cat([edges, edges.flip(0)], 1), 7, 2, dtype=torch.float64)
        z = torch.randn(7, 4, generator=generator, dtype=torch.float64)
        q = student_assignment(z, torch.randn(3, 4, generator=generator, dtype=torch.float64))
        z, q, weight = (t.to(device, dtype) for t in (z, q, weight))
        earlier = target_distribution(q.flip(0)).to(dtype)  # without it the divergence has a gradient in q alone, not P
        sample: Sample = ((z, q, index.to(device), weight, earlier), {})
        return [(cls(), sample), (cls(tau=1.5, alpha=2.0, beta=3.0), sample)]
