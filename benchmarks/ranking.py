"""Losses of rankings by steepest and by the forms that others have, with gradients: time and memory.

NeuralNDCG beside its permutation as a matrix that is divided by its sums, each division kept for the backward pass;
RankNet beside a Python list of all pairs of places; the Mann-Whitney loss of a matrix of scores beside all pairs at
once, at a size that fits. Rounds take turns; milliseconds, median and least; peak memory beyond what is there before,
in a call of its own. Targets, as shares of the other form: .3 of the time and .1 of the peak of NeuralNDCG, .05 of
the time of RankNet; 300 MB for a matrix of 512 queries by the Mann-Whitney loss.

    python benchmarks/ranking.py [--lists 64] [--documents 240] [--queries 512] [--rounds 5]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as nnf
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor

from steepest.core.allocations import peak_bytes
from steepest.losses.ranking import mann_whitney_loss, neural_ndcg, ranknet_loss

TARGETS = {"NeuralNDCG": {"time": 0.3, "peak": 0.1}, "RankNet": {"time": 0.05}, "Mann-Whitney": {"peak_mb": 300}}
Step = Callable[[], object]


def matrix_ndcg(scores: Tensor, grades: Tensor) -> Tensor:
    """NeuralNDCG with every division of the permutation kept."""
    size = scores.shape[1]
    spread = (scores.unsqueeze(2) - scores.unsqueeze(1)).abs() @ torch.ones(size, size)
    factor = (size + 1 - 2 * torch.arange(1, size + 1)).float()
    matrix = (scores.unsqueeze(2) * factor - spread).transpose(1, 2).softmax(-1)
    for _ in range(50):
        matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-10)
        matrix = matrix / matrix.sum(2, keepdim=True).clamp(min=1e-10)
        if (matrix.sum(2) - 1).abs().max() < 1e-6 and (matrix.sum(1) - 1).abs().max() < 1e-6:
            break
    discount = 1 / torch.log2(torch.arange(size) + 2.0)
    gains = 2**grades - 1
    ideal = (gains.sort(1, descending=True).values * discount).sum(1)
    return -((matrix @ gains.unsqueeze(2)).squeeze(2) * discount).sum(1).div(ideal).mean()


def listed_ranknet(scores: Tensor, grades: Tensor) -> Tensor:
    """RankNet over a list of all pairs of places: the mean over the pairs of the batch."""
    places = list(product(range(scores.shape[1]), repeat=2))
    gaps = scores[:, places][..., 0] - scores[:, places][..., 1]
    better = (grades[:, places][..., 0] - grades[:, places][..., 1]) > 0
    return nnf.binary_cross_entropy_with_logits(gaps[better], torch.ones_like(gaps[better]))


def all_pairs(scores: Tensor) -> Tensor:
    """Logistic losses of all pairs, there at once."""
    own = torch.eye(len(scores), dtype=torch.bool)
    return nnf.softplus(scores[~own] - scores[own].unsqueeze(1)).mean()


def forms(lists: int, documents: int, queries: int) -> dict[str, dict[str, Step]]:
    """By loss, what is timed."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(lists, documents, generator=generator).requires_grad_()
    grades = torch.randint(5, (lists, documents), generator=generator).float()
    matrix = torch.randn(queries, queries, generator=generator).requires_grad_()
    small = torch.randn(queries // 8, queries // 8, generator=generator).requires_grad_()

    def step(function: Callable[..., Tensor], leaf: Tensor, *given: Tensor) -> Step:
        return lambda: torch.autograd.grad(function(leaf, *given), leaf)

    # the mean over pairs of the batch and that over lists are one where lists have as many pairs each
    alike = torch.arange(documents).float().remainder(5).expand(lists, documents).contiguous()
    ways = {
        "NeuralNDCG": {
            "steepest": step(neural_ndcg, scores, grades), "matrix": step(matrix_ndcg, scores, grades)
        },
        "RankNet": {"steepest": step(ranknet_loss, scores, alike), "list": step(listed_ranknet, scores, alike)},
        "Mann-Whitney, an eighth": {
            "steepest": step(mann_whitney_loss, small), "at once": step(all_pairs, small)
        },
        "Mann-Whitney": {"steepest": step(mann_whitney_loss, matrix)},
    }  # fmt: skip
    for own in ways.values():
        (value,), *others = (run() for run in own.values())  # type: ignore[misc]
        for (other,) in others:
            torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-6)
    return ways


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, lists=(64, 3), documents=(240, 8), queries=(512, 16), rounds=(5, 1))
    rows = []
    for task, own in forms(options.lists, options.documents, options.queries).items():
        times = measure(own, options.rounds, "cpu")
        row: dict[str, Any] = {"loss": task}
        for name, values in times.items():
            row[name] = {
                "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
                "peak_mib": round(peak_bytes(own[name]) / 2**20, 2),
            }  # fmt: skip
        ours, *others = (row[name] for name in own)
        for theirs in others:
            row["time"] = round(ours["median_ms"] / theirs["median_ms"], 4)
            row["peak"] = round(ours["peak_mib"] / max(theirs["peak_mib"], 0.01), 4)
        rows.append(row)
        print(*(f"{name} {value}" for name, value in row.items()), sep="  ")
    keep("ranking", {"threads": torch.get_num_threads(), "targets": TARGETS, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
