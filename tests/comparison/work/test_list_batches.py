"""Batches of whole lists."""

import torch

from steepest.comparison.work.list_batches import ListBatches

QUERY = torch.tensor([4, 2, 2, 9, 4, 2, 7, 7, 9, 2, 11])


def batches(**options):
    rows = torch.arange(len(QUERY))
    return ListBatches(rows, rows.float() * 10, QUERY, **{"batch_size": 4, "seed": 3, **options})


def test_every_list_is_whole_and_comes_once():
    for epoch in range(1, 30):
        drawn = list(batches().epoch(epoch))
        assert sorted(torch.cat([b.inputs for b in drawn]).tolist()) == list(range(len(QUERY)))
        lists = [set(b.extra["query"].tolist()) for b in drawn]
        assert sum(map(len, lists)) == len(set.union(*lists))
        assert len(drawn) <= 3
        for b in drawn:
            assert torch.equal(b.index, b.inputs)
            assert torch.equal(b.target, b.inputs.float() * 10)
            assert torch.equal(b.extra["query"], QUERY[b.index])


def test_batches_have_about_the_rows_asked_for():
    query = torch.arange(200).repeat_interleave(torch.randint(3, 9, (200,), generator=torch.Generator().manual_seed(0)))
    drawn = ListBatches(query, query.float(), query, batch_size=50)
    sizes = [len(b.inputs) for b in drawn.epoch(1)]
    assert len(sizes) == drawn.parts == drawn.steps_per_epoch
    assert max(abs(size - len(query) / drawn.parts) for size in sizes) <= 8  # a list


def test_seed_and_epoch_alone_decide():
    first = [b.index.tolist() for b in batches().epoch(2)]
    assert first == [b.index.tolist() for b in batches().epoch(2)]
    assert first != [b.index.tolist() for b in batches().epoch(3)]
    assert first != [b.index.tolist() for b in batches(seed=4).epoch(2)]


def test_fewer_steps_are_the_first_ones():
    whole = [b.index.tolist() for b in batches().epoch(1)]
    cut = batches(steps=1)
    assert cut.steps_per_epoch == 1
    assert [b.index.tolist() for b in cut.epoch(1)] == whole[:1]


def test_a_list_longer_than_a_batch_stays_whole():
    drawn = list(batches(batch_size=1).epoch(1))
    assert sorted(len(b.inputs) for b in drawn) == [1, 2, 2, 2, 4]
