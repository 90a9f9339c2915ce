"""Both losses of few-shot episodes against known numbers, loops in float64 and what must not change a score."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.contrastive import ICNNLoss, ProtoTripletLoss, icnn_score, proto_triplet_loss

PROTOTYPES = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
TRIPLES = torch.tensor([[0, 0], [0.1, 0], [0, 0.1], [3, 0], [3.1, 0], [3, 0.1]], dtype=torch.float64)
TWO = torch.tensor([0, 0, 0, 1, 1, 1])


def drawn(rows=9, width=3, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("susana", 1)
def test_known_triplets():
    labels = torch.tensor([0, 1])
    queries = torch.tensor([[1.4, 0.0], [2.0, 1.0]], dtype=torch.float64)
    assert proto_triplet_loss(queries, labels, PROTOTYPES).item() == pytest.approx(0.192893, abs=1e-6)
    far = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    assert proto_triplet_loss(far, labels, PROTOTYPES) == 0


@pytest.mark.holds("susana", 2)
def test_two_tight_triples():
    assert icnn_score(TRIPLES, TWO, k=2, neighbours=3).item() == pytest.approx(0.990353, abs=1e-6)
    assert ICNNLoss(k=2, neighbours=3)(TRIPLES, TWO).item() == pytest.approx(0.009694, abs=1e-6)


@pytest.mark.holds("susana", 3)
def test_interleaved_points():
    x = torch.tensor([[0.0], [1.0], [2.0], [0.5], [1.5], [2.6]], dtype=torch.float64)
    assert icnn_score(x, TWO, k=2, neighbours=3).item() == pytest.approx(0.302083, abs=1e-6)
    assert ICNNLoss(k=2, neighbours=3)(x, TWO).item() == pytest.approx(1.197052, abs=1e-6)


@pytest.mark.holds("susana", 4)
def test_scaling_rotation_and_other_names_change_nothing():
    labels = torch.arange(9) % 3
    for seed in range(4):
        z = 3 * drawn(seed=seed)
        score = icnn_score(z, labels)
        turned = z @ torch.linalg.qr(drawn(3, 3, seed=9)).Q
        assert icnn_score(50 * z, labels).item() == pytest.approx(score.item(), abs=1e-5)
        assert icnn_score(turned, labels).item() == pytest.approx(score.item(), abs=1e-9)
        assert icnn_score(z, 100 - 7 * labels).item() == pytest.approx(score.item(), abs=1e-12)
        assert 0 < score <= 1


@pytest.mark.holds("susana", 5)
def test_a_class_of_one_member_and_a_prototype_without_competitor():
    z = drawn().requires_grad_()
    for labels in (torch.tensor([5, 0, 0, 0, 0, 1, 1, 1, 1]), torch.arange(9)):
        loss = ICNNLoss()(z, labels)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, z)[0].isfinite().all()
    with pytest.raises(ValueError, match="prototypes: expected at least two"):
        proto_triplet_loss(drawn(2), torch.zeros(2, dtype=torch.long), drawn(1))


def by_definition(x, y, reference, reference_labels, k, neighbours):
    """Steps 1 to 6, a row after the other."""
    own = reference is None
    among, names = (x, y) if own else (reference, reference_labels)
    size = len(among)
    few = k + 2 >= size
    k = size - 2 if few else k
    number = min(k + 1 if neighbours is None else neighbours, size - own)
    insides, purities, outsides, largest = [], [], [], 0.0
    for i in range(len(x)):
        d = [(math.sqrt(float((x[i] - v).square().sum()) + 1e-6), j) for j, v in enumerate(among) if not own or j != i]
        near = sorted(d)[:number]
        edge = min([v for v, j in near if names[j] != y[i]], default=math.inf)
        scaled = [v / (edge + 1e-7) for v, _ in near[:k]]
        top = max(1.0, *scaled)
        same = [v / top for v, (_, j) in zip(scaled, near) if names[j] == y[i]]
        other = [v for v, j in near[:k] if names[j] != y[i]]
        largest = max([largest, *other])
        insides += [sum(same) / len(same)] if same else []
        outsides += [other] if other else []
        purities.append(len(same) / k)
    tight = 1 - sum(insides) / max(len(insides), 1)
    wide = sum(sum(v / largest for v in row) / len(row) for row in outsides) / len(outsides) if outsides else 1.0
    pure = 1.0 if few else sum(purities) / len(purities)
    return ((tight + wide) / 2 + pure) / 2


@pytest.mark.parametrize(("k", "neighbours"), [(4, None), (2, 3), (1, 1), (3, 8), (8, None), (30, 40)])
def test_it_is_its_definition(k, neighbours):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 7])
    for seed in range(3):
        z = drawn(seed=seed) + 2 * torch.eye(9, 3, dtype=torch.float64)[labels.clamp_max(2)]
        wanted = by_definition(z, labels, None, None, k, neighbours)
        assert icnn_score(z, labels, k=k, neighbours=neighbours).item() == pytest.approx(wanted, rel=1e-9)
        more, names = drawn(12, seed=seed + 10), torch.arange(12) % 4
        wanted = by_definition(z, labels, more, names, k, neighbours)
        result = icnn_score(z, labels, more, names, k=k, neighbours=neighbours)
        assert result.item() == pytest.approx(wanted, rel=1e-9)


def test_a_duplicate_is_a_neighbour_and_a_row_is_none_of_itself():
    x = torch.tensor([[0.0], [0.0], [1.0], [1.2], [1.5]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 1])
    wanted = by_definition(x, labels, None, None, 2, 3)
    assert icnn_score(x, labels, k=2, neighbours=3).item() == pytest.approx(wanted, rel=1e-9)


def test_triplets_are_those_of_a_loop():
    queries, prototypes, labels = drawn(8), drawn(4, seed=1), torch.arange(8) % 4
    queries.requires_grad_()
    prototypes.requires_grad_()
    d = [[math.sqrt(float((q - p).square().sum()) + 1e-6) for p in prototypes.detach()] for q in queries.detach()]
    losses = [
        max(0.0, row[y] - min(v for c, v in enumerate(row) if c != y) + 0.7) for row, y in zip(d, labels.tolist())
    ]
    loss = ProtoTripletLoss(0.7)(queries, labels, prototypes)
    assert loss.item() == pytest.approx(sum(losses) / 8)
    assert all(slope.any() for slope in torch.autograd.grad(loss, (queries, prototypes)))
    at_it = proto_triplet_loss(prototypes.detach().requires_grad_(), torch.arange(4), prototypes.detach())
    assert at_it.isfinite()


def test_wrong_arguments_are_refused():
    z, y = drawn(), torch.arange(9) % 3
    for call, argument in (
        (lambda: icnn_score(z[:2], y[:2]), "x"), (lambda: icnn_score(z, y, z), "reference_labels"),
        (lambda: icnn_score(z, y, k=0), "k"), (lambda: icnn_score(z, y, k=4, neighbours=3), "neighbours"),
        (lambda: icnn_score(z, y, z[:2], y[:2]), "reference"), (lambda: ICNNLoss(k=3, neighbours=2), "neighbours"),
        (lambda: proto_triplet_loss(z, y, z[:2]), "labels"), (lambda: ProtoTripletLoss(-1.0), "margin"),
        (lambda: proto_triplet_loss(z, y[:3], z), "labels"), (lambda: proto_triplet_loss(z, y, z[:, :2]), "prototypes"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            call()
