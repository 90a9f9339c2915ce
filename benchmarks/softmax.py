"""Softmax and log-softmax, forward alone and with backward, by torch and by two passes.

Rounds are interleaved: each runs every one once, so that all see the same machine; both allocate their results. Prints
the smallest and the median time, the ratio of the smallest ones to torch's, and the largest relative error of softmax
against float64.

    python benchmarks/softmax.py [--shapes 65536x64,4096x1000,256x32000,1x67108864] [--rounds 40] [--device cpu]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from _options import read_options
from _record import keep
from _rounds import measure

from steepest.kernels import log_softmax, softmax

PAIRS = {"softmax": (torch.softmax, softmax), "log_softmax": (torch.log_softmax, log_softmax)}
Call = Callable[[torch.Tensor, int], torch.Tensor]


def steps(x: torch.Tensor) -> dict[tuple[str, str], Callable[[], None]]:
    """What is timed, by task and implementation."""
    leaf, dy = x.clone().requires_grad_(), torch.randn_like(x)
    by_name: dict[tuple[str, str], Callable[[], None]] = {}
    for name, pair in PAIRS.items():
        for who, function in zip(("torch", "two passes"), pair):
            by_name[name, who] = forward(function, x)
            by_name[f"{name} + backward", who] = with_backward(function, leaf, dy)
    return by_name


def forward(function: Call, x: torch.Tensor) -> Callable[[], None]:
    """One call without a graph."""

    def step() -> None:
        function(x, -1)

    return step


def with_backward(function: Call, leaf: torch.Tensor, dy: torch.Tensor) -> Callable[[], None]:
    """One call and its gradient."""

    def step() -> None:
        torch.autograd.grad(function(leaf, -1), leaf, dy)

    return step


def error(function: Call, x: torch.Tensor) -> float:
    """The largest relative error of softmax against float64."""
    y = function(x, -1)
    wanted = torch.softmax(x.double(), -1)
    return float(wanted.sub_(y).abs_().div_(y).max())


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__,
        shapes=("65536x64,4096x1000,256x32000,1x67108864", "64x16,4x1000"),
        rounds=(40, 2),
        device=("cpu", "cpu"),
    )
    rows = []
    for shape in options.shapes.split(","):
        size, columns = map(int, shape.split("x"))
        x = 3 * torch.randn(size, columns, generator=torch.Generator().manual_seed(0)).to(options.device)
        errors = {"torch": error(torch.softmax, x), "two passes": error(softmax, x)}
        print(f"{shape}: relative error " + ", ".join(f"{who} {value:.1e}" for who, value in errors.items()))
        times = measure(
            steps(x), options.rounds if size * columns < 2**25 else max(3, options.rounds // 20), options.device
        )
        for (task, who), own in times.items():
            row = {"shape": shape, "task": task, "who": who, "min_ms": round(min(own), 3)}
            row |= {"median_ms": round(statistics.median(own), 3)}
            row |= {"ratio": round(min(own) / min(times[task, "torch"]), 2), "error": float(f"{errors[who]:.2g}")}
            rows.append(row)
            print(f"{task:>24}  {who:<11} {row['min_ms']:>9.2f} ms  {row['median_ms']:>9.2f} ms  {row['ratio']:>5.2f}x")
    keep("softmax", {"threads": torch.get_num_threads(), "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
