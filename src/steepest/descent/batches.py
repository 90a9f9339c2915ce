"""Where batches come from: arrays in memory, or any DataLoader. Seed and epoch alone decide an epoch's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_number, refuse
from ..core.objective import Batch
from .augment import Augment

Sampler = Callable[[Tensor, int, torch.Generator], Iterator[Tensor] | None]


@runtime_checkable
class Batches(Protocol):
    """What the loop asks of a source of batches."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of a 1-based epoch."""


def seeded(*words: int) -> torch.Generator:
    """A CPU generator seeded by a sequence of words.

    >>> bool(torch.rand((), generator=seeded(1, 2)) == torch.rand((), generator=seeded(1, 2)))
    True
    """
    state = np.random.SeedSequence(words).generate_state(2, np.uint32)
    generator = torch.Generator()
    generator.manual_seed(int(state[0]) << 31 ^ int(state[1]))
    return generator


def epoch_order(
    rows: int, batch_size: int, steps: int, generator: torch.Generator, labels: Tensor, sampler: Sampler | None = None
) -> Tensor:
    """Row indices ``[steps, batch_size]`` of one epoch.

    Shuffled passes over the rows one after the other, cut to ``steps`` full batches: the last batch of an epoch is
    filled up from the next pass, so that every batch is full and every row of the first pass is seen. A sampler that
    gives fewer batches is asked again; one that gives None leaves the order to shuffling.
    """
    if sampler is not None and (drawn := sampler(labels, batch_size, generator)) is not None:
        batches = list(islice(drawn, steps))
        while batches and len(batches) < steps:
            again = list(islice(sampler(labels, batch_size, generator) or (), steps - len(batches)))
            if not again:
                break
            batches += again
        if len(batches) < steps or any(batch.shape != (batch_size,) for batch in batches):
            sizes = sorted({tuple(batch.shape) for batch in batches})
            refuse("sampler", f"batches of {batch_size} row indices", f"{len(batches)} batches of shapes {sizes}")
        return torch.stack(batches)
    passes = -(-steps * batch_size // rows)
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(passes)])
    return order[: steps * batch_size].view(steps, batch_size)


class ArrayBatches:
    """Batches of tensors that lie in memory; every batch is full (see :func:`epoch_order`).

    Args:
        inputs: ``[N, ...]``.
        target: ``[N, ...]``.
        batch_size: rows a step, cut to N.
        seed: of the order.
        steps: steps an epoch; default ceil(N / batch_size).
        weight: sample weights ``[N]``.
        extra: further tensors ``[N, ...]`` by name of an objective's needs.
        sampler: an objective's ``sampler``.
        shuffle: False gives the rows in order, the last batch shorter.
        augment: ``augment(inputs, generator)`` on each batch's inputs; its draws depend on seed and epoch alone.
    """

    def __init__(
        self,
        inputs: Tensor,
        target: Tensor,
        *,
        batch_size: int = 64,
        seed: int = 0,
        steps: int | None = None,
        weight: Tensor | None = None,
        extra: dict[str, Tensor] | None = None,
        sampler: Sampler | None = None,
        shuffle: bool = True,
        augment: Augment | None = None,
    ) -> None:
        check_number("batch_size", batch_size, low=1, integer=True)
        if len(inputs) != len(target) or len(inputs) == 0:
            refuse("target", f"{len(inputs)} rows, as inputs, and at least one", target)
        self.inputs, self.target, self.weight, self.extra = inputs, target, weight, extra or {}
        self.batch_size = min(batch_size, len(inputs))
        self.steps_per_epoch = -(-len(inputs) // self.batch_size) if steps is None else steps
        self.seed, self.sampler, self.shuffle, self.augment = seed, sampler, shuffle, augment

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of a 1-based epoch."""
        if self.shuffle:
            rows, device = len(self.inputs), self.inputs.device
            generator = seeded(self.seed, epoch)
            order: Iterable[Tensor] = epoch_order(
                rows, self.batch_size, self.steps_per_epoch, generator, self.target, self.sampler
            ).to(device)
        else:
            order = torch.arange(len(self.inputs), device=self.inputs.device).split(self.batch_size)
        draws = seeded(self.seed, epoch, 1)
        for index in order:
            inputs = self.inputs[index]
            yield Batch(
                inputs if self.augment is None else self.augment(inputs, draws),
                self.target[index],
                index,
                None if self.weight is None else self.weight[index],
                {name: tensor[index] for name, tensor in self.extra.items()},
            )


class LoaderBatches:
    """Batches of a ``DataLoader`` with items ``(inputs, target)``, ``(inputs, target, index)`` or :class:`Batch`.

    The order is the loader's own; the loop saves the random states at the start of an epoch (the loader's and its
    sampler's ``generator`` too), so a resumed run draws the same order and skips what was done.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one pass over the loader."""
        for item in self.loader:
            if isinstance(item, Batch):
                yield item
            elif isinstance(item, (tuple, list)) and len(item) in (2, 3):
                yield Batch(*item)
            else:
                refuse("loader", "items (inputs, target), (inputs, target, index) or Batch", type(item).__name__)
