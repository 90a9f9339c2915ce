"""Ten small networks as one stack against the same ten one by one, through Descent and in a hand-written loop.

Networks 64 -> 64 -> 64 -> 10, batches of 32, cross-entropy, AdamW, one thread. A step counts for all ten.

    python benchmarks/stack.py [--steps 200] [--rounds 7] [--device cpu]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from _options import read_options
from _record import keep
from torch import Tensor, nn

from steepest.descent import (
    ArrayBatches,
    Descent,
    Stack,
    StackedAdamW,
    StackedBatches,
    StackedObjective,
    StackedStep,
)
from steepest.losses import CrossEntropyLoss
from steepest.nn.networks import Network, mlp

MODELS, ROWS, FEATURES, CLASSES, HIDDEN, BATCH = 10, 2048, 64, 10, 64, 32


def networks(device: str) -> list[Network]:
    """The same ten networks each time."""
    torch.manual_seed(0)
    return [Network(mlp(FEATURES, width=HIDDEN), nn.Linear(HIDDEN, CLASSES)).to(device) for _ in range(MODELS)]


def stacked(x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    stack = Stack(networks(x.device.type))
    run = Descent(
        stack,
        StackedObjective([CrossEntropyLoss() for _ in range(MODELS)]),
        StackedBatches([(x, y, None)], [0] * MODELS, list(range(MODELS)), batch_size=BATCH, steps=steps),
        method=StackedStep(),
        optimizer=StackedAdamW(stack, lr=[1e-3] * MODELS, weight_decay=[1e-2] * MODELS),
    )
    return lambda: run.fit(run.epoch + 1)


def separate(x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    runs = [
        Descent(
            model,
            CrossEntropyLoss(),
            ArrayBatches(x, y, batch_size=BATCH, steps=steps, seed=seed),
            optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2),
        )
        for seed, model in enumerate(networks(x.device.type))
    ]
    return lambda: [run.fit(run.epoch + 1) for run in runs]


def by_hand(x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    models = networks(x.device.type)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2) for model in models]

    def epoch() -> None:
        for model, optimizer in zip(models, optimizers):
            order = torch.randint(ROWS, (steps, BATCH), device=x.device)
            for index in order:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()

    return epoch


def main() -> None:
    """Rounds of all three in turn; medians."""
    options = read_options(__doc__, steps=(200, 2), rounds=(7, 1), device=("cpu", "cpu"))
    device, steps = options.device, options.steps
    torch.manual_seed(1)
    x = torch.randn(ROWS, FEATURES, device=device)
    y = torch.randint(CLASSES, (ROWS,), device=device)
    ways = {"stack": stacked(x, y, steps), "separate": separate(x, y, steps), "plain_torch": by_hand(x, y, steps)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    speed = {name: round(steps / statistics.median(values), 1) for name, values in seconds.items()}
    ratios = {name: round(speed["stack"] / speed[name], 2) for name in ("separate", "plain_torch")}
    overhead = round(speed["plain_torch"] / speed["separate"], 2)
    print(
        f"{device}: steps of all {MODELS} a second: " + ", ".join(f"{name} {values}" for name, values in speed.items())
    )
    print(f"  stack is {ratios['separate']}x separate, {ratios['plain_torch']}x plain; Descent costs {overhead}x plain")
    numbers = {"steps_per_second": speed, "stack_over": ratios, "descent_over_plain_time": overhead}
    keep("stack", {"models": MODELS, "threads": torch.get_num_threads(), **numbers}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
