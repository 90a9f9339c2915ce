"""What watching costs: each probe, the recorder's default set at its cadences, and a step at which nothing is due.

A ResNet-18 on images of 32 x 32 and a language model of ten million parameters train with AdamW. Plain steps and steps
with a recorder at which nothing is due take turns. A probe's cost is that of ``measure`` at a moment of its own, shared
quantities included; the share of a step that the default set costs is

    (quiet - plain + sum over probes of cost / every) / plain

The recorder's reads of the device are counted over the quiet steps.

    python benchmarks/watch.py [--rounds 15] [--batch 16] [--default]
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

from steepest.catalogue import systems, there
from steepest.core.probe import Moment, Probe
from steepest.watch import Recorder
from steepest.watch.recorder import default_probes


class Basic(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms, self.act = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)]), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.act(self.norms[0](self.first(x)))))
        out: Tensor = self.act(y + self.shortcut(x))
        return out


def resnet(width: int) -> nn.Module:
    """A ResNet-18 for small images; 64 is the usual width."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage in range(4):
        for block in range(2):
            layers.append(Basic(inside, width << stage, 2 if stage and not block else 1))
            inside = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


class Block(nn.Module):
    """Attention and two layers, each beside the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, 6, -1)).movedim(-3, 0).transpose(-2, -3)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.project(mixed.transpose(-2, -3).flatten(-2))
        out: Tensor = x + self.down(self.act(self.up(self.norms[1](x))))
        return out


class Language(nn.Module):
    """Tokens to logits."""

    def __init__(self, width: int, depth: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(ids))))
        return logits


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of all tokens."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def runs(batch: int, quick: bool) -> dict[str, tuple[nn.Module, Callable[[Any, Any], Tensor], Tensor, Tensor]]:
    """Model, objective, inputs and targets of each."""
    images = torch.randn(batch, 3, 8 if quick else 32, 8 if quick else 32)
    ids = torch.randint(96, (batch, 129))
    language = Language(48 if quick else 384, 1 if quick else 6, 96)
    return {
        "resnet-18": (resnet(8 if quick else 64), nn.CrossEntropyLoss(), images, torch.arange(batch) % 10),
        "gpt-10m": (language, token_loss, ids[:, :-1], ids[:, 1:]),
    }


def every_probe() -> list[Probe]:
    """One of each probe that is there, as its class makes it by default."""
    import importlib

    classes: dict[str, type[Probe]] = {type(probe).name: type(probe) for probe in default_probes()}
    for row in systems("watch"):
        if there(row):
            module = importlib.import_module(f"steepest.{row.module}")
            own = [getattr(module, name) for name in row.names]
            classes |= {c.name: c for c in own if isinstance(c, type) and issubclass(c, Probe)}
    probes = []
    for cls in classes.values():
        try:
            probes.append(cls())
        except TypeError:  # it takes a layer or data
            continue
    return probes


def watched(name: str, run: Any, rounds: int, probes: list[Probe]) -> dict[str, Any]:
    """What watching one run costs."""
    model, objective, x, y = run
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(recorder: Recorder | None) -> None:
        loss = objective(model(x), y)
        if recorder is not None:
            recorder.observe(loss, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def quiet() -> None:
        recorder = Recorder(model, objective, optimizer, every=lambda number: False)
        step(recorder)
        reads.append(recorder.host_reads)
        recorder._pending.clear()
        recorder.close()

    reads: list[int] = []
    times = measure({"plain": lambda: step(None), "quiet": quiet}, rounds, "cpu")
    plain = statistics.median(times["plain"])
    over = statistics.median(b - a for a, b in zip(times["plain"], times["quiet"]))
    default = {probe.name for probe in default_probes()}
    costs: dict[str, dict[str, Any]] = {}
    for probe in probes:
        try:
            probe.check(model, optimizer)
        except (TypeError, ValueError):
            continue
        before = {n: p.detach().clone() for n, p in model.named_parameters()}

        def look(probe: Probe = probe, before: dict[str, Tensor] = before) -> None:
            for phase in probe.phases:
                given = before if phase in ("proposed", "stepped") else None
                moment = Moment(
                    1, phase, model, optimizer=optimizer, objective=objective, inputs=x, targets=y,
                    losses=torch.ones(()), before=given,
                )  # fmt: skip
                probe.measure(moment)

        try:
            cost = statistics.median(measure({"look": look}, max(2, rounds // 5), "cpu")["look"])
        except (TypeError, ValueError):
            continue
        costs[probe.name] = {
            "ms": round(cost, 3), "steps": round(cost / plain, 4), "every": probe.every,
            "share": round(cost / plain / probe.every, 5), "default": probe.name in default,
        }  # fmt: skip
    share = over / plain + sum(row["share"] for row in costs.values() if row["default"])
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name}: {parameters / 1e6:.1f}M parameters, a step {plain:.1f} ms; quiet steps {over / plain:+.2%}")
    for probe_name, row in costs.items():
        mark = "*" if row["default"] else " "
        cost = f"{row['ms']:9.2f} ms = {row['steps']:7.3f} steps, every {row['every']}: {row['share']:.3%}"
        print(f" {mark} {probe_name:<32} {cost}")
    print(f"   default set {1 + share:.4f} of a step; reads of the device in quiet steps: {sum(reads)}")
    return {
        "parameters": parameters, "step_ms": round(plain, 2), "quiet": round(1 + over / plain, 4),
        "default_set": round(1 + share, 4), "host_reads_in_quiet_steps": sum(reads), "probes": costs,
    }  # fmt: skip


def main() -> None:
    """Measure, print and keep."""
    options = read_options(__doc__, rounds=(15, 2), batch=(16, 4), default=(False, False))
    torch.manual_seed(0)
    results = {
        name: watched(name, run, options.rounds, default_probes() if options.default else every_probe())
        for name, run in runs(options.batch, options.quick).items()
    }
    keep("watch", {"rounds": options.rounds, "batch": options.batch, "goal": 1.05, "runs": results}, options)


if __name__ == "__main__":
    main()
