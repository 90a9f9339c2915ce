"""A step of gradient collision, against what it can't do without: a gradient of each chunk, derived once more.

A network's batch is cut into M chunks. Steepest: their losses, the mean cosine of their gradients, one backward pass.
The bound: for each chunk its loss, its gradient with a graph, and the product of its Hessian with a vector that is
there. A loop over pairs: cosines one by one, as the equation is written. Rounds take turns; milliseconds of processor
time, median and least. Target: 1.1 of the bound.

    python benchmarks/gradient_collision.py [--rows 256] [--chunks 4] [--rounds 31]
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from steepest.losses.unlearning.gradient_collision import gradient_collision_loss

TARGET = 1.1


def networks(width: int) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """By name, a network of ten classes and the shape of one of its inputs."""
    convolutions = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    )
    return {
        "64-64-32-10": (
            nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
            (64,),
        ),
        "784-W-W-10": (
            nn.Sequential(nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)),
            (784,),
        ),
        "convolutions": (convolutions, (1, 28, 28)),
    }


def steps(model: nn.Module, inputs: Tensor, labels: Tensor, chunks: int) -> dict[str, Callable[[], list[Tensor]]]:
    """What is timed; each gives gradients of all parameters."""
    params = list(model.parameters())
    pieces = list(zip(inputs.chunk(chunks), labels.chunk(chunks)))
    vectors = [torch.randn_like(p) for p in params]

    def losses() -> list[Tensor]:
        return [cross_entropy(model(x), y) for x, y in pieces]

    def ours() -> list[Tensor]:
        return list(torch.autograd.grad(gradient_collision_loss(losses(), params), params))

    def bound() -> list[Tensor]:
        products: list[Tensor] = []
        for x, y in pieces:
            slopes = torch.autograd.grad(cross_entropy(model(x), y), params, create_graph=True)
            products = list(torch.autograd.grad(slopes, params, vectors))
        return products

    def pairs() -> list[Tensor]:
        rows = []
        for loss in losses():
            slopes = torch.autograd.grad(loss, params, create_graph=True)
            rows.append(torch.cat([slope.flatten() for slope in slopes]))
        cosines = [cosine_similarity(a, b, 0) for a, b in itertools.combinations(rows, 2)]
        return list(torch.autograd.grad(torch.stack(cosines).mean(), params))

    for a, b in zip(ours(), pairs()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    return {"steepest": ours, "bound": bound, "pairs": pairs}


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, rows=(256, 8), chunks=(4, 2), width=(256, 8), rounds=(31, 1))
    rows = []
    for name, (model, shape) in networks(options.width).items():
        torch.manual_seed(0)
        inputs, labels = torch.randn(options.rows, *shape), torch.randint(10, (options.rows,))
        times = measure(steps(model, inputs, labels, options.chunks), options.rounds, "cpu", time.process_time)
        row: dict[str, object] = {"network": name}
        for way, values in times.items():
            row[way] = {"median_ms": round(statistics.median(values), 3), "least_ms": round(min(values), 3)}
        ratios = [a / b for a, b in zip(times["steepest"], times["bound"])]
        row["of the bound"] = round(statistics.median(ratios), 3)
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items()), sep="   ")
    numbers = {"threads": torch.get_num_threads(), "target": TARGET, "rows": rows}
    keep("gradient_collision", {**numbers, "batch": options.rows, "chunks": options.chunks}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
