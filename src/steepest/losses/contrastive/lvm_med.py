"""Second-order graph matching of two views of a batch, with gradients through the combinatorial solver."""

from __future__ import annotations

import itertools
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_range, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.transforms import on_host

SOLVERS = ("hungarian", "faq", "exact")
MOST = 7
"""Nodes up to which all permutations are tried."""
STEPS = 30
"""Of the relaxed problem."""


class _Problem:
    """Affinities of nodes and of pairs of edges, as arrays; permutations are rows p: node i goes to p[i]."""

    def __init__(self, c: np.ndarray, e: np.ndarray | None, edges_s: np.ndarray | None, edges_t: np.ndarray | None):
        self.c, self.e = c.astype(np.float64), None
        if e is not None and edges_s is not None and edges_t is not None and e.size:
            self.e = e.astype(np.float64)
            self.from_s, self.to_s, self.from_t, self.to_t = *edges_s.T, *edges_t.T
            one = np.eye(len(c))  # which edges begin at a node, which end there, of either graph
            self.at = (one[:, self.from_s], one[:, self.from_t]), (one[:, self.to_s], one[:, self.to_t])

    def chosen(self, p: np.ndarray) -> np.ndarray:
        """Which pairs of edges a permutation takes together."""
        taken: np.ndarray = (p[self.from_s][:, None] == self.from_t) & (p[self.to_s][:, None] == self.to_t)
        return taken

    def value(self, p: np.ndarray) -> float:
        """The objective."""
        nodes = float(self.c[np.arange(len(p)), p].sum())
        return nodes if self.e is None else nodes + float(self.e[self.chosen(p)].sum())

    def pull(self, x: np.ndarray) -> np.ndarray:
        """The gradient of the sum over edges in a matrix ``[N, N]``."""
        assert self.e is not None
        starts, ends = self.e * x[np.ix_(self.to_s, self.to_t)], self.e * x[np.ix_(self.from_s, self.from_t)]
        at_start, at_end = self.at
        total: np.ndarray = at_start[0] @ starts @ at_start[1].T + at_end[0] @ ends @ at_end[1].T
        return total

    def relaxed(self) -> np.ndarray:
        """Frank-Wolfe steps from the centre of the doubly stochastic matrices, and the nearest permutation."""
        x = np.full_like(self.c, 1 / len(self.c))
        for _ in range(STEPS):
            slope = self.c + self.pull(x)
            vertex = np.zeros_like(x)
            vertex[np.arange(len(x)), _assigned(slope)] = 1.0
            way = vertex - x
            gain, bend = float((slope * way).sum()), float((self.pull(way) * way).sum()) / 2
            if gain <= 1e-9:
                break
            x = x + way * (1.0 if bend >= 0 else min(1.0, -gain / (2 * bend)))
        return _assigned(x)

    def solve(self, solver: str, *candidates: np.ndarray) -> np.ndarray:
        """The best permutation that a solver or a candidate gives."""
        if solver == "exact":
            candidates = tuple(np.array(p) for p in itertools.permutations(range(len(self.c))))
        else:
            candidates = (_assigned(self.c), *candidates)
            if self.e is not None:
                candidates = (*candidates, self.relaxed())
        return max(candidates, key=self.value)

    def shifted(self, by_nodes: np.ndarray, by_edges: np.ndarray | None) -> _Problem:
        """Another one with something taken off."""
        edges = None if self.e is None else np.stack([self.from_s, self.to_s], 1)
        more = None if self.e is None else np.stack([self.from_t, self.to_t], 1)
        e = None if self.e is None else self.e - (0.0 if by_edges is None else by_edges)
        return _Problem(self.c - by_nodes, e, edges, more)


def _assigned(values: np.ndarray) -> np.ndarray:
    """The permutation of the largest sum.

    >>> _assigned(np.array([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.2, 0.7, 0.4]])).tolist()
    [0, 2, 1]
    """
    permutation: np.ndarray = linear_sum_assignment(values, maximize=True)[1]
    return permutation


def _solver(solver: str | None, nodes: int, edges: bool) -> str:
    """The solver, checked against the problem; None for the usual one."""
    if solver is None:
        return "faq" if edges else "hungarian"
    check_choice("solver", solver, SOLVERS)
    if solver == "hungarian" and edges:
        refuse("solver", "'faq' or 'exact' with edges, which an assignment of nodes does not see", solver)
    if solver == "exact" and nodes > MOST:
        refuse("solver", f"'exact' of at most {MOST} nodes", nodes)
    return solver


