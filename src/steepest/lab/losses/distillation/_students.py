"""A small student, trained with what a teacher knows of each row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ....core.objective import Objective
from ....descent import ArrayBatches, Descent
from ....nn.networks import Network, mlp


def taught(
    objective: Objective,
    inputs: Tensor,
    target: Tensor,
    *,
    width: int,
    outputs: int,
    rate: float,
    epochs: int,
    seed: int,
    extra: Mapping[str, Tensor] | None = None,
    batch_size: int = 64,
) -> nn.Module:
    """One hidden layer after its epochs of Adam, in the type of the inputs.

    Args:
        objective: what it minimises.
        inputs: ``[N, D]``.
        target: class indices ``[N]``.
        width: hidden units.
        outputs: of its head.
        rate: learning rate.
        epochs: passes over the rows.
        seed: of weights and order: the same for all objectives.
        extra: what the objective needs of each row, by name.
        batch_size: rows of a step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Network(mlp(inputs.shape[1], width=width, depth=1), nn.Linear(width, outputs)).to(inputs.dtype)
    batches = ArrayBatches(inputs, target, batch_size=batch_size, seed=seed, extra=dict(extra or {}))
    optimizer = torch.optim.Adam(model.parameters(), rate, foreach=True)
    Descent(model, objective, batches, optimizer=optimizer).fit(epochs)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, target: Tensor, classes: int) -> float:
    """Of the first outputs, which are the classes, in per cent."""
    return 100 * float((model(inputs)[:, :classes].argmax(1) == target).double().mean())
