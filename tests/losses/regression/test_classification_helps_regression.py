"""Regression with classification: the card's numbers, naive loops, bins, and where gradients go."""

import io
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from steepest.core.objective import TaskInfo
from steepest.losses.regression.classification_helps_regression import (
    RegressionWithClassificationLoss,
    TargetBinner,
    reg_cls_loss,
)

Y = torch.tensor([0.05, 0.4, 0.95], dtype=torch.float64)
REG = torch.tensor([0.1, 0.5, 0.7], dtype=torch.float64)
LOGITS = torch.tensor([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)


def loop_classes(y, low, high, k):
    return [min(k - 1, max(0, math.floor(k * (v - low) / (high - low)))) for v in y]


@pytest.mark.holds("classification-helps-regression", 1)
def test_card_classes():
    assert TargetBinner(4).fit(UNIT).transform(Y).tolist() == [0, 1, 3]


@pytest.mark.holds("classification-helps-regression", 1)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_classes_agree_with_a_loop(k):
    rng = np.random.default_rng(0)
    train, y = rng.normal(size=50), 2 * rng.normal(size=50)
    found = TargetBinner(k).fit(torch.from_numpy(train)).transform(torch.from_numpy(y))
    assert found.tolist() == loop_classes(y, train.min(), train.max(), k)


@pytest.mark.holds("classification-helps-regression", 2)
def test_card_loss():
    total, mse, ce = reg_cls_loss(REG, LOGITS, Y, TargetBinner(4).fit(UNIT))
    assert mse.item() == pytest.approx(0.025, abs=1e-12)
    assert ce.item() == pytest.approx(0.8236, abs=5e-5)
    assert total.item() == pytest.approx(3.3236, abs=5e-5)
    terms = [math.log(math.e + 3) - 1, math.log(math.exp(2) + 3) - 2, math.log(4)]
    assert ce.item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    objective = RegressionWithClassificationLoss(num_bins=4)
    joined = torch.cat([REG[:, None], LOGITS], 1)
    assert objective(joined, Y).item() == pytest.approx(total.item(), rel=1e-12)
    assert objective.predict(joined).tolist() == REG.tolist()
    assert objective.terms["classification"].item() == pytest.approx(ce.item(), rel=1e-12)


@pytest.mark.holds("classification-helps-regression", 2)
@pytest.mark.parametrize("mode", ["width", "equalised"])
def test_agrees_with_torch(mode):
    generator = torch.Generator().manual_seed(1)
    y, reg = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    logits = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    binner = TargetBinner(5, mode).fit(y)
    wanted = 7 * mse_loss(reg, y) + cross_entropy(logits, binner.transform(y))
    torch.testing.assert_close(reg_cls_loss(reg, logits, y, binner, weight=7.0).total, wanted)
    joined = torch.cat([reg[:, None], logits], 1)
    torch.testing.assert_close(RegressionWithClassificationLoss(binner, 7.0)(joined, y), wanted)


@pytest.mark.holds("classification-helps-regression", 3)
def test_one_bin_is_squared_error():
    for weight in (1.0, 100.0):
        total, mse, ce = reg_cls_loss(REG, LOGITS[:, :1], Y, TargetBinner(1).fit(UNIT), weight=weight)
        assert ce.item() == 0.0
        assert total.item() == pytest.approx(weight * mse_loss(REG, Y).item(), rel=1e-12)
        assert mse.item() == pytest.approx(mse_loss(REG, Y).item(), rel=1e-12)


@pytest.mark.holds("classification-helps-regression", 4)
def test_the_ends_and_beyond():
    far = torch.tensor([-9.0, 0.0, 1.0, 9.0])
    assert TargetBinner(4).fit(UNIT).transform(far).tolist() == [0, 0, 3, 3]
    ignoring = TargetBinner(4, outside="ignore").fit(UNIT)
    assert ignoring.transform(far).tolist() == [-1, 0, 3, -1]
    parts = reg_cls_loss(torch.zeros(4), torch.eye(4), far, ignoring, weight=0.5)
    kept = cross_entropy(torch.eye(4), torch.tensor([-1, 0, 3, -1]), ignore_index=-1)
    torch.testing.assert_close(parts.classification, kept)
    torch.testing.assert_close(parts.total, 0.5 * (far**2).mean() + kept)
    alone = reg_cls_loss(torch.zeros(2), torch.zeros(2, 4), torch.tensor([2.0, 3.0]), ignoring)
    assert alone.classification.item() == 0.0
    assert TargetBinner(3).fit(torch.ones(4)).transform(torch.ones(2)).max() <= 2


@pytest.mark.holds("classification-helps-regression", 5)
@pytest.mark.parametrize(("rows", "k"), [(100, 7), (64, 8), (20, 20)])
def test_equalised_counts(rows, k):
    y = torch.randn(rows, generator=torch.Generator().manual_seed(2)).exp()
    counts = torch.bincount(TargetBinner(k, "equalised").fit(y).transform(y), minlength=k)
    assert int(counts.max() - counts.min()) <= 2
    assert int(counts.sum()) == rows
    skewed = torch.bincount(TargetBinner(k).fit(y).transform(y), minlength=k)
    assert int(skewed.max() - skewed.min()) > 2 or rows == k


@pytest.mark.holds("classification-helps-regression", 6)
def test_cross_entropy_leaves_the_regression_head_alone():
    objective = RegressionWithClassificationLoss(num_bins=4)
    torch.manual_seed(0)
    trunk, head = torch.nn.Linear(3, 6).double(), objective.head(6, TaskInfo("regression", 9)).double()
    outputs = head(trunk(torch.randn(3, 3, dtype=torch.float64)))
    entropy = reg_cls_loss(outputs[:, 0], outputs[:, 1:], Y, objective.binner).classification
    weight, bias, below = torch.autograd.grad(entropy, [head.weight, head.bias, trunk.weight])
    assert weight[0].abs().max() == 0.0 == bias[0].abs()
    assert weight[1:].abs().max() > 0
    assert below.abs().max() > 0


def test_no_weight_means_regression_alone():
    joined = torch.cat([REG[:, None], LOGITS], 1).requires_grad_()
    loss = RegressionWithClassificationLoss(num_bins=4, weight=0.0)(joined, Y)
    assert loss.item() == pytest.approx(0.025, abs=1e-12)
    assert torch.autograd.grad(loss, joined)[0][:, 1:].abs().max() == 0.0


def test_for_standardised_targets():
    info = TaskInfo("regression", 9)
    found = RegressionWithClassificationLoss.from_task(info, num_bins=6)
    torch.testing.assert_close(found.binner.edges, torch.linspace(-3, 3, 7, dtype=torch.float64))
    scaled = RegressionWithClassificationLoss(num_bins=6)
    joined = torch.cat([REG[:, None], torch.randn(3, 6, dtype=torch.float64)], 1)
    wide = torch.cat([6 * REG[:, None] - 3, joined[:, 1:]], 1)
    torch.testing.assert_close(found(wide, 6 * Y - 3), scaled(joined, Y))


def test_a_binner_is_saved():
    file = io.BytesIO()
    first = TargetBinner(3, "equalised").fit(torch.randn(20))
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = TargetBinner(3, "equalised")
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first.transform(torch.randn(9).sort().values * 0 + 0.1), second.transform(torch.full((9,), 0.1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TargetBinner(0), "num_bins: expected an integer >= 1"),
        (lambda: TargetBinner(3, "equal"), "mode: expected one of"),
        (lambda: TargetBinner(3).fit(torch.tensor([0.0, math.nan])), "y: expected at least one target, all finite"),
        (lambda: TargetBinner(3).fit(torch.zeros(0)), "y: expected at least one target"),
        (lambda: TargetBinner(3).transform(Y), "binner: expected one that is fitted"),
        (lambda: RegressionWithClassificationLoss(TargetBinner(3)), "binner: expected one that is fitted"),
        (lambda: RegressionWithClassificationLoss(TargetBinner(3, outside="ignore").fit(UNIT)), "and clips"),
        (lambda: RegressionWithClassificationLoss(low=1.0, high=1.0), "high: expected"),
        (lambda: RegressionWithClassificationLoss(weight=-1.0), "weight: expected"),
        (lambda: RegressionWithClassificationLoss(num_bins=3)(LOGITS[:, :3], Y), r"outputs: expected shape \(\*, 4\)"),
        (lambda: reg_cls_loss(REG, LOGITS, Y, TargetBinner(3).fit(UNIT)), r"logits: expected shape \(3, 3\)"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
