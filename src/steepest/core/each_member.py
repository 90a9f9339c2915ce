"""An objective for networks of several members: each is trained by its own outputs, and all predict together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_number, refuse
from .heads import heads_of_members
from .objective import Objective, TaskInfo

TASKS = ("binary", "multiclass", "multilabel", "regression")


class EachMember(Objective):
    """The mean of the members' losses; predictions from the mean of their probabilities.

    An objective of single samples gets the rows of all members at once, with each row's target, weight and index
    repeated; one of the batch, or one that needs the head, is called for each member by itself. Nothing is averaged
    before the loss: the mean of the members' outputs would be one network again.

    Args:
        objective: any with ``reduction="mean"``.
        members: of the network, >= 1.
        task: ``"binary"``, ``"multiclass"``, ``"multilabel"`` or ``"regression"``.

    Raises:
        ValueError: an objective with another reduction; members below 1; another task.

    Shapes: outputs ``[B, members, ...]`` of :meth:`head`, target as of the objective.

    Example:
        >>> from steepest.losses import CrossEntropyLoss
        >>> both = EachMember(CrossEntropyLoss(), 2, "multiclass")
        >>> outputs, target = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([0])
        >>> round(float(both(outputs, target)), 4), both.probabilities(outputs)
        (0.41, tensor([[0.6904, 0.3096]]))
    """

    def __init__(self, objective: Objective, members: int, task: str) -> None:
        check_number("members", members, low=1, integer=True)
        if objective.reduction != "mean":
            refuse("objective", "reduction 'mean'", objective.reduction)
        if task not in TASKS:
            refuse("task", f"one of {', '.join(TASKS)}", task)
        self.unit = objective.unit
        super().__init__("mean")
        self.objective, self.members, self.task = objective, members, task
        self.name, self.tasks, self.domain = objective.name, objective.tasks, objective.domain
        self.targets, self.needs, self.views = objective.targets, objective.needs, objective.views
        self.stateful = objective.stateful
        self._apart = objective.unit == "batch" or "head" in objective.needs

    @property
    def reduction(self) -> str:
        """That of the objective; with ``"none"`` there are losses ``[B * members]``, member after member of a row."""
        return self.objective.reduction

    @reduction.setter
    def reduction(self, reduction: str) -> None:
        if "objective" in self._modules:
            self.objective.reduction = reduction

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """A head of the objective's own for each member: features ``[B, members, feature_dim]``."""
        return heads_of_members([self.objective.head(feature_dim, info) for _ in range(self.members)])

    def forward(self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, **named: Any) -> Tensor:
        named = named if weight is None else {**named, "weight": weight}
        if self._apart:
            losses = [
                self.objective(outputs[:, m], target, **{name: self._of(m, name, own) for name, own in named.items()})
                for m in range(self.members)
            ]
            loss: Tensor = torch.stack(losses).mean()
        else:
            rows = {name: own.flatten(0, 1) if name == "features" else self._rows(own) for name, own in named.items()}
            loss = self.objective(outputs.flatten(0, 1), self._rows(target), **rows)
        self.terms = dict(self.objective.terms)
        return loss

    def _rows(self, values: Tensor) -> Tensor:
        """Of each row, once for each member."""
        return values.repeat_interleave(self.members, 0)

    def _of(self, member: int, name: str, values: Any) -> Any:
        """What one member sees of a named argument."""
        if name == "head":
            return values[member]
        return values[:, member] if name == "features" else values

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        p = self.objective.probabilities(outputs.flatten(0, 1))
        return None if p is None else p.unflatten(0, outputs.shape[:2]).mean(1)

    def predict(self, outputs: Tensor) -> Tensor:
        if self.task == "regression":
            numbers: Tensor = self.objective.predict(outputs.flatten(0, 1)).unflatten(0, outputs.shape[:2])
            return numbers.mean(1)
        p = self.probabilities(outputs)
        if p is None:
            return self.objective.predict(outputs.mean(1))
        said: Tensor = (p > 0.5).long() if self.task == "multilabel" else p.argmax(1)
        return said

    def decision(self, outputs: Tensor) -> Tensor:
        p = self.probabilities(outputs)
        if p is None:
            mean = outputs.mean(1)
            return self.objective.decision(mean) if self.task == "binary" else mean
        log = p.double().clamp_min(torch.finfo(torch.float64).tiny).log()
        if self.task == "multilabel":
            return log - (-p.double()).log1p()
        return log[:, 1] - log[:, 0] if log.shape[1] == 2 else log

    def sampler(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor] | None:
        return self.objective.sampler(labels, batch_size, generator)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.objective.start_epoch(epoch, epochs)

    def after_step(self) -> None:
        self.objective.after_step()
