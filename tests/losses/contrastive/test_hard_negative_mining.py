"""Batch-hard triplets and how far an embedding is from an ideal one: known numbers, a linear programme, symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from scipy.optimize import linprog

from steepest.losses.contrastive import (
    BatchHardTripletLoss,
    collapse_score,
    hausdorff_like_distance,
    isometric_distance,
)

POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9, 0.5], [2.0, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1])


def drawn(rows=7, width=3, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("hard-negative-mining", 1)
def test_known_numbers():
    d = torch.cdist(POINTS, POINTS)
    hinges = [d[0, 1] - d[0, 2], d[0, 1] - d[1, 2], d[2, 3] - d[1, 2], d[2, 3] - d[1, 3]]
    assert [h.item() + 0.2 for h in hinges] == pytest.approx([0.170437, 0.690098, 0.790098, 0.181966], abs=1e-6)
    assert BatchHardTripletLoss(0.2)(POINTS, LABELS).item() == pytest.approx(0.458150, abs=1e-6)
    assert isometric_distance(d, LABELS, 0.2).item() == pytest.approx(0.395049, abs=1e-6)


def programme(d, labels, margin):
    """The least t with |D' - d| <= t over symmetric D' >= 0 that separate the triplets."""
    rows = len(labels)
    pairs = [(i, j) for i in range(rows) for j in range(i)]
    place = {frozenset(pair): number for number, pair in enumerate(pairs)}
    above, below = [], []
    for number, (i, j) in enumerate(pairs):
        for sign in (1.0, -1.0):
            row = np.zeros(len(pairs) + 1)
            row[number], row[-1] = sign, -1.0
            above.append(row)
            below.append(sign * d[i][j])
    for i in range(rows):
        for p in (j for j in range(rows) if labels[j] == labels[i] and j != i):
            for n in (j for j in range(rows) if labels[j] != labels[i]):
                row = np.zeros(len(pairs) + 1)
                row[place[frozenset((i, p))]], row[place[frozenset((i, n))]] = 1.0, -1.0
                above.append(row)
                below.append(-margin)
    cost = np.zeros(len(pairs) + 1)
    cost[-1] = 1.0
    return linprog(cost, A_ub=np.array(above), b_ub=np.array(below)).fun


@pytest.mark.holds("hard-negative-mining", 2)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 0, 0, 1, 1]])
def test_the_isometric_distance_is_that_of_a_linear_programme(labels):
    for seed, size in ((0, 1.0), (1, 0.3), (2, 0.05)):  # of small distances the second bound is the larger
        z = size * drawn(seed=seed)
        d = torch.cdist(z, z)
        result = isometric_distance(d, torch.tensor(labels), 0.4).item()
        assert result == pytest.approx(programme(d.tolist(), labels, 0.4), abs=1e-7)


@pytest.mark.holds("hard-negative-mining", 3)
def test_all_points_equal():
    z = torch.full((4, 3), 0.7, requires_grad=True)
    loss = BatchHardTripletLoss(0.3)
    value = loss(z, LABELS)
    assert value.item() == pytest.approx(0.3)
    assert not torch.autograd.grad(value, z)[0].any()
    assert isometric_distance(torch.zeros(4, 4), LABELS, 0.3).item() == pytest.approx(0.3)
    assert loss.terms["collapse_score"] == 0
    assert collapse_score(z) == 0


@pytest.mark.holds("hard-negative-mining", 4)
def test_rotations_and_translations_change_nothing_and_both_vanish_together():
    z, labels = drawn(), torch.tensor([0, 0, 1, 1, 2, 2, 2])
    turned = z @ torch.linalg.qr(drawn(3, 3, seed=1)).Q + 5.0
    for options in ({}, {"soft": True}, {"squared": True}):
        loss = BatchHardTripletLoss(**options)
        torch.testing.assert_close(loss(turned, labels), loss(z, labels))
    distance = isometric_distance(torch.cdist(z, z), labels)
    torch.testing.assert_close(isometric_distance(torch.cdist(turned, turned), labels), distance)
    corners = torch.eye(3, dtype=torch.float64)[labels]
    for size, near in ((0.05, True), (0.5, False)):
        w = corners + size * z
        value, distance = BatchHardTripletLoss(0.2)(w, labels), isometric_distance(torch.cdist(w, w), labels)
        assert (value == 0) == near
        assert (distance == 0) == near


@pytest.mark.holds("hard-negative-mining", 5)
def test_anchors_without_a_positive_or_a_negative_are_skipped():
    z = torch.cat([POINTS, POINTS.new_tensor([[1.0, 1.0]])]).requires_grad_()
    alone = torch.tensor([0, 0, 1, 1, 7])
    d = torch.cdist(z, z)
    wanted = (d[0, 1] - d[0, 2] + d[0, 1] - d[1, 2] + d[2, 3] - d[2, 4] + d[2, 3] - d[3, 4]) / 4 + 0.2
    assert BatchHardTripletLoss(0.2)(z, alone).item() == pytest.approx(wanted.item())
    for labels in (torch.arange(5), torch.zeros(5, dtype=torch.long)):
        value = BatchHardTripletLoss()(z, labels)
        assert value == 0
        assert not torch.autograd.grad(value, z)[0].any()
        assert isometric_distance(d, labels) == 0


@pytest.mark.parametrize(("squared", "soft", "margin"), [(False, False, 0.4), (True, False, 0.4), (False, True, 0.0)])
def test_value_and_gradient_are_those_of_the_peer(squared, soft, margin):
    z, labels = drawn(8).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    distance = LpDistance(normalize_embeddings=False, power=2 if squared else 1)
    tuples = BatchHardMiner(distance=distance)(z, labels)
    peer = TripletMarginLoss(margin, smooth_loss=soft, distance=distance, reducer=MeanReducer())(z, labels, tuples)
    ours = BatchHardTripletLoss(None if soft else margin, soft=soft, squared=squared)(z, labels)
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(peer, z))


def test_twice_the_isometric_distance_is_the_worst_hinge():
    z, labels = 3 * drawn(9, seed=4), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    d = torch.cdist(z, z)
    same = labels.unsqueeze(1) == labels
    worst = (d.masked_fill(~same, 0.0).amax(1) - d.masked_fill(same, math.inf).amin(1) + 0.2).amax()
    torch.testing.assert_close(2 * isometric_distance(d, labels, 0.2), worst)


def test_distances_of_embeddings_are_bounded_by_each_other():
    f, ideals = drawn(6), torch.stack([drawn(6, seed=s) for s in (1, 2, 3)])
    result = hausdorff_like_distance(f, ideals)
    worst = [max(float((f[x] - h[x]).norm()) for x in range(6)) for h in ideals]
    assert result.item() == pytest.approx(min(worst), rel=1e-12)
    for h, haus in zip(ideals, worst):
        assert (torch.cdist(f, f) - torch.cdist(h, h)).abs().max() <= 2 * haus
    # corners of a simplex, doubled, separate the triplets: what they are away bounds the isometric distance
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    corners = 2 * torch.eye(3, dtype=torch.float64)[labels]
    near = corners + 0.3 * f
    assert isometric_distance(torch.cdist(near, near), labels) <= 2 * hausdorff_like_distance(near, corners[None])


def test_the_collapse_score_is_the_mean_distance_over_the_margin():
    z = drawn()
    assert collapse_score(z, 0.5).item() == pytest.approx(torch.pdist(z).mean().item() / 0.5)
    assert collapse_score(z[:1]) == 0
    loss = BatchHardTripletLoss(0.5)
    loss(z, torch.arange(7) % 3)
    torch.testing.assert_close(loss.terms["collapse_score"], collapse_score(z, 0.5))
    soft = BatchHardTripletLoss(soft=True)
    soft(z, torch.arange(7) % 3)
    assert "collapse_score" not in soft.terms


def test_wrong_arguments_are_refused():
    d = torch.zeros(4, 4)
    for call, argument in (
        (lambda: isometric_distance(d[:3], LABELS), "d"), (lambda: isometric_distance(d, LABELS[:3]), "labels"),
        (lambda: isometric_distance(d, LABELS, -1.0), "margin"), (lambda: collapse_score(d, 0.0), "margin"),
        (lambda: hausdorff_like_distance(d, d), "ideals"), (lambda: hausdorff_like_distance(d, d[None][:0]), "ideals"),
        (lambda: BatchHardTripletLoss(margin=-0.1), "margin"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            call()
