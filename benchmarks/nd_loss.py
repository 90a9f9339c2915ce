"""Norm and direction of features, forward and backward, by steepest and one sample after the other.

The released code goes through a batch in Python, reads each label with ``.item()`` and makes its class mean a tensor
from a list of numbers. The second rival has its means in one tensor and still goes sample by sample; the third is
vectorised with what torch offers. Rounds take turns; milliseconds, median and least. Target: 20 times the speed of the
released form at 128 samples.

    python benchmarks/nd_loss.py [--batch 128] [--width 256] [--classes 100] [--rounds 30]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor
from torch.nn import functional as nnf

from steepest.losses import NDLoss

TARGET = 20.0
Loss = Callable[[Tensor], Tensor]


def released(teacher: Tensor, means: dict[str, list[float]], labels: Tensor) -> Loss:
    """Sample by sample, each mean from a list."""

    def loss(student: Tensor) -> Tensor:
        total = student.new_zeros(())
        for row, of_teacher, label in zip(student, teacher, labels):
            mean = torch.tensor(means[str(label.item())])
            length = max(row.norm(), of_teacher.norm())
            total = total + 1 - row.dot(mean / mean.norm()) / length
        return total / len(labels)

    return loss


def by_rows(teacher: Tensor, means: Tensor, labels: Tensor) -> Loss:
    """Sample by sample, of tensors."""

    def loss(student: Tensor) -> Tensor:
        total = student.new_zeros(())
        for row, of_teacher, label in zip(student, teacher, labels.tolist()):
            mean = means[label]
            total = total + 1 - row.dot(mean / mean.norm()) / torch.maximum(row.norm(), of_teacher.norm())
        return total / len(labels)

    return loss


def vectorised(teacher: Tensor, means: Tensor, labels: Tensor) -> Loss:
    """All at once, in four calls."""

    def loss(student: Tensor) -> Tensor:
        along = (student * nnf.normalize(means, dim=1)[labels]).sum(1)
        return (1 - along / torch.maximum(student.norm(dim=1), teacher.norm(dim=1))).mean()

    return loss


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, batch=(128, 8), width=(256, 4), classes=(100, 3), rounds=(30, 1))
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(options.batch, options.width, generator=generator) for _ in range(2))
    means = torch.rand(options.classes, options.width, generator=generator) + 0.1
    labels = torch.randint(options.classes, (options.batch,), generator=generator)
    leaf = student.requires_grad_()
    module = NDLoss(means)
    losses: dict[str, Loss] = {
        "steepest": lambda s: module(s, labels, teacher),
        "released form": released(teacher, {str(c): row.tolist() for c, row in enumerate(means)}, labels),
        "sample by sample": by_rows(teacher, means, labels),
        "vectorised": vectorised(teacher, means, labels),
    }
    gradients = {name: torch.autograd.grad(loss(leaf), leaf)[0] for name, loss in losses.items()}
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, gradients["steepest"])
    steps = {name: (lambda loss=loss: torch.autograd.grad(loss(leaf), leaf)) for name, loss in losses.items()}
    times = measure(steps, options.rounds, "cpu", time.process_time)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = {name: {"median_ms": round(median[name], 3), "least_ms": round(min(times[name]), 3)} for name in times}
    speed = {name: round(median[name] / median["steepest"], 2) for name in times if name != "steepest"}
    for name, row in rows.items():
        print(f"{name:<18}{row['median_ms']:>9.3f} ms   {speed.get(name, 1.0):>7.2f} times ours")
    numbers = {"threads": torch.get_num_threads(), "target": TARGET, "milliseconds": rows, "times_ours": speed}
    keep("nd_loss", numbers, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
