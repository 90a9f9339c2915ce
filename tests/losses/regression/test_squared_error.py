"""Squared error of numbers and of classes."""

import pytest
import torch
from torch.nn.functional import mse_loss, one_hot

from steepest.core.objective import TaskInfo
from steepest.losses.regression.squared_error import SquaredErrorLoss, squared_error

OUTPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.arange(8) % 3


@pytest.mark.holds("squared-error")
def test_real_targets_agree_with_torch():
    f, y = OUTPUTS[:, 0], OUTPUTS[:, 1]
    for reduction in ("none", "mean", "sum"):
        torch.testing.assert_close(SquaredErrorLoss(reduction)(f, y), mse_loss(f, y, reduction=reduction))


@pytest.mark.holds("squared-error")
def test_classes_are_the_mean_over_outputs_on_one_hot_codes():
    codes = one_hot(TARGET, 3).double()
    torch.testing.assert_close(SquaredErrorLoss()(OUTPUTS, TARGET), mse_loss(OUTPUTS, codes))
    loop = [
        sum((f - (k == y)) ** 2 for k, f in enumerate(row)) / 3 for row, y in zip(OUTPUTS.tolist(), TARGET.tolist())
    ]
    torch.testing.assert_close(squared_error(OUTPUTS, TARGET, reduction="none").tolist(), loop)


def test_probabilities_as_target():
    soft = OUTPUTS.softmax(-1)
    torch.testing.assert_close(squared_error(OUTPUTS, soft), mse_loss(OUTPUTS, soft))
    wanted = squared_error(OUTPUTS, one_hot(TARGET, 3).double())
    torch.testing.assert_close(squared_error(OUTPUTS, TARGET), wanted)


def test_best_outputs_are_the_class_probabilities():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    f = labels.new_tensor([0.7, 0.2, 0.1], dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(squared_error(f.expand(10, 3), labels), f)
    torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64), atol=1e-15, rtol=0)


def test_predicts_numbers_for_regression_and_classes_otherwise():
    loss = SquaredErrorLoss()
    assert torch.equal(loss.predict(OUTPUTS[:, 0]), OUTPUTS[:, 0])
    assert torch.equal(loss.predict(OUTPUTS), OUTPUTS.argmax(-1))
    assert loss.probabilities(OUTPUTS) is None
    assert loss.head(4, TaskInfo("regression", 9))(torch.zeros(2, 4)).shape == (2,)
    assert loss.head(4, TaskInfo("binary", 9, 2, (4, 5)))(torch.zeros(2, 4)).shape == (2, 2)


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        (OUTPUTS, TARGET + 1),
        (OUTPUTS[:, 0], TARGET),
        (OUTPUTS[:, :1], torch.zeros(8, dtype=torch.long)),
        (OUTPUTS[:, :1], OUTPUTS[:, 0]),
        (OUTPUTS, OUTPUTS[:, :2]),
    ],
)
def test_refused(outputs, target):
    with pytest.raises(ValueError, match=": expected "):
        SquaredErrorLoss()(outputs, target)
