"""Losses of distillation over classes, forward and backward, against cross-entropy and their forms by autograd.

Plackett-Luce distillation with order and weights that are kept with the data, and with a teacher's logits that are
sorted each time; the same by torch's operations (gather, cumulative log-sum, autograd), and ListMLE as ranking
libraries write it, which sorts too. Rounds take turns, each of several steps, so that what one leaves in the allocator
is no other's time; milliseconds of a step in processor time, median and least. Target: with kept choices at most 1.5
times this package's cross-entropy; torch's own, which checks nothing, stands beside it.

    python benchmarks/distillation_losses.py [--batch 128] [--classes 1000] [--steps 10] [--rounds 21]
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
from torch.nn import functional

from steepest.losses import CrossEntropyLoss, MultiAspectKDLoss, pld_loss, teacher_choices

TARGET = 1.5
QUESTIONS = 50
Step = Callable[[], Tensor]


def sums_from_the_end(scores: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials over each place and all after it."""
    return scores.flip(1).logcumsumexp(1).flip(1)


def listmle(logits: Tensor, relevance: Tensor) -> Tensor:
    """Sort by relevance, gather, sum from the end."""
    ranked = logits.gather(1, relevance.sort(descending=True, dim=1).indices)
    ranked = ranked - ranked.max(1, keepdim=True).values
    sums = ranked.exp().flip(1).cumsum(1).flip(1)
    return ((sums + 1e-10).log() - ranked).sum(1).mean()


def forms(batch: int, classes: int) -> dict[str, Step]:
    """By name, the loss of one step; all of the same student."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, batch, classes, generator=generator)).unbind()
    student.requires_grad_()
    target = torch.randint(classes, (batch,), generator=generator)
    order, weights = teacher_choices(teacher, target)
    places, first = order.long(), teacher.scatter(1, target[:, None], torch.inf)
    entropy = CrossEntropyLoss()
    wide = torch.randn(batch, classes + QUESTIONS, generator=generator).requires_grad_()
    answers = torch.rand(batch, QUESTIONS, generator=generator)
    aspects = MultiAspectKDLoss(classes, QUESTIONS)

    def by_torch() -> Tensor:
        scores = student.gather(1, places)
        return (weights * (sums_from_the_end(scores) - scores)).sum(1).mean()

    def of_answers() -> Tensor:
        return functional.cross_entropy(wide[:, :classes], target) + functional.binary_cross_entropy_with_logits(
            wide[:, classes:], answers
        )

    losses: dict[str, tuple[Step, Tensor]] = {
        "torch cross-entropy": (lambda: functional.cross_entropy(student, target), student),
        "cross-entropy": (lambda: entropy(student, target), student),
        "PLD, kept choices": (lambda: pld_loss(student, target, order=order, choice_weights=weights), student),
        "PLD": (lambda: pld_loss(student, target, teacher=teacher), student),
        "PLD by torch, kept choices": (by_torch, student),
        "ListMLE by torch": (lambda: listmle(student, first), student),
        f"multi-aspect, {QUESTIONS} questions": (lambda: aspects(wide, target, attributes=answers), wide),
        f"torch, {QUESTIONS} questions": (of_answers, wide),
    }
    for ours, theirs in (("PLD, kept choices", "PLD by torch, kept choices"), (*losses,)[-2:]):
        a, b = (torch.autograd.grad(loss(), leaf)[0] for loss, leaf in (losses[ours], losses[theirs]))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    return {name: step(loss, leaf) for name, (loss, leaf) in losses.items()}


def step(loss: Step, leaf: Tensor) -> Step:
    """The loss and its gradient."""
    return lambda: torch.autograd.grad(loss(), leaf)[0]


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, batch=(128, 4), classes=(1000, 12), steps=(10, 1), rounds=(21, 1))

    def several(one: Step) -> Callable[[], None]:
        def run() -> None:
            for _ in range(options.steps):
                one()

        return run

    steps = {name: several(one) for name, one in forms(options.batch, options.classes).items()}
    times = measure(steps, options.rounds, "cpu", time.process_time)
    rows: list[dict[str, Any]] = []
    for name, values in times.items():
        of_step = [value / options.steps for value in values]
        rows.append(
            {"loss": name, "median_ms": round(statistics.median(of_step), 3), "least_ms": round(min(of_step), 3)}
        )
    by_name = {row["loss"]: row["median_ms"] for row in rows}
    for row in rows:
        row["by_cross_entropy"] = round(row["median_ms"] / max(by_name["cross-entropy"], 1e-9), 2)
        row["by_torch"] = round(row["median_ms"] / max(by_name["torch cross-entropy"], 1e-9), 2)
        print(f"{row['loss']:<28}", *(f"{name} {value}" for name, value in row.items() if name != "loss"))
    ratio = next(row["by_cross_entropy"] for row in rows if row["loss"] == "PLD, kept choices")
    print(f"PLD with kept choices by cross-entropy: {ratio}, target {TARGET}")
    facts = {"threads": torch.get_num_threads(), "target": TARGET, "rows": rows}
    keep("distillation_losses", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
