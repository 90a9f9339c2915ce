"""A training step of the output layer: the factored Z-loss against log-softmax with all outputs, by number of classes.

Both do loss, gradient in h and one step of plain gradient descent on all weights. Prints milliseconds and ratios; what
counts is the column of the factored layer, which should be flat, and the last ratio.

    python benchmarks/z_loss.py [--classes 1000,10000,100000,1000000] [--width 64] [--batch 32] [--repeats 10]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from _options import read_options
from _record import keep
from torch.nn.functional import cross_entropy

from steepest.losses.classification import SphericalOutputLayer


def log_softmax_step(weight: torch.Tensor, h: torch.Tensor, target: torch.Tensor) -> None:
    """Forward, backward and update with the matrix of all outputs."""
    h = h.clone().requires_grad_()
    cross_entropy(h @ weight.mT, target).backward()
    with torch.no_grad():
        weight.sub_(0.1 * weight.grad)
        weight.grad = None


def factored_step(layer: SphericalOutputLayer, h: torch.Tensor, target: torch.Tensor) -> None:
    """The same without the outputs."""
    h = h.clone().requires_grad_()
    layer(h, target).backward()
    layer.step(0.1)


def milliseconds(step: Callable[[], None], repeats: int) -> float:
    """The median time of a step, after some that don't count."""
    times, warm = [], max(2, repeats // 5)
    for _ in range(repeats + warm):
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[warm:])


def measure(classes: int, width: int, batch: int, repeats: int) -> dict[str, float]:
    """One row of the table."""
    torch.manual_seed(0)
    h, target = torch.randn(batch, width), torch.randint(classes, (batch,))
    layer = SphericalOutputLayer(width, classes)
    factored = milliseconds(partial(factored_step, layer, h, target), 10 * repeats)
    weight = layer.weight.clone().requires_grad_()
    del layer
    dense = milliseconds(lambda: log_softmax_step(weight, h, target), repeats)
    return {
        "classes": classes,
        "factored_ms": round(factored, 3),
        "log_softmax_ms": round(dense, 3),
        "ratio": round(dense / factored, 2),
    }


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__, classes=("1000,10000,100000,1000000", "100,1000"), width=(64, 8), batch=(32, 4), repeats=(10, 2)
    )
    print(f"{'classes':>9}  {'factored':>9}  {'log-softmax':>11}  {'ratio':>7}")
    rows = []
    for classes in map(int, options.classes.split(",")):
        row = measure(classes, options.width, options.batch, options.repeats)
        rows.append(row)
        print(f"{classes:>9}  {row['factored_ms']:>6.2f} ms  {row['log_softmax_ms']:>8.2f} ms  {row['ratio']:>6.1f}x")
    growth = rows[-1]["factored_ms"] / rows[0]["factored_ms"]
    print(f"factored step, most classes over fewest: {growth:.2f}x")
    facts = {"width": options.width, "batch": options.batch, "threads": torch.get_num_threads()}
    keep("z_loss", {**facts, "rows": rows, "factored_growth": round(growth, 2)}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
