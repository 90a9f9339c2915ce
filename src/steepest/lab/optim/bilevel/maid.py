"""MAID from six starts against fixed accuracies: ridge regression with a penalty for each feature.

Set-up of the claim: scikit-learn's diabetes table, standardised, 221 rows for the lower level (mean squared error / 2
and half of ``exp(theta_j) x_j^2`` for each of ten features) and 221 for the upper one (the same error without penalty),
split by seed; theta begins at 0. The lower level is accelerated gradient descent with the exact constants of each
theta, from the last solution. All arms have 3,000 iterations, those of the adjoint's conjugate gradients included.
Losses are those at the exact minimum of the lower level, which is a linear system.

- MAID, with both accuracies from 1e-1, 1e-3 or 1e-5 and step sizes from 1e-3 or 1e-1;
- both accuracies fixed at 1e-1 or 1e-5 under the same certified search, as in the authors' code (``fixed_eps``): it
  ends where three rounds of the search accept nothing. Both first step sizes are tried, the better one counts;
- both accuracies fixed, and steps of one size without any test;
- L-BFGS on the exact loss.

Claims, from the card's "MAID's final losses within 1% of each other; fixed 1e-1 stalls, fixed 1e-5 costs several
times more": the six last losses differ by less than 1%; the search with 1e-1 ends more than 1% above MAID; with 1e-5
it needs more than twice MAID's iterations (several: three times) until it is within 1% of MAID's last loss, both from
the step size 1e-1. Expectations of ours: 1e-1 ends above MAID also with steps of one size, and MAID ends at most 1%
above L-BFGS.

What was checked of the last iterations, where 1e-5 needs about 1.5 times as many: the lower level converges linearly
and begins at the last solution, so that digits are cheap, and MAID itself goes on to 1e-6, which its certificate asks
for. On pilot seeds steps of one size with 1e-5, at their best size, were sooner within 1% than MAID (196, 336 and 622
iterations; MAID 873, 1,118, 910), whose steps begin at 0.1 and grow by a ninth.

The baseline is fair: it has the same solver and the same count of iterations; steps of one size take the best of five
sizes for each accuracy by the last loss on seeds that are not reported (:func:`choose_sizes`); with 1e-5 they must end
within 2% of L-BFGS, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch import Tensor

from ....optim.bilevel.maid import MAID, inexact_backtracking
from ...data import built_in
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

ROWS, BUDGET, SEEDS, PILOTS, SANITY = 221, 3000, 16, (101, 102, 103), -2.0
STARTS = [(eps, beta) for eps in (1e-1, 1e-3, 1e-5) for beta in (1e-3, 1e-1)]
GRID = (10.0, 30.0, 100.0, 300.0, 1000.0)
SIZES = {1e-1: 30.0, 1e-5: 300.0}
"""What :func:`choose_sizes` gives, by the accuracy."""
CLAIMS = (
    Claim("same", "MAID's last losses from six starts differ by less than 1%", size=1.0, threshold=1.0, greater=False),
    Claim("stalls", "with 1e-1 fixed the search ends more than 1% above MAID", size=1.0, threshold=1.0),
    Claim("costs", "with 1e-5 fixed the search takes over twice MAID's iterations to 1%", size=1.0, threshold=2.0),
    Claim("one size", "with 1e-1 fixed and steps of one size the end is above MAID's, in %", size=1.0, ours=True),
    Claim(
        "exact", "MAID's last loss is less than 1% above that of L-BFGS on the exact one",
        size=1.0, threshold=1.0, greater=False, ours=True,
    ),
)  # fmt: skip
Path = list[tuple[int, float]]
"""Iterations so far and the exact loss, from the start on."""


def run(scale: str, seed: int) -> Evidence:
    """The last loss of each arm, and iterations until within 1% of MAID's."""
    full = scale == "full"
    problem, budget = Ridge(seed), BUDGET if full else 60
    maid = {start: descended(problem, *start, budget) for start in STARTS}
    level = 1.01 * last(maid[1e-1, 1e-1], budget)
    paths = {f"MAID from {eps:g}, steps from {beta:g}": path for (eps, beta), path in maid.items()}
    search = {eps: [searched(problem, eps, beta, budget) for beta in (1e-3, 1e-1)] for eps in SIZES}
    for eps, tried in search.items():
        paths[f"{eps:g} fixed, search"] = min(tried, key=lambda path: last(path, budget))
        paths[f"{eps:g} fixed, steps of one size"] = stepped(problem, eps, SIZES[eps], budget)
    ends = {arm: last(path, budget) for arm, path in paths.items()}
    rows: list[dict[str, Any]] = [{"arm": arm, "loss": loss} for arm, loss in ends.items()]
    if full:  # counts of iterations move with rounding
        rows = [row | {"iterations to 1%": reached(paths[row["arm"]], level)} for row in rows]
    exact = problem.optimum()
    rows.append({"arm": "L-BFGS", "loss": exact})
    if full:
        tuned = ends["1e-05 fixed, steps of one size"]
        check_sane("loss of steps of one size over that of L-BFGS, %, negative", 100 - 100 * tuned / exact, SANITY)
    losses = [last(path, budget) for path in maid.values()]
    end = ends["MAID from 0.1, steps from 0.1"]
    sooner = max(1, reached(maid[1e-1, 1e-1], level))
    effects = {
        "same": 100 * (max(losses) / min(losses) - 1),
        "stalls": 100 * (ends["0.1 fixed, search"] / end - 1),
        "costs": min(reached(path, level) for path in search[1e-5]) / sooner,
        "one size": 100 * (ends["0.1 fixed, steps of one size"] / end - 1),
        "exact": 100 * (end / exact - 1),
    }
    return Evidence(rows, effects)


