"""Conformance of a sampler of batches, on what ``samples()`` gives.

``check_sampler(cls)`` runs all; ``sampler_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..core.sampler import EpochSampler
from ._common import refused
from ._suite import bound, run_all

EPOCHS = 3
RANKS = 3
SIGMAS = 5.0
"""How far a count may lie from its expectation."""


def epochs_of(sampler: EpochSampler, epochs: int = EPOCHS) -> list[list[list[int]]]:
    """Batches of some epochs, one after the other."""
    return [list(sampler) for _ in range(epochs)]


def rows_of(batches: list[list[int]]) -> Tensor:
    """All rows of some batches."""
    return torch.tensor([row for batch in batches for row in batch], dtype=torch.int64)


def check_declaration(cls: type[EpochSampler]) -> None:
    """A name, a docstring with an example; what loops look for."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    for sampler in cls.samples():
        assert sampler.batch_size >= 1 and sampler.drop_last in (True, False), "batch_size, drop_last"
        assert callable(getattr(sampler.sampler, "set_epoch", None)), "sampler.set_epoch"


def check_batches(cls: type[EpochSampler]) -> None:
    """As many batches as the length says, of plain numbers in range, none larger than it may be."""
    for drop_last in (False, True):
        for sampler in cls.samples(drop_last=drop_last):
            for _ in range(EPOCHS):
                length, batches = len(sampler), list(sampler)
                assert len(batches) == length > 0, f"{len(batches)} batches, length {length}"
                assert all(type(row) is int for batch in batches for row in batch), "rows are no integers"
                rows = rows_of(batches)
                assert int(rows.min()) >= 0 and int(rows.max()) < sampler.num_samples, "a row out of range"
                sizes = {len(batch) for batch in batches}
                assert max(sizes) <= sampler.batch_size and min(sizes) > 0, f"batches of {sizes}"
                assert not drop_last or sizes == {sampler.batch_size}, f"drop_last leaves batches of {sizes}"


def check_seed(cls: type[EpochSampler]) -> None:
    """Seed and epoch alone decide, whatever torch's own generator does; epochs differ, and so do seeds."""
    torch.manual_seed(0)
    for first, second, another in zip(cls.samples(seed=1), cls.samples(seed=1), cls.samples(seed=2)):
        before = torch.get_rng_state()
        epochs = epochs_of(first)
        assert torch.equal(torch.get_rng_state(), before), "torch's own generator moved"
        torch.rand(3)
        for epoch in reversed(range(EPOCHS)):
            second.set_epoch(epoch)
            assert list(second) == epochs[epoch], f"epoch {epoch} by itself has other batches"
        assert epochs[0] != epochs[1] != epochs[2], "two epochs are the same"
        assert epochs_of(another) != epochs, "another seed gives the same batches"


def check_times(cls: type[EpochSampler]) -> None:
    """Rows come as often as ``times`` says: exactly, or as draws may."""
    for seed in range(3):
        for sampler in cls.samples(seed=seed):
            for epoch in range(EPOCHS):
                wanted, rows = sampler.times(epoch), rows_of(list(sampler))
                counts = torch.bincount(rows, minlength=sampler.num_samples).double()
                assert wanted.shape == counts.shape, f"times of shape {tuple(wanted.shape)}"
                if cls.exact:
                    assert torch.equal(counts, wanted), f"epoch {epoch}: counts {counts.tolist()}"
                    continue
                assert abs(float(wanted.sum()) - len(rows)) < 1e-6 * len(rows), "times don't sum to the rows"
                assert not counts[wanted == 0].any(), "a row that is said not to come"
                allowed = SIGMAS * wanted.sqrt() + 1
                assert ((counts - wanted).abs() <= allowed).all(), f"epoch {epoch}: counts far from what is expected"


