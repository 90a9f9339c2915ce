"""A step of each optimizer over that of torch's on the same tensors, and of loops over tensors as peers write them.

Gradients are there; what is timed is ``step`` alone. Loops are written here from the documented behaviour of the
peers' packages (momo-opt, pytorch-optimizer, mdistiller, FRUGAL), an operation for each tensor. Milliseconds of
processor time, median and least of rounds that take turns; ratios are of medians, and in brackets of the least. Beside
them the bytes of state that what keeps little of it holds for each parameter of a network of 8 blocks, and how far
resident memory rises during a step of 20 tensors of 1e6, each in a process of its own.

    python benchmarks/optimizers.py [--rounds 60]
"""

from __future__ import annotations

import ctypes
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn

from steepest.optim import (
    DOT,
    FRUGAL,
    LISA,
    PSPS,
    SGDW,
    AdamW,
    Gravity,
    Momo,
    MomoAdam,
    RandomScalingSGDM,
    frugal_param_groups,
)
from steepest.optim.learned import SmallFCLOpt

SHAPES = {"150 tensors of 1e3": (150, 1_000), "20 tensors of 1e5": (20, 100_000)}
LARGE = (20, 1_000_000)
TARGETS = {"AdamW": 1.05, "Momo": 1.2, "MomoAdam": 1.2, "SmallFCLOpt": 12.0}
"""At most so many times torch's; all at least 1.5 times as fast as a loop at 150 tensors of 1e3."""
LOOP = 1.5


def tensors(count: int, size: int) -> list[Tensor]:
    """Parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        p = torch.nn.Parameter(torch.randn(size, generator=generator))
        p.grad = 1e-3 * torch.randn(size, generator=generator)
        made.append(p)
    return made


class Loops:
    """Steps of peers, a tensor after the other."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.first = [torch.zeros_like(p) for p in params]
        self.second = [torch.zeros_like(p) for p in params]
        self.steps = 0
        self.inner, self.loss = torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def sgdw(self) -> None:
        """Momentum with the rate inside, decay beside it."""
        for p, m in zip(self.params, self.first):
            m.mul_(0.9).add_(p.grad, alpha=1e-4)
            p.mul_(1 - 1e-6)
            p.sub_(m)

    @torch.no_grad()
    def scaled(self) -> None:
        """Momentum with a random factor."""
        s = float(torch.empty(()).exponential_())
        for p, m in zip(self.params, self.first):
            m.mul_(0.9).add_(p.grad)
            p.add_(m, alpha=-1e-4 * s)

    @torch.no_grad()
    def gravity(self) -> None:
        """Divides by the inverse of the largest entry."""
        self.steps += 1
        beta = (0.9 * self.steps + 1) / (self.steps + 2)
        for p, v in zip(self.params, self.first):
            m = 1 / p.grad.abs().max()
            zeta = p.grad / (1 + (p.grad / m) ** 2)
            v.mul_(beta).add_(zeta, alpha=1 - beta)
            p.add_(v, alpha=-1e-4)

    @torch.no_grad()
    def dot(self) -> None:
        """Two buffers."""
        for p, a, b in zip(self.params, self.first, self.second):
            a.mul_(0.825).add_(p.grad)
            b.mul_(0.975).add_(p.grad)
            p.add_(a, alpha=-1e-4)
            p.add_(b, alpha=-1e-4)

    @torch.no_grad()
    def momo(self) -> None:
        """Three inner products of each tensor, one wait."""
        along = square = product = 0.0
        for p, d in zip(self.params, self.first):
            d.mul_(0.9).add_(p.grad, alpha=0.1)
            product += torch.sum(p.grad * p)
            along += torch.sum(d * p)
            square += torch.sum(d * d)
        self.inner = 0.9 * self.inner + 0.1 * product
        self.loss = 0.9 * self.loss + 0.1
        t = max(0.0, float(self.loss + along - self.inner)) / float(square)
        for p, d in zip(self.params, self.first):
            p.add_(d, alpha=-min(1e-4, t))

    @torch.no_grad()
    def momo_adam(self) -> None:
        """The same over Adam's metric."""
        self.steps += 1
        along = square = product = 0.0
        metrics = []
        for p, d, v in zip(self.params, self.first, self.second):
            d.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            metric = v.div(1 - 0.999**self.steps).sqrt_().add_(1e-8)
            metrics.append(metric)
            product += torch.sum(p.grad * p)
            along += torch.sum(d * p)
            square += torch.sum(d * (d / metric))
        rho = 1 - 0.9**self.steps
        self.inner = 0.9 * self.inner + 0.1 * product
        self.loss = 0.9 * self.loss + 0.1
        t = max(0.0, float(self.loss + along - self.inner)) / float(square)
        for p, d, metric in zip(self.params, self.first, metrics):
            p.addcdiv_(d, metric, value=-min(1e-6 / rho, t))

    @torch.no_grad()
    def frugal(self) -> None:
        """Adam for every fourth tensor, signs for the others."""
        self.steps += 1
        for i, (p, m, v) in enumerate(zip(self.params, self.first, self.second)):
            p.mul_(1 - 1e-8)
            if i % 4:
                update = -1e-6 * p.grad.sign()
            else:
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                metric = v.sqrt().div_(math.sqrt(1 - 0.999**self.steps)).add_(1e-8)
                update = m / metric * (-1e-6 / (1 - 0.9**self.steps))
            p.add_(update)

    @torch.no_grad()
    def psps(self) -> None:
        """Adam's metric, one length for all."""
        self.steps += 1
        ways = []
        square = 0.0
        for p, v in zip(self.params, self.second):
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            way = p.grad / (v.div(1 - 0.999**self.steps).sqrt_().add_(1e-8))
            square += float(torch.sum(p.grad * way))
            ways.append(way)
        for p, way in zip(self.params, ways):
            p.add_(way, alpha=-min(1e-6, 1.0 / square))


