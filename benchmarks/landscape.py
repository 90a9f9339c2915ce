"""A 25 x 25 loss surface of small networks, against the package loss-landscapes (3.0.6) and one point after the other.

The three take turns on one thread, with the same rows, loss and directions of their own; where the package is not
installed (``pip install loss-landscapes==3.0.6``) it is left out. It works on a copy, as it leaves a model displaced.
The target is half its time.

    python benchmarks/landscape.py [--rounds 15] [--steps 25]
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn

from steepest.watch.landscape import loss_surface, random_direction

TARGET = 0.5


def mlp(features: int, *widths: int) -> nn.Module:
    """Rectified layers and ten outputs."""
    sizes = (features, *widths)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


SETTINGS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 64-32-32-10, 256 rows": (lambda: mlp(64, 32, 32), (256, 64)),
    "MLP 64-64-64-10, 1,000 rows": (lambda: mlp(64, 64, 64), (1000, 64)),
    "MLP 784-32-10, 512 rows": (lambda: mlp(784, 32), (512, 784)),
    "MLP 784-128-128-10, 1,000 rows": (lambda: mlp(784, 128, 128), (1000, 784)),
    "CNN 8-16, 100 rows": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
        ),
        (100, 1, 8, 8),
    ),
}


def forms(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Callable[[], object]]:
    """A surface by each."""
    loss, grid = nn.functional.cross_entropy, (-1.0, 1.0, steps)

    def ours(chunk: int | None) -> Callable[[], object]:
        def surface() -> object:
            dirs = (random_direction(model.parameters()), random_direction(model.parameters()))
            return loss_surface(model, loss, (x, y), dirs, grid, chunk=chunk)

        return surface

    ways = {"steepest": ours(None), "one by one": ours(1)}
    if importlib.util.find_spec("loss_landscapes"):
        import loss_landscapes
        import loss_landscapes.metrics

        metric = loss_landscapes.metrics.Loss(loss, x, y)
        ways["package"] = lambda: loss_landscapes.random_plane(model, metric, 1, steps, "filter", deepcopy_model=True)
    return ways


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, rounds=(15, 1), steps=(25, 5))
    rows = []
    for name, (build, shape) in SETTINGS.items():
        torch.manual_seed(0)
        model, x, y = build(), torch.randn(shape), torch.randint(10, shape[:1])
        times = measure(forms(model, x, y, options.steps), options.rounds, "cpu")
        row: dict[str, Any] = {"network": name}
        for form, own in times.items():
            row[f"{form} ms"] = round(statistics.median(own), 2)
        for form in times:
            if form != "steepest":
                row[f"over {form}"] = round(row["steepest ms"] / row[f"{form} ms"], 3)
        rows.append(row)
        print("  ".join(f"{value:>8}" if isinstance(value, float) else f"{value:<32}" for value in row.values()))
    keep(
        "landscape",
        {"threads": torch.get_num_threads(), "steps": options.steps, "target": TARGET, "rows": rows},
        options,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
