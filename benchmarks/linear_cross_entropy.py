"""Linear cross-entropy, loss and gradients, beside plain torch, its compiled form and torch's own chunked operation.

Rounds are interleaved, so that all see the same machine. Prints the smallest and the median seconds, the most bytes
that tensors hold at once, and their ratios to plain; aims are printed beside them. ``matmuls`` is three matrix products
of the same sizes: the floor of every method that keeps to exact gradients without forming logits twice.

``trained`` stands for a head trained on words of Shakespeare's plays (2048 x 128 x 12,000), the one on which the
filter's time means something; it needs ``$STEEPEST_DATA``.

    python benchmarks/linear_cross_entropy.py [--shapes 2048x512x32000,trained] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from _options import read_options
from _record import keep
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from steepest.core.allocations import peak_bytes
from steepest.kernels import GradientFilter, linear_cross_entropy
from steepest.lab.kernels.cut_cross_entropy import trained

AIMS = {"2048x512x32000": (0.92, 0.16), "4096x512x64000": (0.62, 0.10)}
"""Time and extra memory over plain's, by shape."""


def peaked(classes: int, width: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A head with Zipf's law in its logits and hidden states that lie near their targets' weights."""
    probability = 1 / torch.arange(1, classes + 1, dtype=torch.float64)
    target = torch.multinomial(probability, rows, replacement=True, generator=generator)
    weight = torch.randn(classes, width, generator=generator) / width**0.5
    weight[:, 0] = probability.log().float()
    hidden = weight[target] * 6 + 0.3 * torch.randn(rows, width, generator=generator)
    hidden[:, 0] = 1.0
    return hidden, weight, target


def methods(
    shape: str, generator: torch.Generator, quick: bool
) -> tuple[dict[str, Callable[[], object]], list[Tensor]]:
    """A forward and backward pass by name, all on the same tensors; a quick run waits for no compiler."""
    if shape == "trained":
        hidden, weight, target = trained(True, 0)
    else:
        rows, width, classes = map(int, shape.split("x"))
        hidden, weight, target = peaked(classes, width, rows, generator)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            loss(*leaves).backward()

        return run

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return cross_entropy(linear(h, w), target)

    def matmuls() -> None:
        h, w = hidden.detach(), weight.detach()
        z = h @ w.T
        leaves[0].grad, leaves[1].grad = z @ w, z.T @ h

    def ours(**options: object) -> Callable[[], object]:
        return step(lambda h, w: linear_cross_entropy(h, w, target, **options))  # type: ignore[arg-type, return-value]

    steps = {
        "plain": step(plain),
        "matmuls": matmuls,
        "compiled": step(torch.compile(plain, backend="eager" if quick else "inductor")),
        "ours": ours(),
        "ours, bfloat16 products": ours(compute_dtype=torch.bfloat16),
        "ours, filter 2^-12, tail": ours(filter=GradientFilter(2.0**-12)),
        "ours, filter 2^-10, tail": ours(filter=GradientFilter(2.0**-10)),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        op = torch.nn.functional.linear_cross_entropy
        for name, options in (("torch chunked", {}), ("torch chunked 512", {"batch_chunk_size": 512})):
            chosen = torch.nn.LinearCrossEntropyOptions(**options)
            steps[name] = step(lambda h, w, chosen=chosen: op(h, w, target, options=chosen))  # type: ignore[misc]
    return steps, leaves


def errors(steps: dict[str, Callable[[], object]], leaves: list[Tensor]) -> dict[str, list[float]]:
    """Relative errors of both gradients against plain's."""
    steps["plain"]()
    exact = [leaf.grad.clone() for leaf in leaves]
    off = {}
    for name, run in steps.items():
        if name not in ("plain", "matmuls"):
            run()
            off[name] = [float((leaf.grad - own).norm() / own.norm()) for leaf, own in zip(leaves, exact)]
    return off


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__, shapes=("2048x512x32000,4096x512x64000,trained", "64x16x500"), rounds=(5, 1), threads=(2, 1)
    )
    torch.set_num_threads(options.threads)
    rows = []
    for shape in options.shapes.split(","):
        steps, leaves = methods(shape, torch.Generator().manual_seed(0), options.quick)
        off = errors(steps, leaves)  # warms and compiles as well
        gradients = sum(leaf.nbytes for leaf in leaves)
        # what a compiled function and torch's one operation hold inside isn't seen
        seen = [name for name in steps if name != "compiled" and not name.startswith("torch")]
        extra = {name: max(peak_bytes(steps[name]) - gradients, 0) for name in seen}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, run in steps.items():
                begin = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - begin)
        base, room = min(times["plain"]), extra["plain"] + gradients
        aim = AIMS.get(shape)
        print(
            f"{shape}, {options.threads} threads"
            + (f"; aims for ours: {aim[0]}x time, {aim[1]}x memory" if aim else "")
        )
        for name, own in times.items():
            row = {"shape": shape, "method": name, "min_s": min(own), "median_s": statistics.median(own)}
            row["ratio"] = min(own) / base
            if name in extra:
                row |= {"extra_mib": extra[name] / 2**20, "memory_ratio": (extra[name] + gradients) / room}
            if name in off:
                row["gradient_error"] = off[name]
            rows.append(row)
            memory = f"{row['extra_mib']:8.1f} MiB {row['memory_ratio']:5.2f}" if name in extra else " " * 18
            error = " ".join(f"{one_error:.1e}" for one_error in off.get(name, ()))
            print(f"  {name:<26}{min(own):8.3f} s {row['median_s']:8.3f} s {row['ratio']:6.2f}x {memory}  {error}")
    keep("linear_cross_entropy", {"threads": options.threads, "rows": rows}, options)


if __name__ == "__main__":
    main()