def _problem(c: Tensor, e: Tensor | None, edges_s: Tensor | None, edges_t: Tensor | None) -> _Problem:
    """The arrays of checked tensors."""
    check_tensor("c", c, ndim=2, floating=True)
    nodes = c.shape[0]
    if c.shape[1] != nodes:
        refuse("c", "a square matrix", c)
    if (e is None) != (edges_s is None) or (e is None) != (edges_t is None):
        refuse("e", "affinities of edges with the edges of both graphs, or none of the three", e)
    if e is None:
        return _Problem(on_host(c.float() if c.dtype == torch.bfloat16 else c), None, None, None)
    check_tensor("e", e, ndim=2, floating=True)
    for name, edges, size in (("edges_s", edges_s, e.shape[0]), ("edges_t", edges_t, e.shape[1])):
        check_tensor(name, edges, floating=False, shape=(size, 2))
        assert edges is not None
        check_range(name, edges, 0, nodes - 1)
    assert edges_s is not None
    assert edges_t is not None
    return _Problem(on_host(widen(c)), on_host(widen(e)), on_host(edges_s), on_host(edges_t))


def match_graphs(
    c: F[Tensor, "nodes nodes"],
    e: F[Tensor, "edges_s edges_t"] | None = None,
    edges_s: I[Tensor, "edges_s 2"] | None = None,
    edges_t: I[Tensor, "edges_t 2"] | None = None,
    solver: str | None = None,
) -> I[Tensor, " nodes"]:
    r"""The permutation of the nodes of one graph onto those of another with the largest affinity of nodes and edges.

    .. math:: \max_p \sum_i C_{i p(i)} + \sum_{(i, j) \in S,\, (a, b) \in T} E_{ij,ab}\, [p(i) = a]\, [p(j) = b]

    Without edges this is a linear assignment. With edges it is a quadratic one, which is hard: ``"faq"`` takes
    Frank-Wolfe steps over doubly stochastic matrices and may miss the best; ``"exact"`` tries all.

    Args:
        c: affinities of nodes C ``[N, N]``.
        e: affinities of edges E.
        edges_s, edges_t: the nodes that each directed edge of either graph joins, with E.
        solver: ``"hungarian"`` without edges, ``"faq"``, ``"exact"`` of at most 7 nodes; None for the first or second.

    Returns:
        p ``[N]``.

    Raises:
        ValueError: shapes that don't belong together, nodes out of range, a solver that does not see edges.

    Example:
        >>> match_graphs(torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.2, 0.7, 0.4]]))
        tensor([0, 2, 1])

    Source: LVM-Med, arXiv:2306.11925.
    """
    problem = _problem(c, e, edges_s, edges_t)
    solver = _solver(solver, len(problem.c), e is not None)
    if not len(problem.c):
        return torch.zeros(0, dtype=torch.long, device=c.device)
    return torch.from_numpy(problem.solve(solver).copy()).to(c.device)


class _Matching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, e: Tensor | None, edges: Any, lam: float, solver: str) -> Any:
        ctx.problem = problem = _problem(c, e, *edges)
        ctx.lam, ctx.solver, ctx.with_edges = lam, solver, e is not None
        ctx.p = p = problem.solve(solver)
        nodes = torch.from_numpy(np.eye(len(p))[p]).to(c)
        if e is None:
            return nodes
        return nodes, torch.from_numpy(_taken(problem, p, e)).to(e)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        to_edges = on_host(upstream[1]) if ctx.with_edges else None
        nodes, edges = _slopes(ctx.problem, ctx.p, on_host(upstream[0]), to_edges, ctx.lam, ctx.solver)
        like = upstream[0]
        return (torch.from_numpy(nodes).to(like), None if edges is None else torch.from_numpy(edges).to(like),
                None, None, None)  # fmt: skip


def _taken(problem: _Problem, p: np.ndarray, e: Tensor) -> np.ndarray:
    """Which pairs of edges a permutation takes together, as numbers."""
    return np.zeros(tuple(e.shape)) if problem.e is None else problem.chosen(p).astype(np.float64)


