"""Ranks of a class among others: against loops, pytorch-metric-learning and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.comparison.metrics.retrieval import OF_RETRIEVAL
from steepest.comparison.scores import retrieval
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.scores.retrieval import FIRST, NEAREST, in_order, nearest_rows, ranked


def drawn(rows=57, classes=7, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator).numpy()
    labels[0] = classes  # alone
    centres = torch.randn(classes + 1, width, generator=generator)
    return centres[torch.as_tensor(labels)] + torch.randn(rows, width, generator=generator), labels


def by_loops(embeddings, labels):
    """One row after the other, in float64 where no two cosines are near each other."""
    x = embeddings.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = []
    for query in range(len(x)):
        others = [place for place in range(len(x)) if place != query]
        order = sorted(others, key=lambda place: (-float(x[query] @ x[place]), place))
        right = [labels[place] == labels[query] for place in order]
        total = sum(right)
        precision = [sum(right[: i + 1]) / (i + 1) for i in range(total)]
        average = sum(p for p, hit in zip(precision, right) if hit) / total if total else 0.0
        first = right.index(True) + 1 if total else 0
        rows.append([average, sum(right[:total]) / total if total else 0.0, first, *order[:5]])
    return np.array(rows)


@pytest.mark.parametrize("at_once", [1 << 22, 60, 1])
def test_ranks_are_those_of_loops(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "_AT_ONCE", at_once)
    embeddings, labels = drawn()
    assert np.allclose(ranked(embeddings, labels), by_loops(embeddings, labels), atol=1e-12)


def test_metrics_are_those_of_pytorch_metric_learning():
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    embeddings, labels = drawn(rows=90, seed=3)
    metrics = ("mean_average_precision_at_r", "r_precision", "precision_at_1")
    peer = calculator.AccuracyCalculator(
        include=metrics, k="max_bin_count", device=torch.device("cpu"),
        knn_func=inference.CustomKNN(distances.CosineSimilarity()),
    )  # fmt: skip
    wanted = peer.get_accuracy(embeddings, torch.as_tensor(labels))
    outcome = Outcome(ranked(embeddings, labels))
    for name, own in zip(metrics, ("map_at_r", "r_precision", "recall_at_1")):
        assert OF_RETRIEVAL[own](labels, outcome) == pytest.approx(wanted[name], abs=1e-12)


def test_recall_is_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    embeddings, labels = drawn(rows=40, seed=5)
    unit = torch.nn.functional.normalize(embeddings.double())
    outcome = Outcome(ranked(embeddings, labels))
    for k in (1, 5, 10):
        rates = []
        for query in range(len(labels)):
            others = torch.arange(len(labels)) != query
            hit = torch.as_tensor(labels == labels[query])[others]
            if hit.any():
                rates.append(float(functional.retrieval_hit_rate((unit @ unit[query])[others], hit, top_k=k)))
        assert OF_RETRIEVAL[f"recall_at_{k}"](labels, outcome) == pytest.approx(np.mean(rates))


def test_equal_cosines_come_in_the_order_of_rows():
    embeddings = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [-1.0, 0.0], [0.0, -2.0]])
    found = ranked(embeddings, np.array([0, 1, 0, 0, 1, 1]))
    assert found[0, NEAREST:].tolist() == [1, 3, 2, 5, 4]
    assert found[0, FIRST] == 2
    assert found[3, NEAREST:].tolist() == [0, 1, 2, 5, 4]
    values = torch.tensor([[0.0, -0.0, 1e-38, -1e-38, 1.0, -1.0, -1.0, 0.5]])
    assert in_order(values).argsort(descending=True).tolist() == [[4, 7, 2, 0, 1, 3, 5, 6]]


def test_rows_without_others_of_their_class_are_no_queries():
    embeddings, labels = drawn()
    found = ranked(embeddings, labels)
    assert found[0, FIRST] == 0
    assert (found[1:, FIRST] > 0).all()
    alone = Outcome(ranked(embeddings[:4], np.arange(4)))
    assert [metric(np.arange(4), alone) for metric in OF_RETRIEVAL.values()] == [-np.inf] * 5


def test_few_rows_and_rows_that_are_no_numbers():
    assert ranked(torch.zeros(0, 3), np.zeros(0, dtype=int)).shape == (0, 8)
    assert ranked(torch.ones(1, 3), np.array([2])).tolist() == [[0, 0, 0, -1, -1, -1, -1, -1]]
    assert ranked(torch.ones(3, 2, dtype=torch.half), np.array([0, 0, 1]))[:, FIRST].tolist() == [1, 1, 0]
    bad = ranked(torch.tensor([[1.0], [float("nan")]]), np.array([0, 0]))
    assert np.isnan(bad).all()
    assert not Outcome(bad).finite
    assert ranked(torch.zeros(3, 2), np.array([0, 1, 0]))[:, FIRST].tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="labels"):
        ranked(torch.zeros(3, 2), np.array([0, -1, 0]))


@pytest.mark.parametrize("at_once", [1 << 22, 10])
def test_nearest_rows(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "_AT_ONCE", at_once)
    rows, _ = drawn()
    queries, _ = drawn(rows=9, seed=8)
    places, cosines = nearest_rows(queries, rows)
    products = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(rows.double()).T
    best, wanted = products.topk(5, 1)
    assert torch.equal(places, wanted)
    assert torch.allclose(cosines.double(), best, atol=1e-6)
    assert nearest_rows(queries, rows[:2])[0].shape == (9, 2)
    assert nearest_rows(queries[:0], rows)[0].shape == (0, 5)
