"""Sparsity-constrained transport: k trades sparsity against smoothness, and a capacity balances experts exactly.

Set-up of the claim: 64 points and 16 points of the plane (two Gaussian clouds, squared distances over their largest),
uniform masses, gamma = 1, tol 1e-6. Each of the 64 points is a column that receives from at most k of the 16: the
other way round k = 1 and 2 allow no plan, since 16 columns of 2 cannot hold 64 rows; so k is in {1, 2, 4, 8, 16} and
16 takes the place of 64. "Iterations fall with k" is judged by Spearman's correlation of k with the iterations of
L-BFGS, as the mean of dual and semi-dual, below 0 (claimed -0.5); "a few percent" of transport cost over exact
transport as at most 5% on average over k, of plans that were solved once more on their support; the count of a column
never exceeds k. Routing: 256 tokens of 16 clusters of unequal size to 8 experts by random projections, capacity k =
32 = 256/8. "Exactly" is judged as the largest deviation of an expert's load from 1/8 of all mass, below 1e-6, while
softmax top-1 is off by more than 5 points for its fullest expert. How far the tokens' sums are from their masses (row
error) is reported: a plan that misses them can cost less than exact transport.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import optimize, stats
from torch import Tensor

from ....losses.transport.sparse_ot import sparsity_constrained_ot
from ...experiment import Claim, Evidence
from ...figures import arms_figure

CLAIMS = (
    Claim("order", "iterations of L-BFGS fall with k (rank correlation below 0)", size=0.5, greater=False),
    Claim(
        "extra cost",
        "transport costs a few percent more than exact transport (at most 5% on average over k)",
        size=5.0,
        threshold=5.0,
        greater=False,
    ),
    Claim("over k", "no column ever has more than k non-zeros", size=0.5, threshold=0.5, greater=False),
    Claim(
        "imbalance",
        "routing with capacity 32 gives every expert 1/8 of the load (log10 of the largest deviation below -6)",
        size=1.0,
        threshold=-6.0,
        greater=False,
    ),
    Claim(
        "softmax imbalance",
        "softmax top-1 overfills an expert by more than 5 points of all load",
        size=5.0,
        threshold=5.0,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Iterations, cost and counts by k; loads of the routing."""
    full = scale == "full"
    generator = torch.Generator().manual_seed(seed)
    few, many = (16, 64) if full else (4, 8)
    sources = torch.randn(few, 2, generator=generator, dtype=torch.float64)
    sinks = torch.randn(many, 2, generator=generator, dtype=torch.float64) + 1.0
    cost = torch.cdist(sources, sinks).square()
    cost = cost / cost.max()
    a, b = (torch.full((size,), 1 / size, dtype=torch.float64) for size in (few, many))
    exact = exact_cost(cost)
    ks = [k for k in (1, 2, 4, 8, 16) if k <= few]
    rows, orders, extra, over = [], [], [], []
    for method in ("dual", "semi_dual"):
        iterations = []
        for k in ks:
            solution = sparsity_constrained_ot(a, b, cost, k, method=method, max_iter=2000, tol=1e-6)
            mended = sparsity_constrained_ot(a, b, cost, k, method=method, max_iter=2000, tol=1e-6, polish=True)
            iterations.append(solution.iterations)
            paid = 100 * (float((mended.plan * cost).sum()) / exact - 1)
            extra.append(paid)
            over.append(int((solution.plan > 0).sum(0).max()) - k)
            rows.append(
                {
                    "arm": method,
                    "k": k,
                    "iterations": solution.iterations,
                    "row error": solution.row_error,
                    "row error, mended": mended.row_error,
                    "extra cost, %": paid,
                    "value over exact": solution.value.item() - exact,
                }
            )
        orders.append(float(stats.spearmanr(ks, iterations).statistic) if len(set(iterations)) > 1 else 0.0)
    tokens, experts = (256, 8) if full else (32, 4)
    scores = router_scores(tokens, experts, generator)
    routed = sparsity_constrained_ot(
        torch.full((tokens,), 1 / tokens, dtype=torch.float64),
        torch.full((experts,), 1 / experts, dtype=torch.float64),
        -scores,
        tokens // experts,
        gamma=1.0,
        max_iter=2000,
        tol=1e-6,
    )
    loads = routed.plan.sum(0)
    top = torch.bincount(scores.argmax(1), minlength=experts) / tokens
    rows += [
        {"arm": "routing", "k": tokens // experts, "fullest": float(loads.max()), "row error": routed.row_error},
        {"arm": "softmax top-1", "k": tokens // experts, "fullest": float(top.max()), "row error": 0.0},
    ]
    effects = {
        "order": float(np.mean(orders)),
        "extra cost": float(np.mean(extra)),
        "over k": float(max(max(over), int((routed.plan > 0).sum(0).max()) - tokens // experts)),
        "imbalance": math.log10(max(float((loads - 1 / experts).abs().max()), 1e-16)),
        "softmax imbalance": 100 * float(top.max() - 1 / experts),
    }
    return Evidence(rows, effects)


def exact_cost(cost: Tensor) -> float:
    """Unregularised transport of uniform masses: an assignment of the columns to copies of the rows."""
    copies = cost.shape[1] // cost.shape[0]
    spread = cost.repeat_interleave(copies, 0).numpy()
    return float(spread[optimize.linear_sum_assignment(spread)].mean())


def router_scores(tokens: int, experts: int, generator: torch.Generator) -> Tensor:
    """Softmax probabilities of a random router over clustered tokens."""
    centres = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    weights = torch.rand(16, generator=generator, dtype=torch.float64)
    chosen = torch.multinomial(weights, tokens, replacement=True, generator=generator)
    features = centres[chosen] + 0.3 * torch.randn(tokens, 32, generator=generator, dtype=torch.float64)
    router = torch.randn(32, experts, generator=generator, dtype=torch.float64) / math.sqrt(32)
    return (features @ router).softmax(1)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Iterations by k."""
    parts = [Evidence([row for row in of_seed.rows if "iterations" in row], {}) for of_seed in evidence]
    drawn = arms_figure(parts, x="k", y="iterations")
    drawn.axes[0].set_xscale("log", base=2)
    drawn.axes[0].set_xlabel("non-zeros of a column, k")
    drawn.axes[0].set_ylabel("iterations of L-BFGS")
    return drawn