def forms(count: int, size: int) -> dict[str, Callable[[], object]]:
    """A step of each form over tensors of its own, drawn at its first call; three of an optimizer where there are."""

    def over(build: Callable[[list[Tensor]], Any], *given: Any, **named: Any) -> Callable[[], object]:
        built = cache(lambda: build(tensors(count, size)))
        return lambda: built().step(*given, **named)

    def loop(name: str) -> Callable[[], object]:
        built = cache(lambda: Loops(tensors(count, size)))
        return lambda: getattr(built(), name)()

    def dot() -> Callable[[], object]:
        @cache
        def built() -> tuple[DOT, list[Tensor], list[Any]]:
            params = tensors(count, size)
            return DOT(params, 1e-4), params, [p.grad for p in params]

        def step() -> None:
            optimizer, params, slopes = built()
            optimizer.step_kd()
            for p, slope in zip(params, slopes):
                p.grad = slope
            optimizer.step()

        return step

    return {
        "warm-up": over(lambda p: AdamW(p, 1e-6, fused=True)),
        "AdamW": over(lambda p: AdamW(p, 1e-6, fused=True)),
        "AdamW, torch": over(lambda p: torch.optim.AdamW(p, 1e-6, fused=True)),
        "Momo": over(lambda p: Momo(p, 1e-4), loss=1.0),
        "Momo, torch": over(lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9, foreach=True)),
        "Momo, loop": loop("momo"),
        "MomoAdam": over(lambda p: MomoAdam(p, 1e-6), loss=1.0),
        "MomoAdam, torch": over(lambda p: torch.optim.Adam(p, 1e-6, foreach=True)),
        "MomoAdam, loop": loop("momo_adam"),
        "SGDW": over(lambda p: SGDW(p, 1e-4, weight_decay=1e-2)),
        "SGDW, torch": over(lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9, weight_decay=1e-2, foreach=True)),
        "SGDW, loop": loop("sgdw"),
        "RandomScalingSGDM": over(lambda p: RandomScalingSGDM(p, 1e-4, 0.9)),
        "RandomScalingSGDM, torch": over(lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9, foreach=True)),
        "RandomScalingSGDM, loop": loop("scaled"),
        "Gravity": over(lambda p: Gravity(p, 1e-4)),
        "Gravity, torch": over(lambda p: torch.optim.Adam(p, 1e-6, foreach=True)),
        "Gravity, loop": loop("gravity"),
        "DOT": dot(),
        "DOT, torch": over(lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9, foreach=True)),
        "DOT, loop": loop("dot"),
        "PSPS": over(lambda p: PSPS(p, "adam", cap=1e-6), loss=1.0),
        "PSPS, torch": over(lambda p: torch.optim.Adam(p, 1e-6, foreach=True)),
        "PSPS, loop": loop("psps"),
        "FRUGAL": over(lambda p: FRUGAL(p, 1e-6, weight_decay=1e-2, project=True)),
        "FRUGAL, torch": over(lambda p: torch.optim.AdamW(p, 1e-6, fused=True)),
        "FRUGAL, loop": loop("frugal"),
        "SmallFCLOpt": over(lambda p: SmallFCLOpt(p, lr=1e-3)),
        "SmallFCLOpt, torch": over(lambda p: torch.optim.AdamW(p, 1e-6, fused=True)),
    }  # fmt: skip


