"""Decentralised SGD: agents on a graph, each with a private loss, mix with their neighbours and take noisy steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse, refuse_type, values_visible
from ...core.reductions import widen

Losses = Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]]


def graph_laplacian(adjacency: Tensor) -> F[Tensor, "n n"]:
    r"""The Laplacian :math:`L = D - A` of an undirected graph, in float64.

    Args:
        adjacency: ``[n, n]``, symmetric, finite weights of edges >= 0 (or booleans), zeros on the diagonal.

    Returns:
        L, ``[n, n]``: degrees on the diagonal, minus the weights of edges elsewhere.

    Raises:
        ValueError: a matrix that is no such adjacency.

    Example:
        >>> graph_laplacian(torch.tensor([[0, 1], [1, 0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)

    Source: Distributed Stochastic Gradient Descent: Nonconvexity, Nonsmoothness, and Convergence to Local Minima,
    arXiv:2003.02818.
    """
    check_tensor("adjacency", adjacency, ndim=2)
    a = adjacency.detach().double()
    square = len(a) > 0 and a.shape[0] == a.shape[1]
    if not square or not bool((a == a.T).all() & (a >= 0).all() & a.isfinite().all() & (a.diagonal() == 0).all()):
        refuse("adjacency", "a symmetric matrix of finite weights >= 0 with a diagonal of zeros", adjacency)
    return torch.diag(a.sum(1)) - a


def consensus_error(x: F[Tensor, "*batch n d"]) -> F[Tensor, "*batch"]:
    r"""How far agents are from their mean: :math:`\sqrt{\frac1n \sum_i \|x_i - \bar x\|^2}`.

    Args:
        x: one row an agent; dimensions before are a batch.

    Returns:
        the root of the mean squared distance, 0 in consensus, where its gradient is 0 too; in float32 or wider.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> consensus_error(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
        tensor(5.)

    Source: Distributed Stochastic Gradient Descent: Nonconvexity, Nonsmoothness, and Convergence to Local Minima,
    arXiv:2003.02818.
    """
    check_tensor("x", x, floating=True)
    if x.ndim < 2:
        refuse("x", "at least 2 dimensions, agents and coordinates", x)
    wide = widen(x)
    distances = wide - wide.mean(-2, keepdim=True)
    # squares of small or large distances leave float32
    lengths: Tensor = torch.linalg.vector_norm(distances, dim=(-2, -1), dtype=torch.float64)
    return (lengths / math.sqrt(max(1, x.shape[-2]))).to(wide)


def decentralized_sgd_step(
    x: F[Tensor, "*batch n d"], grads: F[Tensor, "*batch n d"], laplacian: F[Tensor, "n n"], alpha: float, beta: float
) -> F[Tensor, "*batch n d"]:
    r"""One step of all agents, who mix and descend at the same time.

    .. math:: x_i^+ = x_i - \beta \sum_{j \in N(i)} (x_i - x_j) - \alpha g_i, \qquad x^+ = x - \beta L x - \alpha g

    The mean obeys :math:`\bar x^+ = \bar x - \alpha \bar g`: mixing conserves it.

    Args:
        x: one row an agent; dimensions before are a batch of independent runs.
        grads: each agent's own (stochastic, sub-) gradient at its own x, of the same shape.
        laplacian: L of a connected graph, as of :func:`graph_laplacian`.
        alpha: weight of the gradients, >= 0.
        beta: weight of mixing, >= 0 and below 2 / lambda_max(L), beyond which agents drift apart. Graph and bound are
            checked where values may be looked at; :class:`DSGD` checks them once for all steps.

    Returns:
        the next x, of the same shape.

    Raises:
        ValueError: shapes that differ, a matrix that is no Laplacian of a connected graph, a beta too large.

    Example:
        >>> complete = graph_laplacian(1 - torch.eye(3))
        >>> x, c = torch.tensor([[0.0], [3.0], [6.0]]), torch.tensor([[1.0], [1.0], [4.0]])
        >>> decentralized_sgd_step(x, x - c, complete, alpha=0.1, beta=0.2).flatten()
        tensor([1.9000, 2.8000, 4.0000])

    Source: Distributed Stochastic Gradient Descent: Nonconvexity, Nonsmoothness, and Convergence to Local Minima,
    arXiv:2003.02818.
    """
    check_tensor("x", x, floating=True)
    check_tensor("grads", grads, floating=True, shape=tuple(x.shape))
    check_number("alpha", alpha, low=0.0)
    check_number("beta", beta, low=0.0)
    _check_agents("x", x, laplacian)
    if values_visible(laplacian):
        _check_mixing(laplacian, "beta", beta)
    return _step(x, grads, laplacian.to(x), alpha, beta)


class DSGD:
    r"""Distributed stochastic gradient descent with decaying weights, all agents simulated in one process.

    .. math::
        x_i \leftarrow x_i - \beta_k \sum_{j \in N(i)} (x_i - x_j) - \alpha_k (\nabla f_i(x_i) + \xi_i), \qquad
        \alpha_k = \frac{a}{(k + 1)^{t_a}}, \quad \beta_k = \frac{b}{(k + 1)^{t_b}}

    With :math:`\frac12 < t_a \le 1` and :math:`0 \le t_b < t_a` agents come to consensus, at a critical point of the
    sum of all losses, and leave saddle points almost surely if the noise excites every direction. With constant
    weights (both exponents 0) a bias stays: the fixed point solves
    :math:`\alpha \nabla f_i(x_i) + \beta (L x)_i = 0`. One agent alone does SGD.

    Args:
        losses: a function of ``[..., n, d]`` that gives ``[..., n]``, where entry i depends on row i alone, or one
            function an agent, of ``[..., d]``. Those that draw a batch at each call make the gradients stochastic;
            where a loss has kinks, autograd's subgradient is used.
        start: first x, ``[..., n, d]``; dimensions before agents are independent runs.
        laplacian: L of a connected graph, as of :func:`graph_laplacian`.
        a: weight of gradients at k = 0, >= 0.
        b: weight of mixing at k = 0, below 2 / lambda_max(L); by default 1 / lambda_max(L).
        ta, tb: exponents of the two, in the ranges above; both 0 keep the weights constant.
        noise: standard deviation of Gaussian noise added to every coordinate of every gradient, >= 0.
        gradients: ``x -> [..., n, d]``, where a formula is at hand, instead of differentiating ``losses``; no graph is
            kept.
        generator: of the noise; torch's own by default.

    Raises:
        ValueError: wrong shapes, a graph that is not connected, numbers outside their range.

    Example:
        >>> ring = graph_laplacian(torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0))
        >>> centres = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
        >>> agents = DSGD(lambda x: 0.5 * (x - centres).square().sum(-1), torch.zeros(4, 1), ring)
        >>> agents.run(2000).mean(-2)
        tensor([2.0000])
        >>> bool(consensus_error(agents.x) < 0.02)
        True

    Source: Distributed Stochastic Gradient Descent: Nonconvexity, Nonsmoothness, and Convergence to Local Minima,
    arXiv:2003.02818.
    """

    def __init__(
        self,
        losses: Losses,
        start: F[Tensor, "*batch n d"],
        laplacian: F[Tensor, "n n"],
        *,
        a: float = 1.0,
        b: float | None = None,
        ta: float = 1.0,
        tb: float = 0.3,
        noise: float = 0.0,
        gradients: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_tensor("start", start, floating=True)
        check_number("a", a, low=0.0)
        check_number("noise", noise, low=0.0)
        _check_agents("start", start, laplacian)
        if ta != 0 or tb != 0:
            check_number("ta", ta, low=0.5, high=1.0, open_low=True)
            check_number("tb", tb, low=0.0, high=ta, open_high=True)
        largest = _check_mixing(laplacian, "b", 0.0 if b is None else b)
        if b is None:
            b = 1 / largest if largest > 0 else 0.0
        if not callable(losses):
            losses = list(losses)
            if len(losses) != start.shape[-2]:
                refuse("losses", f"one for each of {start.shape[-2]} agents", len(losses))
            if not all(map(callable, losses)):
                refuse_type("losses", "functions", losses)
        self.losses, self.gradients, self.generator = losses, gradients, generator
        self.x = start.detach().clone()
        self.laplacian = laplacian.detach().to(self.x)
        self.a, self.b, self.noise, self.ta, self.tb = a, b, noise, ta, tb
        self.k = 0

    @property
    def alpha(self) -> float:
        """Weight of the gradients in the next step."""
        return self.a / math.pow(self.k + 1, self.ta)

    @property
    def beta(self) -> float:
        """Weight of mixing in the next step."""
        return self.b / math.pow(self.k + 1, self.tb)

    @property
    def mean(self) -> Tensor:
        """The mean over agents, ``[..., d]``."""
        return self.x.mean(-2)

    def values(self, x: Tensor | None = None) -> Tensor:
        """Each agent's loss at its own x, or at rows of another one, ``[..., n]``."""
        x = self.x if x is None else x
        if callable(self.losses):
            values = self.losses(x)
        else:
            values = torch.stack([loss(own) for loss, own in zip(self.losses, x.unbind(-2))], -1)
        if values.shape != x.shape[:-1]:
            refuse("losses", f"a value for each row, of shape {tuple(x.shape[:-1])}", values)
        return values

    def step(self) -> Tensor:
        """One step of all agents; gives the next x, ``[..., n, d]``."""
        if self.gradients is not None:
            slopes = self.gradients(self.x)
            check_tensor("gradients", slopes, floating=True, shape=tuple(self.x.shape))
            slopes = slopes.detach()
        else:
            with torch.enable_grad():
                x = self.x.detach().requires_grad_()
                (slopes,) = torch.autograd.grad(self.values(x).sum(), x)
        if self.noise > 0:
            draws = torch.randn(self.x.shape, generator=self.generator, dtype=self.x.dtype, device=self.x.device)
            slopes = slopes + self.noise * draws
        self.x = _step(self.x, slopes, self.laplacian, self.alpha, self.beta)
        self.k += 1
        return self.x

    def run(self, steps: int) -> Tensor:
        """So many steps; gives x after the last, ``[..., n, d]``."""
        check_number("steps", steps, low=0, integer=True)
        for _ in range(steps):
            self.step()
        return self.x


def _step(x: Tensor, grads: Tensor, laplacian: Tensor, alpha: float, beta: float) -> Tensor:
    return (x - beta * (laplacian @ x)).sub_(grads, alpha=alpha)


def _check_agents(argument: str, x: Tensor, laplacian: Tensor) -> None:
    """Whether there are agents, and a row of the Laplacian for each of them."""
    if x.ndim < 2 or not x.shape[-2]:
        refuse(argument, "[..., n, d], one row an agent", x)
    check_tensor("laplacian", laplacian, shape=(x.shape[-2], x.shape[-2]))


def _check_mixing(laplacian: Tensor, argument: str, weight: float) -> float:
    """Whether the graph is connected and the weight of mixing below its bound; gives the largest eigenvalue of L."""
    wide = laplacian.detach().double()
    n = len(wide)
    rounding = 64 * torch.finfo(laplacian.dtype if laplacian.is_floating_point() else torch.float64).eps
    rounding *= max(1.0, float(wide.abs().max()))
    away = torch.stack([(wide - wide.T).abs().max(), wide.sum(1).abs().max(), (wide - wide.diag().diag()).max()])
    if not bool((away <= rounding).all()):
        refuse("laplacian", "a symmetric matrix D - A with rows of sum 0", laplacian)
    edges = (wide < 0).double()
    reached = torch.zeros(n, dtype=torch.float64, device=wide.device)
    reached[0], before = 1.0, 0
    while int(reached.sum()) > before:  # breadth first: a small second eigenvalue is no question of rounding
        before = int(reached.sum())
        reached = ((reached + edges @ reached) > 0).double()
    if before < n:
        refuse("laplacian", f"one of a connected graph of {n} agents (agent 0 reaches {before})", laplacian)
    largest = float(torch.linalg.eigvalsh(wide)[-1]) if n > 1 else 0.0
    if largest > 0:
        check_number(argument, weight, low=0.0, high=2 / largest, open_high=True)
    else:
        check_number(argument, weight, low=0.0)
    return largest
