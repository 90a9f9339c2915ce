"""Contrastive losses of all pairs, with gradients, by steepest and as they are usually written.

Two towers: against the scores of both directions and ``cross_entropy`` of each (six matrix products). Two views of each
item: against four blocks of similarities without their diagonals (four products, two copies through boolean masks),
and in a batch of 128 items against pytorch-metric-learning's NTXentLoss of their labels, where that is installed.
Rounds take turns; milliseconds, median and least; peak memory beyond what is there before, in a call of its own.
Targets: .6 of the time with two towers; .7 of the time and half of the peak with two views; .02 of the time by labels.

    python benchmarks/pairs.py [--batch 1024] [--width 128] [--rounds 9]
"""

from __future__ import annotations

import importlib.util
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
from steepest.losses.contrastive import clip_loss, nt_xent_loss

TARGETS = {"two towers": {"time": 0.6}, "two views": {"time": 0.7, "peak": 0.5}, "by labels": {"time": 0.02}}
Step = Callable[[], object]


def both_directions(z: Tensor, scale: float) -> Tensor:
    """Two towers, each direction by itself."""
    first, second = normalize(z[0], dim=1), normalize(z[1], dim=1)
    own = torch.arange(z.shape[1])
    one, two = scale * first @ second.T, scale * second @ first.T
    return (cross_entropy(one, own) + cross_entropy(two, own)) / 2


def four_blocks(z: Tensor, scale: float) -> Tensor:
    """Two views, the diagonals of both blocks of one view cut out."""
    first, second = normalize(z[0], dim=1), normalize(z[1], dim=1)
    items = z.shape[1]
    others = ~torch.eye(items, dtype=torch.bool)
    same = [scale * (v @ v.T)[others].view(items, -1) for v in (first, second)]
    crossed = [scale * first @ second.T, scale * second @ first.T]
    logits = torch.cat([torch.cat([a, b], 1) for a, b in zip(crossed, same)])
    return cross_entropy(logits, torch.arange(items).repeat(2))


def of_labels() -> Callable[[Tensor], Tensor]:
    """The peer's loss of two views, rows of one label."""
    from pytorch_metric_learning.losses import NTXentLoss

    peer = NTXentLoss(temperature=0.5)
    return lambda z: peer(z.flatten(0, 1), torch.arange(z.shape[1]).repeat(2))


def forms(batch: int, width: int, peer: bool) -> dict[str, dict[str, Step]]:
    """By task, what is timed."""
    z = torch.randn(2, batch, width, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step(function: Callable[[], Tensor], leaf: Tensor = z) -> Step:
        return lambda: torch.autograd.grad(function(), leaf)

    ways = {
        "two towers": {
            "steepest": step(lambda: clip_loss(z[0], z[1], scale=14.3)),
            "usual": step(lambda: both_directions(z, 14.3)),
        },
        "two views": {
            "steepest": step(lambda: nt_xent_loss(z, temperature=0.5)),
            "usual": step(lambda: four_blocks(z, 2.0)),
        },
    }
    if peer:
        few, loss = z[:, : min(batch, 128)].detach().clone().requires_grad_(), of_labels()
        ways["by labels"] = {
            "steepest": step(lambda: nt_xent_loss(few, temperature=0.5), few),
            "usual": step(lambda: loss(few), few),
        }
    for own in ways.values():
        for a, b in zip(own["steepest"](), own["usual"]()):  # type: ignore[call-overload]
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    return ways


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, batch=(1024, 8), width=(128, 4), rounds=(9, 1))
    rows = []
    peer = not options.quick and importlib.util.find_spec("pytorch_metric_learning") is not None
    for task, own in forms(options.batch, options.width, peer).items():
        times = measure(own, options.rounds, "cpu")
        row: dict[str, Any] = {"task": task}
        for name, values in times.items():
            row[name] = {
                "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
                "peak_mib": round(peak_bytes(own[name]) / 2**20, 1),
            }  # fmt: skip
        row["time"] = round(row["steepest"]["least_ms"] / max(row["usual"]["least_ms"], 1e-3), 3)
        row["peak"] = round(row["steepest"]["peak_mib"] / max(row["usual"]["peak_mib"], 0.1), 3)
        rows.append(row)
        print(f"{task:<12}", *(f"{name} {row[name]}" for name in own), f"time {row['time']}, peak {row['peak']}")
    keep("pairs", {"threads": torch.get_num_threads(), "targets": TARGETS, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
