"""The suite of probes refuses each kind of probe that would disturb a run or fail in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steepest.core.probe import Moment, Probe, Reading
from steepest.testing import check_probe, probe_checks


class Sound(Probe):
    """The length of the gradient.

    Example:
        >>> Sound().name
        'sound'
    """

    name = "sound"
    cost = "one pass over the gradients"

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def measure(self, moment: Moment) -> Reading:
        """The length."""
        return Reading({"norm": self.number(moment)})

    def number(self, moment: Moment) -> Any:
        """What subclasses spoil."""
        slopes = list(moment.gradients().values())
        return torch.stack([g.norm() for g in slopes]).norm() if slopes else 0.0


class Draws(Sound):
    """It runs the model as it stands: running statistics go on."""

    needs = ("batch",)

    def measure(self, moment: Moment) -> Reading:
        """After a pass."""
        moment.module(moment.inputs)
        return super().measure(moment)


class Backward(Sound):
    """It writes gradients."""

    needs = ("objective", "batch")

    def number(self, moment: Moment) -> Any:
        """That of a second backward."""
        with moment.untouched():
            moment.loss().backward()
        return super().number(moment)


class Mode(Sound):
    """It leaves evaluation mode behind."""

    def number(self, moment: Moment) -> Any:
        """The same."""
        moment.module.eval()
        return super().number(moment)


class Writes(Sound):
    """It clips in place."""

    def number(self, moment: Moment) -> Any:
        """Of clipped gradients."""
        for g in moment.gradients().values():
            g.clamp_(-1e-3, 1e-3)
        return super().number(moment)


class Hooked(Sound):
    """It leaves a hook."""

    def number(self, moment: Moment) -> Any:
        """The same."""
        next(iter(moment.module.modules())).register_forward_hook(lambda *_: None)
        return super().number(moment)


class Scaled(Sound):
    """It reads what a scaler multiplied."""

    def number(self, moment: Moment) -> Any:
        """Of ``.grad``."""
        slopes = [p.grad for p in moment.module.parameters() if p.grad is not None]
        return torch.stack([g.norm() for g in slopes]).norm() if slopes else 0.0


class Raises(Sound):
    """It fails of NaN."""

    def number(self, moment: Moment) -> Any:
        """An integer of it."""
        return float(round(float(super().number(moment)), 3) // 1 + int(float(super().number(moment))))


class Forgets(Sound):
    """It counts, and does not save the count."""

    count = 0

    def number(self, moment: Moment) -> Any:
        """The count."""
        self.count += 1
        return float(self.count)


class Noise(Sound):
    """Another number each time."""

    made = 0

    def number(self, moment: Moment) -> Any:
        """The count of all of them."""
        Noise.made += 1
        return float(Noise.made)


class Vector(Sound):
    """A number that is none."""

    def number(self, moment: Moment) -> Any:
        """A vector."""
        return torch.ones(2)


class Hidden(Sound):
    """No cost.

    Example:
        >>> Hidden().cost
        ''
    """

    cost = ""


def broken(cls: type[Probe]) -> set[str]:
    """The checks that a class fails, those on two ranks left out."""
    names = set()
    for name, check in probe_checks(cls):
        if name == "ranks":
            continue
        try:
            check()
        except Exception:
            names.add(name)
    return names


def test_a_sound_probe_passes():
    assert broken(Sound) == set()


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Draws, "no_trace"), (Backward, "no_trace"), (Mode, "no_trace"), (Writes, "no_trace"), (Hooked, "no_trace"),
        (Scaled, "scale"), (Raises, "degenerate"), (Forgets, "state"), (Noise, "repeat"),
        (Vector, "reading"), (Hidden, "declaration"),
    ],
)  # fmt: skip
def test_a_probe_that_breaks_its_promise_is_found(cls, check):
    assert check in broken(cls)


def test_the_first_broken_promise_is_named():
    with pytest.raises(AssertionError, match=r"Hidden, declaration: cost"):
        check_probe(Hidden)
