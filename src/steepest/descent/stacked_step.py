"""The step of a stack of models, by autograd or with gradients that layers and objectives give themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.method import Method, needed
from ..core.objective import Batch, Objective
from .stack import Stack, StackedObjective
from .stacked_adamw import StackedAdamW


class StackedStep(Method):
    """The plain step for a :class:`Stack`.

    Args:
        by_hand: whether layers and objectives give their gradients themselves, where they can, with no graph over all
            of them, to a :class:`StackedAdamW`.
    """

    name = "stacked"

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.by_hand = by_hand

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        assert isinstance(model, Stack)
        features, outputs = model.features_and_outputs(batch.inputs)
        loss: Tensor = objective(outputs, batch.target, **needed(objective, batch, features, None))
        return loss

    def whole_step(
        self, model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer
    ) -> Callable[[Batch], Tensor] | None:
        """The step without a graph, where the objective needs the outputs alone."""
        if not self.by_hand or not isinstance(optimizer, StackedAdamW):
            return None
        if not isinstance(objective, StackedObjective) or not objective.of_outputs:
            return None
        assert isinstance(model, Stack)
        stack, stacked, adamw = model, objective, optimizer  # as such, for the types

        def step(batch: Batch) -> Tensor:
            with torch.no_grad():
                outputs = stack.outputs_by_hand(batch.inputs)
                total, upstream = stacked.rows(outputs, batch.target, batch.weight)
                adamw.move(stack.gradients_by_hand(upstream))
            return total

        return step
