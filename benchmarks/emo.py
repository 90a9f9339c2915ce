"""The earth mover's distance of tokens beside the likelihood, forward and backward, against the form of its release.

Both start from logits that are there. The release multiplies the one-hot labels and the probabilities with the whole
embedding, and takes its gradient through that: three products of tokens, classes and width; ours has one, of the labels
that occur. Rounds take turns; milliseconds, median and least; peak memory beyond what is there before. Target: .4 of
the time.

    python benchmarks/emo.py [--tokens 1024] [--classes 32000] [--width 512] [--rounds 7]
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
from torch.nn.functional import cross_entropy, normalize, one_hot

from steepest.core.allocations import peak_bytes
from steepest.losses.language import EMOLoss

TARGET = 0.4


def as_released(logits: Tensor, labels: Tensor, unit: Tensor) -> Tensor:
    """Products with the whole embedding, without the likelihood that the release adds to the distance."""
    q = logits.float().softmax(-1)
    of_labels = one_hot(labels, logits.shape[1]).to(q) @ unit
    distance = 1 - ((q @ unit) * of_labels).sum(-1)
    likelihood = cross_entropy(logits.float(), labels, reduction="none")
    ratio = (likelihood / (distance + 1e-10)).detach()
    return (0.5 * (ratio * distance + likelihood)).mean()


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, tokens=(1024, 8), classes=(32_000, 50), width=(512, 4), rounds=(7, 1))
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(options.classes, options.width, generator=generator)
    unit, loss = normalize(embedding, dim=1), EMOLoss(embedding)
    logits = torch.randn(options.tokens, options.classes, generator=generator).requires_grad_()
    rows: list[dict[str, Any]] = []
    for distinct in (options.tokens, max(1, options.tokens // 4)):
        labels = torch.randint(distinct, (options.tokens,), generator=generator) * (options.classes // distinct)

        def step(form: Callable[..., Tensor], *further: Tensor, labels: Tensor = labels) -> Callable[[], object]:
            return lambda: torch.autograd.grad(form(logits, labels, *further), logits)

        ways = {"steepest": step(loss), "released": step(as_released, unit)}
        torch.testing.assert_close(ways["steepest"](), ways["released"](), rtol=1e-3, atol=1e-6)
        times = measure(ways, options.rounds, "cpu")
        row: dict[str, Any] = {"labels at most": distinct}
        for name, values in times.items():
            row[name] = {
                "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
                "peak_mib": round(peak_bytes(ways[name]) / 2**20, 1),
            }  # fmt: skip
        row["time"] = round(row["steepest"]["median_ms"] / row["released"]["median_ms"], 3)
        rows.append(row)
        print(row)
    keep("emo", {"threads": torch.get_num_threads(), "target": TARGET, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
