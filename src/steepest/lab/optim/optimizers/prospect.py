"""Prospect goes down to the minimum of a spectral risk; minibatches stop at their bias, saddle-point steps at their
noise.

Set-up of the claim: scikit-learn's diabetes table (442 rows, features and target standardised), squared error, the
superquantile 0.5 smoothed with nu = 1 (chi-square), mu = 1/n, from zero weights; a sample's gradient counts 1/n of a
pass, every arm has 100 passes, tables of the start counted as one. Arms: Prospect; SGD with batches of 64, whose
weights are those of the batch alone (a biased quantile); stochastic saddle-point steps, one sample each for weights and
q. The suboptimality is that of the whole risk, relative to where the run begins, against L-BFGS in float64; seeds are
orders of samples.

Claims, from the card's "SGD plateaus near 1e-1 to 1e-3 relative, Prospect linear down to 1e-8 in about 100 passes":
Prospect ends below 1e-8; SGD ends above 1e-3; Prospect lies at least a factor of 1,000 below the saddle-point method
(the card has no number); between 40 and 100 passes Prospect falls by at least two decades more (linear, not a plateau).

The baseline is fair: each arm takes the best of the rates :data:`GRID` by the mean
logarithm of its suboptimality over two orders that are not reported (:func:`choose_rates`); SGD must come below a tenth
of the start, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch import Tensor

from ....optim.optimizers.prospect import Prospect, SpectralRisk, spectral_risk_weights, superquantile
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import best_setting, check_sane

PASSES, CHECKED, BATCH, NU, SEEDS, PILOTS = 100, (10, 20, 40, 60, 80, 100), 64, 1.0, 5, (101, 102)
PROSPECT, SGD, SADDLE = "Prospect", "SGD, batches of 64", "saddle point"
GRID = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATES = {PROSPECT: 3e-2, SGD: 3e-2, SADDLE: 1e-4}
"""What :func:`choose_rates` gives."""
SANITY = 1.0
CLAIMS = (
    Claim("prospect", "Prospect ends below 1e-8 (log10)", size=1.0, threshold=-8.0, greater=False),
    Claim("sgd", "SGD in batches ends above 1e-3 (log10)", size=1.0, threshold=-3.0),
    Claim("saddle", "Prospect ends 3 decades below the saddle-point method", size=3.0, threshold=3.0),
    Claim("linear", "from 40 to 100 passes Prospect falls by 2 decades", size=2.0, threshold=2.0),
)
Problem = tuple[Tensor, Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """Suboptimality of each arm over passes."""
    full = scale == "full"
    data = problem(full)
    checked = CHECKED if full else (1, 2)
    curves = {arm: ways(data, arm, RATES[arm], seed, checked) for arm in RATES}
    rows: list[dict[str, Any]] = [
        {"arm": arm, "rate": RATES[arm], "passes": passes, "log10 suboptimality": value}
        for arm, curve in curves.items()
        for passes, value in zip(checked, curve)
    ]
    if full:
        check_sane("decades that SGD comes down", -curves[SGD][-1], SANITY)
    middle = checked.index(40) if full else 0
    effects = {
        "prospect": curves[PROSPECT][-1],
        "sgd": curves[SGD][-1],
        "saddle": curves[SADDLE][-1] - curves[PROSPECT][-1],
        "linear": curves[PROSPECT][middle] - curves[PROSPECT][-1],
    }
    return Evidence(rows, effects)


@cache
def problem(full: bool) -> Problem:
    """Features, target and spectrum, in float64."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = (x, y) if full else (x[:40, :4], y[:40])
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return torch.as_tensor(x), torch.as_tensor(y), superquantile(len(x), 0.5)


