"""Batches of whole lists from tensors in memory: seed and epoch alone decide which lists stand together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ...core.objective import Batch, Objective
from ...descent.batches import seeded
from ..design.context import Split
from ..design.ranking import is_pointwise


class ListBatches:
    """Batches of whole lists, of about equal numbers of rows; every list once an epoch.

    Args:
        inputs: ``[N, ...]``.
        target: ``[N]``.
        query: ``[N]`` whole numbers, equal for the rows of one list.
        batch_size: rows of a batch, about: a list is never cut.
        seed: of the order.
        steps: batches of an epoch at most.
    """

    def __init__(
        self, inputs: Tensor, target: Tensor, query: Tensor, *, batch_size: int, seed: int = 0, steps: int | None = None
    ) -> None:
        self.inputs, self.target, self.query, self.seed = inputs, target, query, seed
        whole = -(-len(inputs) // batch_size)
        self.parts, self.steps_per_epoch = whole, whole if steps is None else min(steps, whole)
        self._rows = query.argsort(stable=True)
        self._sizes = torch.unique_consecutive(query[self._rows], return_counts=True)[1]
        self._starts = self._sizes.cumsum(0) - self._sizes

    def order(self, epoch: int) -> list[Tensor]:
        """Row numbers of each batch of a 1-based epoch."""
        generator = seeded(self.seed, epoch)
        lists = torch.randperm(len(self._sizes), generator=generator).to(self._sizes.device)
        sizes = self._sizes[lists]
        middle = sizes.cumsum(0) - sizes / 2
        batch = (middle * self.parts / len(self.inputs)).long()
        within = torch.arange(len(self.inputs), device=sizes.device)
        within = within - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        rows = self._rows[self._starts[lists].repeat_interleave(sizes) + within]
        counts = torch.zeros(self.parts, dtype=torch.long, device=sizes.device).index_add_(0, batch, sizes)
        return [places for places in rows.split(counts.tolist()) if len(places)]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of a 1-based epoch."""
        for index in islice(self.order(epoch), self.steps_per_epoch):
            yield Batch(self.inputs[index], self.target[index], index, None, {"query": self.query[index]})


def batches_of_lists(
    split: Split, objective: Objective, *, batch_size: int, steps: int, seed: int, device: str
) -> ListBatches:
    """The lists of a training split; grades as they are for losses of lists, standardised for those of single rows."""
    assert split.query is not None
    mean, deviation = split.scale
    target = (split.target - mean) / deviation if is_pointwise(objective) else split.target
    inputs, query = split.inputs.to(device), split.query.to(device)
    return ListBatches(inputs, target.to(device), query, batch_size=batch_size, seed=seed, steps=steps)


def scores_of(objective: Objective, predicted: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Scores by which rows are ranked; those of a loss of single rows in the units of the grades."""
    scores = predicted.astype(np.float64)
    return scores * scale[1] + scale[0] if is_pointwise(objective) else scores
