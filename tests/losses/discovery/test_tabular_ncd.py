"""Discovery of new classes in tables, beside scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from steepest.core.clusterings import hungarian_accuracy, matched_clusters
from steepest.losses.discovery import (
    HiddenClassCV,
    NCDKMeans,
    NCDSpectralClustering,
    ProjectionBasedNCD,
    estimate_num_classes,
)
from steepest.losses.discovery.tabular_ncd import (
    _squared_distances,
    normalized_laplacian,
    projection_ncd_loss,
    spanning_bandwidth,
)

LINE = torch.tensor([[0.0], [1.0], [3.0], [10.0]])


def blobs(seed=0, places=((0, 0), (0, 8), (8, 0), (8, 8)), each=15, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor(places, dtype=torch.float64)
    labels = torch.arange(len(centres)).repeat_interleave(each)
    noise = spread * torch.randn(len(labels), centres.shape[1], generator=generator, dtype=torch.float64)
    return centres[labels] + noise, labels


@pytest.mark.holds("tabular-ncd", 1)
def test_loss_of_one_row():
    logits, x, back = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 2.5]])
    args = (logits, back, x, torch.tensor([0]), torch.tensor([True]))
    assert projection_ncd_loss(*args).item() == pytest.approx(0.350609, abs=1e-6)
    assert projection_ncd_loss(*args, w=1.0).item() == pytest.approx(0.313262, abs=1e-6)
    assert projection_ncd_loss(*args, w=0.0).item() == pytest.approx(0.5)


def test_loss_by_loops():
    generator = torch.Generator().manual_seed(0)
    logits, x, back = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    labels, known = torch.tensor([0, 1, 2, 9, 9, 1, 0]), torch.tensor([True, True, True, False, False, True, True])
    entropy = np.mean([-math.log(logits[i].exp()[labels[i]] / logits[i].exp().sum()) for i in range(7) if known[i]])
    error = np.mean([((x[i] - back[i]) ** 2).sum().item() for i in range(7)])
    assert projection_ncd_loss(logits, back, x, labels, known, 0.3).item() == pytest.approx(0.3 * entropy + 0.7 * error)
    none = projection_ncd_loss(logits, back, x, labels, torch.zeros_like(known), 0.3)
    assert none.item() == pytest.approx(0.7 * error)


@pytest.mark.holds("tabular-ncd", 2)
def test_width_from_the_spanning_tree():
    assert spanning_bandwidth(LINE, 0.5) == pytest.approx(8.407857, abs=1e-6)
    assert spanning_bandwidth(LINE) == pytest.approx(9.794036, abs=1e-6)
    assert spanning_bandwidth(LINE.repeat(2, 1)) == pytest.approx(9.794036, abs=1e-6), "rows that occur twice"
    affinity = math.exp(-49 / (2 * spanning_bandwidth(LINE) ** 2))
    assert affinity == pytest.approx(math.sqrt(0.6))
    with pytest.raises(ValueError, match="x: expected rows that differ"):
        spanning_bandwidth(torch.ones(3, 2))


@pytest.mark.holds("tabular-ncd", 3)
@pytest.mark.parametrize("seed", range(3))
def test_without_known_classes_it_is_k_means(seed):
    x, labels = blobs(seed)
    model = NCDKMeans(4, seed=seed).fit(x, x[:0])
    assert model.inertia == pytest.approx(KMeans(4, n_init=10, random_state=0).fit(x.numpy()).inertia_)
    assert hungarian_accuracy(model.labels, labels) == 1.0
    assert torch.equal(model.predict(x), model.labels)
    wanted = torch.stack([x[model.labels == k].mean(0) for k in range(4)])
    torch.testing.assert_close(model.centroids, wanted)


def test_new_centres_begin_away_from_known_ones_and_move_alone():
    x, labels = blobs(places=((0, 0), (0, 8), (8, 0)))
    known = x[labels == 0].mean(0, keepdim=True)
    novel = x[labels > 0]
    firsts = [NCDKMeans(1, starts=1, iterations=1, seed=s)._seeded(novel, known)[0, 0] for s in range(20)]
    assert all(first.norm() > 4 for first in firsts)
    model = NCDKMeans(2).fit(x, known)
    assert model.centroids.shape == (2, 2)
    near = _squared_distances(x, model.centroids).argmin(1)
    assert torch.equal(near, model.labels), "rows near a known mean still go to new centres"


def test_seeding_is_by_squared_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]]).double()
    seeded = NCDKMeans(1, starts=20_000)._seeded(x, torch.zeros(1, 1).double())
    shares = [(seeded == value).double().mean().item() for value in (0.0, 1.0, 3.0)]
    assert shares[0] == 0.0
    assert shares[1] == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20_000))


def test_duplicates_and_few_rows():
    assert NCDKMeans(2).fit(torch.ones(3, 2), torch.ones(0, 2)).inertia == 0.0
    with pytest.raises(ValueError, match="x_novel: expected at least 4 rows"):
        NCDKMeans(4).fit(LINE[:3], LINE[:0])
    with pytest.raises(ValueError, match="x_novel: expected finite numbers"):
        NCDKMeans(1).fit(LINE / 0, LINE[:0])
    with pytest.raises(ValueError, match="known_centroids: expected shape"):
        NCDKMeans(1).fit(LINE, torch.ones(1, 2))


@pytest.mark.holds("tabular-ncd", 4)
def test_laplacian_and_accuracy():
    x, labels = blobs()
    laplacian = normalized_laplacian(x, spanning_bandwidth(x))
    assert torch.equal(laplacian, laplacian.T)
    values = np.linalg.eigvalsh(laplacian.numpy())
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert values[-1] <= 2.0
    affinity = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1).numpy() / (2 * spanning_bandwidth(x) ** 2))
    np.fill_diagonal(affinity, 0.0)
    root = np.sqrt(affinity.sum(1))
    np.testing.assert_allclose(laplacian.numpy(), np.eye(len(x)) - affinity / np.outer(root, root), atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    clusters = torch.randint(5, (60,), generator=generator)
    accuracy = hungarian_accuracy(clusters, labels)
    for _ in range(4):
        renamed = torch.randperm(5, generator=generator)[clusters] * 3 - 4
        assert hungarian_accuracy(renamed, labels) == accuracy
        assert hungarian_accuracy(clusters, torch.randperm(4, generator=generator)[labels]) == accuracy
    matched = matched_clusters(clusters, labels)
    assert (matched == -1).any(), "a fifth cluster has no class"
    with pytest.raises(ValueError, match="clusters: expected one row and more"):
        hungarian_accuracy(labels[:0], labels[:0])


def test_spectral_clustering_finds_rings_that_k_means_does_not():
    angle = torch.linspace(0, 2 * math.pi, 41)[:-1].double()
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    novel, labels = torch.cat([ring, 6 * ring]), torch.arange(2).repeat_interleave(40)
    known = 11 * ring
    model = NCDSpectralClustering(2, 1e-4).fit(novel, known, torch.full((40,), 7))
    assert hungarian_accuracy(model.labels, labels) == 1.0
    assert hungarian_accuracy(NCDKMeans(2).fit(novel, known.mean(0, keepdim=True)).labels, labels) < 0.8
    assert model.embedding.shape == (120, 3)
    alone = NCDSpectralClustering(2, 1e-4).fit(novel, known[:0], torch.zeros(0, dtype=torch.int64))
    assert alone.embedding.shape == (80, 2)
    with pytest.raises(ValueError, match="x_novel: expected at least 4 rows of both kinds"):
        NCDSpectralClustering(3).fit(LINE[:3], LINE[:0], torch.zeros(0, dtype=torch.int64))


@pytest.mark.holds("tabular-ncd", 5)
@pytest.mark.parametrize("w", [0.0, 1.0])
def test_either_term_alone(w):
    x, labels = blobs()
    known = labels < 2
    before = torch.get_rng_state()
    model = ProjectionBasedNCD((8,), 2, w, epochs=3).fit(x[known].float(), labels[known], x[~known].float())
    assert torch.equal(torch.get_rng_state(), before)
    z = model.transform(x.float())
    assert z.isfinite().all()
    again = ProjectionBasedNCD((8,), 2, w, epochs=3).fit(x[known].float(), labels[known], x[~known].float())
    assert torch.equal(again.transform(x.float()), z)
    assert set(model.predict(x[~known].float(), 2).tolist()) == {0, 1}


@pytest.mark.holds("tabular-ncd", 5)
@pytest.mark.parametrize(("n_hidden", "folds"), [(1, 4), (2, 2), (3, 4), (2, 3)])
def test_hidden_classes_are_hidden(n_hidden, folds):
    x, labels = blobs()
    labels = labels * 10 - 5
    seen = []

    def cluster(x_known, y_known, x_hidden, k):
        seen.append((set(y_known.tolist()), x_known, x_hidden))
        assert k == n_hidden
        return NCDKMeans(k).fit(x_hidden, x_known[:0]).labels

    tuning = HiddenClassCV(n_hidden, folds)
    assert tuning.score(cluster, x, labels) > 0.9
    for hidden, (visible, x_known, x_hidden) in zip(tuning.splits(labels), seen):
        assert len(hidden) == n_hidden
        assert visible == set(labels.tolist()) - set(hidden.tolist())
        assert torch.equal(x_hidden, x[torch.isin(labels, hidden)])
        assert len(x_known) + len(x_hidden) == len(x)
    times = torch.bincount((torch.cat(tuning.splits(labels)) + 5) // 10, minlength=4)
    assert times.max() - times.min() <= 1
    with pytest.raises(ValueError, match="y_known: expected more than 4 classes"):
        HiddenClassCV(4, 1).splits(labels)


def test_the_best_setting():
    x, labels = blobs()

    def method(divisor):
        return lambda x_known, y_known, x_hidden, k: torch.arange(len(x_hidden)) // divisor % k

    assert HiddenClassCV(2, 2).best([1, 3, 15, 45], method, x, labels) == 15
    assert HiddenClassCV(2, 2).best([True, 1], method, x, labels) is True, "of equal scores the first"


def test_number_of_classes():
    x, _ = blobs()
    assert estimate_num_classes(x, 7) == 4
    scores = {k: silhouette_score(x, KMeans(k, n_init=10, random_state=0).fit_predict(x.numpy())) for k in range(2, 8)}
    assert max(scores, key=scores.get) == 4
    with pytest.raises(ValueError, match="z: expected more than 7 rows"):
        estimate_num_classes(x[:7], 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w": 1.5}, "w: expected"),
        ({"hidden": (0,)}, "hidden: expected"),
        ({"latent": 0}, "latent: expected"),
        ({"dropout": 1.0}, "dropout: expected"),
        ({"lr": 0.0}, "lr: expected"),
        ({"epochs": -1}, "epochs: expected"),
        ({"batch_size": 1}, "batch_size: expected"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        ProjectionBasedNCD(**options)


def test_options_of_the_network():
    x, labels = blobs()
    x = x.float()
    known = labels < 2
    parts = (x[known], labels[known], x[~known])
    plain = ProjectionBasedNCD((8,), 2, epochs=2, batch_size=59).fit(*parts).transform(x)
    for options in ({"batch_norm": True}, {"dropout": 0.5}, {"lr": 1e-2}, {"epochs": 1}, {"seed": 1}):
        other = ProjectionBasedNCD((8,), 2, **{"epochs": 2, "batch_size": 59, **options}).fit(*parts)
        assert not torch.equal(other.transform(x), plain), options
    with pytest.raises(ValueError, match="transform: expected a call of fit before"):
        ProjectionBasedNCD().transform(x)
