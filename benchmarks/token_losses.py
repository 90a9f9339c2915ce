"""Losses of policies, preferences, forgetting and numbers against the likelihood that they are made of.

First from hidden states and a head: each named loss of log-probabilities, forward and backward, against the negative
log-likelihood of the same head with upstream weights that are given (target: 1.05 of its time); the reference of a
preference is cached. Then from logits of 50,000 classes: cross-entropy with the distance of number tokens against
cross-entropy alone (target: 1.02). Rounds take turns; milliseconds of processor time, median and least. The ratio is
the median of the rounds' own ratios, each against both likelihoods beside it; the second likelihood shows what the
order alone makes.

    python benchmarks/token_losses.py [--tokens 1024] [--classes 32000] [--width 512] [--rounds 9]
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
from torch import Tensor

from steepest.core.allocations import peak_bytes
from steepest.core.group_policy import FORMS, GroupPolicyLoss
from steepest.core.preference import PreferenceLoss
from steepest.core.token_reductions import sequence_sums
from steepest.kernels import linear_log_probability, token_statistics
from steepest.losses.language import NumberTokenLoss, TokenCrossEntropyLoss
from steepest.losses.unlearning import UnlearningObjective

TARGETS = {"of the likelihood": 1.05, "of cross-entropy": 1.02}
SEQUENCES, DIGITS = 8, 10
Step = Callable[[], object]


def from_hidden_states(tokens: int, classes: int, width: int, dtype: torch.dtype) -> dict[str, Step]:
    """By name, a step of eight answers; the first and the last are the likelihood."""
    generator = torch.Generator().manual_seed(0)
    steps = max(1, tokens // SEQUENCES)
    hidden = torch.randn(SEQUENCES, steps, width, generator=generator).to(dtype).requires_grad_()
    head = (torch.randn(classes, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    labels = torch.randint(classes, (SEQUENCES, steps), generator=generator)
    upstream, noise = torch.randn(2, SEQUENCES, steps, generator=generator).unbind()
    mask, advantages = torch.ones_like(labels, dtype=torch.bool), torch.randn(SEQUENCES, generator=generator)

    def log_p() -> Tensor:
        value = token_statistics(hidden, labels, head, want=("log_p",)).log_p
        assert value is not None
        return value

    with torch.no_grad():
        old = log_p() + 0.1 * noise
        reference = old.sum(1)
    pairs, forgetting = PreferenceLoss("sigmoid", beta=0.1), UnlearningObjective("npo")

    def policy(name: str) -> Callable[[], Tensor]:
        loss = GroupPolicyLoss(name, length=float(steps) if name == "dr_grpo" else None)
        return lambda: loss(log_p(), old, advantages, mask)

    def preference() -> Tensor:
        sums, _ = sequence_sums(log_p(), mask)
        return pairs(*sums.chunk(2), *reference.chunk(2))

    def likelihood() -> Tensor:
        return (linear_log_probability(hidden, head, labels) * upstream).sum()

    losses: dict[str, Callable[[], Tensor]] = {"likelihood": likelihood}
    losses |= {name: policy(name) for name in FORMS}
    losses |= {
        "dpo": preference,
        "npo": lambda: forgetting(hidden, labels, None, None, head, forget_ref_logp=reference),
    }
    losses["likelihood again"] = likelihood
    return {name: gradients(loss, hidden, head) for name, loss in losses.items()}


def gradients(loss: Callable[[], Tensor], *leaves: Tensor) -> Step:
    """The loss and its gradients."""
    return lambda: torch.autograd.grad(loss(), leaves)


def of_numbers(tokens: int, classes: int, dtype: torch.dtype) -> dict[str, Step]:
    """By name, a step from logits; half of the labels are digits."""
    generator = torch.Generator().manual_seed(0)
    steps = max(1, tokens // SEQUENCES)
    logits = torch.randn(SEQUENCES, steps, classes, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(classes, (SEQUENCES, steps), generator=generator)
    labels[:, ::2] = torch.randint(DIGITS, labels[:, ::2].shape, generator=generator)
    values = torch.full((classes,), torch.nan)
    values[:DIGITS] = torch.arange(float(DIGITS))
    entropy, loss = TokenCrossEntropyLoss(), NumberTokenLoss(values)
    flat, targets = logits.flatten(0, 1), labels.flatten()

    def by_torch() -> Tensor:
        return torch.nn.functional.cross_entropy(flat.float(), targets)

    losses: dict[str, Callable[[], Tensor]] = {
        "cross-entropy": lambda: entropy(logits, labels),
        "number token loss": lambda: loss(logits, labels),
        "cross-entropy again": lambda: entropy(logits, labels),
        "torch cross-entropy": by_torch,
    }
    return {name: gradients(own, logits) for name, own in losses.items()}


def compare(steps: dict[str, Step], rounds: int, bases: tuple[str, str]) -> list[dict[str, Any]]:
    """A row a step, with its time over that of the two bases."""
    times = measure(steps, rounds, "cpu", time.process_time)
    rows = []
    for name, values in times.items():
        both = [(times[bases[0]][k] + times[bases[1]][k]) / 2 for k in range(rounds)]
        row = {
            "loss": name, "median_ms": round(statistics.median(values), 2), "least_ms": round(min(values), 2),
            "peak_mib": round(peak_bytes(steps[name]) / 2**20, 1),
            "ratio": round(statistics.median(own / base for own, base in zip(values, both)), 4),
        }  # fmt: skip
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items()))
    return rows


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__, tokens=(1024, 16), classes=(32_000, 50), width=(512, 4), numbers=(50_000, 60), rounds=(9, 1)
    )
    rows: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        steps = from_hidden_states(options.tokens, options.classes, options.width, dtype)
        rows[f"{kind}, of a head"] = compare(steps, options.rounds, ("likelihood", "likelihood again"))
        steps = of_numbers(options.tokens, options.numbers, dtype)
        rows[f"{kind}, numbers"] = compare(steps, 2 * options.rounds, ("cross-entropy", "cross-entropy again"))
    keep("token_losses", {"threads": torch.get_num_threads(), "targets": TARGETS, "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
