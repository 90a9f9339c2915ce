"""Batches by clusters: sizes by hand, no cluster twice, every row at most once; k-means; the autoencoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from steepest.losses.contrastive import DenoisingAutoencoder, GuidedBatchSampler, cluster_labels, guided_batches

SMALL = torch.tensor([0, 0, 0, 1, 1, 2])


def drawn(rows=60, clusters=7, seed=0):
    return torch.randint(clusters, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.holds("g-simclr", 1)
@pytest.mark.parametrize("batch_size", [3, 7, 12])
def test_no_batch_has_a_cluster_twice(batch_size):
    ids = drawn()
    sampler = GuidedBatchSampler(ids, batch_size)
    for batches in (list(sampler), list(sampler), [b.tolist() for b in guided_batches(ids, batch_size)]):
        assert batches
        for batch in batches:
            assert len(set(ids[batch].tolist())) == len(batch) <= batch_size
    filled = guided_batches(ids, 7, fill=True)
    assert any(len(set(ids[batch].tolist())) < len(batch) for batch in filled)
    assert sorted(torch.cat(filled).tolist()) == list(range(60))
    assert {len(batch) for batch in filled[:-1]} == {7}


@pytest.mark.holds("g-simclr", 2)
def test_sizes_of_three_clusters():
    whole = guided_batches(SMALL, 3, min_size=1, shuffle=False)
    assert [batch.tolist() for batch in whole] == [[0, 3, 5], [1, 4], [2]]
    assert [batch.tolist() for batch in guided_batches(SMALL, 3, shuffle=False)] == [[0, 3, 5], [1, 4]]
    assert [len(batch) for batch in GuidedBatchSampler(SMALL, 3)] == [3, 2]
    assert GuidedBatchSampler(SMALL, 3, shuffle=False).times(0).tolist() == [1, 1, 0, 1, 1, 1]
    assert GuidedBatchSampler(SMALL, 3).times(0).tolist() == pytest.approx([2 / 3] * 3 + [1] * 3)
    assert [len(batch) for batch in GuidedBatchSampler(SMALL, 3, drop_last=True)] == [3]


@pytest.mark.holds("g-simclr", 3)
def test_no_row_comes_twice_and_equal_clusters_use_all():
    ids = drawn()
    for batch_size, min_size in itertools.product((3, 7), (1, 2, 3)):
        rows = torch.cat(guided_batches(ids, batch_size, min_size=min_size)).tolist()
        assert len(set(rows)) == len(rows)
    equal = torch.arange(35) % 7
    batches = list(GuidedBatchSampler(equal, 7))
    assert [len(batch) for batch in batches] == [7] * 5
    assert sorted(itertools.chain(*batches)) == list(range(35))
    more = torch.cat(guided_batches(drawn(400, 20), 5)).tolist()  # few batches lack a cluster at the end
    assert len(more) >= 396


@pytest.mark.holds("g-simclr", 4)
@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("cluster_ids: expected", lambda: GuidedBatchSampler(torch.tensor([0, -1]), 2)),
        ("cluster_ids: expected", lambda: guided_batches(torch.tensor([0, 2]), 2)),
        ("k: expected at most the 2 images", lambda: cluster_labels(nn.Identity(), [torch.zeros(2, 1)], 3)),
        ("k: expected at most the 0 images", lambda: cluster_labels(nn.Identity(), [], 1)),
        ("k: expected", lambda: cluster_labels(nn.Identity(), [torch.zeros(2, 1)], 0)),
        ("encoder: expected finite", lambda: cluster_labels(nn.Identity(), [torch.full((2, 1), torch.nan)], 1)),
        ("min_size: expected", lambda: guided_batches(SMALL, 2, min_size=0)),
        ("min_size: expected", lambda: guided_batches(SMALL, 3, min_size=4)),
        ("batch_size: expected", lambda: guided_batches(SMALL, 0)),
        ("images: expected a height", lambda: DenoisingAutoencoder(1)(torch.zeros(1, 1, 14, 14))),
        ("images: expected shape", lambda: DenoisingAutoencoder(3).code(torch.zeros(1, 1, 16, 16))),
        ("noise: expected", lambda: DenoisingAutoencoder(1, noise=-1.0)),
    ],
)
def test_what_has_no_meaning_is_refused(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="cluster_ids: expected"):
        guided_batches(torch.tensor([True, False]), 2)
    with pytest.raises(TypeError, match="encoder: expected a module"):
        cluster_labels(lambda x: x, [torch.zeros(2, 1)], 1)


@pytest.mark.holds("g-simclr", 5)
def test_clusters_that_are_classes_leave_no_collision():
    labels = drawn(200, 10)
    guided = guided_batches(labels, 10)
    pairs = [(labels[b].unsqueeze(1) == labels[b]).sum().item() - len(b) for b in guided]
    assert pairs == [0] * len(guided)
    random = torch.randperm(200, generator=torch.Generator().manual_seed(1)).split(10)
    assert sum((labels[b].unsqueeze(1) == labels[b]).sum().item() - 10 for b in random) > 100


@pytest.mark.holds("g-simclr", 6)
def test_a_generator_decides():
    ids = drawn()
    first, second, other = (guided_batches(ids, 7, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, first, other))
    assert all(map(torch.equal, guided_batches(ids, 7, shuffle=False), guided_batches(ids, 7, shuffle=False)))
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    one, two = (cluster_labels(nn.Identity(), [points], 5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


def test_every_row_has_its_turn_over_epochs():
    ids = torch.tensor([0] * 12 + [1, 2, 3])
    sampler = GuidedBatchSampler(ids, 4)
    counts = torch.zeros(15)
    for _ in range(600):
        for batch in sampler:
            counts[batch] += 1
    assert counts[12:].tolist() == [600.0] * 3
    assert ((counts[:12] - 50).abs() < 5 * 50**0.5).all()
    for options in ({}, {"drop_last": True}, {"fill": True}, {"shuffle": False}, {"num_replicas": 2}):
        times = GuidedBatchSampler(ids, 4, **options).times(0)
        one = GuidedBatchSampler(ids, 4, **options)
        rows = sum(map(len, one)) if "num_replicas" not in options else None
        assert rows is None or times.sum().item() == pytest.approx(rows)


def test_clusters_are_those_of_the_code_in_evaluation_mode():
    torch.manual_seed(0)
    network = DenoisingAutoencoder(1, noise=0.5)
    images = torch.rand(12, 1, 8, 8) * 0.1
    images[6:] += 5.0
    network.train()
    network.decoder.eval()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    labels = cluster_labels(network, images.split(5), 2)
    assert len(set(labels[:6].tolist())) == len(set(labels[6:].tolist())) == 1
    assert labels[0] != labels[6]
    assert network.training
    assert not network.decoder.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_autoencoder_learns_to_remove_noise():
    torch.manual_seed(0)
    network = DenoisingAutoencoder(1)
    images = torch.rand(16, 1, 8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (network(images) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))
    widths = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert widths == [32, 64, 128, 64, 32, 1]
