"""Fused RMSNorm, SwiGLU and rotation, forward plus backward, beside eager and compiled torch; and packing.

Rounds are interleaved: each runs every form once, so that all see the same machine. Prints the smallest and the median
time, the ratio of the smallest ones to ours, and the MiB that the forward pass keeps for the backward beside its
inputs (on a GPU also the most that a pass allocates).

    python benchmarks/fused.py [--dtypes float32,bfloat16] [--rounds 9] [--device cpu] [--no-compile] [--lengths 1000]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor
from torch.nn import functional

from steepest.kernels import best_fit_decreasing, fused_qk_rope, fused_rms_norm, fused_swiglu
from steepest.kernels.chronicals import rotary_table

Form = Callable[..., Any]


def plain_norm(x: Tensor, w: Tensor) -> Tensor:
    """As Llama in Transformers writes it."""
    wide = x.float()
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As Llama in Transformers writes it."""
    return functional.silu(gate) * up


def plain_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As Llama in Transformers writes it: a table with two equal halves."""
    half = q.shape[-1] // 2
    turned = [torch.cat((-t[..., half:], t[..., :half]), -1) for t in (q, k)]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


def forms(device: str, dtype: torch.dtype, compiled: bool) -> dict[str, tuple[dict[str, Form], list[Tensor]]]:
    """The forms of each operation by name, and its inputs."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    width, positions = 2048, torch.arange(1024, device=device)
    cos, sin = (torch.cat((t, t), -1) for t in rotary_table(positions, 64))
    narrow = cos.to(dtype), sin.to(dtype)
    by_name: dict[str, tuple[dict[str, Form], list[Tensor]]] = {
        f"rms_norm 4096x{width}": (
            {
                "ours": fused_rms_norm,
                "eager": plain_norm,
                "F.rms_norm": lambda x, w: functional.rms_norm(x, (width,), w, 1e-6),
            },
            [draw(4096, width), draw(width)],
        ),
        "swiglu 2048x5632": ({"ours": fused_swiglu, "eager": plain_swiglu}, [draw(2048, 5632), draw(2048, 5632)]),
        "qk_rope 2x(16+4)x1024x64": (
            {"ours": lambda q, k: fused_qk_rope(q, k, cos, sin), "eager": lambda q, k: plain_rope(q, k, *narrow)},
            [draw(2, 1024, 16, 64).transpose(1, 2), draw(2, 1024, 4, 64).transpose(1, 2)],
        ),
    }
    if compiled:
        for own, _ in by_name.values():
            own["compiled"] = torch.compile(own["eager"])
    return by_name


def passes(form: Form, inputs: Sequence[Tensor]) -> Callable[[], None]:
    """One forward and backward pass; the gradients are thrown away."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.no_grad():
        out = form(*leaves)
    ones = [torch.ones_like(o) for o in (out if isinstance(out, tuple) else (out,))]

    def step() -> None:
        torch.autograd.grad(form(*leaves), leaves, ones)

    return step


def kept(form: Form, inputs: Sequence[Tensor]) -> float:
    """MiB that autograd keeps beside the inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    sizes, own = {}, {t.untyped_storage().data_ptr() for t in leaves}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _out = form(*leaves)
    return sum(sizes.values()) / 2**20


def most(step: Callable[[], None]) -> float:
    """MiB that one pass allocates at most on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def packing(number: int) -> list[dict[str, Any]]:
    """Seconds of best fit decreasing for many lengths."""
    rng = np.random.default_rng(0)
    kinds = {
        "uniform in 1..2048": (rng.integers(1, 2049, number), 2048),
        "log-normal to 8192": (np.clip(rng.lognormal(5.5, 1.0, number), 1, 8192).astype(int), 8192),
    }
    rows = []
    for name, (lengths, capacity) in kinds.items():
        begin = time.perf_counter()
        bins = best_fit_decreasing(lengths, capacity)
        spent = time.perf_counter() - begin
        fill = float(lengths.sum()) / (capacity * len(bins))
        rows.append({"lengths": number, "kind": name, "seconds": round(spent, 2), "fill": round(fill, 5)})
        print(f"packing {number} lengths, {name}: {spent:.2f} s, fill {fill:.5f}")
    return rows


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__,
        dtypes=("float32,bfloat16", "float32"),
        rounds=(9, 1),
        device=("cpu", "cpu"),
        no_compile=(False, True),
        lengths=(1_000_000, 1000),
    )
    rows = []
    for dtype in options.dtypes.split(","):
        for operation, (own, inputs) in forms(options.device, getattr(torch, dtype), not options.no_compile).items():
            steps = {name: passes(form, inputs) for name, form in own.items()}
            times = measure(steps, options.rounds, options.device)
            base = min(times["ours"])
            for name, spent in times.items():
                row = {"operation": operation, "dtype": dtype, "form": name, "min_ms": round(min(spent), 3)}
                row |= {"median_ms": round(statistics.median(spent), 3), "over_ours": round(min(spent) / base, 2)}
                row |= {"kept_mib": round(kept(own[name], inputs), 2)}
                if options.device != "cpu":
                    row |= {"peak_mib": round(most(steps[name]), 2)}
                rows.append(row)
                print("  ".join(f"{value:>12}" if key != "operation" else f"{value:<26}" for key, value in row.items()))
    facts = {"threads": torch.get_num_threads(), "rows": rows, "packing": packing(options.lengths)}
    keep("fused", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
