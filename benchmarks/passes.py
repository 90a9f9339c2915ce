"""Steps that take more than one pass, over what their passes cost by themselves.

Each row counts what a method must compute (gradients of the loss, a Jacobian-vector product, a forward pass, a step of
the base optimizer), times plain code that does that and nothing else, and divides. Milliseconds of processor time,
median and least of rounds that take turns; ratios are of medians, and in brackets of the least.

    python benchmarks/passes.py [--rounds 40]
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
from steps import SETTINGS
from torch import Tensor, nn

from steepest.core.objective import Batch
from steepest.core.torch_private import foreach_lerp_
from steepest.losses import CrossEntropyLoss
from steepest.optim import IGNITE, MESA, GhostStepController, GradientRegularization
from steepest.optim.sharpness.saf import trajectory_kl

TARGET = 1.05
COUNTS = {
    "GradientRegularization": "2 gradients, a step",
    "GradientRegularization, exact": "a gradient with its graph, one through it, a step",
    "GhostStepController": "a gradient, a step, a Jacobian-vector product in evaluation mode",
    "IGNITE": "3 gradients, a step",
    "MESA": "a gradient, a forward pass in evaluation mode, a Kullback-Leibler term, a step, a moving average",
}
Step = Callable[[], object]


class Closure:
    """Zeroes, runs forward and backward; ``loss()`` runs forward alone."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.parameters: list[Tensor] = list(model.parameters())

    def loss(self) -> Tensor:
        """Forward alone."""
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def __call__(self) -> Tensor:
        for p in self.parameters:
            p.grad = None
        loss = self.loss()
        loss.backward()
        return loss.detach()


def forms(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Step]:
    """A step of each method and its count, over networks of their own."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(shape, generator=generator), torch.randint(10, (shape[0],), generator=generator)

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, Closure]:
        torch.manual_seed(0)
        model = build()
        return model, torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9), Closure(model, x, y)

    def regularized(mode: str) -> Step:
        _, base, closure = begin()
        optimizer = GradientRegularization(base, mode=mode)
        return lambda: optimizer.step(closure)

    def gradients(number: int) -> Step:
        _, base, closure = begin()

        def step() -> None:
            for _ in range(number):
                closure()
            base.step()

        return step

    def twice_differentiated() -> Step:
        _, base, closure = begin()

        def step() -> None:
            first = torch.autograd.grad(closure.loss(), closure.parameters, create_graph=True)
            half = torch.stack([g.square().sum() for g in first]).sum() / 2
            for p, g in zip(closure.parameters, torch.autograd.grad(half, closure.parameters, allow_unused=True)):
                p.grad = g
            base.step()

        return step

    def ghost() -> Step:
        model, base, closure = begin()
        optimizer = GhostStepController(base, model)

        def step() -> None:
            closure()
            optimizer.step(inputs=x)

        return step

    def product() -> Step:
        model, base, closure = begin()
        names, values = zip(*((name, p.detach()) for name, p in model.named_parameters()))
        ways = tuple(torch.full_like(value, 1e-4) for value in values)

        def outputs(*own: Tensor) -> Tensor:
            return torch.func.functional_call(model, dict(zip(names, own)), (x,))

        def step() -> None:
            closure()
            base.step()
            model.eval()
            torch.func.jvp(outputs, values, ways)
            model.train()

        return step

    def ignite() -> Step:
        model, base, closure = begin()
        optimizer = IGNITE(base, model, inputs=x)
        return lambda: optimizer.step(closure)

    def mesa() -> Step:
        model, base, closure = begin()
        method, objective, batch = MESA(model), CrossEntropyLoss(), Batch(x, y)

        def step() -> None:
            for p in closure.parameters:
                p.grad = None
            method.loss(model, batch, objective).backward()
            base.step()
            method.after_step()

        return step

    def averaged() -> Step:
        model, base, closure = begin()
        past, _, _ = begin()
        past.eval()

        def step() -> None:
            for p in closure.parameters:
                p.grad = None
            with torch.no_grad():
                before = past(x)
            now = model(x)
            (nn.functional.cross_entropy(now, y) + 0.8 * trajectory_kl(before, now, 5.0)).backward()
            base.step()
            with torch.no_grad():
                foreach_lerp_(list(past.parameters()), list(closure.parameters), 5e-4)

        return step

    return {
        "warm-up": gradients(1),
        "GradientRegularization": regularized("forward"),
        "GradientRegularization, count": gradients(2),
        "GradientRegularization, exact": regularized("exact"),
        "GradientRegularization, exact, count": twice_differentiated(),
        "GhostStepController": ghost(),
        "GhostStepController, count": product(),
        "IGNITE": ignite(),
        "IGNITE, count": gradients(3),
        "MESA": mesa(),
        "MESA, count": averaged(),
    }


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, rounds=(40, 1))
    rows = []
    for network, (build, shape) in SETTINGS.items():
        times = measure(forms(build, shape), options.rounds, "cpu", time.process_time)
        for name, count in COUNTS.items():
            own, theirs = times[name], times[f"{name}, count"]
            row: dict[str, Any] = {"network": network, "method": name, "count": count}
            row["median_ms"], row["min_ms"] = round(statistics.median(own), 3), round(min(own), 3)
            row["count_median_ms"] = round(statistics.median(theirs), 3)
            row["ratio"] = round(statistics.median(own) / statistics.median(theirs), 3)
            row["min_ratio"] = round(min(own) / min(theirs), 3)
            rows.append(row)
            print(f"{network:<34}{name:<31}{row['median_ms']:8.2f} ms  x {row['ratio']:.2f} ({row['min_ratio']:.2f})")
    keep("passes", {"threads": torch.get_num_threads(), "target": TARGET, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
