"""Each way to mine triplets against loops over all of them in float64, and against another library."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchEasyHardMiner, BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from steepest.losses.contrastive import TripletLoss, triplet_loss

pytestmark = pytest.mark.holds("triplet")
LABELS = torch.tensor([4, -7, 4, 100, 4, -7, 100, 3, -7])


def drawn(width=3, seed=0):
    return torch.randn(len(LABELS), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mined(d, labels, mining):
    """d_ap and d_an of the triplets, one anchor after the other."""
    rows, pairs = range(len(labels)), []
    for a in rows:
        positives = [d[a][j] for j in rows if labels[j] == labels[a] and j != a]
        negatives = [d[a][j] for j in rows if labels[j] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            pairs += [(p, n) for p in positives for n in negatives]
        elif mining == "hard":
            pairs.append((max(positives), min(negatives)))
        elif mining == "semi_hard":
            pairs += [(p, min([n for n in negatives if n > p], default=max(negatives))) for p in positives]
        else:
            farther = [n for n in negatives if n > min(positives)]
            pairs += [(min(positives), min(farther))] if farther else []
    return pairs


def by_definition(z, labels, mining, margin, normalize, squared, soft, average):
    rows = [v / v.norm() if normalize else v for v in z]
    d = [[float((u - v).norm()) ** (2 if squared else 1) for v in rows] for u in rows]
    gaps = [p - n + margin for p, n in mined(d, labels.tolist(), mining)]
    losses = [math.log1p(math.exp(g)) if soft else max(g, 0.0) for g in gaps]
    counted = [x for x in losses if x > 0] if average == "violating" else losses
    return sum(counted) / max(len(counted), 1)


@pytest.mark.parametrize("mining", ["hard", "semi_hard", "easy_positive", "all"])
@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0.3, "normalize": True, "squared": False, "soft": False, "average": "violating"},
        {"margin": 0.7, "normalize": False, "squared": True, "soft": False, "average": "all"},
        {"margin": 0.1, "normalize": False, "squared": False, "soft": True, "average": "all"},
    ],
    ids=["violating", "squared", "soft"],
)
def test_it_is_its_definition(mining, options):
    if mining == "all" and options["soft"]:
        with pytest.raises(ValueError, match="soft: expected False"):
            triplet_loss(drawn(), LABELS, mining=mining, **options)
        return
    for seed in range(3):
        z = drawn(seed=seed)
        result = triplet_loss(z, LABELS, mining=mining, **options)
        assert result.item() == pytest.approx(by_definition(z, LABELS, mining, **options), rel=1e-9)


PEERS = {
    "all": (TripletMarginLoss(0.3), None),
    "hard": (TripletMarginLoss(0.3), BatchHardMiner()),
    "easy_positive": (TripletMarginLoss(0.3, reducer=MeanReducer()), BatchEasyHardMiner()),
}


@pytest.mark.parametrize("mining", PEERS)
def test_value_and_gradient_are_those_of_the_peer(mining):
    loss, miner = PEERS[mining]
    z = drawn(seed=5).requires_grad_()
    peer = loss(z, LABELS, miner(z, LABELS) if miner else None)
    ours = triplet_loss(z, LABELS, margin=0.3, mining=mining, average="all" if mining == "easy_positive" else None)
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(peer, z))


def test_a_soft_hinge_is_that_of_the_peer():
    z = drawn(seed=6)
    peer = TripletMarginLoss(0.2, smooth_loss=True)(z, LABELS, BatchHardMiner()(z, LABELS))
    torch.testing.assert_close(triplet_loss(z, LABELS, margin=0.2, mining="hard", soft=True), peer)
    torch.testing.assert_close(
        triplet_loss(z, LABELS, mining="hard", soft=True), triplet_loss(z, LABELS, margin=0.0, mining="hard", soft=True)
    )


def test_a_negative_as_far_as_the_positive_is_not_farther():
    z = torch.tensor([[0.0], [1.0], [-1.0], [3.0]])
    labels = torch.tensor([0, 0, 1, 1])
    options = {"margin": 10.0, "normalize": False, "average": "all"}
    # anchor 0: positive at 1, negatives at 1 and 3; the farther one is taken. The others: (1, 2), (4, 2), (4, 3)
    wanted = ((1 - 3) + (1 - 2) + (4 - 2) + (4 - 3)) / 4 + 10
    assert triplet_loss(z, labels, mining="semi_hard", **options).item() == pytest.approx(wanted)
    far = ((1 - 3) + (1 - 2)) / 2 + 10  # the other two have no negative beyond their positive
    assert triplet_loss(z, labels, mining="easy_positive", **options).item() == pytest.approx(far)


def test_the_mean_of_nothing_is_0_and_of_little_is_not_divided_by_less_than_1():
    z = drawn().requires_grad_()
    for mining in ("hard", "semi_hard", "easy_positive", "all"):
        for labels in (torch.arange(9), torch.zeros(9, dtype=torch.long)):
            loss = triplet_loss(z, labels, mining=mining)
            assert loss == 0
            assert not torch.autograd.grad(loss, z)[0].any()
        far = torch.tensor([[0.0], [0.0], [9.0], [9.0]], requires_grad=True)
        assert triplet_loss(far, torch.tensor([0, 0, 1, 1]), mining=mining, normalize=False) == 0


@pytest.mark.parametrize("mining", ["hard", "semi_hard", "easy_positive", "all"])
def test_what_is_not_a_number_is_not_passed_over(mining):
    z = drawn()
    for row in (0, 7):  # with a positive, and a negative alone
        broken = z.clone()
        broken[row, 1] = math.nan
        assert triplet_loss(broken, LABELS, mining=mining, normalize=False).isnan()


def test_terms_tell_of_a_collapse():
    loss = TripletLoss(margin=0.5, mining="hard", normalize=False)
    z = drawn()
    loss(z, LABELS)
    assert loss.terms["collapse_score"].item() == pytest.approx(torch.pdist(z).mean().item() / 0.5)
    assert 0 < loss.terms["violating"] <= 1
    value = loss(torch.ones(9, 3, requires_grad=True), LABELS)
    assert value.item() == pytest.approx(0.5)
    assert loss.terms["collapse_score"] == 0
    assert loss.terms["violating"] == 1


def test_no_cube_is_formed():
    labels = torch.arange(300) % 30
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for mining in ("all", "semi_hard"):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            triplet_loss(z, labels, mining=mining).backward()
        assert max(sizes) <= 301 * 300


def test_options_that_do_not_go_together_are_refused():
    for options, argument in (
        ({"margin": -1.0}, "margin"), ({"mining": "easy"}, "mining"), ({"average": "sum"}, "average"),
        ({"soft": True, "average": "violating"}, "average"), ({"soft": True, "mining": "all"}, "soft"),
        ({"normalize": 1}, "normalize"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=f"{argument}: expected"):
            TripletLoss(**options)
        with pytest.raises((ValueError, TypeError), match=f"{argument}: expected"):
            triplet_loss(drawn(), LABELS, **options)
