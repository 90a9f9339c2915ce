"""How members are constructed: suggestions for keywords, a repr that tells the truth."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from steepest.core.loss import Loss
from steepest.core.objective import Objective, TaskInfo, WithPenalty
from steepest.losses import (
    CompSumLoss,
    FocalLoss,
    LDAMLoss,
    LDRLoss,
    OrthogonalProjectionLoss,
    SmoothAdversarialCompSumLoss,
)
from steepest.post import TemperatureCalibrator


def test_arguments_are_shown_as_given():
    assert repr(LDRLoss(lam=0.8)) == "LDRLoss(lam=0.8)"
    assert repr(LDRLoss(0.8, reduction="sum")) == "LDRLoss(lam=0.8, reduction='sum')"
    assert repr(LDRLoss()) == "LDRLoss()"
    assert repr(FocalLoss(alpha=torch.ones(3))) == "FocalLoss(alpha=<a float32 tensor of shape (3,)>)"
    assert repr(SmoothAdversarialCompSumLoss(bounds=(0, 1), seed=0)).startswith(
        "SmoothAdversarialCompSumLoss(\n  bounds=(0, 1), seed=0\n"
    )
    assert repr(TemperatureCalibrator()) == "TemperatureCalibrator(not fitted)"


def test_parts_are_shown_once():
    found = repr(WithPenalty(CompSumLoss(1.5), OrthogonalProjectionLoss(), weight=0.5))
    wanted = (
        "WithPenalty(\n  weight=0.5\n  (objective): CompSumLoss(tau=1.5)\n  (penalty): OrthogonalProjectionLoss()\n)"
    )
    assert found == wanted


def test_what_was_set_later_is_shown():
    loss = CompSumLoss(tau=1.5)
    loss.reduction, loss.tau = "none", 0.5
    assert repr(loss) == "CompSumLoss(tau=0.5, reduction='none')"
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)


def test_a_misspelt_keyword_gets_a_suggestion():
    with pytest.raises(
        TypeError, match=r"^LDRLoss\(\) got an unexpected keyword argument 'lamda'; did you mean 'lam'\?"
    ):
        LDRLoss(lamda=1)
    with pytest.raises(TypeError, match=r"'gama'; did you mean 'gamma'\?"):
        FocalLoss.from_task(TaskInfo("binary", 4), gama=1)
    with pytest.raises(TypeError, match=r"'zzz'; it takes tau, reduction$"):
        CompSumLoss(zzz=1)
    with pytest.raises(TypeError, match=r"TemperatureCalibrator\(\) got an unexpected .* 'bins'; it takes none$"):
        TemperatureCalibrator(bins=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'class_counts'"):
        LDAMLoss()


def test_signatures_stay():
    assert list(inspect.signature(LDRLoss).parameters) == ["lam", "margin", "normalize", "reduction"]
    assert inspect.signature(LDRLoss).parameters["lam"].default == 1.0


class Mixin:
    def __init__(self, bins=3):
        super().__init__()
        self.bins = bins


class WithoutConstructor(Loss):
    """A loss that takes nothing."""


class Mixed(Mixin, Loss):
    """Its constructor is that of a class that knows no arguments of ours."""


class Several(Objective):
    """It hands names on."""

    def __init__(self, first, *others, scale=1.0, **further):
        super().__init__(**further)
        self.scale = scale


def test_classes_of_others():
    assert repr(WithoutConstructor()) == "WithoutConstructor()"
    with pytest.raises(TypeError, match=r"'a'; it takes none"):
        WithoutConstructor(a=1)
    assert repr(Mixed(bins=4)) == "Mixed(bins=4)"
    with pytest.raises(TypeError, match=r"'bin'; did you mean 'bins'"):
        Mixed(bin=4)
    assert repr(Several(1, 2, reduction="sum")) == "Several(first=1, others=(2,), reduction='sum')"
    with pytest.raises(TypeError, match=r"Several\(\) got .* keyword argument 'reductoin'; did you mean 'reduction'"):
        Several(1, reductoin="sum")
    with pytest.raises(TypeError, match=r"Several\(\) got .* keyword argument 'scal'; did you mean 'scale'"):
        Several(1, scal=2.0)