def check_ranks(cls: type[EpochSampler]) -> None:
    """Ranks together see the joint batches, each its own rows, in the same number of steps."""
    for drop_last in (False, True):
        own = [cls.samples(drop_last=drop_last, num_replicas=RANKS, rank=rank) for rank in range(RANKS)]
        for samplers in zip(*own):
            for epoch in range(2):
                joint = samplers[0].order(epoch, _generator_of(samplers[0], epoch))
                joint = [batch for batch in joint if len(batch) >= RANKS]
                if drop_last:
                    joint = [batch for batch in joint if len(batch) == samplers[0].joint_size]
                parts = [list(sampler) for sampler in samplers]
                assert len({len(batches) for batches in parts}) == 1, "ranks take different numbers of steps"
                together = [[row for rows in step for row in rows] for step in zip(*parts)]
                assert together == [batch.tolist() for batch in joint], "ranks don't add up to the joint batches"
                sizes = [list(map(len, step)) for step in zip(*parts)]
                assert all(max(step) - min(step) <= 1 for step in sizes), "parts of one batch differ by more than a row"


def _generator_of(sampler: EpochSampler, epoch: int) -> torch.Generator:
    """The generator that a sampler hands to ``order`` in an epoch."""
    twin = copy.deepcopy(sampler)
    seen: list[Tensor] = []

    def order(epoch: int, generator: torch.Generator) -> list[Tensor]:
        seen.append(generator.get_state())
        return type(twin).order(twin, epoch, generator)

    twin.order = order  # type: ignore[method-assign]
    twin._planned = None
    twin.set_epoch(epoch)
    twin.batches()
    generator = torch.Generator()
    generator.set_state(seen[0])
    return generator


def check_resume(cls: type[EpochSampler]) -> None:
    """A saved state goes on with the batch that comes next, wherever it was taken; ``set_epoch`` does not undo it."""
    for place, wanted_from in enumerate(cls.samples()):
        epochs = epochs_of(wanted_from)
        for taken in range(len(epochs[1]) + 1):
            sampler = cls.samples()[place]
            list(sampler)
            batches = iter(sampler)
            for _ in range(taken):
                next(batches)
            file = io.BytesIO()
            torch.save(sampler.state_dict(), file)
            file.seek(0)
            again = cls.samples()[place]
            again.load_state_dict(torch.load(file, weights_only=True))
            again.set_epoch(again.epoch)
            assert list(again) == epochs[1][taken:], f"resumed after {taken} batches, others come"
            assert list(again) == epochs[2], "the epoch after the resumed one is another"
        refused("a state of another seed", again.load_state_dict, {"seed": 99, "epoch": 0, "position": 0})
        refused("a state that is none", again.load_state_dict, {"epoch": 0})


def check_broken_off(cls: type[EpochSampler]) -> None:
    """A pass that was broken off begins again; so does one after looking at the first batch."""
    for sampler in cls.samples():
        first = next(iter(sampler))
        batches = list(sampler)
        assert batches[0] == first, "a look at the first batch used it up"
        assert sampler.epoch == 1, "a finished pass leads to the next epoch"


def check_loader(cls: type[EpochSampler]) -> None:
    """A ``DataLoader`` gives these batches, with the right length, epoch after epoch; copies are their own."""
    for sampler, twin in zip(cls.samples(), cls.samples()):
        loader = DataLoader(TensorDataset(torch.arange(sampler.num_samples)), batch_sampler=sampler)
        for _ in range(2):
            assert len(loader) == len(twin), "another length"
            assert [rows.tolist() for (rows,) in loader] == list(twin), "other batches under a DataLoader"
        copied = copy.deepcopy(sampler)
        copied.set_epoch(5)
        assert copied.epoch == 5 and sampler.epoch == 2, "a copy moves what it was copied from"


def check_bad_input(cls: type[EpochSampler]) -> None:
    """Options out of range are refused with the uniform error."""
    for wrong in ({"seed": -1}, {"drop_last": 1}, {"num_replicas": 0}, {"num_replicas": 2, "rank": 2}, {"rank": -1}):
        refused(str(wrong), cls.samples, **wrong)
    refused("epoch -1", cls.samples()[0].set_epoch, -1)


CHECKS: tuple[Callable[[type[EpochSampler]], None], ...] = (
    check_declaration, check_batches, check_seed, check_times, check_ranks, check_resume, check_broken_off,
    check_loader, check_bad_input,
)  # fmt: skip


def sampler_checks(cls: type[EpochSampler]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_sampler(cls: type[EpochSampler]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(sampler_checks(cls), cls)
