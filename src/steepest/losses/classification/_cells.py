"""Losses made of one number for each sample and class: how such cells become one number."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from ...core.checks import check_binary, check_choice, check_logits, check_weight
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import REDUCTIONS, reduce


def check_multi_hot(logits: Tensor, target: Tensor) -> None:
    """Check logits ``[N, L]``, L >= 1, and labels in {0, 1} of the same shape."""
    check_logits(logits, argument="logits", classes=1)
    check_binary(target, logits)


def reduce_cells(cells: Tensor, reduction: str, weight: Tensor | None) -> Tensor:
    """Reduce cells ``[N, L]`` over all of them; the weight ``[N]`` of a sample is that of each of its cells.

    >>> reduce_cells(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "mean", torch.tensor([1.0, 0.0]))
    tensor(1.5000)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_weight(weight, cells.shape[0])
    return reduce(cells, reduction, None if weight is None else weight.unsqueeze(-1).expand_as(cells))


class MultilabelObjective(Objective):
    """What objectives of several labels a sample share: logits ``[N, L]``, targets ``[N, L]`` in {0, 1}.

    A sample's loss is the mean over its labels.
    """

    tasks = ("multilabel",)
    targets = ("multi_hot",)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Of each label on its own, ``[N, L]``: the sigmoid. Rows don't sum to 1."""
        return torch.sigmoid(outputs)

    def predict(self, outputs: Tensor) -> Tensor:
        """``[N, L]`` integers: 1 where the probability of the label is above 1/2."""
        return (outputs > 0).long()

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """Hyper-parameters of further instances for the conformance suite."""
        return []

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Floating and integer targets; every label is positive and negative somewhere, one sample has no label."""
        rows, labels = 7, 5
        target = torch.rand(rows, labels, generator=generator) < 0.3
        target[0], target[1] = True, False
        counts = tuple(target.sum(0).tolist())
        info = TaskInfo("multilabel", rows, labels, counts, feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
        outputs = torch.randn(rows, labels, generator=generator, dtype=torch.float64).to(device, dtype)
        floating: Sample = ((outputs, target.to(device, dtype)), {})
        integer: Sample = ((outputs, target.long().to(device)), {})
        cases = [(cls.from_task(info).to(device), sample) for sample in (floating, integer)]
        return [*cases, *((cls.from_task(info, **hyper).to(device), floating) for hyper in cls.variants())]
