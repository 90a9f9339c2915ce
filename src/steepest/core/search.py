"""Search spaces: what an objective lets a comparison tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .checks import refuse
from .scalars import plain


@dataclass(frozen=True)
class Float:
    """A real hyper-parameter in ``[low, high]``, on a logarithmic scale if ``log``.

    >>> Float(0.1, 10.0, log=True).at(0.5)
    1.0
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", plain(self.low))
        object.__setattr__(self, "high", plain(self.high))
        if not self.low < self.high or (self.log and self.low <= 0):
            refuse("low, high", "low < high (and low > 0 on a log scale)", (self.low, self.high))

    def at(self, u: float) -> float:
        """The value at position ``u`` in [0, 1)."""
        if self.log:
            value = float(self.low * (self.high / self.low) ** u)
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)  # rounding may step outside


@dataclass(frozen=True)
class Int:
    """An integer hyper-parameter in ``low..high``, both included.

    >>> Int(1, 3).at(0.99)
    3
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", plain(self.low))
        object.__setattr__(self, "high", plain(self.high))
        if not self.low <= self.high:
            refuse("low, high", "low <= high", (self.low, self.high))

    def at(self, u: float) -> int:
        """The value at position ``u`` in [0, 1)."""
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)


@dataclass(frozen=True)
class Choice:
    """One of several values.

    >>> Choice(("a", "b")).at(0.4)
    'a'
    """

    options: Sequence[object]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", plain(self.options))
        if not self.options:
            refuse("options", "at least one", self.options)

    def at(self, u: float) -> object:
        """The value at position ``u`` in [0, 1)."""
        return self.options[min(int(u * len(self.options)), len(self.options) - 1)]


Space = Float | Int | Choice
