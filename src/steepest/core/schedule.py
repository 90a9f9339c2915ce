"""The contract of a schedule: the learning rate as a pure function of the step, composed of pieces."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .arguments import Arguments
from .checks import check_choice, check_number, refuse, refuse_type

SHAPES = ("constant", "linear", "cosine", "mirror_cosine", "square", "sqrt", "inverse", "exponential")
STEP = "schedule_step"
"""The key of a parameter group that holds the step its rate is for: whoever builds a schedule later goes on there."""


def falling(shape: str, u: float, start: float, end: float, power: float = 0.5) -> float:
    r"""The value of a way down from ``start`` at u = 0 to ``end`` at u = 1, both exactly.

    .. math:: end + (start - end)\, s(u), \quad s: \text{ linear } 1 - u, \text{ cosine } (1 + \cos \pi u) / 2,
        \text{ mirror cosine } 2 (1 - u) - (1 + \cos \pi u) / 2, \text{ square } 1 - u^2, \text{ sqrt } 1 - u^p; \\
        \text{inverse } \Big(\frac{1 - u}{start} + \frac{u}{end}\Big)^{-1}, \quad
        \text{exponential } start^{1 - u} end^u

    Args:
        shape: one of :data:`SHAPES`; ``"constant"`` stays at ``start``.
        u: share of the way in [0, 1]; outside, the nearer end.
        start, end: values, the first not the smaller; above 0 for ``"inverse"`` and ``"exponential"``.
        power: p of ``"sqrt"``.

    >>> falling("cosine", 0.25, 1.0, 0.0)
    0.8535533905932737
    """
    if shape == "constant" or u <= 0.0:
        return start
    if u >= 1.0:
        return end
    if shape == "inverse":
        return _within(1.0 / ((1.0 - u) / start + u / end), start, end)
    if shape == "exponential":
        return _within(start * (end / start) ** u, start, end)
    cosine = 0.5 * (1.0 + math.cos(math.pi * u))
    left = {
        "linear": 1.0 - u,
        "cosine": cosine,
        "mirror_cosine": 2.0 * (1.0 - u) - cosine,
        "square": 1.0 - u * u,
        "sqrt": 1.0 - u**power,
    }[shape]
    return _within(end + (start - end) * left, start, end)


def _within(value: float, high: float, low: float) -> float:
    """What rounding has taken out of the interval, back in it."""
    return max(min(value, high), low)


@dataclass(frozen=True)
class Piece:
    """A stretch of a curve, from where the piece before it ends.

    A way up is the way down of the same shape, run backwards: with ``"sqrt"`` it is flat first and steep at its end.

    Args:
        until: the step at which it ends, counted from the start of the curve; need not be whole.
        start, end: its values at both ends.
        shape: one of :data:`SHAPES`.
        power: of the shape ``"sqrt"``.
        closed: whether the step ``until`` itself still belongs to it, and not to the piece that follows.
    """

    until: float
    start: float
    end: float
    shape: str = "linear"
    power: float = 0.5
    closed: bool = False

    def __post_init__(self) -> None:
        check_number("until", self.until, low=0.0, high=math.inf, open_high=True)
        check_choice("shape", self.shape, SHAPES)
        positive = self.shape in ("inverse", "exponential")
        for name in ("start", "end"):
            check_number(name, getattr(self, name), low=0.0, high=math.inf, open_low=positive, open_high=True)
        if self.shape == "constant" and self.end != self.start:
            refuse("end", f"{self.start:g}, where a constant piece starts", self.end)
        check_number("power", self.power, low=0.0, open_low=True)

    def at(self, u: float) -> float:
        """The value after a share u of the way."""
        if self.end > self.start:
            return falling(self.shape, 1.0 - u, self.end, self.start, self.power)
        return falling(self.shape, u, self.start, self.end, self.power)


class Curve:
    """Pieces one after the other: a number for every step, the same whatever was asked before.

    A step at which one piece ends and the next begins belongs to the next, unless the first is ``closed``. After the
    last piece its end is held, or the pieces start again.

    Args:
        pieces: at least one, their ends in order.
        stretch: None holds the last value. A number: the pieces come again, each round so many times as long as the
            one before it: 1 for equal cycles, 2 for rounds that double, below 1 for rounds that become shorter, until
            one would be shorter than a step; from then on the last value is held.

    Raises:
        ValueError: no pieces, or ends out of order.

    >>> triangle = Curve([Piece(2, 0.0, 1.0), Piece(4, 1.0, 0.0)], stretch=1)
    >>> [triangle(step) for step in range(7)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0]
    """

    def __init__(self, pieces: Sequence[Piece], stretch: float | None = None) -> None:
        if not pieces:
            refuse("pieces", "at least one piece", pieces)
        self.pieces = tuple(pieces)
        self.ends = [float(piece.until) for piece in self.pieces]
        if self.ends != sorted(self.ends):
            refuse("pieces", "ends in order", self.ends)
        if stretch is not None:
            check_number("stretch", stretch, low=0.0, high=math.inf, open_low=True, open_high=True)
            check_number("until of the last piece", self.length, low=0.0, open_low=True)
        self.stretch = stretch

    @property
    def length(self) -> float:
        """Steps of one round."""
        return self.ends[-1]

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        values = [value for piece in self.pieces for value in (piece.start, piece.end)]
        return min(values), max(values)

    def __call__(self, step: float) -> float:
        """The value at a step >= 0."""
        step = float(step)
        if self.stretch is not None:
            step = self._in_round(step)
        place = bisect_right(self.ends, step)
        if place and self.ends[place - 1] == step and self.pieces[place - 1].closed:
            return self.pieces[place - 1].end
        if place == len(self.pieces):
            return self.pieces[-1].end
        begin = self.ends[place - 1] if place else 0.0
        return self.pieces[place].at((step - begin) / (self.ends[place] - begin))

    def _in_round(self, step: float) -> float:
        """The step within the first round at which the same value stands."""
        assert self.stretch is not None
        if self.stretch == 1.0:
            return step % self.length
        begin, length = 0.0, self.length
        while step >= begin + length:
            begin += length
            if self.stretch < 1.0 and length * self.stretch < 1.0:
                return self.length
            length *= self.stretch
        return (step - begin) * (self.length / length)


class Schedule(Arguments, LRScheduler):
    """A learning rate, and for some a momentum, that depends on the step alone.

    Every group's rate is its own (``initial_lr``, the rate with which it came) times :meth:`factor`, so that groups
    keep their ratios; the rate before is never read. A member sets ``curve`` and calls this constructor, or overrides
    :meth:`factor` and :attr:`bounds`.

    A schedule writes the step into the groups, from where it is saved and loaded with the optimizer: built on an
    optimizer that was loaded, or that another schedule has driven, it goes on at that step and changes no rate that is
    right. ``last_epoch=-1`` starts anew; any other number is the step before the one that comes, as in torch.

    Args:
        optimizer: any; one that wraps another shares its groups.
        last_epoch: see above.

    Class attributes:
        name: snake_case, unique.
        exempt: names of conformance checks that don't apply, each with its reason.

    Raises:
        TypeError: not an optimizer.
        ValueError: a momentum is scheduled, and a group has neither ``momentum`` nor ``betas``.
    """

    name: ClassVar[str] = ""
    exempt: ClassVar[dict[str, str]] = {}
    curve: Curve
    last_epoch: int
    base_lrs: list[Any]

    def __init__(self, optimizer: Optimizer, last_epoch: int | None = None) -> None:
        check_optimizer(optimizer)
        if last_epoch is None:
            last_epoch = int(optimizer.param_groups[0].get(STEP, 0)) - 1
        check_number("last_epoch", last_epoch, low=-1, integer=True)
        for group in optimizer.param_groups:
            rate = group["lr"]
            group.setdefault("initial_lr", rate.clone() if isinstance(rate, Tensor) else rate)
            if self.momentum(0) is not None and "betas" not in group and "momentum" not in group:
                refuse("optimizer", "momentum or betas in each group, because the schedule moves them", sorted(group))
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """The share of its own rate that each group has at a step."""
        return self.curve(step)

    def momentum(self, step: int) -> float | None:
        """The momentum (for Adam and its kin the first beta) at a step; None leaves what the groups have."""
        return None

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest :meth:`factor`."""
        return self.curve.bounds

    def get_lr(self) -> list[Any]:
        """The rate of each group at the step ``last_epoch``."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:  # was added later
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
        factor = self.factor(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next step: call it after ``optimizer.step()``."""
        super().step(epoch)
        self._write()

    def _write(self) -> None:
        """The step and the momentum, into the groups."""
        momentum = self.momentum(self.last_epoch)
        for group in self.optimizer.param_groups:
            group[STEP] = self.last_epoch
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def state_dict(self) -> dict[str, Any]:
        """The step and the groups' own rates, as plain numbers (tensors where the rates are)."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs), "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave, and set the rates of that step.

        Raises:
            ValueError: the rates of another number of groups.
        """
        rates, groups = state_dict["base_lrs"], self.optimizer.param_groups
        if len(rates) != len(groups):
            refuse("state_dict", f"rates of {len(groups)} groups", len(rates))
        self.last_epoch, self._step_count = int(state_dict["last_epoch"]), int(state_dict["_step_count"])
        self.base_lrs = list(rates)
        for group, rate in zip(groups, self.get_lr()):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [rate.clone() if isinstance(rate, Tensor) else rate for rate in (g["lr"] for g in groups)]
        self._write()

    def _shown(self) -> dict[str, Any]:
        return {name: value for name, value in super()._shown().items() if name not in ("optimizer", "last_epoch")}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    @classmethod
    def spanning(cls, optimizer: Optimizer, steps: int) -> Self:
        """One for a run of so many steps, with the settings of its publication for all else.

        Raises:
            ValueError: fewer than one step.
        """
        raise NotImplementedError

    @classmethod
    def samples(cls) -> list[tuple[int, dict[str, Any]]]:
        """For the conformance suite: steps of a run, at most a few hundred, and the arguments after the optimizer."""
        raise NotImplementedError


def check_optimizer(optimizer: object) -> None:
    """Check that a schedule can drive this."""
    if not isinstance(optimizer, Optimizer):
        refuse_type("optimizer", "a torch.optim.Optimizer", optimizer)


def check_steps(argument: str, steps: object, *, low: int = 1) -> None:
    """Check a whole number of steps."""
    check_number(argument, steps, low=low, integer=True)
