"""Peak memory of the joint backward of m losses, and surgery of their gradients on coefficients, over peers.

A network of 4 million weights with m heads' losses and UPGrad: ``steepest.gradients.backward``, and TorchJD's
``backward`` with ``jac_to_grad`` and its option that saves memory. Each runs in a process of its own; what counts is
how far the peak of resident memory lies above what the process held before, in matrices of m rows. Beside it
the same with the vectorised backward of TorchJD cut to single rows.

PCGrad is also timed from a Jacobian of m rows and a million columns to a direction, over LibMTL's form of it, written
here from its documented behaviour: products and projections of whole gradients, one pair after the other. Milliseconds,
median and least of rounds that take turns.

    python benchmarks/joint_backward.py [--rounds 20]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn

from steepest.gradients import PCGrad, UPGrad, backward

FORMS = ("steepest", "TorchJD", "TorchJD, row by row")
SURGERY = 2.0
"""At least so many times as fast as LibMTL's form at 8 rows."""


def network(width: int) -> nn.Module:
    """Four rectified layers of one width."""
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(width, width), nn.ReLU())))


def held() -> int:
    """The peak of resident memory so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(form: str, tasks: int, width: int) -> None:
    """Print the bytes that a joint backward takes beside what was there, and a check of its direction."""
    model, x = network(width), torch.randn(64, width, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    losses = [model(x)[:, k].square().mean() + model(x)[:, k].mean() for k in range(2)]
    torch.stack(losses).sum().backward()  # what a first backward loads
    model.zero_grad()
    outputs = model(x)
    losses = [outputs[:, k].square().mean() + (-1) ** k * outputs[:, k : k + 8].mean() for k in range(tasks)]
    if form == "steepest":
        before = held()
        backward(losses, parameters, aggregator=UPGrad())
    else:
        from torchjd import autojac
        from torchjd.aggregation import UPGrad as Theirs

        small = torch.nn.Linear(2, 2)
        rows = list(small(torch.ones(2)))
        autojac.backward(rows)
        autojac.jac_to_grad(small.parameters(), Theirs(), optimize_gramian_computation=True)
        before = held()
        autojac.backward(losses, parallel_chunk_size=1 if "row" in form else None)
        autojac.jac_to_grad(parameters, Theirs(), optimize_gramian_computation=True)
    after = held()
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    print(after - before, float(norm))


def by_gradients(jacobian: Tensor, order: list[list[int]]) -> Tensor:
    """PCGrad on whole gradients."""
    rows = jacobian.clone()
    for i, others in enumerate(order):
        for j in others:
            product = torch.dot(rows[i], jacobian[j])
            if product < 0:
                rows[i] -= product * jacobian[j] / (jacobian[j].norm().pow(2) + 1e-8)
    return rows.sum(0)


def main() -> None:
    """Measure, print and keep the numbers."""
    if len(sys.argv) > 1 and sys.argv[1] == "--peak":
        peak(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    options = read_options(__doc__, tasks=("2,8,32", "2"), rounds=(20, 1), width=(1024, 128), columns=(1_000_000, 1000))
    memory: list[dict[str, Any]] = []
    for tasks in map(int, options.tasks.split(",")):
        row: dict[str, Any] = {"tasks": tasks}
        matrix = 4 * tasks * sum(p.numel() for p in network(options.width).parameters())
        for form in FORMS:
            command = [sys.executable, __file__, "--peak", form, str(tasks), str(options.width)]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            size, norm = map(float, text.split())
            row[form], row[f"{form}, length of the direction"] = round(size / matrix, 3), float(f"{norm:.5g}")
        memory.append(row)
        print(f"m = {tasks:<4}" + "  ".join(f"{form} {row[form]:.2f}" for form in FORMS) + " matrices of m rows")
    surgery: list[dict[str, Any]] = []
    for tasks in map(int, options.tasks.split(",")):
        generator = torch.Generator().manual_seed(tasks)
        jacobian = torch.randn(tasks, options.columns, generator=generator)
        jacobian -= 0.95 * jacobian.mean(0) + 0.3 * jacobian[:1] / tasks
        order = [[j for j in torch.randperm(tasks, generator=generator).tolist() if j != i] for i in range(tasks)]
        aggregator = PCGrad()
        times = measure(
            {"steepest": lambda: aggregator(jacobian), "LibMTL's form": lambda: by_gradients(jacobian, order)},  # noqa: B023
            options.rounds,
            "cpu",
            time.process_time,
        )
        row = {"rows": tasks, "columns": options.columns}
        for form, own in times.items():
            row[f"{form}_median_ms"], row[f"{form}_min_ms"] = round(statistics.median(own), 3), round(min(own), 3)
        row["times_as_fast"] = round(row["LibMTL's form_median_ms"] / row["steepest_median_ms"], 2)
        surgery.append(row)
        print(f"PCGrad, m = {tasks:<4}{row['steepest_median_ms']:9.3f} ms, {row['times_as_fast']:.2f} times as fast")
    facts = {"threads": torch.get_num_threads(), "surgery_target": SURGERY, "memory": memory, "surgery": surgery}
    keep("joint_backward", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