def value_and_gradient(w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the squared error of one sample."""
    residual = x @ w - y
    return 0.5 * residual * residual, residual * x


def risk(data: Problem, w: Tensor) -> tuple[float, Tensor]:
    """The objective and its gradient."""
    x, y, sigma = data
    residual = x @ w - y
    q = spectral_risk_weights(0.5 * residual**2, sigma, NU)
    value = SpectralRisk(sigma, NU)(0.5 * residual**2) + 0.5 / len(x) * w.square().sum()
    return float(value), x.T @ (q * residual) + w / len(x)


@cache
def ends(full: bool) -> tuple[float, float]:
    """The objective at zero, and its minimum."""
    data = problem(full)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = risk(data, torch.from_numpy(w))
        return value, slope.numpy()

    zeros = np.zeros(data[0].shape[1])
    least = minimize(
        objective, zeros, jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-11, "maxiter": 5000}
    )
    return objective(zeros)[0], float(least.fun)


def ways(data: Problem, arm: str, rate: float, seed: int, checked: Sequence[int]) -> list[float]:
    """The logarithm of the relative suboptimality of an arm after so many passes."""
    begin, least = ends(len(data[0]) > 40)
    weights = {PROSPECT: prospect, SGD: sgd, SADDLE: saddle}[arm](data, rate, seed)
    curve, so_far = [], 0
    for passes in checked:
        w = weights(passes - so_far)
        so_far = passes
        over = (risk(data, w)[0] - least) / (begin - least)
        curve.append(min(math.log10(max(over, 1e-13)), 3.0) if math.isfinite(over) else 3.0)
    return curve


def prospect(data: Problem, rate: float, seed: int) -> Callable[[int], Tensor]:
    """Prospect; its first table is a pass."""
    x, y, sigma = data
    generator = torch.Generator().manual_seed(seed)
    method = Prospect(
        lambda w, x, y: value_and_gradient(w, x, y)[0], (x, y), sigma, NU, lr=rate,
        value_and_gradient=value_and_gradient, generator=generator,
    )  # fmt: skip
    left = [1]

    def weights(passes: int) -> Tensor:
        passes -= left.pop() if left else 0
        return method.run(passes * len(x))

    return weights


def sgd(data: Problem, rate: float, seed: int) -> Callable[[int], Tensor]:
    """Steps along the risk of a batch, whose spectrum is that of its size."""
    x, y, _ = data
    size = min(BATCH, len(x) // 4)
    sigma, generator, w = superquantile(size, 0.5), torch.Generator().manual_seed(seed), torch.zeros_like(x[0])

    def weights(passes: int) -> Tensor:
        for _ in range(passes):
            for rows in torch.randperm(len(x), generator=generator).split(size):
                if len(rows) < size:
                    break
                residual = x[rows] @ w - y[rows]
                q = spectral_risk_weights(0.5 * residual**2, sigma, NU)
                w.sub_(rate * (x[rows].T @ (q * residual))).div_(1 + rate / len(x))
        return w

    return weights


def saddle(data: Problem, rate: float, seed: int) -> Callable[[int], Tensor]:
    """One sample a step: descent of w along n q_i times its gradient, ascent of q along its loss, projected."""
    x, y, sigma = data
    n = len(x)
    generator, w = torch.Generator().manual_seed(seed), torch.zeros_like(x[0])
    q = torch.full_like(y, 1 / n)

    def weights(passes: int) -> Tensor:
        for i in torch.randint(n, (passes * n,), generator=generator).tolist():
            value, slope = value_and_gradient(w, x[i], y[i])
            w.sub_(rate * n * float(q[i]) * slope).div_(1 + rate / n)
            # the projection of z on the permutahedron is the weights of losses n (z - 1/n) for nu = 1
            up = -(rate / n) * n * NU * (q - 1 / n)
            up[i] += rate / n * float(value)
            q.copy_(spectral_risk_weights(n * (q + up - 1 / n), sigma, 1.0))
        return w

    return weights


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the lowest mean logarithm at the end, over orders that are not reported."""
    data = problem(True)

    def score(arm: str, rate: float, seed: int) -> float:
        return -ways(data, arm, rate, seed, (PASSES,))[0]

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: score(arm, rate, seed), PILOTS) for arm in RATES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Suboptimality over passes."""
    drawn: Figure = arms_figure(evidence, x="passes", y="log10 suboptimality")
    return drawn
