"""How long a comparison may still go on: one clock of wall seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

EVER = 1e12
"""Seconds that no run sees the end of; a file keeps them in place of infinity."""


class OutOfTime(Exception):  # nothing is wrong where it is raised
    """A training was interrupted: its time is over. What it did is dropped."""


class Deadline:
    """A budget of wall seconds, what earlier calls spent of it counted in.

    Args:
        seconds: the whole budget.
        spent: seconds that were spent of it before ``began``.
        began: when this call began, by ``clock``; None is now.
        clock: wall seconds; workers read the same clock, so it is that of the system and not of a process.

    >>> now = [100.0]
    >>> deadline = Deadline(60, spent=20, clock=lambda: now[0])
    >>> deadline.left, deadline.fits(41), deadline.ends_at
    (40.0, False, 140.0)
    >>> now[0] = 145.0
    >>> deadline.left, deadline.over, deadline.elapsed
    (-5.0, True, 45.0)
    """

    def __init__(
        self,
        seconds: float,
        spent: float = 0.0,
        began: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.seconds, self.spent, self.clock = seconds, spent, clock
        self.began = clock() if began is None else began

    @property
    def ends_at(self) -> float:
        """When the budget ends, by the clock."""
        return self.began + self.seconds - self.spent

    @property
    def elapsed(self) -> float:
        """Seconds of this call until now."""
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self.ends_at - self.clock()

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0

    def fits(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return seconds <= self.left
