"""Log-probabilities and entropies of tokens, with gradients, by steepest and as trainers write them.

From logits that are there: against ``log_softmax`` and ``gather``, and against a row after the other, as trainers take
half logits. From hidden states and a head, whose logits are formed twice: against the same after the product. Rounds
take turns; milliseconds, median and least; peak memory beyond what is there before, in a call of its own. Targets, of
log-probabilities of logits: .7 of the time of ``log_softmax`` and ``gather`` and .55 of its peak.

    python benchmarks/token_statistics.py [--tokens 1024] [--classes 32000] [--width 512] [--rounds 9]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor

from steepest.core.allocations import peak_bytes
from steepest.kernels import token_statistics

TARGETS = {"time": 0.7, "peak": 0.55}
Step = Callable[[], object]


def gathered(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of the labels."""
    return logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def row_by_row(logits: Tensor, labels: Tensor) -> Tensor:
    """The same, a row after the other."""
    return torch.stack([gathered(row, label) for row, label in zip(logits, labels)])


def with_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both, from one softmax."""
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def forms(tokens: int, classes: int, width: int, dtype: torch.dtype) -> dict[str, dict[str, Step]]:
    """By task, what is timed."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    head = (torch.randn(classes, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    logits = (hidden @ head.T).detach().requires_grad_()
    labels = torch.randint(classes, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator)

    def log_p(source: Tensor, *own: Tensor) -> Tensor:
        value = token_statistics(source, labels, *own, want=("log_p",)).log_p
        assert value is not None
        return value

    def both(source: Tensor, *own: Tensor) -> Tensor:
        of_tokens = token_statistics(source, labels, *own, want=("log_p", "entropy"))
        assert of_tokens.log_p is not None
        return of_tokens.log_p + 0.1 * of_tokens.entropy

    def plain_both(z: Tensor) -> Tensor:
        value, entropy = with_entropy(z, labels)
        return value + 0.1 * entropy

    def step(function: Callable[[], Tensor], *leaves: Tensor) -> Step:
        return lambda: torch.autograd.grad(function(), leaves, upstream)

    ways = {
        "log p of logits": {
            "steepest": step(lambda: log_p(logits), logits),
            "log_softmax, gather": step(lambda: gathered(logits, labels), logits),
            "row by row": step(lambda: row_by_row(logits, labels), logits),
        },
        "log p and entropy of logits": {
            "steepest": step(lambda: both(logits), logits),
            "log_softmax, gather": step(lambda: plain_both(logits), logits),
        },
        "log p of a head": {
            "steepest": step(lambda: log_p(hidden, head), hidden, head),
            "log_softmax, gather": step(lambda: gathered(hidden @ head.T, labels), hidden, head),
        },
        "log p and entropy of a head": {
            "steepest": step(lambda: both(hidden, head), hidden, head),
            "log_softmax, gather": step(lambda: plain_both(hidden @ head.T), hidden, head),
        },
    }
    for own in ways.values():
        for a, b in zip(own["steepest"](), own["log_softmax, gather"]()):  # type: ignore[call-overload]
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 if dtype.itemsize < 4 else 1e-4)
    return ways


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, tokens=(1024, 8), classes=(32_000, 50), width=(512, 4), rounds=(9, 1))
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for task, own in forms(options.tokens, options.classes, options.width, dtype).items():
            times = measure(own, options.rounds, "cpu")
            peaks = {name: peak_bytes(step) for name, step in own.items()}
            row: dict[str, Any] = {"type": str(dtype).removeprefix("torch."), "task": task}
            for name, values in times.items():
                row[name] = {
                    "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
                    "peak_mib": round(peaks[name] / 2**20, 1),
                }  # fmt: skip
            ours, theirs = row["steepest"], row["log_softmax, gather"]
            row["time"] = round(ours["median_ms"] / theirs["median_ms"], 3)
            row["peak"] = round(ours["peak_mib"] / max(theirs["peak_mib"], 0.1), 3)
            rows.append(row)
            print(f"{row['type']:<9}{task:<28}", *(f"{name} {value}" for name, value in row.items() if name in own))
            print(f"    time {row['time']}, peak {row['peak']}")
    keep("token_statistics", {"threads": torch.get_num_threads(), "targets": TARGETS, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
