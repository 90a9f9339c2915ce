"""What an armed guard costs: a training step with it over one without, by turns; and how often it waits for the device.

A causal transformer and a small residual CNN, AdamW fused (the device decides, nothing is read) and not. The guard has
its default rules, without and with the ghost radius, and takes a snapshot every 50 steps, which are in the time.

    python benchmarks/guard.py [--rounds 60] [--device cpu]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn

from steepest.watch import Guard

PLAIN = ["non_finite", "loss_spike", "gradient_spike", "logit_growth"]
ARMS: dict[str, list[str] | None] = {
    "without": None,
    "guard": PLAIN,
    "guard and ghost radius": [*PLAIN, "ghost_radius"],
}


class Block(nn.Module):
    """Causal attention and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        q, k, v = self.inwards(self.first(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outwards(mixed.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.second(x))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        return torch.relu(x + self.inside(x))


def transformer(small: bool, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs and targets."""
    width, depth, batch, length = (32, 1, 2, 16) if small else (192, 4, 8, 128)
    model = nn.Sequential(nn.Embedding(256, width), *(Block(width) for _ in range(depth)), nn.Linear(width, 256))
    x = torch.randint(256, (batch, length + 1), device=device)
    return model.to(device), x[:, :-1], x[:, 1:]


def cnn(small: bool, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs and targets."""
    width, depth, batch = (8, 1, 2) if small else (48, 4, 32)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), *(Residual(width) for _ in range(depth)), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(16 * width, 10),
    )  # fmt: skip
    return model.to(device), torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)


MODELS: dict[str, Callable[[bool, str], tuple[nn.Module, Tensor, Tensor]]] = {"transformer": transformer, "cnn": cnn}


def objective(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the last dimension."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def stepper(name: str, arm: str, fused: bool, small: bool, device: str) -> tuple[Callable[[], None], Guard | None]:
    """A step, and the guard in it."""
    torch.manual_seed(0)
    model, x, y = MODELS[name](small, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    rules = ARMS[arm]
    guard = None if rules is None else Guard(model, optimizer, objective, rules=rules)

    def step() -> None:
        logits = model(x)
        loss = objective(logits, y)
        if guard is not None:
            guard.observe(loss, x, y, outputs=logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, guard


def guard_cost(rounds: int, small: bool, device: str) -> list[dict[str, Any]]:
    """A row for each model, kind of optimizer and arm."""
    rows = []
    for name in MODELS:
        for fused in (True, False):
            pairs = {arm: stepper(name, arm, fused, small, device) for arm in ARMS}
            times = measure({arm: step for arm, (step, _) in pairs.items()}, rounds, device)
            for arm, own in times.items():
                guard = pairs[arm][1]
                ratios = [time / plain for time, plain in zip(own, times["without"])]
                rows.append(
                    {
                        "model": name, "fused": fused, "arm": arm, "milliseconds": round(statistics.median(own), 3),
                        "of a step": round(statistics.median(ratios), 4),
                        "of all steps": round(sum(own) / sum(times["without"]), 4),
                        "host reads a step": 0 if guard is None else guard.host_reads / guard.step,
                        "actions": 0 if guard is None else len(guard.actions),
                    }
                )  # fmt: skip
                print(*rows[-1].values(), sep=" | ", flush=True)
    return rows


def main() -> None:
    """Measure and keep."""
    options = read_options(__doc__, rounds=(60, 2), device=("cpu", "cpu"))
    torch.set_num_threads(1)
    keep(
        "guard", {"rounds": options.rounds, "rows": guard_cost(options.rounds, options.quick, options.device)}, options
    )


if __name__ == "__main__":
    main()