class Ridge:
    """Both levels of one split, their constants, a solver of the lower one and its exact solution."""

    def __init__(self, seed: int) -> None:
        x, y, x_test, y_test = built_in("diabetes", seed, train=ROWS)
        mean, deviation = y.mean(), y.std()
        self.A, self.b, _ = moments(x, (y - mean) / deviation)
        self.V, self.w, self.constant = moments(x_test, (y_test - mean) / deviation)
        self.L_g = float(torch.linalg.eigvalsh(self.V)[-1])

    def lower(self, x: Tensor, theta: Tensor) -> Tensor:
        """Half the mean squared error and the penalties."""
        return 0.5 * x @ self.A @ x - self.b @ x + 0.5 * (theta.exp() * x.square()).sum()

    def upper(self, x: Tensor) -> Tensor:
        """Half the mean squared error on the other rows."""
        return 0.5 * x @ self.V @ x - self.w @ x + self.constant

    def method(self, eps: float, beta: float) -> MAID:
        """With all constants of this problem: the Jacobian of the lower slope is ``diag(exp(theta) * x)``."""
        return MAID(
            self.lower, self.upper, lambda theta: self.constants(theta)[0], self.L_g, solver=self.solve, eps0=eps,
            delta0=eps, beta0=beta, L_J=lambda theta: float(theta.exp().max()),
        )  # fmt: skip

    def constants(self, theta: Tensor) -> tuple[float, float]:
        """The lower level's strong convexity and smoothness."""
        values = torch.linalg.eigvalsh(self.A + theta.exp().diag())
        return float(values[0]), float(values[-1])

    def solve(self, x: Tensor, theta: Tensor, eps: float) -> tuple[Tensor, int]:
        """Accelerated gradient descent from x to the distance eps, and its iterations."""
        mu, smooth = self.constants(theta)
        matrix, right = (self.A + theta.exp().diag()).numpy(), self.b.numpy()
        momentum = (math.sqrt(smooth) - math.sqrt(mu)) / (math.sqrt(smooth) + math.sqrt(mu))
        old = at = x.numpy()
        iterations = 0
        while True:
            slope = matrix @ at - right
            if slope @ slope <= (mu * eps) ** 2:
                return torch.as_tensor(at), iterations
            new = at - slope / smooth
            at, old, iterations = new + momentum * (new - old), new, iterations + 1

    def loss(self, theta: Tensor) -> float:
        """The upper loss at the exact minimum of the lower one."""
        return float(self.upper(torch.linalg.solve(self.A + theta.exp().diag(), self.b)))

    def optimum(self) -> float:
        """The loss that L-BFGS ends at from theta = 0, with the exact gradient."""

        def value_and_slope(theta: np.ndarray) -> tuple[float, np.ndarray]:
            penalty = torch.as_tensor(theta).exp()
            matrix = self.A + penalty.diag()
            x = torch.linalg.solve(matrix, self.b)
            adjoint = torch.linalg.solve(matrix, self.V @ x - self.w)
            return float(self.upper(x)), (-penalty * x * adjoint).numpy()

        bounds = [(-15.0, 15.0)] * len(self.b)
        return float(minimize(value_and_slope, np.zeros(len(self.b)), jac=True, method="L-BFGS-B", bounds=bounds).fun)


