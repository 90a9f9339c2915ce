"""The suite of schedules finds what breaks a promise, each by the check that is named for it."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.checks import check_number
from steepest.core.schedule import STEP, Curve, Piece, Schedule, check_optimizer, check_steps
from steepest.testing import check_schedule, schedule_checks


class Fall(Schedule):
    """A straight line down.

    Example: see the test.
    """

    name = "fall"

    def __init__(self, optimizer, steps, floor=0.1, last_epoch=None):
        check_optimizer(optimizer)
        check_steps("steps", steps)
        check_number("floor", floor, low=0.0, high=1.0)
        self.curve = Curve([Piece(steps, 1.0, floor)])
        super().__init__(optimizer, last_epoch)

    @classmethod
    def spanning(cls, optimizer, steps):
        return cls(optimizer, steps)

    @classmethod
    def samples(cls):
        return [(8, {"steps": 8}), (20, {"steps": 20, "floor": 0.5})]


class NoExample(Fall):
    """Nothing shown."""


class Multiplies(Fall):
    """Each rate is made from the one before. Example."""

    def get_lr(self):
        if self.last_epoch == 0:
            return super().get_lr()
        share = self.factor(self.last_epoch) / self.factor(self.last_epoch - 1)
        return [group["lr"] * share for group in self.optimizer.param_groups]


class Counts(Fall):
    """It counts how often it was asked. Example."""

    def factor(self, step):
        self.asked = getattr(self, "asked", 0) + 1
        return self.curve(self.asked)


class StartsAnew(Fall):
    """It writes the rate of step 0 into a loaded optimizer, as torch's do. Example."""

    def __init__(self, optimizer, steps, floor=0.1, last_epoch=-1):
        super().__init__(optimizer, steps, floor, last_epoch)


class LeavesRates(Fall):
    """It loads a step and leaves the rates. Example."""

    def load_state_dict(self, state_dict):
        self.last_epoch = state_dict["last_epoch"]


class OneRate(Fall):
    """One rate for all groups. Example."""

    def get_lr(self):
        rates = super().get_lr()
        return rates[:1] * len(rates)


class BelowItsFloor(Fall):
    """It states a floor and goes below. Example."""

    def factor(self, step):
        return max(0.0, 1.0 - step / 100.0)


class DividesByItsLength(Fall):
    """Infinite for a run of one step. Example."""

    def __init__(self, optimizer, steps, floor=0.1, last_epoch=None):
        self.steps = steps
        super().__init__(optimizer, steps, floor, last_epoch)

    def factor(self, step):
        return super().factor(step) if self.steps > 1 else math.inf


class TakesAnyLength(Fall):
    """A run of no step is taken for one. Example."""

    @classmethod
    def spanning(cls, optimizer, steps):
        return cls(optimizer, max(1, int(steps or 1)))


class SecondBeta(Fall):
    """It moves the wrong beta. Example."""

    def momentum(self, step):
        return 0.5

    def _write(self):
        for group in self.optimizer.param_groups:
            group[STEP] = self.last_epoch
            if "betas" in group:
                group["betas"] = (0.5, 0.5)
            group["momentum"] = 0.5


class AnotherTensor(Fall):
    """It puts another tensor where the rate was. Example."""

    def step(self, epoch=None):
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"] = group["lr"].clone()


class TakesAnything(Fall):
    """A step of -2 is taken for a start. Example."""

    def __init__(self, optimizer, steps, floor=0.1, last_epoch=None):
        super().__init__(optimizer, steps, floor, None if last_epoch is None else max(-1, int(last_epoch)))


class Quiet(Fall):
    """Its words leave out an argument. Example."""

    def extra_repr(self):
        return "steps=3"


def test_a_good_member_passes():
    check_schedule(Fall)


BROKEN = [
    (NoExample, "declaration"),
    (Multiplies, "pure"),
    (Multiplies, "rate_before"),
    (Counts, "pure"),
    (StartsAnew, "resume"),
    (LeavesRates, "resume"),
    (OneRate, "ratios"),
    (BelowItsFloor, "bounds"),
    (DividesByItsLength, "lengths"),
    (TakesAnyLength, "lengths"),
    (SecondBeta, "momentum"),
    (AnotherTensor, "tensor_rate"),
    (TakesAnything, "bad_input"),
    (Quiet, "constructor"),
]


@pytest.mark.parametrize(("cls", "check"), BROKEN, ids=[f"{cls.__name__}-{check}" for cls, check in BROKEN])
def test_a_broken_member_fails_the_check_named_for_it(cls, check):
    with pytest.raises((AssertionError, KeyError)):
        dict(schedule_checks(cls))[check]()
