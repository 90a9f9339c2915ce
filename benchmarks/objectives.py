"""Forward plus backward of every stateless classification objective beside ``F.cross_entropy``, one thread.

Rounds are interleaved: each runs every objective once, so that all see the same machine. Prints the smallest and
the median time and the ratio of the smallest ones; at most 1 is the aim, 1.5 for a quarter of them, at each of the
instruction levels that ``$ATEN_CPU_CAPABILITY`` names: ``default``, ``avx2``, ``avx512``. ``--profile NAME`` shows
where the time goes.

    python benchmarks/objectives.py [--shapes 4096x1000,65536x10] [--rounds 15] [--device cpu] [--profile harmonic]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch.nn import functional

from steepest.comparison.design.objectives import known_objectives
from steepest.core.objective import TaskInfo

PEER = "F.cross_entropy"
DOMAINS = {
    "cosine": torch.tanh,
    "log_probabilities": lambda z: z.log_softmax(1),
    "probabilities": lambda z: z.softmax(1),
}
"""How outputs of a domain are made from logits."""


def steps(rows: int, classes: int, device: str) -> dict[str, Callable[[], None]]:
    """A forward and backward pass by name, all on the same logits and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(device)
    target = torch.randint(classes, (rows,), generator=generator).to(device)
    features = torch.randn(rows, 64, generator=generator).to(device)
    counts = tuple(torch.bincount(target.cpu(), minlength=classes).clamp_min(1).tolist())
    info = TaskInfo("multiclass", rows, classes, counts, feature_dim=64, epochs=1, steps_per_epoch=1)
    by_name = {PEER: bind(functional.cross_entropy, logits, target)}
    for name, (cls, _) in known_objectives().items():
        if "multiclass" not in cls.tasks or cls.stateful or set(cls.needs) - {"features"}:
            continue
        objective = cls.from_task(info).to(device)
        width = objective.head(64, info)(features[:2]).shape[1]
        outputs = DOMAINS.get(cls.domain, torch.clone)(logits[:, :width])
        by_name[name] = bind(objective, outputs, target, **({"features": features} if cls.needs else {}))
    return by_name


def bind(
    loss: Callable[..., torch.Tensor], outputs: torch.Tensor, target: torch.Tensor, **named: torch.Tensor
) -> Callable[[], None]:
    """One forward and backward pass; the gradient is thrown away."""
    leaf = outputs.detach().clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        loss(leaf, target, **named).backward()

    return step


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__, shapes=("4096x1000,65536x10", "64x10"), rounds=(15, 1), device=("cpu", "cpu"), profile=("", "")
    )
    rows = []
    for shape in options.shapes.split(","):
        size, classes = map(int, shape.split("x"))
        by_name = steps(size, classes, options.device)
        if options.profile:
            with torch.profiler.profile() as profile:
                by_name[options.profile]()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
            continue
        times = measure(by_name, options.rounds, options.device)
        base = min(times[PEER])
        for name, own in sorted(times.items(), key=lambda pair: min(pair[1])):
            row = {"shape": shape, "objective": name, "min_ms": round(min(own), 3)}
            row |= {"median_ms": round(statistics.median(own), 3), "ratio": round(min(own) / base, 2)}
            rows.append(row)
            print(
                f"{shape:>10}  {name:<26} {row['min_ms']:>9.2f} ms  {row['median_ms']:>9.2f} ms  {row['ratio']:>6.2f}x"
            )
    if rows:
        level = torch.backends.cpu.get_cpu_capability().lower()
        keep(f"objectives-{level}", {"threads": torch.get_num_threads(), "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
