"""Small students of one architecture, trained together, each with what its teacher knows of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ....core.objective import Objective
from ....descent import ArrayBatches, Stack, StackedAdamW
from ....nn.networks import Network, mlp


@dataclass(frozen=True)
class Student:
    """How one student is trained.

    Attributes:
        objective: what it minimises.
        rate: learning rate of Adam.
        outputs: how many of the network's outputs the objective takes.
        extra: what the objective needs of each row, by name.
    """

    objective: Objective
    rate: float
    outputs: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)


def taught(
    students: Sequence[Student],
    inputs: Tensor,
    target: Tensor,
    *,
    width: int,
    epochs: int,
    seed: int,
    batch_size: int = 64,
) -> Stack:
    """Networks of one hidden layer after their epochs of Adam, in the type of the inputs.

    All begin with the same weights, with as many outputs as any of them needs, and see the same batches.

    Args:
        students: what differs between them.
        inputs: ``[N, D]``.
        target: class indices ``[N]``.
        width: hidden units.
        epochs: passes over the rows.
        seed: of weights and order.
        batch_size: rows of a step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(width, max(student.outputs for student in students))
        model = Network(mlp(inputs.shape[1], width=width, depth=1), head).to(inputs.dtype)
    stack = Stack([model] * len(students))
    rates = [student.rate for student in students]
    optimizer = StackedAdamW(stack, lr=rates, weight_decay=[0.0] * len(students), one_pass=True)
    batches = ArrayBatches(inputs, target, batch_size=batch_size, seed=seed)
    for epoch in range(1, epochs + 1):
        for batch in batches.epoch(epoch):
            outputs = stack(batch.inputs.expand(len(students), *batch.inputs.shape))
            losses = [
                student.objective(
                    own[:, : student.outputs],
                    batch.target,
                    **{name: values[batch.index] for name, values in student.extra.items()},
                )
                for own, student in zip(outputs, students)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
    return stack


@torch.no_grad()
def outputs_of(stack: Stack, inputs: Tensor) -> Tensor:
    """``[M, N, outputs]``."""
    outputs: Tensor = stack(inputs.expand(len(stack), *inputs.shape))
    return outputs


def accuracies(stack: Stack, inputs: Tensor, target: Tensor, classes: int) -> list[float]:
    """Of the first outputs, which are the classes, in per cent; one a student."""
    predicted = outputs_of(stack, inputs)[..., :classes].argmax(-1)
    return [100 * float(right) for right in (predicted == target).double().mean(1)]
