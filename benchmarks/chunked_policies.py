"""A policy's and a preference's loss from hidden states against the chunked losses of Liger-Kernel, on the CPU.

"dapo" of eight answers with their old log-probabilities, and the sigmoid preference of four pairs whose reference is
given by hidden states of its own, in float32 and bfloat16, forward and backward to hidden states and head. Liger takes
an answer, or a pair, at a time, by default compiled; ours has the budget "auto", and one of the bytes that all logits
need. Rounds take turns; milliseconds of processor time, median and least; peak memory beyond what is there before, in a
call of its own. Without liger-kernel ours stands alone.

    python benchmarks/chunked_policies.py [--tokens 1024] [--classes 32000] [--width 512] [--rounds 7] [--compiled]
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor

from steepest.core.allocations import peak_bytes
from steepest.core.group_policy import clipped_policy_loss
from steepest.core.preference import preference_loss
from steepest.core.token_reductions import sequence_sums
from steepest.kernels import token_statistics

SEQUENCES = 8
Step = Callable[[], Any]


def forms(
    tokens: int, classes: int, width: int, dtype: torch.dtype, compiled: bool
) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """By task and by way, a loss; and the leaves of the gradient."""
    generator = torch.Generator().manual_seed(0)
    steps = max(2, tokens // SEQUENCES)
    hidden = torch.randn(SEQUENCES, steps, width, generator=generator).to(dtype).requires_grad_()
    head = (torch.randn(classes, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    reference = (hidden.detach().float() + 0.3 * torch.randn(hidden.shape, generator=generator)).to(dtype)
    labels = torch.randint(classes, (SEQUENCES, steps), generator=generator)
    labels[1, -1] = labels[-1, -1] = -100
    valid, advantages = labels >= 0, torch.randn(SEQUENCES, generator=generator)
    fixed, budgets = head.detach(), {"steepest": "auto", "steepest, all logits": 4 * 5 * labels.numel() * classes}

    def log_p(source: Tensor, weight: Tensor, memory: Any) -> Tensor:
        value = token_statistics(source, labels, weight, want=("log_p",), memory=memory).log_p
        assert value is not None
        return value

    with torch.no_grad():
        old = log_p(hidden, head, "auto") + 0.1 * torch.randn(labels.shape, generator=generator)

    def policy(memory: Any) -> Tensor:
        return clipped_policy_loss(log_p(hidden, head, memory), old, advantages, valid, "dapo", epsilon_high=0.2)

    def preference(memory: Any) -> Tensor:
        with torch.no_grad():
            of_reference, _ = sequence_sums(log_p(reference, fixed, memory), valid)
        sums, _ = sequence_sums(log_p(hidden, head, memory), valid)
        return preference_loss(*sums.chunk(2), *of_reference.chunk(2), "sigmoid", beta=0.1).losses.mean()

    ways: dict[str, dict[str, Callable[[], Tensor]]] = {
        "dapo": {name: lambda m=m: policy(m) for name, m in budgets.items()},  # type: ignore[misc]
        "preference": {name: lambda m=m: preference(m) for name, m in budgets.items()},  # type: ignore[misc]
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss

        grpo = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="dapo", compiled=compiled)
        dpo = LigerFusedLinearDPOLoss(beta=0.1, compiled=compiled)
        tokens_of, mask = labels.clamp_min(0), valid.float()
        ways["dapo"]["Liger"] = lambda: grpo(hidden, head, tokens_of, mask, advantages, old_per_token_logps=old)[0]
        ways["preference"]["Liger"] = lambda: dpo(head, hidden, labels, ref_input=reference, ref_weight=fixed)[0]

    def step(loss: Callable[[], Tensor]) -> Step:
        return lambda: (loss().detach(), *torch.autograd.grad(loss(), (hidden, head)))

    for own in ways.values():
        results = {name: step(loss)() for name, loss in own.items()}
        for name, values in results.items():
            for a, b in zip(values, results["steepest"]):
                off = float((a.float() - b.float()).abs().max()) / max(float(b.float().abs().max()), 1e-9)
                assert off < (2e-3 if dtype == torch.float32 else 0.1), (name, off)
    return {
        task: {name: lambda f=f: torch.autograd.grad(f(), (hidden, head)) for name, f in own.items()}  # type: ignore[misc]
        for task, own in ways.items()
    }


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__, tokens=(1024, 16), classes=(32_000, 50), width=(512, 4), rounds=(7, 1), compiled=(False, False)
    )
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for task, own in forms(options.tokens, options.classes, options.width, dtype, options.compiled).items():
            times = measure(own, options.rounds, "cpu", time.process_time)
            row: dict[str, Any] = {"type": str(dtype).removeprefix("torch."), "task": task}
            for name, values in times.items():
                row[name] = {
                    "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
                    "peak_mib": round(peak_bytes(own[name]) / 2**20, 1),
                }  # fmt: skip
            for name in own:
                if "Liger" in row and name != "Liger":
                    paired = statistics.median(a / b for a, b in zip(times[name], times["Liger"]))
                    peak = row[name]["peak_mib"] / max(row["Liger"]["peak_mib"], 0.1)
                    row[f"{name} by Liger"] = {"time": round(paired, 3), "peak": round(peak, 3)}
            rows.append(row)
            print(*(f"{name} {value}" for name, value in row.items()))
    facts = {"threads": torch.get_num_threads(), "compiled": options.compiled, "rows": rows}
    keep("chunked_policies", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
