"""Cross-entropy and its two variants against torch's own and against loops."""

import math

import pytest
import torch
import torch.nn.functional as nnf

from steepest.core.objective import TaskInfo
from steepest.losses.classification.cross_entropy import (
    CrossEntropyLoss,
    SmoothedCrossEntropyLoss,
    WeightedCrossEntropyLoss,
    cross_entropy,
)

LOGITS = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TARGET = torch.tensor([0, 1, 2, 3, 3, -100, 0, -100, 2])
SOFT = torch.rand(9, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64).softmax(-1)


@pytest.mark.holds("cross-entropy")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["index", "soft"])
def test_agrees_with_torch(reduction, target):
    found = CrossEntropyLoss(reduction=reduction)(LOGITS, target)
    torch.testing.assert_close(found, nnf.cross_entropy(LOGITS, target, reduction=reduction))


@pytest.mark.holds("cross-entropy-smoothed")
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["index", "soft"])
def test_smoothing_agrees_with_torch(alpha, target):
    found = SmoothedCrossEntropyLoss(alpha)(LOGITS, target)
    torch.testing.assert_close(found, nnf.cross_entropy(LOGITS, target, label_smoothing=alpha))


@pytest.mark.holds("cross-entropy-smoothed")
def test_smoothing_of_one_row_by_hand():
    total = math.log(math.exp(2) + math.exp(1) + 1)
    wanted = 0.7 * (total - 2) + 0.3 * (total - 1)
    assert SmoothedCrossEntropyLoss(0.3)(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(
        wanted
    )


@pytest.mark.holds("cross-entropy-weighted")
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_weights_are_inverse_powers_with_training_mean_one(power):
    counts = [50, 30, 15, 5]
    loss = WeightedCrossEntropyLoss(counts, power=power)
    weights = loss.class_weight.tolist()
    assert sum(n * w for n, w in zip(counts, weights)) / sum(counts) == pytest.approx(1.0)
    for n, w in zip(counts, weights):
        assert w / weights[0] == pytest.approx((counts[0] / n) ** power)
    rows = [
        weights[t] * (math.log(sum(map(math.exp, f))) - f[t])
        for f, t in zip(LOGITS.tolist(), TARGET.tolist())
        if t != -100
    ]
    assert loss(LOGITS, TARGET).item() == pytest.approx(sum(rows) / len(rows))


@pytest.mark.holds("cross-entropy-weighted")
def test_full_training_batch_has_the_weighted_mean_of_torch():
    target = torch.tensor([0] * 6 + [1] * 2 + [2])
    loss = WeightedCrossEntropyLoss([6, 2, 1], power=1.0)
    wanted = nnf.cross_entropy(LOGITS[:, :3], target, weight=loss.class_weight)
    torch.testing.assert_close(loss(LOGITS[:, :3], target), wanted)


def test_class_weights_with_soft_targets_are_the_expectation_over_labels():
    loss = WeightedCrossEntropyLoss([5, 3, 2, 1], reduction="none")
    wanted = sum(SOFT[:, k] * loss(LOGITS, torch.full((9,), k)) for k in range(4))
    torch.testing.assert_close(loss(LOGITS, SOFT), wanted)


def test_sample_weight_multiplies_above_and_below_the_line():
    loss = WeightedCrossEntropyLoss([5, 3, 2, 1])
    once = torch.tensor([1, 0, 2, 0, 0, 1, 0, 0, 1], dtype=torch.float64)
    rows = [0, 2, 2, 5, 8]
    torch.testing.assert_close(loss(LOGITS, TARGET, weight=once), loss(LOGITS[rows], TARGET[rows]))


def test_from_task_takes_the_training_counts():
    info = TaskInfo("multiclass", 10, 3, (7, 2, 1))
    loss = WeightedCrossEntropyLoss.from_task(info, power=0.5)
    assert torch.equal(loss.class_weight, WeightedCrossEntropyLoss((7, 2, 1), power=0.5).class_weight)


def test_class_that_training_never_showed_has_a_finite_weight():
    weight = WeightedCrossEntropyLoss([4, 0, 1]).class_weight
    assert torch.isfinite(weight).all()
    assert weight[1] == weight[2]


def test_class_masked_by_minus_infinity_costs_nothing_where_its_probability_is_zero():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0]]))
    assert loss.item() == pytest.approx(math.log(1 + math.e) - 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: CrossEntropyLoss()(LOGITS, SOFT[:, :3]),
        lambda: CrossEntropyLoss()(LOGITS, 2 * SOFT),
        lambda: CrossEntropyLoss()(LOGITS, torch.full((9,), 4)),
        lambda: SmoothedCrossEntropyLoss(1.5),
        lambda: WeightedCrossEntropyLoss([3, -1]),
        lambda: WeightedCrossEntropyLoss([0, 0]),
        lambda: WeightedCrossEntropyLoss([3]),
        lambda: WeightedCrossEntropyLoss([3, 2])(LOGITS, TARGET),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()
