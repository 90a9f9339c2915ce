"""Sparsity-constrained optimal transport: each column of the plan has at most k non-zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float as F
from scipy import optimize, sparse
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse, values_visible
from ...core.reductions import widen

METHODS = ("dual", "semi_dual")


@dataclass(frozen=True)
class OTResult:
    r"""A sparse transport and how well it was solved.

    Args:
        plan: T, ``[m, n]``; at most k non-zeros in each column. Differentiable in the cost, with the potentials held.
        alpha: potential of the rows, ``[m]``.
        beta: potential of the columns, ``[n]``.
        value: of the dual, a lower bound of the primal; its gradient in the cost is the plan.
        row_error: :math:`\|T 1 - a\|_1`: not 0 where the optimum ties columns' choices.
        column_error: :math:`\|T^T 1 - b\|_1`.
        iterations: of the solver.
        message: why the solver stopped.
    """

    plan: Tensor
    alpha: Tensor
    beta: Tensor
    value: Tensor
    row_error: float
    column_error: float
    iterations: int
    message: str


def topk_plan_from_duals(
    alpha: F[Tensor, " m"], beta: F[Tensor, " n"], cost: F[Tensor, "m n"], k: int, gamma: float = 1.0
) -> F[Tensor, "m n"]:
    r"""The plan that two potentials make: the k largest positive slacks of each column.

    .. math:: t_j = \frac1\gamma \operatorname{top}_k\bigl((\alpha + \beta_j 1 - c_j)_+\bigr)

    Args:
        alpha: potential of the rows, ``[m]``.
        beta: potential of the columns, ``[n]``.
        cost: C, ``[m, n]``.
        k: non-zeros of a column at most, 1..m. Of tied slacks no more than k are kept.
        gamma: > 0.

    Returns:
        ``[m, n]``.

    Raises:
        ValueError: wrong shapes, numbers outside their range.

    Example:
        >>> slack = torch.tensor([[0.3], [-0.2], [0.5], [0.1]])
        >>> topk_plan_from_duals(torch.zeros(4), torch.zeros(1), -slack, k=2).squeeze(1)
        tensor([0.3000, 0.0000, 0.5000, 0.0000])

    Source: Sparsity-Constrained Optimal Transport, arXiv:2209.15466.
    """
    _check_cost(cost, k, gamma)
    check_tensor("alpha", alpha, floating=True, shape=(cost.shape[0],))
    check_tensor("beta", beta, floating=True, shape=(cost.shape[1],))
    slack = widen(alpha)[:, None] + widen(beta) - widen(cost)
    largest, where = slack.topk(k, dim=0)
    return torch.zeros_like(slack).scatter(0, where, largest.clamp_min(0)) / gamma


def column_potential(
    alpha: F[Tensor, " m"], b: F[Tensor, " n"], cost: F[Tensor, "m n"], k: int, gamma: float = 1.0
) -> F[Tensor, " n"]:
    r"""The potential of the columns that gives each its mass: with it the plan of ``alpha`` has column sums ``b``.

    The plan is then the projection of the k largest of :math:`(\alpha - c_j)/\gamma` on the simplex of size b_j, and
    the potential is minus gamma times the projection's threshold.

    Args:
        alpha: potential of the rows, ``[m]``.
        b: masses of the columns, ``[n]`` >= 0.
        cost: C, ``[m, n]``.
        k: non-zeros of a column at most, 1..m.
        gamma: > 0.

    Returns:
        ``[n]``.

    Raises:
        ValueError: wrong shapes, numbers outside their range, a negative mass.

    Example:
        >>> cost, b = -torch.tensor([[0.3], [-0.2], [0.5], [0.1]]), torch.ones(1)
        >>> beta = column_potential(torch.zeros(4), b, cost, k=2)
        >>> topk_plan_from_duals(torch.zeros(4), beta, cost, k=2).squeeze(1)
        tensor([0.4000, 0.0000, 0.6000, 0.0000])

    Source: Sparsity-Constrained Optimal Transport, arXiv:2209.15466.
    """
    _check_cost(cost, k, gamma)
    check_tensor("alpha", alpha, floating=True, shape=(cost.shape[0],))
    check_tensor("b", b, floating=True, shape=(cost.shape[1],))
    _check_masses("b", b)
    largest = (widen(alpha)[:, None] - widen(cost)).topk(k, dim=0).values
    return gamma * _least_threshold(largest / gamma, widen(b).to(largest.dtype))


def sparsity_constrained_ot(
    a: F[Tensor, " m"],
    b: F[Tensor, " n"],
    cost: F[Tensor, "m n"],
    k: int,
    *,
    gamma: float = 1.0,
    method: str = "semi_dual",
    max_iter: int = 500,
    tol: float = 1e-9,
    polish: bool = False,
) -> OTResult:
    r"""Optimal transport in which each column receives from at most k rows.

    .. math:: \min_{T \in U(a, b)} \langle T, C \rangle + \frac\gamma2 \|T\|^2
        \quad \text{with} \quad \|t_j\|_0 \le k,

        \max_{\alpha, \beta} \langle \alpha, a \rangle + \langle \beta, b \rangle
        - \sum_j \frac1{2\gamma} \bigl\|\operatorname{top}_k\bigl((\alpha + \beta_j 1 - c_j)_+\bigr)\bigr\|^2

    The dual is concave and solved in float64 by L-BFGS from 0; the semi-dual has maximised over beta in closed form.
    The dual's plan meets the marginals where it is differentiable. Where the k-th slack is tied L-BFGS may stop short
    of the maximum and the plan miss the rows' masses: see ``row_error``. The value is a lower bound, the plan is sparse
    in any case, and the semi-dual's has exact column sums.

    Args:
        a: masses of the rows, ``[m]`` >= 0.
        b: masses of the columns, ``[n]`` >= 0, of the same total.
        cost: C, ``[m, n]``.
        k: non-zeros of a column at most, 1..m, with k n at least the number of rows that have mass.
        gamma: > 0. k = m gives the quadratically regularised transport.
        method: ``"dual"`` or ``"semi_dual"``.
        max_iter: of L-BFGS, >= 1.
        tol: > 0, on the largest entry of the gradient; a step that gains less than a millionth of it ends too.
        polish: solve once more on the support that was found, if it allows a plan. Where that lessens the marginals'
            error its plan and potentials are returned; the value stays the bound of the whole problem.

    Returns:
        Plan, potentials, dual value and errors, in the precision of ``cost`` or wider.

    Raises:
        ValueError: k outside 1..m or too small for any plan, unequal total masses, a negative mass, wrong shapes.

    Example:
        >>> a, b = torch.full((4,), 0.25), torch.full((2,), 0.5)
        >>> cost = torch.tensor([[0.0, 2.0], [0.1, 2.0], [2.0, 0.0], [2.0, 0.2]])
        >>> sparsity_constrained_ot(a, b, cost, k=2).plan
        tensor([[0.2500, 0.0000],
                [0.2500, 0.0000],
                [0.0000, 0.2500],
                [0.0000, 0.2500]])

    Source: Sparsity-Constrained Optimal Transport, arXiv:2209.15466.
    """
    _check_cost(cost, k, gamma)
    m, n = cost.shape
    check_choice("method", method, METHODS)
    check_number("max_iter", max_iter, low=1, integer=True)
    check_number("tol", tol, low=0.0, open_low=True)
    for argument, mass, size in (("a", a, m), ("b", b, n)):
        check_tensor(argument, mass, floating=True, shape=(size,))
        _check_masses(argument, mass)
    wide = [t.detach().double().cpu() for t in (a, b, cost)]
    total, total_b = float(wide[0].sum()), float(wide[1].sum())
    if abs(total - total_b) > 1e-6 * max(total, total_b, 1e-300):
        refuse("b", f"a total mass of {total:g} as in a", total_b)
    wide[1] = wide[1] * (total / total_b) if total_b > 0 else wide[1]
    if k * n < int((wide[0] > 0).sum()):
        refuse("k", f"k * {n} columns to be at least the {int((wide[0] > 0).sum())} rows that have mass", k)
    alpha, beta, iterations, message = _solve(wide, k, gamma, method, max_iter, tol)
    plan = topk_plan_from_duals(alpha, beta, wide[2], k, gamma)
    value_at = (alpha, beta)
    given = used = widen(cost)
    if polish and _allows_plan(plan > 0, wide):
        # off the support the cost is so high that no slack is positive: the sparsity holds by itself
        closed = [wide[0], wide[1], torch.where(plan > 0, wide[2], _CLOSED)]
        again, over, more, note = _solve(closed, m, gamma, method, max_iter, tol)
        better = topk_plan_from_duals(again, over, closed[2], k, gamma)
        iterations += more
        if sum(_errors(better, wide)) < sum(_errors(plan, wide)):
            alpha, beta, plan, message = again, over, better, note
            used = torch.where(closed[2].to(given.device) < _CLOSED, given, _CLOSED)
    # once more in the precision of the cost, and differentiable in it
    lower = topk_plan_from_duals(value_at[0].to(given), value_at[1].to(given), given, k, gamma)
    value = value_at[0].to(given) @ wide[0].to(given) + value_at[1].to(given) @ wide[1].to(given)
    return OTResult(
        topk_plan_from_duals(alpha.to(given), beta.to(given), used, k, gamma),
        alpha.to(given),
        beta.to(given),
        value - gamma / 2 * lower.square().sum(),
        *_errors(plan, wide),
        iterations,
        message,
    )


class SparseOTPlan(nn.Module):
    """A layer that turns a cost into a sparse plan: the potentials are solved for, then held.

    The gradient is that of the plan in the cost at fixed potentials.

    Args:
        k: non-zeros of a column at most.
        gamma: > 0.
        method: ``"dual"`` or ``"semi_dual"``.
        max_iter, tol: of the solver.

    Example:
        >>> layer = SparseOTPlan(k=1)
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> layer(cost)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])

    Source: Sparsity-Constrained Optimal Transport, arXiv:2209.15466.
    """

    def __init__(
        self, k: int, gamma: float = 1.0, method: str = "semi_dual", max_iter: int = 500, tol: float = 1e-9
    ) -> None:
        super().__init__()
        check_number("k", k, low=1, integer=True)
        check_number("gamma", gamma, low=0.0, open_low=True)
        check_choice("method", method, METHODS)
        check_number("max_iter", max_iter, low=1, integer=True)
        check_number("tol", tol, low=0.0, open_low=True)
        self.k, self.gamma, self.method, self.max_iter, self.tol = k, gamma, method, max_iter, tol

    def forward(
        self, cost: F[Tensor, "m n"], a: F[Tensor, " m"] | None = None, b: F[Tensor, " n"] | None = None
    ) -> F[Tensor, "m n"]:
        """The plan of a cost; masses that are None are uniform and sum to 1."""
        check_tensor("cost", cost, ndim=2, floating=True)
        masses = [
            torch.full((size,), 1 / max(size, 1), dtype=torch.float64) if mass is None else mass
            for mass, size in zip((a, b), cost.shape)
        ]
        options = {"gamma": self.gamma, "method": self.method, "max_iter": self.max_iter, "tol": self.tol}
        return sparsity_constrained_ot(masses[0], masses[1], cost, self.k, **options).plan


_CLOSED = 1e30
"""Cost of an entry that no plan may use."""


def _solve(
    problem: list[Tensor], k: int, gamma: float, method: str, max_iter: int, tol: float
) -> tuple[Tensor, Tensor, int, str]:
    """Potentials by L-BFGS on minus the (semi-)dual."""
    a, b, cost = problem
    m = len(a)

    def potentials(x: np.ndarray) -> tuple[Tensor, Tensor]:
        both = torch.from_numpy(x)
        alpha = both[:m]
        return alpha, both[m:] if method == "dual" else column_potential(alpha, b, cost, k, gamma)

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, beta = potentials(x)
        plan = topk_plan_from_duals(alpha, beta, cost, k, gamma)
        value = alpha @ a + beta @ b - gamma / 2 * plan.square().sum()
        slope = [plan.sum(1) - a]
        if method == "dual":
            slope.append(plan.sum(0) - b)
        return -float(value), torch.cat(slope).numpy()

    solution = optimize.minimize(
        negative,
        np.zeros(m + (len(b) if method == "dual" else 0)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 20 * max_iter, "ftol": tol * 1e-6, "gtol": tol},
    )
    alpha, beta = potentials(solution.x)
    return alpha, beta, int(solution.nit), str(solution.message)


def _allows_plan(support: Tensor, problem: list[Tensor]) -> bool:
    """Whether some plan with the masses lies on the support."""
    rows, columns = (where.numpy() for where in support.nonzero(as_tuple=True))
    cells, m = np.arange(len(rows)), len(problem[0])
    sums = sparse.csr_array((np.ones(2 * len(rows)), (np.r_[rows, m + columns], np.r_[cells, cells])),
                            shape=(m + len(problem[1]), len(rows)))  # fmt: skip
    masses = torch.cat(problem[:2]).numpy()
    return bool(optimize.linprog(np.zeros(len(rows)), A_eq=sums, b_eq=masses, method="highs").status == 0)


def _errors(plan: Tensor, problem: list[Tensor]) -> tuple[float, float]:
    """How far the row sums and the column sums are from the masses."""
    return float((plan.sum(1) - problem[0]).abs().sum()), float((plan.sum(0) - problem[1]).abs().sum())


def _least_threshold(kept: Tensor, size: Tensor) -> Tensor:
    """Minus the threshold with which max(kept - threshold, 0) sums to ``size``; ``kept`` descends along dimension 0."""
    count = torch.arange(1, kept.shape[0] + 1, dtype=kept.dtype, device=kept.device)[:, None]
    thresholds = (kept.cumsum(0) - size) / count
    inside = (kept > thresholds).sum(0, keepdim=True).clamp_min(1)
    return -thresholds.gather(0, inside - 1).squeeze(0)


def _check_cost(cost: object, k: object, gamma: object) -> None:
    check_tensor("cost", cost, ndim=2, floating=True)
    assert isinstance(cost, Tensor)
    if 0 in cost.shape:
        refuse("cost", "at least one row and one column", cost)
    check_number("k", k, low=1, high=cost.shape[0], integer=True)
    check_number("gamma", gamma, low=0.0, open_low=True)


def _check_masses(argument: str, mass: Tensor) -> None:
    if mass.numel() and values_visible(mass) and not bool((mass >= 0).all()):
        refuse(argument, "masses >= 0", float(mass.min()))
