"""Samplers of whole batches: an epoch is a function of seed and epoch alone, is cut over ranks, and is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from .arguments import Arguments
from .checks import check_flag, check_number, refuse


class EpochSampler(Arguments, BatchSampler):
    """A ``BatchSampler`` whose members say what an epoch is.

    A member gives the batches of an epoch by :meth:`order`, for all ranks together, and by :meth:`times` how often each
    row comes in them. The same seed and epoch give the same batches. A finished pass moves on to the next epoch;
    ``set_epoch`` says which one comes. Over a ``DataLoader`` it is ``DataLoader(data, batch_sampler=sampler)``.

    With ``num_replicas`` ranks a batch of all ranks holds ``num_replicas * batch_size`` rows and is cut into one part a
    rank: together the ranks see the epoch of one process with the larger batch, without repeats, in the same number of
    steps. Of a last batch that is smaller the parts differ by at most a row; one with fewer rows than ranks is left
    out. Nothing is taken from ``torch.distributed``: where accelerate cuts batches itself, leave ``num_replicas`` at 1;
    Lightning wants ``use_distributed_sampler=False``.

    Args:
        num_samples: rows of the data set, N >= 1.
        batch_size: rows of a step on one rank.
        seed: of all epochs.
        drop_last: leave out a last batch that is not full.
        num_replicas: ranks, >= 1.
        rank: this one, 0..num_replicas - 1.

    Class attributes:
        name: snake_case, unique.
        exact: whether :meth:`times` are counts, not expectations.
        saved: further attributes, whole numbers or None, that are in the state.
        exempt: names of conformance checks that don't apply, each with its reason.
    """

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ()
    exempt: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        for name, count in (("num_samples", num_samples), ("batch_size", batch_size), ("num_replicas", num_replicas)):
            check_number(name, count, low=1, integer=True)
        check_number("seed", seed, low=0, integer=True)
        check_flag("drop_last", drop_last)
        check_number("rank", rank, low=0, high=num_replicas - 1, integer=True)
        super().__init__(_Rows(self), batch_size, drop_last)
        self.num_samples, self.seed = num_samples, seed
        self.num_replicas, self.rank = num_replicas, rank
        self.epoch = self.position = 0
        self._resumed = False
        self._planned: tuple[int, list[Tensor]] | None = None

    @property
    def joint_size(self) -> int:
        """Rows of a step on all ranks together."""
        return self.batch_size * self.num_replicas

    def order(self, epoch: int, generator: torch.Generator) -> list[Tensor]:
        """Batches of row numbers of an epoch, each of at most ``joint_size``."""
        raise NotImplementedError

    def times(self, epoch: int) -> Tensor:
        """How often each row comes in the batches of an epoch ``[N]``, float64; expected where it is drawn."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next, from 0 on. That of a loaded state goes on where it was left."""
        check_number("epoch", epoch, low=0, integer=True)
        if epoch != self.epoch:
            self.epoch, self.position, self._resumed = epoch, 0, False

    def batches(self) -> list[Tensor]:
        """This rank's batches of the epoch that comes next."""
        if self._planned is None or self._planned[0] != self.epoch:
            words = np.random.SeedSequence([self.seed, self.epoch]).generate_state(2, np.uint64)
            generator = torch.Generator().manual_seed(int(words[0] >> 1))
            joint = self.order(self.epoch, generator)
            if self.drop_last:
                joint = [batch for batch in joint if len(batch) == self.joint_size]
            ranks = self.num_replicas
            own = [batch.tensor_split(ranks)[self.rank] for batch in joint if len(batch) >= ranks]
            self._planned = self.epoch, own
        return self._planned[1]

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of row numbers; ``position`` counts those that were taken."""
        batches = self.batches()
        start = self.position if self._resumed else 0
        self._resumed = False
        for self.position in range(start, len(batches)):
            batch: list[int] = batches[self.position].tolist()
            self.position += 1
            yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Seed, epoch, and how many of its batches were taken (a loader with workers takes some ahead)."""
        return {name: getattr(self, name) for name in ("seed", "epoch", "position", *self.saved)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass begins after the batches that were taken.

        Raises:
            ValueError: the state of another seed, or one that is none.
        """
        if set(state) != set(self.state_dict()):
            refuse("state", f"a state of {type(self).__name__}", sorted(state))
        for name, value in state.items():
            if value is not None or name not in self.saved:
                check_number(name, value, low=0, integer=True)
        if state["seed"] != self.seed:
            refuse("state", f"one of seed {self.seed}", state["seed"])
        for name, value in state.items():
            setattr(self, name, value)
        self._resumed, self._planned = True, None

    @classmethod
    def samples(cls, **options: Any) -> list[Self]:
        """Samplers for the conformance suite, which gives ``seed``, ``drop_last``, ``num_replicas`` and ``rank``."""
        raise NotImplementedError(f"{cls.__name__} gives no samples")


class _Rows(Sampler[int]):
    """The rows one by one, and the place where loops look for ``set_epoch``."""

    def __init__(self, batches: EpochSampler) -> None:
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """That of the batches."""
        self._batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return (row for batch in self._batches.batches() for row in batch.tolist())

    def __len__(self) -> int:
        return sum(map(len, self._batches.batches()))
