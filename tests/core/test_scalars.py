"""Numbers of numpy are taken wherever Python's are, and Python's are what is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from steepest.comparison.design.settings import Settings
from steepest.comparison.errors import InputError
from steepest.core.checks import check_flag, check_number
from steepest.core.objective import TaskInfo
from steepest.core.scalars import is_flag, is_number, plain
from steepest.core.search import Choice, Float, Int
from steepest.descent import ArrayBatches, Descent
from steepest.descent.augment import ImageAugment
from steepest.kernels import linear_cross_entropy, linear_loss
from steepest.kernels._memory import budget
from steepest.losses import CompSumLoss, FocalLoss, HuberLoss, quantile_loss
from steepest.losses.classification.losses_and_metrics_survey.generated import rouge
from steepest.optim import PerpGrad

FLOATS = [np.float16, np.float32, np.float64, np.longdouble]
INTEGERS = [np.int8, np.int64, np.uint16]


@pytest.mark.parametrize("kind", [*FLOATS, *INTEGERS])
def test_a_number_is_a_number(kind):
    assert type(plain(kind(2))) is (float if kind in FLOATS else int)
    assert plain(kind(2)) == 2
    check_number("x", kind(2), low=0.0)
    assert is_number(kind(2), integer=True) is (kind in INTEGERS)
    with pytest.raises(ValueError, match="x: expected a number >= 3, got"):
        check_number("x", kind(2), low=3)


def test_whole_numbers_and_flags():
    check_number("x", np.int64(2), integer=True)
    for wrong in (np.float64(2), np.bool_(True), True):
        with pytest.raises(TypeError, match="x: expected an integer"):
            check_number("x", wrong, integer=True)
    with pytest.raises(ValueError, match="x: expected a number, got"):
        check_number("x", np.float32("nan"))
    check_flag("x", np.bool_(True))
    for wrong in (1, "True", None, np.int64(1)):
        assert not is_flag(wrong)
        with pytest.raises(TypeError, match="x: expected True or False"):
            check_flag("x", wrong)


def test_hyper_parameters():
    assert type(FocalLoss(gamma=np.float32(2)).gamma) is float
    assert type(HuberLoss(delta=np.int64(2)).delta) is int
    assert type(FocalLoss.from_task(TaskInfo("binary", 4), gamma=np.float64(0.5)).gamma) is float


def test_kernels():
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(4, 8, generator=generator), torch.randn(7, 8, generator=generator)
    target = torch.arange(4)
    wanted = linear_cross_entropy(hidden, head, target, num_items=4, temperature=2.0, softcap=30.0)
    found = linear_cross_entropy(
        hidden, head, target, num_items=np.int64(4), temperature=np.float32(2), softcap=np.float64(30),
        memory=np.int64(1 << 20),
    )  # fmt: skip
    assert torch.equal(found, wanted)
    row = CompSumLoss().fused_row
    assert torch.equal(
        linear_loss(hidden, head, target, row, num_items=np.float32(4)),
        linear_loss(hidden, head, target, row, num_items=4.0),
    )
    leaf = hidden.clone().requires_grad_()
    linear_cross_entropy(leaf, head, target, filter=np.float32(1e-3)).backward()
    assert leaf.grad is not None
    assert budget(np.int64(1 << 20), torch.device("cpu")) == 1 << 20
    assert budget(np.float32(0.5), torch.device("cpu")) > 0


def test_search_spaces_and_tasks():
    assert type(Float(np.float32(0.5), np.float32(2), log=True).at(0.3)) is float
    assert type(Float(np.float64(0.5), np.float64(2)).at(0.3)) is float
    assert type(Int(np.int64(1), np.int64(3)).at(0.9)) is int
    assert type(Choice((np.int64(1), np.int64(2))).at(0.0)) is int
    info = TaskInfo("binary", np.int64(4), class_counts=(np.int64(2), np.int64(2)))
    assert json.dumps(vars(info))


def test_settings():
    given = Settings(("focal",), "focal", "accuracy", folds=np.int64(3), noise=np.float32(0.25), augment=np.bool_(True))
    assert given == Settings(("focal",), "focal", "accuracy", folds=3, noise=0.25)
    assert json.loads(json.dumps(given.to_json())) == given.to_json()
    with pytest.raises(InputError, match="--folds: expected an integer in"):
        Settings(("focal",), "focal", "accuracy", folds=np.float64(3))


def test_descent(tmp_path):
    """A run whose numbers came from numpy is saved as plain values and goes on."""

    def run():
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        optimizer = PerpGrad(model.parameters(), lr=np.float64(0.1), weight_decay=np.float32(0.01))
        x = torch.linspace(-1.0, 1.0, 16).view(8, 2)
        batches = ArrayBatches(x, (x[:, 0] > 0).long(), batch_size=np.int64(4), seed=np.int64(3))
        return Descent(model, FocalLoss(np.float32(2)), batches, optimizer=optimizer)

    whole = run().fit(np.int64(2))
    run().fit(np.int64(1)).save(tmp_path / "run.pt")
    resumed = run().resume(tmp_path / "run.pt").fit(np.int64(2))
    assert type(whole.epochs) is int
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)


def test_other_arguments():
    ImageAugment(flip=np.bool_(True), shift=np.int64(1))
    one = torch.tensor([1.0, 2.0])
    assert torch.equal(quantile_loss(one, one + 1, q=np.float32(0.25)), quantile_loss(one, one + 1, q=0.25))
    text = ["a b c d"], ["b a c d"]
    assert rouge(*text, kind=np.int64(2)) == rouge(*text, kind=2) != rouge(*text)
