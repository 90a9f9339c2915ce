"""Bures-Wasserstein loss: a deep linear generator descends at a linear rate to the truncation that its rank allows.

Set-up of the claim: d = 6, width k in {2, 6}, depth 1 to 3, a random target covariance: a random rotation of
eigenvalues from 0.8 to 3 at random distances. Gradient descent from a balanced random start of full rank on L_tau,
tau = 0.01, learning rate 0.2 over the depth, 1000 steps in float64. The least loss with the tau effect is the sum
over dropped eigenvalues of (sqrt(lambda) - sqrt(tau))^2. "On a straight line" is taken as R^2 of the logarithm of the
loss above its minimum over the steps, from an excess of 1e-2 of the start's down to 1e-9, the least of the six runs,
at least 0.99. "Linger" is taken as: from the saddle of the smallest eigenvalues, moved by 1e-4, the loss stays within
1% of the saddle's value at least 10 times as many steps as a random start spends there, and still ends within 1e-6 of
the minimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.transport.bures_wasserstein import deep_linear_bw_experiment, rank_bounded_critical_points
from ...experiment import Claim, Evidence
from ...figures import arms_figure

TAU, RATE, FLOOR = 0.01, 0.2, 1e-9
CLAIMS = (
    Claim(
        "gap",
        "the final loss is within 1e-6 of its minimum under the rank bound (log10 of the largest gap below -6)",
        size=1.0,
        threshold=-6.0,
        greater=False,
    ),
    Claim("straightness", "the logarithm of the loss falls on a straight line: R^2 at least 0.99", 0.01, 0.99),
    Claim(
        "lingering", "a start near a saddle stays at its value at least 10 times as long as a random one", 10.0, 10.0
    ),
    Claim(
        "gap from saddle",
        "and then leaves it for the minimum, to within 1e-6 (log10 of the gap below -6)",
        size=1.0,
        threshold=-6.0,
        greater=False,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Loss by step for each depth and width, and for a start beside a saddle."""
    steps = 1000 if scale == "full" else 60
    s0 = target(seed)
    rows: list[dict] = []
    gaps, lines, random_start = [], [], torch.zeros(0)
    for width in (2, 6):
        for depth in (1, 2, 3):
            run = deep_linear_bw_experiment(s0, depth, width, RATE / depth, steps, seed, tau=TAU)
            excess = run.losses - run.minimum
            gaps.append(float(excess[-1].abs()))
            lines.append(straightness(excess))
            rows += _curve(f"depth {depth}, rank {width}", excess)
            if (width, depth) == (2, 2):
                random_start = run.losses
    # the saddle of L_tau that keeps the two smallest eigenvalues: W W' + tau I agrees with the target there
    values, vectors = torch.linalg.eigh(s0)
    point = vectors[:, :2] * (values[:2] - TAU).sqrt()
    generator = torch.Generator().manual_seed(seed)
    start = point + 1e-4 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    run = deep_linear_bw_experiment(s0, 2, 2, RATE / 2, 2 * steps, seed, tau=TAU, start=start)
    rows += _curve("beside a saddle", run.losses - run.minimum)
    level = float((values[2:].sqrt() - math.sqrt(TAU)).square().sum())
    spent = [int(((losses / level - 1).abs() < 0.01).sum()) for losses in (run.losses, random_start)]
    rows.append(
        {
            "arm": "saddle",
            "step": 0,
            "loss above the minimum": level - run.minimum,
            "unsmoothed value": rank_bounded_critical_points(s0, 2)[-1][1],
            "steps beside it": spent[0],
            "steps of a random start": spent[1],
        }
    )
    effects = {
        "gap": math.log10(max(max(gaps), 1e-16)),
        "straightness": min(lines),
        "lingering": spent[0] / max(spent[1], 1),
        "gap from saddle": math.log10(max(abs(float(run.losses[-1]) - run.minimum), 1e-16)),
    }
    return Evidence(rows, effects)


def target(seed: int) -> Tensor:
    """A random covariance, condition number below 4, its eigenvalues apart."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.5, 1.5, 5)
    values = 0.8 + 2.2 * np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    matrix = torch.from_numpy(rotation * values @ rotation.T)
    return (matrix + matrix.T) / 2


def straightness(excess: Tensor) -> float:
    """R^2 of the logarithm over steps, from 1e-2 of the start down to the floor."""
    values = excess.numpy()
    inside = np.flatnonzero((values < 1e-2 * values[0]) & (values > FLOOR))
    if len(inside) < 3:
        return 0.0
    logs = np.log(values[inside[0] : inside[-1] + 1].clip(FLOOR))
    return float(np.corrcoef(np.arange(len(logs)), logs)[0, 1] ** 2)


def _curve(arm: str, excess: Tensor) -> list[dict]:
    every = max(1, len(excess) // 40)
    return [
        {"arm": arm, "step": i, "loss above the minimum": max(float(excess[i]), 1e-16)}
        for i in range(0, len(excess), every)
    ]


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Loss above its minimum by step, on a logarithmic scale."""
    curves = [Evidence([row for row in of_seed.rows if row["arm"] != "saddle"], {}) for of_seed in evidence]
    drawn = arms_figure(curves, x="step", y="loss above the minimum")
    drawn.axes[0].set_yscale("log")
    drawn.axes[0].set_ylim(1e-12, None)
    drawn.axes[0].set_xlim(0, 800)
    drawn.axes[0].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn
