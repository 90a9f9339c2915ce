"""Batches: every row, an order from seed and epoch alone, an objective's own sampler, any loader."""

from __future__ import annotations

import pytest
import torch

from steepest.core.objective import Batch
from steepest.descent import ArrayBatches, Batches, LoaderBatches, StackedBatches, stack
from steepest.descent.batches import epoch_order, seeded

N = 23
X, Y = torch.arange(float(N)).unsqueeze(1), torch.arange(N) % 2


def order(batches, epoch):
    return torch.cat([batch.index for batch in batches.epoch(epoch)]).tolist()


@pytest.mark.parametrize("steps", [None, 3, 12])
def test_the_first_pass_covers_every_row_and_batches_are_full(steps):
    batches = ArrayBatches(X, Y, batch_size=5, steps=steps)
    found = [batch.index for batch in batches.epoch(1)]
    assert len(found) == batches.steps_per_epoch == (5 if steps is None else steps)
    assert {len(index) for index in found} == {5}
    flat = torch.cat(found).tolist()
    assert len(set(flat[:N])) == min(N, len(flat))
    if steps == 12:
        assert sorted(flat[N : 2 * N]) == list(range(N))


def test_seed_and_epoch_alone_decide():
    a, b = ArrayBatches(X, Y, batch_size=5, seed=1), ArrayBatches(X + 1, Y, batch_size=5, seed=1)
    torch.manual_seed(5)
    late = order(a, 3)
    torch.manual_seed(6)
    assert [order(b, 1), order(b, 2), order(b, 3)][2] == late
    assert len({tuple(order(ArrayBatches(X, Y, batch_size=5, seed=s), e)) for s in (1, 2) for e in (1, 2)}) == 4
    before = torch.get_rng_state()
    order(a, 1)
    assert torch.equal(before, torch.get_rng_state())
    first = [int(torch.randint(2**62, (), generator=seeded(a, b))) for a in range(20) for b in range(20)]
    assert len(set(first)) == 400


def test_rows_of_all_tensors_belong_together():
    batches = ArrayBatches(X, Y, batch_size=4, weight=X[:, 0] + 1, extra={"mask": 2 * X})
    for batch in batches.epoch(1):
        assert torch.equal(batch.inputs[:, 0], batch.index.float())
        assert torch.equal(batch.target, batch.index % 2)
        assert torch.equal(batch.weight, batch.index + 1.0)
        assert torch.equal(batch.extra["mask"], 2 * batch.inputs)


def test_without_shuffling_rows_come_in_order():
    found = list(ArrayBatches(X, Y, batch_size=10, shuffle=False).epoch(7))
    assert [len(b.target) for b in found] == [10, 10, 3]
    assert torch.cat([b.index for b in found]).tolist() == list(range(N))


def balanced(labels, batch_size, generator):
    """One pass of two batches, half of each class."""
    half = batch_size // 2
    for _ in range(2):
        yield torch.cat(
            [torch.nonzero(labels == c)[:, 0][torch.randperm(11, generator=generator)[:half]] for c in (0, 1)]
        )


def test_the_sampler_is_used_and_asked_again():
    batches = ArrayBatches(X, Y, batch_size=6, steps=5, sampler=balanced)
    found = list(batches.epoch(1))
    assert [int(b.target.sum()) for b in found] == [3] * 5
    assert order(batches, 1) == order(batches, 1) != order(batches, 2)
    plain = ArrayBatches(X, Y, batch_size=6, sampler=lambda labels, size, generator: None)
    assert order(plain, 1) == order(ArrayBatches(X, Y, batch_size=6), 1)
    for broken in (lambda *_: iter([]), lambda *_: iter([torch.arange(2)] * 9)):
        with pytest.raises(ValueError, match="sampler: expected batches of 6 row indices"):
            epoch_order(N, 6, 4, seeded(1), Y, broken)


@pytest.mark.parametrize("gathered", [1, 500, 1 << 21], ids=["a step", "some steps", "an epoch"])
def test_stacked_batches_are_those_of_each(gathered, monkeypatch):
    monkeypatch.setattr(stack, "GATHERED", gathered)
    data = [(X, Y, None), (X[:9] + 100, Y[:9], None)]
    which, seeds = [0, 1, 1, 0], [1, 2, 3, 1]
    stacked = StackedBatches(data, which, seeds, batch_size=4, steps=7, samplers=[None, None, None, None])
    for epoch in (1, 2):
        for m, (d, seed) in enumerate(zip(which, seeds)):
            own = ArrayBatches(*data[d][:2], batch_size=4, steps=7, seed=seed)
            for joint, single in zip(stacked.epoch(epoch), own.epoch(epoch), strict=True):
                assert torch.equal(joint.inputs[m], single.inputs)
                assert torch.equal(joint.target[m], single.target)
                assert torch.equal(joint.index[m], single.index)
    stacked.keep([False, True, False, True])
    assert next(stacked.epoch(1)).inputs.shape == (2, 4, 1)


def test_loaders():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y, torch.arange(N)), batch_size=8)
    found = list(LoaderBatches(loader).epoch(1))
    assert torch.cat([b.index for b in found]).tolist() == list(range(N))
    batch = Batch(X, Y)
    assert next(LoaderBatches([batch]).epoch(1)) is batch
    assert next(LoaderBatches([(X, Y)]).epoch(1)).index is None
    with pytest.raises(ValueError, match=r"loader: expected items \(inputs, target\)"):
        next(LoaderBatches([X]).epoch(1))
    assert isinstance(ArrayBatches(X, Y), Batches)
    assert not isinstance(loader, Batches)


def test_refusals():
    with pytest.raises(ValueError, match="target: expected 23 rows"):
        ArrayBatches(X, Y[:-1])
    with pytest.raises(ValueError, match="at least one"):
        ArrayBatches(X[:0], Y[:0])
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got 0"):
        ArrayBatches(X, Y, batch_size=0)
    assert ArrayBatches(X, Y, batch_size=99).batch_size == N