def moments(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor, float]:
    """What the mean squared error depends on."""
    rows, target = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    return rows.T @ rows / len(rows), rows.T @ target / len(rows), 0.5 * float(target.square().mean())


def begun(problem: Ridge) -> tuple[Tensor, Tensor]:
    """Zero hyper-parameters and weights."""
    return torch.zeros_like(problem.b), torch.zeros_like(problem.b)


def descended(problem: Ridge, eps: float, beta: float, budget: int) -> Path:
    """MAID."""
    theta, x = begun(problem)
    history = problem.method(eps, beta).run(theta, x, budget, budget=budget).history
    steps = [(step.lower_iterations + step.adjoint_iterations, problem.loss(step.theta)) for step in history]
    return [(0, problem.loss(theta)), *steps]


def searched(problem: Ridge, eps: float, step: float, budget: int) -> Path:
    """The certified search with fixed accuracies."""
    theta, x = begun(problem)
    method, path, iterations, rounds = problem.method(eps, step), [(0, problem.loss(theta))], 0, 0
    while iterations < budget and rounds < 3:
        x, taken = problem.solve(x, theta, eps)
        at = method.hypergradient(theta, x, eps, eps)
        search = inexact_backtracking(
            problem.upper, problem.solve, theta, x, at.z, eps, problem.L_g, step, trials=10 + rounds
        )
        iterations += taken + at.iterations + search.iterations
        rounds += 1
        if search.accepted:
            theta, x, step, rounds = search.theta, search.x, search.step * 10 / 9, 0
            path.append((iterations, problem.loss(theta)))
    return path


def stepped(problem: Ridge, eps: float, step: float, budget: int) -> Path:
    """Steps of one size with fixed accuracies, until neither level has anything to do."""
    theta, x = begun(problem)
    method, path, iterations = problem.method(eps, step), [(0, problem.loss(theta))], 0
    while iterations < budget:
        x, taken = problem.solve(x, theta, eps)
        at = method.hypergradient(theta, x, eps, eps)
        if path[1:] and taken + at.iterations == 0:
            break
        theta, iterations = theta - step * at.z, iterations + taken + at.iterations
        path.append((iterations, problem.loss(theta)))
    return path


def last(path: Path, budget: int) -> float:
    """The last loss within the budget."""
    return next(loss for iterations, loss in reversed(path) if iterations <= budget)


def reached(path: Path, level: float) -> int:
    """Iterations until the loss is at most this, or all."""
    return next((iterations for iterations, loss in path if loss <= level), BUDGET)


def choose_sizes() -> dict[float, float]:
    """The size of steps with the lowest last loss for each accuracy, over seeds that are not reported."""
    ridge = cache(Ridge)

    def score(eps: float, size: float, seed: int) -> float:
        return -last(stepped(ridge(seed), eps, size, BUDGET), BUDGET)

    return {eps: best_setting(GRID, lambda size, seed, eps=eps: score(eps, size, seed), PILOTS) for eps in SIZES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The last loss of each arm over that of L-BFGS."""
    rows = [
        {"arm": row["arm"], "loss above L-BFGS, %": 100 * (row["loss"] / seed.rows[-1]["loss"] - 1)}
        for seed in evidence
        for row in seed.rows
    ]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="loss above L-BFGS, %")
    return drawn
