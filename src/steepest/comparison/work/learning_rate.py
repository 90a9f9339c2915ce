"""A range test of the learning rate with the network, the objective and the batches of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...core.method import Plain
from ...core.objective import Batch, Objective
from ...descent import ArrayBatches
from ...optim.schedules.one_cycle import RangeTest, lr_range_test
from ..design.context import Context
from ..design.trials import Trial
from .cells import member_of, recipe_of
from .training import networks_of

WEIGHT_DECAY = 1e-4


class _WithObjective(nn.Module):
    """A network and its objective: a batch gives the loss of one plain step."""

    def __init__(self, network: nn.Module, objective: Any) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch) -> Tensor:
        return Plain().loss(self.network, batch, self.objective)


class _Epochs:
    """The batches of one epoch after the other, each with the target beside it."""

    def __init__(self, batches: ArrayBatches) -> None:
        self.batches, self.epoch = batches, 0

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        self.epoch += 1
        for batch in self.batches.epoch(self.epoch):
            yield batch, batch.target


def range_test(
    context: Context,
    name: str,
    *,
    start_lr: float,
    end_lr: float,
    steps: int,
    accumulation: int = 1,
    optimizer: str = "adamw",
) -> RangeTest:
    """The range test on the first training split of a comparison.

    Args:
        context: data, network, batch size and seed.
        name: of the objective.
        start_lr, end_lr: rates above 0, the second larger.
        steps: of the optimizer; with few rows the epochs go on.
        accumulation: batches that one step takes.
        optimizer: ``"adamw"``, which a comparison trains with, or ``"sgd"`` with momentum 0.9.
    """
    pair = next(iter(context.folds))
    recipe = recipe_of(context, context.objective(name))
    member = member_of(context, pair, 0, Trial(start_lr, WEIGHT_DECAY))
    inputs, device = member.split.inputs, recipe.device
    with torch.random.fork_rng(devices=[]):
        (network,) = networks_of(recipe, [member])
    objective = member.objective
    assert objective is not None
    batch, each_epoch = recipe.steps(len(inputs))
    weight = member.split.weight
    batches = ArrayBatches(
        inputs.to(device),
        member.split.target.to(device),
        batch_size=batch,
        steps=each_epoch,
        seed=member.seeds["order"],
        weight=None if weight is None else weight.to(device),
        sampler=objective.sampler if type(objective).sampler is not Objective.sampler else None,
        augment=recipe.augment,
    )
    objective.start_epoch(1, 1)
    whole = _WithObjective(network, objective)
    settings: dict[str, Any] = {"lr": start_lr, "weight_decay": WEIGHT_DECAY}
    driver = (
        torch.optim.AdamW(whole.parameters(), **settings)
        if optimizer == "adamw"
        else torch.optim.SGD(whole.parameters(), momentum=0.9, **settings)
    )
    return lr_range_test(
        whole,
        _already_a_loss,
        _Epochs(batches),
        start_lr,
        end_lr,
        steps,
        optimizer=driver,
        accumulation_steps=accumulation,
        device=device,
    )


def _already_a_loss(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs
