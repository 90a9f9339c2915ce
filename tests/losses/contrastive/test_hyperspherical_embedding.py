"""The normalised softmax against another library and closed forms; class means, and classes that are added."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss as PeerNormalizedSoftmax
from sklearn.neighbors import NearestCentroid

from steepest.core.heads import NormedLinear
from steepest.losses.contrastive import (
    CentroidClassifier,
    NormalizedSoftmaxLoss,
    normalized_softmax_bound,
    normalized_softmax_loss,
    novel_class_accuracy,
)


def head_of(rows):
    head = NormedLinear(2, 2).double()
    with torch.no_grad():
        head.weight.copy_(rows)
    return head


@pytest.mark.holds("hyperspherical-embedding", 1)
def test_known_numbers():
    cosines = head_of(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    assert cosines[0].tolist() == pytest.approx([0.6, 0.8])
    for scale, loss in ((1.0, 0.598139), (10.0, 0.126928)):
        assert normalized_softmax_loss(cosines, torch.tensor([1]), scale=scale).item() == pytest.approx(loss, abs=1e-6)
        assert NormalizedSoftmaxLoss(scale)(cosines, torch.tensor([1])).item() == pytest.approx(loss, abs=1e-6)
        assert loss == pytest.approx(math.log1p(math.exp(-0.2 * scale)), abs=1e-6)


@pytest.mark.holds("hyperspherical-embedding", 2)
def test_lengths_change_nothing_and_get_no_gradient():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    rows, target = torch.randn(2, 2, generator=generator).double(), torch.tensor([0, 1, 0, 1, 1])
    loss = NormalizedSoftmaxLoss(10.0)
    value = loss(head_of(rows)(features), target)
    of_rows, of_classes = torch.tensor([[2.0], [1], [9], [0.1], [4]]), torch.tensor([[3.0], [0.2]])
    longer = loss(head_of(rows * of_classes)(features * of_rows), target)
    assert longer.item() == pytest.approx(value.item(), rel=1e-12)
    (slope,) = torch.autograd.grad(value, features)
    assert slope.abs().max() > 1e-3
    assert (slope * features).sum(1).abs().max() < 1e-14


@pytest.mark.holds("hyperspherical-embedding", 3)
def test_the_least_loss_is_that_of_a_simplex():
    for classes, scale, bound in ((10, 10.0, 1.34499e-4), (100, 10.0, 4.054539e-3), (10, 1.0, 1.376935)):
        assert normalized_softmax_bound(classes, scale) == pytest.approx(bound, rel=1e-5)
        simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
        cosines = torch.nn.functional.normalize(simplex, dim=1)
        cosines = cosines @ cosines.T
        loss = normalized_softmax_loss(cosines, torch.arange(classes), scale=scale)
        assert loss.item() == pytest.approx(bound, rel=1e-5)
        assert loss.item() == pytest.approx(normalized_softmax_bound(classes, scale), rel=1e-9)


@pytest.mark.holds("hyperspherical-embedding", 4)
def test_a_new_class_leaves_the_scores_of_the_others():
    generator = torch.Generator().manual_seed(0)
    emb, labels = torch.randn(30, 4, generator=generator, dtype=torch.float64), torch.arange(30) % 3 * 10
    classifier = CentroidClassifier().fit(emb, labels)
    query = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    before = classifier.similarities(query)
    peer = NearestCentroid().fit(torch.nn.functional.normalize(emb, dim=1).numpy(), labels.numpy())
    directions = torch.nn.functional.normalize(torch.as_tensor(peer.centroids_), dim=1)
    torch.testing.assert_close(before, torch.nn.functional.normalize(query, dim=1) @ directions.T)
    assert torch.equal(classifier.predict(query), 10 * before.argmax(1))
    torch.testing.assert_close(classifier.score(query), before.max(1).values)

    classifier.add_classes(torch.tensor([[1.0, 1, 0, 0], [2.0, 0, 0, 0]]), torch.tensor([5, 15]))
    assert classifier.classes.tolist() == [0, 5, 10, 15, 20]
    torch.testing.assert_close(classifier.similarities(query)[:, ::2], before, rtol=0, atol=1e-14)
    assert classifier.predict(torch.tensor([[9.0, 9.0, 0.0, 0.0]])).item() == 5
    assert classifier.fit(emb, labels).classes.tolist() == [0, 10, 20]


@pytest.mark.holds("hyperspherical-embedding", 5)
def test_rows_and_classes_without_a_direction_are_refused():
    label = torch.tensor([0, 1])
    fit = CentroidClassifier().fit
    with pytest.raises(ValueError, match=r"^emb: expected rows of which none is 0"):
        fit(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), label)
    with pytest.raises(ValueError, match=r"^emb: expected finite numbers"):
        fit(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), label)
    with pytest.raises(ValueError, match=r"^emb: expected one row and more"):
        fit(torch.zeros(0, 2), torch.zeros(0).long())
    with pytest.raises(ValueError, match=r"^emb: expected classes whose rows do not cancel out"):
        fit(torch.tensor([[-0.3, 0.1], [3.0, -1.0]]), torch.tensor([0, 0]))
    with pytest.raises(TypeError, match=r"^labels: expected labels of an integer type"):
        fit(torch.eye(2), label == 1)
    with pytest.raises(ValueError, match=r"^labels: expected classes that are not there yet, got \[1\]"):
        fit(torch.eye(2), label).add_classes(torch.eye(2), label + 1)
    with pytest.raises(ValueError, match=r"^emb: expected width 2"):
        fit(torch.eye(2), label).add_classes(torch.eye(3), torch.arange(3) + 5)
    with pytest.raises(ValueError, match=r"^CentroidClassifier: expected a call of fit first"):
        CentroidClassifier().predict(torch.eye(2))
    classifier = fit(torch.eye(2), label)
    assert classifier.score(torch.zeros(1, 2, dtype=torch.float16)).tolist() == [0.0]
    head = NormedLinear(2, 2)
    features = torch.zeros(2, 2, dtype=torch.float16, requires_grad=True)
    value = NormalizedSoftmaxLoss()(head(features), label)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, features)[0].isfinite().all()


@pytest.mark.holds("hyperspherical-embedding", 6)
@pytest.mark.parametrize("learn", [False, True])
def test_values_and_gradients_are_those_of_the_peer(learn):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (8,), generator=generator)
    peer, head = PeerNormalizedSoftmax(4, 5, temperature=1 / 12).double(), NormedLinear(5, 4).double()
    with torch.no_grad():
        head.weight.copy_(peer.W.T)
    ours, theirs = NormalizedSoftmaxLoss(12.0, learn).double()(head(features), target), peer(features, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    slope, of_head = torch.autograd.grad(ours, (features, head.weight))
    wanted, of_w = torch.autograd.grad(theirs, (features, peer.W))
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_head, of_w.T, rtol=1e-5, atol=1e-6)


def test_a_learned_scale_is_minimised_and_saved():
    loss = NormalizedSoftmaxLoss(4.0, learn_scale=True)
    cosines, target = torch.tensor([[0.9, 0.1], [0.2, 0.5]]), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    first = loss(cosines, target)
    first.backward()
    optimizer.step()
    assert loss.multiplier() > 4
    assert loss(cosines, target) < first
    torch.testing.assert_close(loss.probabilities(cosines), (loss.multiplier() * cosines).softmax(1))
    again = NormalizedSoftmaxLoss(9.0, learn_scale=True)
    again.load_state_dict(loss.state_dict())
    assert again(cosines, target) == loss(cosines, target)


def test_two_protocols():
    support, labels = torch.tensor([[1.0, 0.2], [0.2, 1.0]]), torch.tensor([5, 6])
    query, truth = torch.tensor([[1.0, 0.1], [0.9, 1.0], [1.0, 0.9]]), torch.tensor([5, 6, 6])
    assert novel_class_accuracy(support, labels, query, truth) == pytest.approx(2 / 3)
    known = torch.tensor([[1.0, 1.0]])
    joint = novel_class_accuracy(
        support, labels, query, truth, protocol="joint", known=known, known_labels=torch.tensor([0])
    )
    assert joint == pytest.approx(1 / 3)
    for wrong in ({"protocol": "joint"}, {"known": known}, {"protocol": "joint", "known": known}):
        with pytest.raises(ValueError, match=r'^known(_labels)?: expected a tensor with protocol="joint", else None'):
            novel_class_accuracy(support, labels, query, truth, **wrong)
    with pytest.raises(ValueError, match=r"^query: expected one row and more"):
        novel_class_accuracy(support, labels, query[:0], truth[:0])
