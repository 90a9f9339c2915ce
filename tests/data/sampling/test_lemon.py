"""LEMON: negatives of the same cluster, and what ranks them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score

from steepest.data.sampling import ClusterNegativeSampler, TransE, semantic_clusters
from steepest.data.sampling.lemon import filtered_ranks, margin_ranking_loss

CLUSTERS = torch.tensor([0, 0, 0, 1, 1, 2])
KNOWN = torch.tensor([[0, 0, 1], [0, 0, 2]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def graph(entities=30, relations=2, triples=150, seed=0):
    generator = seeded(seed)
    rows = torch.stack([torch.randint(n, (triples,), generator=generator) for n in (entities, relations, entities)], 1)
    return rows.unique(dim=0)


def sample(sampler, batch):
    """Negatives, and which have another tail."""
    negatives, mask = sampler.sample(batch)
    assert mask.all()
    assert negatives.dtype == batch.dtype
    return negatives, negatives[..., 2] != batch[:, None, 2]


def rows_of(triples):
    return {tuple(row) for row in triples.reshape(-1, 3).tolist()}


@pytest.mark.holds("lemon", 1)
def test_the_only_candidate_of_a_cluster():
    sampler = ClusterNegativeSampler(CLUSTERS, KNOWN, 200, mix=0.0, generator=seeded())
    negatives, tails = sample(sampler, KNOWN[:1])
    assert rows_of(negatives[tails]) == {(0, 0, 0)}
    assert rows_of(negatives[~tails]) == {(1, 0, 1), (2, 0, 1)}
    assert sampler.fallbacks == 0


@pytest.mark.holds("lemon", 2)
@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_one_place_changes_and_no_truth_is_drawn(mix):
    known = graph()
    clusters = torch.arange(30) % 5
    sampler = ClusterNegativeSampler(clusters, known, 8, mix=mix, generator=seeded())
    negatives, tails = sample(sampler, known)
    assert negatives.shape == (len(known), 8, 3)
    changed = negatives != known[:, None]
    assert torch.equal(changed[..., 2], tails)
    assert torch.equal(changed[..., 0], ~tails)
    assert not changed[..., 1].any()
    assert not rows_of(negatives) & rows_of(known)
    side = torch.where(tails, 2, 0).unsqueeze(-1)
    new, old = negatives.gather(2, side), known[:, None].expand_as(negatives).gather(2, side)
    alike = (clusters[new] == clusters[old]).double().mean().item()
    share = (1 - mix) + mix * 5 / 29
    assert alike == pytest.approx(share, abs=0.0 if mix == 0 else 4 * math.sqrt(0.25 / tails.numel()))


@pytest.mark.holds("lemon", 2)
def test_where_there_is_no_negative():
    full = torch.cartesian_prod(torch.arange(3), torch.tensor([0]), torch.arange(3))
    sampler = ClusterNegativeSampler(torch.zeros(3).long(), full)
    with pytest.raises(
        ValueError, match=r"batch: expected positives with an unknown triple beside them, got \[0, 0, 0"
    ):
        sampler.sample(full)
    lenient = ClusterNegativeSampler(torch.zeros(3).long(), full[:5], 4, impossible="mask", generator=seeded())
    batch = torch.cat([full[:1], full[8:]])
    negatives, mask = lenient.sample(batch)
    assert mask.tolist() == [[True] * 4, [True] * 4]
    lenient = ClusterNegativeSampler(torch.zeros(3).long(), full, 4, impossible="mask", generator=seeded())
    negatives, mask = lenient.sample(batch)
    assert not mask.any()
    assert torch.equal(negatives, batch[:, None].expand_as(negatives))
    one_side = full[full[:, 0] == 0]  # every tail of head 0 is known
    sampler = ClusterNegativeSampler(torch.zeros(3).long(), one_side, 50, generator=seeded())
    negatives, tails = sample(sampler, one_side)
    assert not tails.any()
    assert (negatives[..., 0] != 0).all()
    lonely = ClusterNegativeSampler(torch.zeros(1).long(), full[:0])
    with pytest.raises(ValueError, match="batch: expected positives"):
        lonely.sample(full[:1])


@pytest.mark.holds("lemon", 3)
def test_one_cluster_is_uniform_and_a_single_member_falls_back():
    drawn = 6000
    counts = {}
    for name, clusters, mix in (("one", torch.zeros(6).long(), 0.0), ("uniform", CLUSTERS, 1.0)):
        sampler = ClusterNegativeSampler(clusters, KNOWN, drawn, mix=mix, generator=seeded())
        negatives, tails = sample(sampler, KNOWN[:1])
        counts[name] = torch.bincount(negatives[0, tails[0], 2], minlength=6)
        assert sampler.fallbacks == 0
        shares = counts[name] / counts[name].sum()
        assert shares[[1, 2]].tolist() == [0, 0]
        assert shares[[0, 3, 4, 5]].tolist() == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.1875 / (drawn / 2)))
    alone = torch.tensor([[5, 0, 5]])
    sampler = ClusterNegativeSampler(CLUSTERS, KNOWN, 40, mix=0.0, generator=seeded())
    sampler.sample(alone)
    assert sampler.fallbacks == 40
    without = ClusterNegativeSampler(torch.tensor([0, 0, 0, 1, 1, -1]), KNOWN, 40, mix=0.0, generator=seeded())
    negatives, _ = sample(without, alone)
    assert without.fallbacks == 0, "an entity without a text is replaced by any"
    assert len(rows_of(negatives)) > 5


@pytest.mark.holds("lemon", 4)
def test_halves_and_seeds():
    known = graph()
    sampler = ClusterNegativeSampler(torch.arange(30) % 5, known, 100, generator=seeded())
    negatives, tails = sample(sampler, known)
    assert tails.double().mean().item() == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / tails.numel()))
    again = ClusterNegativeSampler(torch.arange(30) % 5, known, 100, generator=seeded())
    assert torch.equal(again.sample(known)[0], negatives)
    assert not torch.equal(sampler.sample(known)[0], negatives)


@pytest.mark.holds("lemon", 5)
def test_trans_e_and_its_loss():
    model = TransE(3, 1, 2)
    assert model.entities.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    with torch.no_grad():
        model.entities.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        model.relations.copy_(torch.tensor([[0.0, 1.0]]))
    positive, negative = model(torch.tensor([0, 0, 1])), model(torch.tensor([0, 0, 2]))
    assert positive == 0.0
    assert negative == -1.0
    assert margin_ranking_loss(positive[None], negative[None, None], margin=2.0) == 1.0
    two = margin_ranking_loss(torch.tensor([0.0, 3.0]), torch.tensor([[-1.0, 0.5], [0.0, 1.0]]), margin=2.0)
    assert two.item() == pytest.approx((1.0 + 2.5 + 0.0 + 0.0) / 2)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_candidates_are_scores_of_triples(p):
    torch.manual_seed(0)
    model = TransE(7, 2, 3, p=p).double()
    triples = graph(7, 2, 10)
    for side, place in (("head", 0), ("tail", 2)):
        replaced = triples[:, None].repeat(1, 7, 1)
        replaced[..., place] = torch.arange(7)
        torch.testing.assert_close(model.candidates(triples, side), model(replaced))


@pytest.mark.parametrize("side", ["head", "tail"])
def test_ranks_by_loops(side):
    known = graph(12, 2, 60)
    place = 2 if side == "tail" else 0
    scores = torch.randint(5, (len(known), 12), generator=seeded()).double()  # with ties
    ranks = filtered_ranks(scores, known, known, side)
    truths = rows_of(known)
    for row, triple in enumerate(known.tolist()):
        rivals = []
        for entity in range(12):
            changed = [*triple]
            changed[place] = entity
            if tuple(changed) not in truths:
                rivals.append(scores[row, entity].item())
        own = scores[row, triple[place]].item()
        assert ranks[row] == 1 + sum(r > own for r in rivals) + sum(r == own for r in rivals) / 2


def test_mean_reciprocal_rank_beside_scikit_learn():
    scores = torch.randn(20, 9, generator=seeded())
    triples = torch.stack([torch.arange(20), torch.zeros(20).long(), torch.randint(9, (20,), generator=seeded())], 1)
    wanted = label_ranking_average_precision_score(np.eye(9)[triples[:, 2].numpy()], scores.numpy())
    assert (1 / filtered_ranks(scores, triples, triples)).mean().item() == pytest.approx(wanted)


def test_neighbours():
    vectors = torch.randn(20, 4, generator=seeded())
    known = graph(20)
    sampler = ClusterNegativeSampler(vectors, known, 30, "neighbours", 0.0, neighbours=4, generator=seeded())
    negatives, tails = sample(sampler, known)
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    near = cosines.fill_diagonal_(-2).topk(4).indices
    side = torch.where(tails, 2, 0).unsqueeze(-1)
    new, old = negatives.gather(2, side).squeeze(2), known[:, None].expand_as(negatives).gather(2, side).squeeze(2)
    inside = (near[old] == new.unsqueeze(-1)).any(-1)
    assert int((~inside).sum()) <= sampler.fallbacks
    assert sampler.fallbacks < 0.02 * inside.numel()


def test_exact_draws_are_uniform_too():
    entities = 60
    known = torch.stack([torch.zeros(57), torch.zeros(57), torch.arange(57)], 1).long()  # three tails are free
    sampler = ClusterNegativeSampler(torch.zeros(entities).long(), known, 6000, mix=0.0, generator=seeded())
    negatives, tails = sample(sampler, known[:1])
    counts = torch.bincount(negatives[0, tails[0], 2], minlength=entities)
    assert counts[:57].sum() == 0
    shares = (counts[57:] / counts.sum()).tolist()
    assert shares == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(0.23 / 3000))


def test_relations_that_nobody_knows_and_no_triple():
    sampler = ClusterNegativeSampler(CLUSTERS, KNOWN, 5, generator=seeded())
    negatives, _ = sample(sampler, torch.tensor([[0, 9, 1]], dtype=torch.int32))
    assert (negatives[..., 1] == 9).all()
    assert sampler.sample(KNOWN[:0])[0].shape == (0, 5, 3)
    empty = ClusterNegativeSampler(CLUSTERS, KNOWN[:0], 5, generator=seeded())
    assert empty.sample(KNOWN)[0].shape == (2, 5, 3)


def test_clusters_of_texts():
    generator = seeded()
    centres = torch.randn(3, 6, generator=generator)
    vectors = centres.repeat(8, 1) * (1 + torch.rand(24, 1, generator=generator))
    clusters = semantic_clusters(vectors, 3)
    assert all(len(clusters[k::3].unique()) == 1 for k in range(3))
    assert len(clusters.unique()) == 3
    assert semantic_clusters(vectors + 0.1 * torch.randn(24, 6, generator=generator)).unique().numel() == 3, "sqrt(12)"
    moved = semantic_clusters(vectors, 3, pca=2)
    assert len(moved.unique()) == 3
    with pytest.raises(ValueError, match="k: expected"):
        semantic_clusters(vectors, 25)
    with pytest.raises(ValueError, match="pca: expected"):
        semantic_clusters(vectors, 3, pca=7)
    with pytest.raises(ValueError, match="vectors: expected finite rows"):
        semantic_clusters(vectors / 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "near"}, "mode: expected one of"),
        ({"impossible": "skip"}, "impossible: expected one of"),
        ({"num_negatives": 0}, "num_negatives: expected"),
        ({"mix": 1.5}, "mix: expected"),
        ({"known_triples": KNOWN + 4}, r"known_triples: expected values in 0\.\.5"),
        ({"known_triples": KNOWN[:, :2]}, "known_triples: expected shape"),
        ({"clusters": CLUSTERS - 2}, "clusters: expected values >= -1"),
        ({"clusters": torch.rand(6, 2), "mode": "neighbours"}, "neighbours: expected an integer >= 1 and <= 5"),
        ({"clusters": torch.rand(6)}, "clusters: expected an integer tensor"),
    ],
)
def test_refusals(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ClusterNegativeSampler(**{"clusters": CLUSTERS, "known_triples": KNOWN, **change})


def test_refused_calls():
    with pytest.raises(ValueError, match=r"batch: expected values in 0\.\.5"):
        ClusterNegativeSampler(CLUSTERS, KNOWN).sample(KNOWN + 4)
    with pytest.raises(ValueError, match="side: expected one of"):
        filtered_ranks(torch.rand(2, 6), KNOWN, KNOWN, "both")
    with pytest.raises(ValueError, match="margin: expected"):
        margin_ranking_loss(torch.rand(2), torch.rand(2, 1), margin=-1.0)
    with pytest.raises(ValueError, match="p: expected"):
        TransE(2, 1, 2, p=0.5)
