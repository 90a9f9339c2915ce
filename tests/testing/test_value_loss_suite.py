"""The suite of losses of values lets a sound one through and catches each broken one by the right check."""

from __future__ import annotations

import pytest
import torch

from steepest.core.checks import check_number
from steepest.core.reductions import reduce
from steepest.core.value_loss import ValueLoss, checked_values
from steepest.testing import check_value_loss, value_loss_checks


class Sound(ValueLoss):
    """Half the squared error, times a scale.

    Example: none.
    """

    name = "sound_value"
    alternatives = {"scale": (1.0, 2.0)}

    def __init__(self, scale=1.0, reduction="mean"):
        super().__init__(reduction)
        check_number("scale", scale)
        self.scale = scale

    def single(self, value, target):
        return self.scale * (value - target.detach()).square() / 2

    def forward(self, value, target, *, weight=None):
        value, target = checked_values(value=value, target=target)
        return reduce(self.single(value, target), self.reduction, weight)

    @classmethod
    def samples(cls, generator, dtype=torch.float32, device="cpu"):
        args = torch.randn(2, 5, generator=generator, dtype=torch.float64).to(device, dtype)
        return [(cls(scale), ((args[0], args[1]), {})) for scale in (1.0, 3.0)]


class SoundHalfGradient(Sound):
    """The same loss, whose gradient stops at half of the difference.

    Example: none.
    """

    name = "sound_surrogate"
    gradient = "surrogate"
    divergence = False

    def single(self, value, target):
        return self.scale * (value - target).detach() * (value - target.detach())

    @staticmethod
    def reference_gradient(loss, value, target):
        return {"value": loss.scale * (value - target)}


class Broadcasts(Sound):
    def forward(self, value, target, *, weight=None):
        return reduce(self.single(value.float() if value.element_size() == 2 else value, target.to(value)),
                      self.reduction, weight)  # fmt: skip


class FlowsIntoTarget(Sound):
    def single(self, value, target):
        return self.scale * (value - target).square() / 2


class StopsAll(Sound):
    def single(self, value, target):
        return super().single(value.detach(), target) + 0 * value.sum()


class IgnoresWeight(Sound):
    def forward(self, value, target, *, weight=None):
        return super().forward(value, target)


class MeanOfSum(Sound):
    def forward(self, value, target, *, weight=None):
        loss = super().forward(value, target, weight=weight)
        return loss * 2 if self.reduction == "sum" else loss


class Offset(Sound):
    def single(self, value, target):
        return super().single(value, target) + 0.1


class FlatNearTarget(Sound):
    def single(self, value, target):
        difference = (value - target.detach()).abs()
        return self.scale * torch.where(difference < 0.01, 0.0, difference).square() / 2


class Overflows(Sound):
    def single(self, value, target):
        return self.scale * ((value - target.detach()).square().cosh() - 1)


class SaysTooMuch(Sound):
    largest = 10.0


class UnusedArgument(Sound):
    def single(self, value, target):
        return (value - target.detach()).square() / 2


class UndeclaredArgument(Sound):
    alternatives = {}


class TakesNaN(Sound):
    def __init__(self, scale=1.0, reduction="mean"):
        ValueLoss.__init__(self, reduction)
        self.scale = scale


class FollowsTarget(Sound):
    def forward(self, value, target, *, weight=None):
        target, value = checked_values(target=target, value=value)
        return reduce(self.single(value, target), self.reduction, weight)


class WrongReference(SoundHalfGradient):
    @staticmethod
    def reference_gradient(loss, value, target):
        return {"value": value - target}


class OtherNames(Sound):
    values = ("prediction", "target")


class CrashesWhenEmpty(Sound):
    def single(self, value, target):
        return super().single(value, target) + 0 * value.max()


class ReadsValues(Sound):
    def single(self, value, target):
        return super().single(value, target) * (1.0 if float(value.detach().sum()) < 1e9 else 2.0)


@pytest.mark.parametrize("cls", [Sound, SoundHalfGradient])
def test_sound_members_pass(cls):
    check_value_loss(cls)


@pytest.mark.parametrize(
    ("cls", "title"),
    [
        (Broadcasts, "broadcast"),
        (FlowsIntoTarget, "stopped"),
        (StopsAll, "stopped"),
        (IgnoresWeight, "reductions"),
        (MeanOfSum, "reductions"),
        (Offset, "rest"),
        (FlatNearTarget, "rest"),
        (Overflows, "extremes"),
        (SaysTooMuch, "extremes"),
        (UnusedArgument, "parameters"),
        (UndeclaredArgument, "parameters"),
        (TakesNaN, "parameters"),
        (FollowsTarget, "gradient_types"),
        (WrongReference, "reference"),
        (OtherNames, "values"),
        (CrashesWhenEmpty, "empty"),
        (ReadsValues, "vmap"),
    ],
)
def test_broken_members_are_caught(cls, title):
    check = dict(value_loss_checks(cls))[title]
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        check()


def test_a_member_without_samples_says_so():
    class Empty(Sound):
        """Without samples.

        Example: none.
        """

        samples = ValueLoss.samples

    with pytest.raises(AssertionError, match=r"Empty, .*gives no samples"):
        check_value_loss(Empty)
    with pytest.raises(NotImplementedError, match="reference"):
        ValueLoss.reference_gradient(Sound())
