"""The contract of a method: what must run the model itself; a plain objective comes wrapped in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .arguments import Arguments
from .checks import refuse
from .objective import Batch, Objective


class Method(Arguments, nn.Module):
    """One step's loss from the model, the batch and the objective (mixing, attacks, two modalities ...).

    The loop needs only :meth:`loss`. State belongs in buffers, so that it is saved and resumed.
    """

    name: ClassVar[str] = ""
    exempt: ClassVar[dict[str, str]] = {}
    """Names of conformance checks that don't apply, each with its reason."""

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """The loss to go down, a scalar."""
        raise NotImplementedError

    def whole_step(
        self, model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer
    ) -> Callable[[Batch], Tensor] | None:
        """``step(batch) -> loss`` that does all of a step, the optimizer's part too; None leaves that to the loop.

        The loop asks before each epoch, where nothing else takes part in a step: no schedule, no aggregator, no
        autocast.
        """
        return None

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, 1-based."""

    def after_step(self) -> None:
        """Called after each optimizer step."""

    @classmethod
    def instances(cls) -> list[Self]:
        """Methods for the conformance suite, which brings model, batch and objective."""
        return [cls()]


def needed(objective: Objective, batch: Batch, features: Tensor | None, head: nn.Module | None) -> dict[str, Any]:
    """Exactly the keyword arguments that ``objective`` declares, from the batch and the model."""
    have: dict[str, Any] = {
        "index": batch.index,
        "features": features,
        "inputs": batch.inputs,
        "head": head,
        **batch.extra,
    }
    given = {name: have.get(name) for name in objective.needs}
    for name, value in given.items():
        if value is None:
            refuse(
                "batch", f"{name!r}, which {objective.name} needs", sorted(k for k, v in have.items() if v is not None)
            )
    if batch.weight is not None:
        given["weight"] = batch.weight
    return given


class Plain(Method):
    """An ordinary step: outputs of the model, then the objective with exactly what it declares.

    A model that has ``backbone`` and ``head`` can give ``features`` (the head's input) and ``head``.

    >>> import torch
    >>> from steepest.losses.classification.comp_sum import CompSumLoss
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 1]))
    >>> Plain().loss(nn.Linear(3, 2), batch, CompSumLoss()).shape
    torch.Size([])
    """

    name = "plain"

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        head: Any = getattr(model, "head", None)
        backbone: Any = getattr(model, "backbone", None)
        features = None
        if "features" in objective.needs:
            if head is None or backbone is None:
                refuse(
                    "model",
                    f"attributes 'backbone' and 'head', because {objective.name} needs features",
                    type(model).__name__,
                )
            features = backbone(batch.inputs)
            outputs = head(features)
        else:
            outputs = model(batch.inputs)
        loss: Tensor = objective(outputs, batch.target, **needed(objective, batch, features, head))
        return loss
