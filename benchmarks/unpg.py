"""A margin softmax with the batch's negative pairs, with gradients, by steepest and as a matrix of all logits.

The usual form appends the filtered similarities to the logits of every row, ``[B, C + B (B - 1) / 2]``; here their
log-partition is one further logit. Both start from cosines with class directions and from embeddings. Rounds take
turns; milliseconds, median and least; peak memory beyond what is there before, in a call of its own. Target: .1 of the
peak at a batch of 512.

    python benchmarks/unpg.py [--batch 512] [--classes 1000] [--width 128] [--rounds 9]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from steepest.core.allocations import peak_bytes
from steepest.losses.contrastive import box_whisker_filter, unpg_loss

TARGETS = {"peak": 0.1}
SCALE = 64.0
Step = Callable[[], object]


def all_logits(cosines: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a matrix that repeats the pairs in every row."""
    rows = normalize(embeddings, dim=1)
    apart = (labels.unsqueeze(1) != labels).triu(1)
    values = box_whisker_filter((rows @ rows.T)[apart])
    return cross_entropy(SCALE * torch.cat([cosines, values.expand(len(labels), -1)], 1), labels)


def forms(batch: int, classes: int, width: int) -> dict[str, Step]:
    """What is timed."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch, width, generator=generator).requires_grad_()
    cosines = (0.1 * torch.randn(batch, classes, generator=generator)).tanh().requires_grad_()
    labels = torch.randint(classes, (batch,), generator=generator)

    def step(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
        return lambda: torch.autograd.grad(function(cosines, embeddings, labels), (cosines, embeddings))

    ways = {"steepest": step(lambda c, z, y: unpg_loss(c, z, y, scale=SCALE)), "usual": step(all_logits)}
    for a, b in zip(ways["steepest"](), ways["usual"]()):  # type: ignore[call-overload]
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    return ways


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, batch=(512, 8), classes=(1000, 5), width=(128, 4), rounds=(9, 1))
    own = forms(options.batch, options.classes, options.width)
    times = measure(own, options.rounds, "cpu")
    row: dict[str, Any] = {}
    for name, values in times.items():
        row[name] = {
            "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
            "peak_mib": round(peak_bytes(own[name]) / 2**20, 1),
        }  # fmt: skip
    row["time"] = round(row["steepest"]["median_ms"] / row["usual"]["median_ms"], 4)
    row["peak"] = round(row["steepest"]["peak_mib"] / max(row["usual"]["peak_mib"], 0.1), 4)
    print(row)
    keep("unpg", {"threads": torch.get_num_threads(), "targets": TARGETS, "rows": [row]}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
