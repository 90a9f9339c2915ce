"""A step of sharpness-aware minimisation over a step of its base optimizer, by steepest and in the form that all copy.

The other form is written here from its documented behaviour: gradients are there before; a move of each tensor by
itself, a copy of the weights kept in the state, the closure, weights back, the base step. Both run the closure twice; a
step of the base optimizer runs it once. Milliseconds of processor time, median and least of rounds that take turns;
ratios are of medians, and in brackets of the least.

    python benchmarks/steps.py [--rounds 40]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn

from steepest.optim import SAM

TARGET = 2.05


class TensorByTensor(torch.optim.Optimizer):
    """SAM in two calls, each tensor by itself."""

    def __init__(self, params: Any, base: type[torch.optim.Optimizer], rho: float, **kw: Any) -> None:
        super().__init__(params, {"rho": rho, **kw})
        self.base = base(self.param_groups, **kw)

    @torch.no_grad()
    def climb(self) -> None:
        """To the worst point nearby."""
        owned = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for _, p in owned]), p=2)
        for group, p in owned:
            self.state[p]["before"] = p.data.clone()
            p.add_(p.grad * (group["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        """Back, and a base step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["before"]
        self.base.step()
        self.zero_grad()


def mlp(width: int, depth: int) -> nn.Module:
    """Rectified layers of one width."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn() -> nn.Module:
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


SETTINGS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP, 3 layers of 512, batch 128": (lambda: mlp(512, 3), (128, 512)),
    "MLP, 75 layers of 32, batch 256": (lambda: mlp(32, 75), (256, 32)),
    "CNN, batch 64": (cnn, (64, 1, 28, 28)),
}
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "SGD": (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, {"lr": 1e-6}),
}


def forms(build: Callable[[], nn.Module], shape: tuple[int, ...], base: str) -> dict[str, Callable[[], object]]:
    """A step of each form, over a network of its own."""
    cls, options = BASES[base]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    y = torch.randint(10, (shape[0],), generator=generator)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build()

    def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        return closure

    def stepping(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        closure = closure_of(model, optimizer)
        return lambda: optimizer.step(closure)  # type: ignore[arg-type]

    def alone() -> Callable[[], object]:
        model = network()
        return stepping(model, cls(model.parameters(), **options))  # type: ignore[arg-type]

    def sam() -> Callable[[], object]:
        model = network()
        return stepping(model, SAM(model.parameters(), cls, rho=0.05, **options))

    def by_tensor() -> Callable[[], object]:
        model = network()
        optimizer = TensorByTensor(model.parameters(), cls, 0.05, **options)
        closure = closure_of(model, optimizer)

        def step() -> None:
            closure()
            optimizer.climb()
            closure()
            optimizer.descend()

        return step

    return {"base": alone(), "SAM": sam(), "by tensor": by_tensor()}


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, rounds=(40, 1))
    rows = []
    for name, (build, shape) in SETTINGS.items():
        for base in BASES:
            times = measure(forms(build, shape, base), options.rounds, "cpu", time.process_time)
            row: dict[str, Any] = {"network": name, "base": base}
            for form, own in times.items():
                row[f"{form}_median_ms"] = round(statistics.median(own), 3)
                row[f"{form}_min_ms"] = round(min(own), 3)
            for form in times:
                if form != "base":
                    row[f"{form}_ratio"] = round(row[f"{form}_median_ms"] / row["base_median_ms"], 3)
                    row[f"{form}_min_ratio"] = round(row[f"{form}_min_ms"] / row["base_min_ms"], 3)
            rows.append(row)
            ratios = "  ".join(
                f"{form} {row[f'{form}_ratio']:.2f} ({row[f'{form}_min_ratio']:.2f})"
                for form in times
                if form != "base"
            )
            print(f"{name:<34}{base:<7}{row['base_median_ms']:8.2f} ms  x {ratios}")
    keep("steps", {"threads": torch.get_num_threads(), "target": TARGET, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