def state_bytes() -> dict[str, float]:
    """Bytes of state a parameter: the mean over choices of what is held after a step, embedding and head included."""
    held: dict[str, float] = {}
    builds: dict[str, Callable[[nn.ModuleDict], Any]] = {
        "AdamW": lambda model: AdamW(model.parameters()),
        "LISA, 2 of 8 blocks": lambda model: LISA(
            AdamW(model.parameters()), model["blocks"], [model["first"], model["head"]], active=2, interval=1
        ),
    }
    for projection in ("block", "columns", "randk", "svd"):
        builds[f"FRUGAL 0.25, {projection}"] = lambda model, projection=projection: FRUGAL(
            frugal_param_groups(model), update_gap=1, projection=projection
        )
    for name, build in builds.items():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(8)]
        parts = {"first": nn.Embedding(100, 128), "blocks": nn.ModuleList(blocks), "head": nn.Linear(128, 100)}
        model = nn.ModuleDict(parts)
        optimizer = build(model)
        sizes: list[int] = []

        def note(*_: Any, optimizer: Any = optimizer, sizes: list[int] = sizes) -> None:
            tensors = [value for state in optimizer.state.values() for value in state.values()]
            sizes.append(sum(value.nbytes for value in tensors if isinstance(value, Tensor)))

        # LISA drops the state of frozen blocks right after the step: what the step itself held counts
        getattr(optimizer, "base_optimizer", optimizer).register_step_post_hook(note)
        for _ in range(20):
            for p in model.parameters():
                p.grad = torch.randn_like(p) if p.requires_grad else None
            optimizer.step()
        held[name] = round(sum(sizes) / len(sizes) / sum(p.numel() for p in model.parameters()), 3)
    return held


def temporaries(name: str) -> None:
    """Print by how many bytes the peak of resident memory lies above what is held after some steps."""
    step = forms(*LARGE)[name]
    for _ in range(3):
        step()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that taking it again counts
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on
    step()
    peak = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if "VmHWM" in line)
    print(1024 * int(peak.split()[1]) - now)


def main() -> None:
    """Measure, print and keep the numbers."""
    if len(sys.argv) > 1 and sys.argv[1] == "--temporaries":
        temporaries(sys.argv[2])
        return
    options = read_options(__doc__, rounds=(60, 1))
    rows = []
    for shape, (count, size) in SHAPES.items():
        times = measure(forms(count, size), options.rounds, "cpu", time.process_time)
        for name, own in times.items():
            if "," in name or name == "warm-up":
                continue
            row: dict[str, Any] = {"tensors": shape, "optimizer": name, "median_ms": round(statistics.median(own), 3)}
            row["min_ms"] = round(min(own), 3)
            texts = []
            for other in ("torch", "loop"):
                theirs = times.get(f"{name}, {other}")
                if theirs is None:
                    continue
                row[f"{other}_median_ms"] = round(statistics.median(theirs), 3)
                ratio = statistics.median(own) / statistics.median(theirs)
                row[f"{other}_ratio"] = round(ratio, 3)
                row[f"{other}_min_ratio"] = round(min(own) / min(theirs), 3)
                assert math.isfinite(ratio)
                texts.append(f"{other} x {ratio:.2f} ({row[f'{other}_min_ratio']:.2f})")
            rows.append(row)
            print(f"{shape:<20}{name:<19}{row['median_ms']:8.3f} ms  of {'   of '.join(texts)}")
    held = state_bytes()
    for name, size in held.items():
        print(f"{name:<24}{size:6.2f} bytes of state a parameter")
    memory = {}
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        command = [sys.executable, __file__, "--temporaries", name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        memory[name] = round(int(text) / 2**20, 1)
        print(f"{name:<24}{memory[name]:8.1f} MiB of temporaries in a step of {LARGE[0]} tensors of {LARGE[1]:g}")
    facts = {"threads": torch.get_num_threads(), "targets": TARGETS, "over_a_loop": LOOP, "rows": rows}
    facts["state_bytes_a_parameter"] = held
    facts["temporaries_MiB"] = memory
    keep("optimizers", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