def _slopes(
    problem: _Problem, p: np.ndarray, by_nodes: np.ndarray, by_edges: np.ndarray | None, lam: float, solver: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradient in both affinities: the difference to the matching after a step against that of the loss."""
    edges = None if by_edges is None or problem.e is None else lam * by_edges
    after = problem.shifted(lam * by_nodes, edges).solve(solver, p)
    unit = np.eye(len(p))
    to_nodes = (unit[p] - unit[after]) / lam
    if by_edges is None:
        return to_nodes, None
    if problem.e is None:
        return to_nodes, np.zeros_like(by_edges)
    return to_nodes, (problem.chosen(p).astype(np.float64) - problem.chosen(after)) / lam


class BlackboxMatching(nn.Module):
    r"""The matching of two graphs as a layer, with the gradient of a perturbed solver.

    .. math:: V = \arg\max_V \langle C, V \rangle + \ldots, \qquad
        \frac{\partial L}{\partial C} = \frac{V - V_\lambda}{\lambda}, \quad
        V_\lambda = \arg\max_V \left\langle C - \lambda \frac{\partial L}{\partial V}, V \right\rangle + \ldots

    Args:
        lam: > 0; as far as affinities differ, or the matching does not move and the gradient is 0.
        solver: of :func:`match_graphs`.

    Example:
        >>> c = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.2, 0.7, 0.4]], requires_grad=True)
        >>> v = BlackboxMatching(lam=0.2)(c)
        >>> torch.autograd.grad(((1 - 2 * torch.eye(3)) * v).sum(), c)[0].mul(0.2).round()
        tensor([[ 0.,  0.,  0.],
                [ 0., -1.,  1.],
                [ 0.,  1., -1.]])

    Source: Differentiation of Blackbox Combinatorial Solvers, arXiv:1912.02175.
    """

    def __init__(self, lam: float = 80.0, solver: str | None = None) -> None:
        super().__init__()
        check_number("lam", lam, low=0.0, open_low=True)
        if solver is not None:
            check_choice("solver", solver, SOLVERS)
        self.lam, self.solver = lam, solver

    def forward(
        self, c: Tensor, e: Tensor | None = None, edges_s: Tensor | None = None, edges_t: Tensor | None = None
    ) -> Any:
        """The matching V ``[N, N]``; with edges also which pairs of edges it takes together, of the shape of ``e``."""
        solver = _solver(self.solver, len(c), e is not None)
        return _Matching.apply(widen(c), None if e is None else widen(e), (edges_s, edges_t), self.lam, solver)


def neighbour_edges(u: F[Tensor, "nodes width"], knn: int) -> I[Tensor, "edges 2"]:
    """Directed edges of each row to its nearest others by cosine, ``[N * k, 2]`` with at most N - 1 a row.

    >>> neighbour_edges(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 1).tolist()
    [[0, 1], [1, 0], [2, 1]]
    """
    rows = unit_rows(u.detach())
    number = min(knn, max(len(rows) - 1, 0))
    cosines = (rows @ rows.mT).masked_fill(torch.eye(len(rows), dtype=torch.bool, device=u.device), -torch.inf)
    ends = cosines.topk(number, 1).indices.flatten()
    return torch.stack([torch.arange(len(rows), device=u.device).repeat_interleave(number), ends], 1)


def graph_matching_loss(
    u_s: F[Tensor, "nodes width"],
    u_t: F[Tensor, "nodes width"],
    local: F[Tensor, "nodes nodes"] | None = None,
    knn: int = 5,
    alpha: float | None = None,
    lam: float = 80.0,
    noise: float = 0.0,
    *,
    solver: str | None = None,
    generator: torch.Generator | None = None,
) -> F[Tensor, ""]:
    r"""Hamming distance of the best matching of two views of a batch, as graphs, to the true one.

    .. math:: L = \sum_{ia} V_{ia} (1 - I_{ia}) + I_{ia} (1 - V_{ia}), \qquad
        C_{ia} = \alpha \cos(u^s_i, u^t_a) + (1 - \alpha)\, \mathrm{local}_{ia}, \quad
        E_{ij,ab} = \cos(u^s_i - u^s_j, u^t_a - u^t_b)

    V is that of :func:`match_graphs` on nearest-neighbour graphs of either view. The VALUE is flat; the gradient is the
    perturbed one of :class:`BlackboxMatching` in C, and in E that of the same distance of edges.

    Args:
        u_s, u_t: embeddings of the same items in two views ``[N, d]``, N of 8 to 32.
        local: affinities of local features ``[N, N]``.
        knn: edges of a node, 0 for an assignment of nodes alone.
        alpha: weight of the cosines beside local affinities, in [0, 1]; None for 0.8, or 1 without.
        lam: step of the perturbation, > 0.
        noise: scale of Gumbel noise on C and E, >= 0.
        solver: of :func:`match_graphs`.
        generator: of the noise.

    Returns:
        The loss in float32 or wider: twice the number of items that are matched wrongly.

    Raises:
        ValueError: shapes that don't belong together, a number out of range.

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> graph_matching_loss(u, u.flip(0), knn=0)
        tensor(4.)

    Source: LVM-Med: Learning Large-Scale Self-Supervised Vision Models for Medical Imaging via Second-order Graph
    Matching, arXiv:2306.11925.
    """
    check_tensor("u_s", u_s, ndim=2, floating=True)
    check_tensor("u_t", u_t, floating=True, shape=tuple(u_s.shape))
    _check(knn, lam, noise)
    if local is None and alpha is not None:
        refuse("alpha", "None without local affinities", alpha)
    nodes = len(u_s)
    first, second = widen(u_s), widen(u_t)
    if not nodes:
        return first.sum() + second.sum()
    c = unit_rows(first) @ unit_rows(second).mT
    if local is not None:
        alpha = 0.8 if alpha is None else alpha
        check_number("alpha", alpha, low=0.0, high=1.0)
        check_tensor("local", local, floating=True, shape=(nodes, nodes))
        c = alpha * c + (1 - alpha) * local.to(c.dtype)
    e = edges_s = edges_t = None
    if knn and nodes > 1:
        edges_s, edges_t = neighbour_edges(first, knn), neighbour_edges(second, knn)
        apart_s, apart_t = (unit_rows(u[g[:, 0]] - u[g[:, 1]]) for u, g in ((first, edges_s), (second, edges_t)))
        e = apart_s @ apart_t.mT
    solver = _solver(solver, nodes, e is not None)

    def noisy(values: Tensor) -> Tensor:
        if not noise:
            return values.detach()
        drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        return values.detach() - noise * torch.log(-torch.log(drawn)).to(values)

    problem = _problem(noisy(c), None if e is None else noisy(e), edges_s, edges_t)
    p = problem.solve(solver)
    true = np.arange(nodes)
    by_edges = None if e is None else 1 - 2 * _taken(problem, true, e)
    to_nodes, to_edges = _slopes(problem, p, 1 - 2 * np.eye(nodes), by_edges, lam, solver)
    slope = (torch.from_numpy(to_nodes).to(c) * c).sum()
    if e is not None and to_edges is not None:
        slope = slope + (torch.from_numpy(to_edges).to(e) * e).sum()
    return slope - slope.detach() + 2.0 * float((p != true).sum())


def _check(knn: int, lam: float, noise: float) -> None:
    check_number("knn", knn, low=0, integer=True)
    check_number("lam", lam, low=0.0, open_low=True)
    check_number("noise", noise, low=0.0)


class GraphMatchingLoss(Loss):
    """See :func:`graph_matching_loss`. Of several ranks each matches its own batch.

    Args:
        knn: edges of a node, 0 for an assignment of nodes alone.
        alpha: weight of the cosines beside local affinities; None for 0.8.
        lam: step of the perturbation, > 0.
        noise: scale of Gumbel noise, >= 0, drawn by torch's own generator.
        solver: of :func:`match_graphs`.

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> GraphMatchingLoss(knn=0)(u, u.flip(0))
        tensor(4.)
    """

    name = "graph_matching"
    gradient = "surrogate"
    differentiable = (0, 1)

    def __init__(
        self,
        knn: int = 5,
        alpha: float | None = None,
        lam: float = 80.0,
        noise: float = 0.0,
        solver: str | None = None,
    ) -> None:
        super().__init__()
        _check(knn, lam, noise)
        if alpha is not None:
            check_number("alpha", alpha, low=0.0, high=1.0)
        if solver is not None:
            check_choice("solver", solver, SOLVERS)
        self.knn, self.alpha, self.lam, self.noise, self.solver = knn, alpha, lam, noise, solver

    def forward(self, u_s: Tensor, u_t: Tensor, local: Tensor | None = None) -> Tensor:
        """The loss of two views ``[N, d]`` and local affinities ``[N, N]``."""
        return graph_matching_loss(u_s, u_t, local, self.knn, self.alpha, self.lam, self.noise, solver=self.solver)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Two views of six items, with edges and without."""
        views = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64).to(device, dtype)
        local = torch.rand(6, 6, generator=generator, dtype=torch.float64).to(device, dtype)
        return [(cls(knn=3), ((views[0], views[1]), {})), (cls(knn=0), ((views[0], views[1], local), {}))]
